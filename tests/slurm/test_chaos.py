"""Twenty things that go wrong on a cluster, in an order that a seed decides, to 24 runs.

Afterwards every run is done, with the numbers of a sweep that nothing disturbed.
"""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from slurm_runs import await_states, fingerprint, harness, in_background, start_folder, states

from harness import track
from harness.plan import plan
from harness.store import RunFolder, Store

pytestmark = pytest.mark.slurm
SEED = 7
SWEEP = """
report: {table: chaos, title: "Chaos", metrics: [label_top1]}
base:
  data: {name: watch}
  encoders:
    accel: {name: sensor_conv, options: {width: 8, rotation: 0.2, dropout: 0.3}}
    gyro: {name: sensor_conv, options: {width: 8, rotation: 0.2, dropout: 0.3}}
  fusion: {name: mean}
  width: 8
  train: {epochs: 8, steps_per_epoch: 16, batch_size: 32, optimiser: adamw, warmup_epochs: 1}
seeds: [0, 1, 2, 3, 4, 5, 6, 7]
runs:
  both: {}
  accel: {encoders.gyro: null, fusion: {name: single}}
  again: {needs: {weights: both}, train.epochs: 4}
"""
EVENTS = {
    "kill": 6,
    "requeue": 4,
    "preempt": 3,
    "crash": 2,
    "lose": 1,
    "restart-controller": 2,
    "fill": 1,
    "free": 1,
}


def test_whatever_happens_the_table_is_the_same(cluster, tmp_path):
    folder = start_folder(tmp_path / "chaos")
    (folder / "chaos.yaml").write_text(SWEEP)
    elsewhere = start_folder(tmp_path / "calm")
    (elsewhere / "chaos.yaml").write_text(SWEEP)
    store = Store(folder / "runs")
    first = store.run(plan(folder / "chaos.yaml").run_ids[0])
    with (
        in_background(elsewhere, "sweep", "chaos.yaml", "--launcher=inline", "--threads=1"),
        _small_disk(first) as disk,
    ):
        code, _, said = harness(folder, "sweep", "chaos.yaml", "--launcher=slurm")
        assert code == 0, said
        assert "24 submitted" in said
        happened = _disturb(cluster, folder, disk)
        assert len(happened) == 20
        await_states(folder, "chaos", 480)
        again = harness(folder, "sweep", "chaos.yaml", "--launcher=slurm", "--wait")
        assert set(states(folder, "chaos").values()) == {"done"}, (happened, again)
        attempts = sum(store.run(run_id).attempts() for run_id in _runs(store))
        assert attempts > 24 + 6, "the events did not reach the runs"
        for run in store.runs():
            _check_done_once(run)
        table = harness(folder, "report", "chaos")[1]
        _check_mlflow(store)
        found = fingerprint(folder)
    assert found == fingerprint(elsewhere)
    assert "Chaos" in table
    assert _processes(folder) == []


def _runs(store: Store) -> list[str]:
    (record,) = store.sweeps()
    return list(dict.fromkeys(row["run_id"] for row in record["runs"]))


def _at_work(store: Store) -> list[RunFolder]:
    """The runs with an epoch behind them, once there are two; fewer if they do not come."""
    deadline = time.time() + 15
    while True:
        found = [run for run in store.runs() if run.state() == "running" and run.metrics()]
        if len(found) > 1 or time.time() > deadline:
            return found
        time.sleep(0.1)


def _disturb(cluster, folder: Path, disk: Path) -> list[str]:
    """Let the events happen, one every few seconds; their names, in order."""
    order = [name for name, count in EVENTS.items() for _ in range(count) if name != "free"]
    chance = random.Random(SEED)
    chance.shuffle(order)
    place = order.index("fill")
    order.insert(chance.randrange(place + 1, len(order) + 1), "free")
    store, down = Store(folder / "runs"), []
    for name in order:
        time.sleep(chance.uniform(0, 3))
        running = _at_work(store)
        chosen = chance.choice(running) if running else None
        if down and name in ("crash", "lose"):  # one node at least stays up
            cluster("recover", down.pop())
        if name == "kill" and chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chosen.holder()["pid"], signal.SIGKILL)
        elif name == "requeue" and chosen:
            subprocess.run(["scontrol", "requeue", chosen.holder()["job"]], check=False)
        elif name == "preempt":
            urgent = ["--partition=urgent", "--nodes=1", "--exclusive", "--wrap=sleep 2"]
            subprocess.run(["sbatch", "--output=/dev/null", "--quiet", *urgent], check=False)
        elif name in ("crash", "lose"):
            down.append(chance.choice(["n1", "n2"]))
            cluster(name, down[-1])
        elif name == "restart-controller":
            cluster(name)
        elif name == "fill":
            with contextlib.suppress(OSError), open(disk / "filler", "wb") as filler:
                while True:
                    filler.write(b"\0" * 4096)
                    filler.flush()
        elif name == "free":
            (disk / "filler").unlink()
    for node in down:
        cluster("recover", node)
    return order


@contextlib.contextmanager
def _small_disk(run: RunFolder) -> Iterator[Path]:
    """The folder of a run on a disk of its own, of 2 MB."""
    run.path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", run.path], check=True)
    try:
        yield run.path
    finally:
        subprocess.run(["umount", "--lazy", run.path], check=True)


def _check_done_once(run: RunFolder) -> None:
    finished = run.result()["finished"]
    assert run.failure() is None
    assert run.attempt_times()[-1] < finished, "it was begun again after it was done"
    assert not (run.path / "stale").exists()
    assert run.holder()["released"], "a lease is left"
    assert [row["epoch"] for row in run.metrics()] == list(range(1, len(run.metrics()) + 1))


def _check_mlflow(store: Store) -> None:
    """Every run once, every step of every metric once."""
    address = track.uri(store)
    known, client = track.tracked(address), MlflowClient(address)
    assert sorted(known) == sorted(_runs(store))
    for run_id in _runs(store):
        steps = [row["epoch"] for row in store.run(run_id).metrics()]
        points = client.get_metric_history(known[run_id].mlflow_id, "train/loss")
        assert sorted(point.step for point in points) == steps


def _processes(folder: Path) -> list[str]:
    """What still runs of the jobs of a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            if str(folder) in words and "_submit" in words:
                found.append(words)
    return found
