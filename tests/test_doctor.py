"""`harness doctor` on this machine, with real processes; and what its checks say of broken ones."""

import dataclasses
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harness.doctor import files, machine, trial
from harness.doctor.visit import Visit, inputs
from harness.finding import Finding
from harness.plan import plan
from harness.slurm import SlurmSettings

ROOT = Path(__file__).resolve().parent.parent
RUNS = "runs: {text: {label: Question only}}\n"
SWEEP = """
report: {table: tiny, title: "A tiny sweep", metrics: [verb_top1]}
base:
  data: {name: simkitchen, options: {train_size: 96, select_size: 32, test_size: 64}}
  encoders: {text: {name: word_transformer, options: {width: 16}}}
  width: 16
  fusion: {name: single}
  train: {epochs: 3, batch_size: 16, steps_per_epoch: 4, optimiser: adamw, warmup_epochs: 1}
"""
TAKEN = trial.Taken(0.01, 60.0, 0.0, memory_gb=1.0, gpu_gb=0.0)
"""by a small run"""
ASKED = {"launcher": "slurm", "between": "between two machines", "tasks_per_node": 1}


def doctor(folder: Path, *words: str, **env: str) -> tuple[int, dict[str, tuple[str, str]], str]:
    """Exit code, check -> (state, what was found), and the text below the table."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "SLURM_"))}
    paths = os.pathsep.join([*filter(None, [env.pop("PYTHONPATH", "")]), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", "doctor", *words],
        cwd=folder,
        env={**clean, "HF_ENDPOINT": "http://127.0.0.1:9", **env, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout, done.stderr
    table, _, fixes = done.stdout.partition("\nwhat to fix\n")
    rows = re.findall(r"^(\w.*?) +(ok|warn|fail|skipped) +(.*)$", table, re.M)
    return done.returncode, {name: (state, found) for name, state, found in rows}, fixes


@pytest.fixture
def visit(tmp_path):
    """Of a node where nobody has asked yet."""
    return Visit(tmp_path, dict(ASKED), 0, 1)


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    """What it says of this machine and a tiny sweep."""
    folder = tmp_path_factory.mktemp("looked")
    (folder / "tiny.yaml").write_text(SWEEP + RUNS)
    return folder, *doctor(folder, "tiny.yaml")


@pytest.mark.parametrize(
    ("check", "found"),
    [
        ("sweep file", "tiny, preset none: 1 runs"),
        ("python", r"python \d.*, torch \d.*, numpy \d"),
        ("processors", r"\d+ usable of \d+; threads of each task: 1"),
        ("atomic rename", r"replaced \d+ times before our eyes, always whole"),
        ("clocks", r"a heartbeat is 0\.\d s from the clock; a lease lasts 300 s"),
        ("file locks", "flock excludes between two processes of this machine"),
        ("hard links", "hard links work"),
        ("plugins", r"\d+ fusions, \d+ encoders, \d+ datasets"),
        ("numba", r"within \de-\d+ of the plain loop, gradients too"),
        ("inputs", "0 files or folders of weights and data, and simkitchen"),
        ("tasks", r"(gloo|nccl): 2 tasks \(2 on this machine\) sum 16 MB in \d+ ms"),
        ("training", r"Question only: \S+ s a step of 16, \S+ h in all; \d\.\d GB of memory"),
    ],
)
def test_a_sound_machine_passes_each_check(looked, check, found):
    _, code, rows, _ = looked
    assert rows[check][0] == "ok"
    assert re.match(found, rows[check][1])
    assert code == 0


def test_a_machine_without_a_hub_is_told_how_to_do_without(looked):
    _, _, rows, fixes = looked
    assert rows["hub"] == ("warn", "http://127.0.0.1:9 does not answer, HF_HUB_OFFLINE is not set")
    assert "hub: bring weights here (`harness prefetch FILE` where there is internet)" in fixes


def test_it_leaves_nothing_behind(looked):
    folder = looked[0]
    assert [path.name for path in folder.iterdir() if path.name != "tiny.yaml"] == ["runs"]
    assert list((folder / "runs").iterdir()) == []


def test_a_check_that_ends_its_process_and_a_sweep_with_a_mistake_are_named(tmp_path):
    info = tmp_path / "mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[harness.plugins]\nmine = mine\n")
    (tmp_path / "mine.py").write_text(
        "import os\nfrom harness.registry import CHECKS, Finding\n"
        'CHECKS["wheels"] = lambda: Finding("warn", "three of four", "look in the garage")\n'
        'CHECKS["brakes"] = lambda: os.kill(os.getpid(), 9)\n'
    )
    (tmp_path / "bad.yaml").write_text("runs: {a: {fusion: {name: mamba_shred}}}\n")
    code, rows, fixes = doctor(tmp_path, "bad.yaml", PYTHONPATH=str(tmp_path), HF_HUB_OFFLINE="1")
    assert code == 1
    assert rows["sweep file"][0] == "fail"
    assert rows["sweep file"][1].startswith("bad.yaml")
    assert rows["wheels"] == ("warn", "three of four")
    assert rows["brakes"] == ("fail", "no further than this: its process was ended by signal 9")
    assert "tasks" not in rows
    assert rows["hub"][0] == "ok"
    assert "  wheels: look in the garage" in fixes


def test_a_lock_that_is_granted_twice_is_found(visit):
    for name in (files.HERE, files.LOCK):
        (visit.folder / name).write_text("{}")
    found = files.locks(visit)
    assert found.state == "fail"
    assert "granted twice" in found.found
    assert "set `runs` in the site file" in found.fix


def test_the_partner_lets_go_of_the_lock_when_it_was_respected(visit):
    with files.Partner(visit.folder):
        assert files.renaming(visit).state == "ok"
        assert files.locks(visit) == Finding("ok", "flock excludes between two machines")
    assert list(visit.folder.iterdir()) == []


def test_files_that_are_seen_in_pieces_are_found(visit):
    (visit.folder / files.HERE).write_text("{}")
    over = threading.Event()

    def write_in_place():
        while not over.is_set():
            for letter in (b"a", b"b"):
                (visit.folder / files.REPLACED).write_bytes(letter * files.SIZE)
                with open(visit.folder / files.REPLACED, "r+b") as file:
                    file.write(b"c" * 100)
                time.sleep(0.005)

    writer = threading.Thread(target=write_in_place)
    writer.start()
    found = files.renaming(visit)
    over.set()
    writer.join()
    assert found.state == "fail"
    assert "missing or in pieces" in found.found


@pytest.mark.parametrize(
    ("behind", "state"), [(1, "ok"), (60, "warn"), (-60, "warn"), (290, "fail")]
)
def test_clocks_that_differ_more_than_a_heartbeat_are_found(visit, behind, state):
    (visit.folder / files.HERE).write_text('{"apart": 0.0}')
    (visit.folder / files.REPLACED).touch()
    (visit.folder / files.BEAT).touch()
    os.utime(visit.folder / files.BEAT, (0, time.time() - behind))
    assert files.clocks(visit).state == state


@pytest.mark.parametrize("check", [files.clocks, files.locks])
def test_file_checks_are_left_out_once_the_command_has_gone(visit, check):
    assert check(visit) == Finding("skipped", "the command that asked has ended")


@pytest.fixture
def planned(visit, sweep_file):
    """A visit that is to try a run."""

    def make(**asked: float | None) -> Visit:
        sweep = plan(sweep_file(RUNS))
        defaults = SlurmSettings()
        more = {
            "spec": sweep.runs[0].spec.model_dump(mode="json"),
            "label": "Question only",
            "paths": dict(sweep.paths),
            "threads": 1,
            "mem_gb": None,
            "time_minutes": defaults.time_minutes,
            "requeues": defaults.requeues,
        }
        return dataclasses.replace(visit, asked={**visit.asked, **more, **asked})

    return make


@pytest.mark.parametrize(
    ("asked", "state", "fix"),
    [
        ({"mem_gb": 2}, "ok", r"$"),
        ({"mem_gb": 1.2}, "warn", r"set slurm\.mem_gb: 2 \(now 1\.2 GB\)"),
        ({"mem_gb": 2, "tasks_per_node": 4}, "fail", r"set slurm\.mem_gb: 6 \(now 2\.0 GB\)"),
        ({"mem_gb": 0.1}, "fail", r"set slurm\.mem_gb: 2 \(now 0\.1 GB\)"),
    ],
)
def test_memory_that_does_not_suffice_is_found_before_a_run_is_killed(planned, asked, state, fix):
    found = trial.judged(planned(**asked), TAKEN)
    assert found.state == state
    assert re.match(fix, found.fix)


def test_a_run_that_cannot_be_built_ends_its_trial_with_its_words(planned):
    visit = planned()
    spec = {**visit.asked["spec"], "width": 10**9}
    found = trial.trial(dataclasses.replace(visit, asked={**visit.asked, "spec": spec}))
    assert found.state == "fail"
    assert re.match("Question only: (RuntimeError|MemoryError|killed)", found.found)


@pytest.mark.parametrize(("requeues", "state"), [(20, "warn"), (7, "fail")])
def test_a_run_longer_than_its_time_is_found(planned, requeues, state):
    longer = dataclasses.replace(TAKEN, run_seconds=30 * 3600)
    found = trial.judged(planned(requeues=requeues, mem_gb=64), longer)
    assert found.state == state
    assert re.match(r"set slurm\.time_minutes: 2250, if the partition allows", found.fix)


def test_data_that_are_others_on_the_node_are_found(planned):
    visit = planned()
    assert inputs(visit).state == "ok"
    spec = {**visit.asked["spec"], "fingerprint": "0" * 64}
    other = dataclasses.replace(visit, asked={**visit.asked, "spec": spec, "paths": {}})
    assert inputs(other).found == "the data of simkitchen are others here"
    gone = {"sha256:0": str(visit.folder / "orvit.pth")}
    lacking = inputs(dataclasses.replace(visit, asked={**visit.asked, "paths": gone}))
    assert lacking.state == "fail"
    assert f"{gone['sha256:0']} is gone or has changed" in lacking.found


def test_gpus_that_torch_does_not_see_are_found(visit):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there are some")
    found = machine.gpu(dataclasses.replace(visit, asked={**visit.asked, "gpus": 2}))
    assert found.state == "fail"
    assert found.found.startswith("2 asked for, torch sees none")
    assert found.fix


def test_more_threads_than_processors_are_found(visit):
    asked = {**visit.asked, "threads": 10_000}
    assert machine.processors(dataclasses.replace(visit, asked=asked)).state == "warn"
