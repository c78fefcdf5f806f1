"""What a SLURM job does about its former self, signals and needs, in processes of its own."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_run import LONG, ROOT

from harness.lease import LeaseTaken
from harness.plan import plan
from harness.snapshot import path_line, record_of, take
from harness.store import Store

PROGRAM = "import sys; from harness.job import Job; Job(sys.argv[1], sys.argv[2], 1, 20)()"


def start(store: Store, run_id: str, job: str, restart: int) -> subprocess.Popen:
    """A job as SLURM starts it, with a queue of its own that nobody answers for."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(store.root), run_id],
        cwd=ROOT,
        env={**os.environ, "SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(restart)},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(job: subprocess.Popen) -> None:
    said = job.communicate(timeout=120)[1]
    assert job.returncode == 0, said


@pytest.fixture
def planned(tmp_path: Path, sweep_file):
    """(store, its one run, a store where the same run was left in peace)."""
    file = sweep_file(LONG, base="")
    stores = Store(tmp_path / "disturbed"), Store(tmp_path / "calm")
    (run,) = plan(file).runs
    for store in stores:
        store.run(run.run_id).write_spec(run.spec.model_dump(mode="json"), {})
    return stores[0], stores[0].run(run.run_id), stores[1].run(run.run_id)


def await_epochs(folder, count: int) -> None:
    deadline = time.time() + 60
    while len(folder.metrics()) < count:
        assert time.time() < deadline
        time.sleep(0.02)


def hold_still(job: subprocess.Popen, folder) -> None:
    """Stop it where it does not hold the lease's lock: nobody could take the lease then."""
    with open(folder.path / "lease.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.kill(job.pid, signal.SIGSTOP)
        deadline = time.time() + 60
        while Path(f"/proc/{job.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
            assert time.time() < deadline
            time.sleep(0.01)


def rows(folder) -> list[dict]:
    clock = ("time", "epoch_seconds")
    return [{k: v for k, v in row.items() if k not in clock} for row in folder.metrics()]


def test_a_requeued_job_fences_off_its_former_self(planned):
    """As when a node is lost to SLURM and the processes on it live on."""
    store, folder, calm = planned
    old = start(store, folder.run_id, "7", 0)
    await_epochs(folder, 3)
    hold_still(old, folder)  # it must not come to its end before the other begins
    twin = start(store, folder.run_id, "7", 1)
    deadline = time.time() + 60
    while folder.holder()["pid"] != twin.pid:
        assert time.time() < deadline
        time.sleep(0.02)
    os.kill(old.pid, signal.SIGCONT)
    said = old.communicate(timeout=120)[1]
    assert old.returncode != 0
    assert "taken over by" in said
    finish(twin)
    finish(start(Store(calm.path.parent), calm.run_id, "8", 0))
    assert rows(folder) == rows(calm)
    assert folder.result()["metrics"] == calm.result()["metrics"]
    assert folder.attempts() == 2
    assert folder.failure() is None


def test_another_job_does_not_take_the_lease_of_one_that_lives(planned, monkeypatch):
    store, folder, _ = planned
    old = start(store, folder.run_id, "7", 0)
    await_epochs(folder, 1)
    for job, restart in (("8", 1), ("7", 0)):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        with pytest.raises(LeaseTaken), folder.lease():
            pass
    old.kill()
    old.communicate()


def test_told_to_leave_a_run_keeps_the_step_it_was_at(planned):
    """TERM alone: outside of SLURM there is no queue to go back to."""
    store, folder, _ = planned
    job = start(store, folder.run_id, "7", 0)
    await_epochs(folder, 2)
    job.terminate()
    said = job.communicate(timeout=60)[1]
    assert job.returncode == 1
    assert "checkpoint written" in said
    assert folder.state() == "interrupted"
    assert folder.checkpoints()


def test_a_run_whose_need_has_no_result_is_not_started(tmp_path, sweep_file):
    file = sweep_file("runs:\n  one: {}\n  two: {needs: {weights: one}, head: pre_logits}\n")
    store = Store(tmp_path / "runs")
    for run in plan(file).runs:
        store.run(run.run_id).write_spec(run.spec.model_dump(mode="json"), {})
    needing = next(run for run in plan(file).runs if run.spec.needs)
    job = start(store, needing.run_id, "7", 0)
    said = job.communicate(timeout=60)[1]
    assert job.returncode == 0
    assert f"it needs run {needing.spec.needs['weights']}, which is new" in said
    assert store.run(needing.run_id).attempts() == 0


def test_frozen_code_is_stored_once_and_is_what_python_imports(tmp_path):
    first = take(ROOT, tmp_path / "code", {"commit": "abc", "dirty": True, "diff": ""})
    assert take(ROOT, tmp_path / "code", {"commit": "def"}) == first
    assert record_of(first)["commit"] == "abc"
    assert [place.name for place in (tmp_path / "code").iterdir()] == [first.name]
    program = "import harness, fusions; print(harness.__file__, fusions.__file__)"
    lines = f"{path_line(first)}\n{sys.executable} -P -c '{program}'"
    said = subprocess.run(
        ["bash", "-c", lines], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert all(Path(name).is_relative_to(first) for name in said), said
