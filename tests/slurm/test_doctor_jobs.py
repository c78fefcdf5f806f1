"""`harness doctor --launcher slurm`, in jobs of a real SLURM."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]

ROOT = Path(__file__).resolve().parent.parent.parent
SWEEP = """
report: {table: tiny, title: "A tiny sweep", metrics: [verb_top1]}
base:
  data: {name: simkitchen, options: {train_size: 96, select_size: 32, test_size: 64}}
  encoders: {text: {name: word_transformer, options: {width: 16}}}
  width: 16
  fusion: {name: single}
  train: {epochs: 3, batch_size: 16, steps_per_epoch: 4, optimiser: adamw, warmup_epochs: 1}
runs: {text: {label: Question only}}
"""
LATER = "slurm: {options: {begin: now+1hour}}\n"


def start(folder: Path, *words: str) -> subprocess.Popen:
    """`harness doctor --launcher slurm WORDS` in `folder`; nothing is asked of a real hub."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "harness.cli", "doctor", "--launcher", "slurm", *words],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": paths,
            "HF_HUB_OFFLINE": "1",
            "HF_ENDPOINT": "http://127.0.0.1:9",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Ctrl-C ends it also where these tests are a job in the background, which ignores it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def doctor(folder: Path, *words: str) -> tuple[int, str, dict[str, tuple[str, str]]]:
    """Exit code, all that was printed, and check -> (state, what was found)."""
    process = start(folder, *words)
    out, err = process.communicate(timeout=300)
    table = out.partition("\nwhat to fix\n")[0]
    rows = re.findall(r"^(\w.*?) +(ok|warn|fail|skipped) +(.*)$", table, re.M)
    return process.returncode, err + out, {name: (state, told) for name, state, told in rows}


def jobs() -> list[str]:
    """Ids and states of doctors that are not over."""
    said = subprocess.run(
        ["squeue", "--noheader", "--name=harness-doctor", "--format=%i %T"],
        capture_output=True,
        text=True,
        check=True,
    )
    return said.stdout.splitlines()


def test_a_job_of_four_tasks_on_two_nodes_passes_and_tries_a_run(tmp_path):
    (tmp_path / "harness.site.yaml").write_text("slurm: {nodes: 2, tasks_per_node: 2, mem_gb: 4}\n")
    (tmp_path / "tiny.yaml").write_text(SWEEP)
    code, said, rows = doctor(tmp_path, "tiny.yaml")
    assert code == 0, said
    assert re.search(r"^job \d+ on n1, n2$", said, re.M)
    between = "between the node and the machine that submits"
    assert rows["file locks"] == ("ok", f"flock excludes {between}")
    for check in ("python", "atomic rename", "clocks", "hard links", "hub", "numba", "inputs"):
        assert rows[check][0] == "ok", said
    assert re.match(r"gloo: 4 tasks \(2 on n1, 2 on n2\) sum 16 MB", rows["tasks"][1])
    assert re.match(r"Question only: \S+ s a step of 16, \S+ h in all", rows["training"][1])
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"doctor", "code"}


def test_what_the_sweep_asks_for_and_the_node_has_not_fails(tmp_path):
    (tmp_path / "tiny.yaml").write_text(SWEEP + "slurm: {gpus_per_node: 1, mem_gb: 0.1}\n")
    code, said, rows = doctor(tmp_path, "tiny.yaml")
    assert code == 1
    assert rows["gpu"][0] == "fail"
    assert rows["gpu"][1].startswith("1 asked for, torch sees none")
    assert rows["tasks"] == ("skipped", "one task")
    assert re.search(r"^  training: set slurm\.mem_gb: [12] \(now 0\.1 GB\)$", said, re.M)


def test_a_line_of_setup_that_fails_on_the_node_is_named(tmp_path):
    (tmp_path / "harness.site.yaml").write_text(
        'slurm: {setup: ["ls /no/such/module"], check_setup: false}\n'
    )
    code, said, rows = doctor(tmp_path)
    assert code == 1, said
    assert rows["start"][0] == "fail"
    assert "the job is over (FAILED)" in rows["start"][1]
    assert "harness: setup failed: ls /no/such/module" in rows["start"][1]


def test_a_request_that_no_node_can_meet_is_refused_with_advice(tmp_path):
    (tmp_path / "harness.site.yaml").write_text("slurm: {gpus_per_node: 9}\n")
    code, said, _ = doctor(tmp_path)
    assert code == 2
    assert "asked for: nodes 1, gpus_per_node 9" in said
    assert not (tmp_path / "runs" / "doctor").exists()


def test_when_the_queue_is_long_it_says_what_squeue_says_and_where_to_look(tmp_path):
    (tmp_path / "harness.site.yaml").write_text(LATER)
    code, said, rows = doctor(tmp_path, "--wait", "0.1")
    assert (code, rows) == (1, {})
    job = re.search(r"job (\d+) has not answered in 0\.1 minutes; squeue says PENDING", said)[1]
    assert f"{job}_0_log.out" in said
    assert f"{job} PENDING" in jobs()
    subprocess.run(["scancel", job], check=True)


def test_ctrl_c_cancels_the_job(tmp_path):
    (tmp_path / "harness.site.yaml").write_text(LATER)
    process = start(tmp_path)
    until = time.monotonic() + 60
    while not jobs() and time.monotonic() < until:
        time.sleep(0.2)
    assert jobs()
    time.sleep(1)  # it has the job's number by now
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 130, err
    assert re.search(r"job \d+ was cancelled", err)
    assert jobs() == []
