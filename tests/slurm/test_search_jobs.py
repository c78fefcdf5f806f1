"""A search whose workers are SLURM jobs."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from search_bench import SEARCH, SPACE, check_whole, desk_of
from slurm_runs import harness, start_folder

from harness.store import Store

pytestmark = pytest.mark.slurm
WORDS = ("search", "tiny.yaml", "--launcher=slurm", "--jobs=2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a search of trials long enough to be killed in."""
    base = SEARCH.replace("steps_per_epoch: 2", "steps_per_epoch: 60")
    return start_folder(tmp_path, base + SPACE.replace("trials: 6", "trials: 4"))


def workers(folder: Path) -> list[dict]:
    """Who holds the lease of each worker."""
    files = (folder / "runs" / "tiny-plain" / "workers").glob("*.json")
    return [json.loads(file.read_text()) for file in files]


def await_true(what, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def ended(folder: Path) -> int:
    rows = Store(folder / "runs").read_search("tiny", "").get("search", {}).get("rows", {})
    return sum(t["state"] in ("COMPLETE", "PRUNED") for r in rows.values() for t in r["trials"])


def test_a_search_on_slurm_survives_a_killed_worker_a_requeue_and_a_cancel(cluster, folder):
    code, _, said = harness(folder, *WORDS)
    assert code == 0, said
    assert "2 workers submitted" in said
    code, _, said = harness(folder, *WORDS)
    assert "its 2 workers are in the queue already" in said

    await_true(lambda: len(workers(folder)) == 2 and ended(folder) >= 1)
    first, second = workers(folder)
    os.kill(first["pid"], signal.SIGKILL)  # without a word
    # told to leave, as before a time limit; it comes back
    subprocess.run(["scancel", "--signal=USR2", second["job"]], check=True)

    code, out, said = harness(folder, *WORDS, "--wait")
    assert code == 0, said
    desk = desk_of(folder / "tiny.yaml", Store(folder / "runs"))
    check_whole(desk, 4)
    assert desk.over()
    assert "final runs: 8 of 8 done" in out
    retried = [t for row in desk.search.rows for t in desk.all(row.name)
               if "retry_of" in t.user_attrs]  # fmt: skip
    assert retried, "neither was in a trial when it ended"
    run_id = retried[0].user_attrs["runs"][0]
    assert "peak rate" in harness(folder, "logs", run_id)[1]
    assert "One, trial 0" in harness(folder, "status", "tiny")[1]

    code, _, said = harness(folder, *WORDS)
    assert "nothing is left to do" in said
    code, _, said = harness(folder, *WORDS, "--set=search.budget.trials=30")
    assert "2 workers submitted" in said
    assert harness(folder, "cancel", "tiny", "--yes")[0] == 0
    asked = ["squeue", "--noheader", "--format=%i"]
    await_true(lambda: not subprocess.run(asked, capture_output=True, text=True).stdout.strip())


def test_a_worker_of_two_processes_trains_its_trials_together(cluster, folder):
    two = ("--set=slurm.tasks_per_node=2", "--set=search.budget.trials=2", "--jobs=1")
    code, _, said = harness(folder, *WORDS[:3], *two, "--wait")
    assert code == 0, said
    store = Store(folder / "runs")
    desk = desk_of(folder / "tiny.yaml", store, "search.budget.trials=2")
    check_whole(desk, 2)
    run_id = desk.all("one")[0].user_attrs["runs"][0]
    assert store.run(run_id).env()["world"] == 2
