"""What the tests on SLURM have in common."""

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors.numpy import load_file

from harness.status import ENDS, statuses
from harness.store import RunFolder, Store

PROJECT = Path(__file__).resolve().parents[2]
SITE = """
slurm:
  time_minutes: 60
  mem_gb: 1.2
"""
TINY = """
report: {table: tiny, title: "A tiny sweep", metrics: [verb_top1]}
base:
  data:
    name: simkitchen
    options: {train_size: 97, select_size: 33, test_size: 65}
  encoders: {text: {name: word_transformer, options: {width: 16}}}
  width: 16
  fusion: {name: single}
  train: {epochs: 3, batch_size: 15, steps_per_epoch: 4, optimiser: adamw, warmup_epochs: 1}
runs:
  text: {label: Question only}
  more: {label: With pre-logits, head: pre_logits}
"""
LONG = """
report: {table: watch, title: "Sensors", metrics: [label_top1]}
base:
  data: {name: watch}
  encoders: {accel: {name: sensor_conv, options: {width: 8, rotation: 0.2, dropout: 0.3}}}
  fusion: {name: single}
  width: 8
  train: {epochs: 100, steps_per_epoch: 3, batch_size: 16, optimiser: adamw, warmup_epochs: 1}
runs: {accel: {}}
"""


def start_folder(folder: Path, sweep: str = "", slurm: dict | None = None) -> Path:
    """A working folder with a site file, and `tiny.yaml` or `long.yaml`."""
    folder.mkdir(parents=True, exist_ok=True)
    more = "".join(f"  {key}: {value}\n" for key, value in (slurm or {}).items())
    kept = [line for line in SITE.splitlines() if line.split(":")[0].strip() not in (slurm or {})]
    (folder / "harness.site.yaml").write_text("\n".join(kept) + "\n" + more)
    if sweep:
        (folder / ("long.yaml" if sweep == LONG else "tiny.yaml")).write_text(sweep)
    return folder


def harness(folder: Path, *words: object, stdin: str = "", **env: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `harness WORDS` in `folder`."""
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", *map(str, words)],
        cwd=folder, env={"PYTHONPATH": str(PROJECT), **os.environ, **env}, input=stdin,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@contextlib.contextmanager
def in_background(folder: Path, *words: object) -> Iterator[None]:
    """`harness WORDS` beside what is done meanwhile; it must succeed, and is waited for."""
    process = subprocess.Popen(
        ["nice", sys.executable, "-m", "harness.cli", *map(str, words)],
        cwd=folder,
        env={"PYTHONPATH": str(PROJECT), **os.environ},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
        assert process.wait(timeout=600) == 0
    finally:
        process.kill()
        process.wait()


def states(folder: Path, sweep: str) -> dict[str, str]:
    """Run id -> state, as `harness status` has it."""
    store = Store(folder / "runs")
    (record,) = [record for record in store.sweeps() if record["name"] == sweep]
    return {one.run_id: one.state for one in statuses(store, record)}


def await_states(folder: Path, sweep: str, seconds: float) -> dict[str, str]:
    """The states once every run, except what was never submitted, has come to an end."""
    deadline = time.time() + seconds
    while True:
        found = states(folder, sweep)
        if all(state in (*ENDS, "new") for state in found.values()):
            return found
        assert time.time() < deadline, found
        time.sleep(0.5)


def await_epochs(run: RunFolder, count: int) -> None:
    """Until a run has so many epochs behind it."""
    deadline = time.time() + 180
    while len(run.metrics()) < count:
        assert time.time() < deadline, run.state()
        time.sleep(0.1)


def jobs_of(folder: Path) -> list[str]:
    """Every job that was submitted for a run of the store."""
    return [job["job"] for run in Store(folder / "runs").runs() for job in run.jobs()]


def fingerprint(folder: Path) -> dict[str, str]:
    """Run id -> digest of all that a run computed: metrics, weights, predictions."""
    return {run.run_id: _digest(run) for run in Store(folder / "runs").runs()}


def _digest(run: RunFolder) -> str:
    whole = hashlib.sha256()
    for row in run.metrics():
        kept = {k: v for k, v in row.items() if k not in ("time", "epoch_seconds")}
        whole.update(repr(sorted(kept.items())).encode())
    whole.update(repr(sorted((run.result() or {})["metrics"].items())).encode())
    for name, value in sorted(load_file(run.weights_file).items()):
        whole.update(name.encode() + value.tobytes())
    for name, value in sorted(run.predictions().logits.items()):
        whole.update(name.encode() + value.tobytes())
    return whole.hexdigest()
