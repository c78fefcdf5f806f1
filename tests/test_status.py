"""`harness status`, on stores without a cluster."""

import os
import subprocess
import sys

from report_bench import KITCHEN, Bench, kitchen, kitchen_spec

from harness.store import Store


def test_watched_on_a_small_screen_each_run_is_a_line_and_those_in_trouble_come_first(tmp_path):
    bench = Bench(Store(tmp_path / "runs"))
    for seed in range(6):
        folder = bench.plan("mlp", "An MLP over both streams", kitchen_spec("mlp", seed))
        if seed < 5:
            bench.finish(folder, kitchen((3, 3), (4, 4)))
        else:
            with folder.lease():
                folder.write_failure(f"Traceback\nValueError: {'far too long ' * 9}", lasting=True)
    bench.write_sweep("mine", "", KITCHEN)
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", "status", "mine", "--watch"],
        env={**os.environ, "COLUMNS": "70"}, cwd=tmp_path, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head == "mine, preset none: 6 runs: 5 done, 1 failed"
    *well, failed = [run["run_id"] for run in bench.store.sweeps()[0]["runs"]]
    assert [row.split()[0] for row in rows] == [failed, *well]
    assert all(len(row) <= 70 for row in rows)
