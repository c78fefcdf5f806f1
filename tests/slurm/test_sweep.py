"""Sweeps through a real SLURM. Every job, node and signal here is a real one."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from slurm_runs import (
    LONG,
    PROJECT,
    SITE,
    TINY,
    await_epochs,
    await_states,
    fingerprint,
    harness,
    in_background,
    jobs_of,
    start_folder,
    states,
)

from harness.store import Store

pytestmark = pytest.mark.slurm
LONGER = ("sweep", "long.yaml", "--launcher=slurm", "--set=train.epochs=2000")
SMALL = [
    f"--set={setting}"
    for setting in (
        "seeds=[0]",
        "needs.perception.data.options.train_size=512",
        "needs.perception.train.epochs=2",
        "needs.perception.train.steps_per_epoch=5",
        "data.options.train_size=256",
        "data.options.select_size=64",
        "data.options.test_size=128",
        "train.epochs=2",
        "train.steps_per_epoch=4",
    )
]


def test_table3_comes_out_bit_for_bit_as_from_the_local_launcher(cluster, tmp_path):
    folder = start_folder(tmp_path / "slurm")
    code, _, said = harness(
        folder, "sweep", PROJECT / "sweeps/table3.yaml", *SMALL, "--launcher=slurm"
    )
    assert code == 0, said
    # one array for the table, and before it a job for the encoders that all its rows need
    arrays = re.findall(r"job \d+: (\d+) runs", said)
    assert arrays == ["1", "9"], said
    elsewhere = start_folder(tmp_path / "local")
    local = (PROJECT / "sweeps/table3.yaml", *SMALL, "--launcher=local", "--threads=1", "--jobs=2")
    assert harness(elsewhere, "sweep", *local)[0] == 0
    assert set(await_states(folder, "table3", 480).values()) == {"done"}
    code, out, _ = harness(folder, "status", "table3")
    assert "10 runs: 10 done" in out
    assert fingerprint(folder) == fingerprint(elsewhere)
    tables = [harness(place, "report", "table3")[1] for place in (folder, elsewhere)]
    assert tables[0] == tables[1]
    assert "MambaVL (shared A)" in tables[0]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("slurm.gpus_per_node=3", ["Requested node configuration is not available", "sinfo"]),
        ("slurm.partition=nowhere", ["nvalid partition", "sinfo -s"]),
        ('slurm.setup=["modul load cuda"]', ["modul: command not found", "modul load cuda"]),
        ("slurm.partion=work", ["Did you mean 'partition'?"]),
        ("slurm.tasks_per_node=200", ["train.batch_size is", "a share of every batch"]),
    ],
)
def test_an_impossible_request_is_refused_in_slurms_own_words(cluster, tmp_path, setting, words):
    folder = start_folder(tmp_path, TINY)
    code, _, said = harness(folder, "sweep", "tiny.yaml", "--launcher=slurm", f"--set={setting}")
    assert code == 2
    assert all(word in said for word in words), said
    assert "Traceback" not in said
    assert jobs_of(folder) == []
    queued = subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout
    assert "harness-tiny" not in queued


def test_a_setup_line_that_fails_on_the_node_ends_the_job_and_is_named(cluster, tmp_path):
    folder = start_folder(tmp_path, TINY)
    lines = '--set=slurm.setup=["test ! -v SLURM_JOB_ID"]'
    assert harness(folder, "sweep", "tiny.yaml", "--launcher=slurm", lines)[0] == 0
    assert set(await_states(folder, "tiny", 180).values()) == {"lost"}
    assert "setup failed: test ! -v SLURM_JOB_ID" in harness(folder, "status", "tiny")[1]


def test_jobs_run_the_code_that_was_submitted_and_the_record_shows_it(cluster, tmp_path):
    checkout = tmp_path / "checkout"
    for package in ("harness", "fusions", "backbones", "reports"):
        shutil.copytree(PROJECT / package, checkout / package)
    folder = start_folder(tmp_path / "work", TINY)
    env = {"PYTHONPATH": str(checkout)}
    blocker = subprocess.run(
        ["sbatch", "--parsable", "--exclusive", "--nodes=2", "--wrap=sleep 300"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    ).stdout.strip()  # fmt: skip
    assert harness(folder, "sweep", "tiny.yaml", "--launcher=slurm", **env)[0] == 0
    assert set(states(folder, "tiny").values()) == {"queued"}
    source = checkout / "fusions" / "single.py"
    source.write_text(source.read_text() + "\nraise SystemExit('the edited code was run')\n")
    subprocess.run(["scancel", blocker], check=True)
    assert set(await_states(folder, "tiny", 180).values()) == {"done"}
    source.write_text(source.read_text().replace("\nraise SystemExit", "\n# raise SystemExit"))
    out = harness(folder, "plan", "tiny.yaml", **env)[1]
    assert "code differs: fusions/single.py" in out
    frozen = {run.env()["snapshot"] for run in Store(folder / "runs").runs()}
    assert len(frozen) == 1
    kept = folder / "runs" / "code" / frozen.pop() / "fusions" / "single.py"
    assert kept.read_text() == (PROJECT / "fusions" / "single.py").read_text()


def test_a_run_that_is_told_to_leave_goes_on_where_it_was(cluster, tmp_path):
    """USR2 is what comes before a time limit."""
    folder = start_folder(tmp_path / "slurm", LONG)
    elsewhere = start_folder(tmp_path / "local", LONG)
    assert harness(folder, "sweep", "long.yaml", "--launcher=slurm")[0] == 0
    (run,) = Store(folder / "runs").runs()
    job = run.jobs()[-1]["job"]
    await_epochs(run, 3)
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    with in_background(elsewhere, "sweep", "long.yaml", "--launcher=inline", "--threads=1"):
        while run.state() == "running":
            time.sleep(0.1)
        stopped = len(run.metrics())
        assert 3 <= stopped < 100
        assert states(folder, "long")[run.run_id] in ("queued", "running")
        assert set(await_states(folder, "long", 240).values()) == {"done"}
    assert [job] == [one["job"] for one in run.jobs()]
    assert run.attempts() == 2
    assert fingerprint(folder) == fingerprint(elsewhere)


def test_a_time_limit_shorter_than_the_run_is_no_end(cluster, tmp_path):
    """Limits are whole minutes, and looked at every half: the signal comes in the first."""
    folder = start_folder(tmp_path, LONG, slurm={"time_minutes": 1, "signal_delay_s": 40})
    assert harness(folder, *LONGER)[0] == 0
    (run,) = Store(folder / "runs").runs()
    deadline = time.time() + 150
    while run.holder().get("restart", 0) < 1:
        assert time.time() < deadline, states(folder, "long")
        time.sleep(1)
    await_epochs(run, 1)  # the signal may have come before the first one
    out = harness(folder, "status", "long")[1]
    assert re.search(r"requeued [1-3] times", out), out
    assert harness(folder, "cancel", "long", "--yes")[0] == 0
    assert set(await_states(folder, "long", 180).values()) == {"cancelled"}


def test_requeues_have_a_limit(cluster, tmp_path):
    folder = start_folder(tmp_path, LONG, slurm={"requeues": 0})
    assert harness(folder, "sweep", "long.yaml", "--launcher=slurm")[0] == 0
    (run,) = Store(folder / "runs").runs()
    await_epochs(run, 2)
    subprocess.run(["scancel", "--signal=USR2", run.jobs()[-1]["job"]], check=True)
    assert await_states(folder, "long", 180) == {run.run_id: "lost"}
    assert "slurm.requeues allows no more" in harness(folder, "status", "long")[1]
    assert run.failure() is None


def test_status_logs_and_cancel_follow_a_run(cluster, tmp_path):
    folder = start_folder(tmp_path, LONG)
    assert harness(folder, *LONGER)[0] == 0
    (run,) = Store(folder / "runs").runs()
    await_epochs(run, 2)
    job = run.jobs()[-1]["job"]
    out = harness(folder, "status", "long")[1]
    assert re.search(rf"running +job {job} on n\d +epoch \d+/2000, \d+ (s|min) left", out), out
    assert f"run {run.run_id}, job {job}" in harness(folder, "logs", run.run_id[:5])[1]
    again = harness(folder, *LONGER)[2]
    assert "0 submitted, 1 in the queue before" in again
    assert harness(folder, "cancel", run.run_id, stdin="n\n")[0] == 1
    assert states(folder, "long") == {run.run_id: "running"}
    assert harness(folder, "cancel", "long", "--state=queued", "--yes")[2] == "nothing to cancel\n"
    assert "1 of 1 runs ended" in harness(folder, "cancel", "long", stdin="y\n")[2]
    assert await_states(folder, "long", 180) == {run.run_id: "cancelled"}
    assert run.checkpoints()
    assert harness(folder, "status", "lon")[0] == 2
    assert "nothing was printed" not in harness(folder, "logs", run.run_id)[2]


def test_what_finds_no_room_is_submitted_later(cluster, tmp_path):
    folder = start_folder(tmp_path, TINY, slurm={"max_submitted": 1})
    _, _, said = harness(folder, "sweep", "tiny.yaml", "--launcher=slurm")
    assert "1 submitted" in said
    assert "1 runs wait for room" in said
    assert sorted(states(folder, "tiny").values())[0] == "new"
    _, _, said = harness(folder, "sweep", "tiny.yaml", "--launcher=slurm", "--wait")
    assert said.count("1 submitted") == 1
    assert set(states(folder, "tiny").values()) == {"done"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The tiny sweep by one process of this machine."""
    folder = start_folder(tmp_path_factory.mktemp("alone"), TINY)
    assert harness(folder, "sweep", "tiny.yaml", "--launcher=inline", "--threads=1")[0] == 0
    return folder


@pytest.mark.parametrize("shape", [{"tasks_per_node": 2}, {"nodes": 2}], ids=["1x2", "2x1"])
def test_two_processes_give_the_numbers_of_one(cluster, tmp_path, alone, shape):
    folder = start_folder(tmp_path, TINY, slurm=shape)
    assert harness(folder, "sweep", "tiny.yaml", "--launcher=slurm")[0] == 0
    assert set(await_states(folder, "tiny", 240).values()) == {"done"}
    for run in Store(folder / "runs").runs():
        single = Store(alone / "runs").run(run.run_id)
        assert run.env()["world"] == 2
        for mine, other in zip(run.metrics(), single.metrics(), strict=True):
            assert mine["train/loss"] == pytest.approx(other["train/loss"], rel=1e-5)
        for target, logits in single.predictions().logits.items():
            assert run.predictions().logits[target] == pytest.approx(logits, abs=1e-4)
        assert list(run.predictions().ids) == list(single.predictions().ids)


def test_a_dry_run_shows_the_script_and_the_hours_and_submits_nothing(cluster, tmp_path):
    folder = start_folder(tmp_path, TINY, slurm={"gpus_per_node": 2, "time_minutes": 60})
    code, out, _ = harness(folder, "sweep", "tiny.yaml", "--launcher=slurm", "--dry-run")
    assert code == 0
    assert "#SBATCH --gpus-per-node=2" in out
    assert "2 runs: 0.0 GPU-hours; 4.0 if each took its time limit once" in out
    assert not (folder / "runs").exists()


def test_a_dry_run_needs_no_cluster(tmp_path):
    folder = start_folder(tmp_path, TINY)
    bare = os.pathsep.join(
        part
        for part in os.environ["PATH"].split(os.pathsep)
        if not (Path(part) / "sbatch").exists()
    )
    dry = ("sweep", "tiny.yaml", "--launcher=slurm")
    code, out, _ = harness(folder, *dry, "--dry-run", PATH=bare)
    assert code == 0
    assert "#SBATCH --array=0-1" in out
    code, _, said = harness(folder, *dry, PATH=bare)
    assert code == 2
    assert "take --launcher local" in said


def test_the_hours_of_a_dry_run_are_measured_where_a_like_run_was_made(alone, tmp_path):
    dry = ("sweep", "tiny.yaml", "--launcher=slurm", "--dry-run", "--set=seeds=[1]")
    for folder, how in ((start_folder(tmp_path, TINY), "estimated"), (alone, "measured")):
        assert re.findall(r"h  (\w+)$", harness(folder, *dry)[1], re.M) == [how] * 2


def test_the_site_file_is_checked_by_name(tmp_path):
    (tmp_path / "harness.site.yaml").write_text(SITE + "  partion: gpu\n")
    (tmp_path / "tiny.yaml").write_text(TINY)
    code, _, said = harness(tmp_path, "sweep", "tiny.yaml", "--launcher=slurm")
    assert code == 2
    assert "Did you mean 'partition'?" in said
