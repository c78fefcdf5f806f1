"""A few real steps of a run, to know what the whole of it takes. Leaves no run folder behind.

They are made in a process of their own, as a run is: its memory is its own, and if it is killed the
doctor lives to tell.
"""

from __future__ import annotations

import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness.contracts import Dataset, Encoder, Sample, Split, Stream
from harness.distributed import Group
from harness.doctor.machine import words
from harness.feed import Feed
from harness.finding import Finding
from harness.learner import Learner, autocast
from harness.loader import drawn
from harness.model import Model, load_weights
from harness.registry import load_plugins
from harness.spec import Paths, RunSpec, dataset_of
from harness.splits import fetch
from harness.train import evaluation_batch

if TYPE_CHECKING:
    from harness.doctor.visit import Visit

WARM_UP, STEPS, LEAST_SECONDS = 2, 5, 2.0
"""steps that are not measured, and that are at least, and for how long"""
NEAR = 0.8
"""share of a limit above which it is wise to ask for more"""


@dataclass(frozen=True)
class Taken:
    """What a run takes."""

    step_seconds: float
    run_seconds: float
    """all epochs, with the evaluation after each"""
    encode_seconds: float
    """of the tokens of frozen encoders, once for all runs that share them"""
    memory_gb: float
    """most that the process has held"""
    gpu_gb: float
    """most that its tensors took on the GPU; 0 without one"""


class Few(Dataset):
    """The first samples of each split of a dataset."""

    def __init__(self, whole: Dataset, count: int) -> None:
        super().__init__(whole.config)
        self.whole, self.count = whole, count
        self.slow = whole.slow  # type: ignore[misc]

    @property
    def streams(self) -> Mapping[str, Stream]:
        return self.whole.streams

    @property
    def targets(self) -> Mapping[str, int]:
        return self.whole.targets

    def split(self, name: str) -> Split:
        return _First(self.whole.split(name), self.count)


class _First:
    def __init__(self, items: Split, count: int) -> None:
        self.items, self.count = items, min(count, len(items))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return self.items[index]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        return fetch(self.items, indices)

    def drawn(self, indices: Sequence[int], seed: int, turn: int) -> list[Sample]:
        return drawn(self.items, indices, (seed, turn))


def take(spec: RunSpec, paths: Paths, threads: int) -> Taken:
    """Build the run's model, train and evaluate it a little, and reckon what the whole takes.

    Weights of a run that this one needs are not waited for: random ones take as long.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(spec.seed)
    whole = dataset_of(spec, paths)
    few = Few(whole, max(spec.train.batch_size, evaluation_batch(spec, whole)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Model(spec, few, paths)
    items = few.split("train")
    for stream, encoder in model.encoders.items():
        if type(encoder).fit is not Encoder.fit:  # type: ignore[attr-defined]
            encoder.fit([s.streams[stream] for s in fetch(items, range(len(items)))])  # type: ignore[operator]
    load_weights(model, spec, paths)
    model.to(device)
    with tempfile.TemporaryDirectory() as tokens:
        begun = time.perf_counter()
        feed = Feed(spec, few, "train", model, device, Path(tokens), workers=threads)
        encoding = time.perf_counter() - begun
        step = _steps(spec, model, feed, device)
        evaluating = _evaluation(spec, model, feed, device)
    sizes = {name: len(whole.split(name)) for name in ("train", "select", "test")}
    per_epoch = spec.train.steps_per_epoch or sizes["train"] // spec.train.batch_size
    each_epoch = per_epoch * step + sizes["select"] * evaluating
    return Taken(
        step_seconds=step,
        run_seconds=spec.train.epochs * each_epoch + sizes["test"] * evaluating,
        encode_seconds=sum(sizes.values()) * encoding / len(feed) if feed.stored else 0.0,
        memory_gb=_most_memory_gb(),
        gpu_gb=torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0,
    )


def _steps(spec: RunSpec, model: Model, feed: Feed, device: torch.device) -> float:
    """Seconds of one step, the median."""
    model.train()
    learner = Learner(spec, model, feed.dataset, Group(), device)
    times: list[float] = []
    batches = feed.training(0, sys.maxsize, range(spec.train.batch_size))
    while len(times) < WARM_UP + STEPS or sum(times) < LEAST_SECONDS:
        begun = time.perf_counter()
        learner.step(next(batches), len(times))
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[WARM_UP:])


@torch.no_grad()
def _evaluation(spec: RunSpec, model: Model, feed: Feed, device: torch.device) -> float:
    """Seconds to evaluate one sample, in a batch."""
    model.eval()
    count = min(evaluation_batch(spec, feed.dataset), len(feed))
    begun = time.perf_counter()
    batch = next(feed.batches(count))
    with autocast(device, spec.train.precision):
        out = model(batch.inputs, batch.side)
    next(iter(out.values())).float().cpu()
    return (time.perf_counter() - begun) / count


def _most_memory_gb() -> float:
    """Most that this process has held, its parent's share left out where that is known."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(s.split()[1]) for s in lines if s.startswith("VmHWM")) * 1024 / 1e9
    except (OSError, StopIteration):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most * (1 if sys.platform == "darwin" else 1024) / 1e9


def trial(visit: Visit) -> Finding:
    """What a run takes, against what it may take."""
    command, env = words(__name__)
    done = subprocess.run(
        command,
        env=env,
        input=json.dumps({name: visit.asked[name] for name in ("spec", "paths", "threads")}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return _ended(done, visit)
    return judged(visit, Taken(**json.loads(done.stdout.splitlines()[-1])))


def judged(visit: Visit, taken: Taken) -> Finding:
    """What was taken, against the limits of a run."""
    hours = taken.run_seconds / 3600
    size = visit.asked["spec"]["train"]["batch_size"]
    found = (
        f"{visit.asked['label']}: {taken.step_seconds:.2g} s a step of {size}, {hours:.2g} h in all"
    )
    if taken.encode_seconds:
        found += f" and {taken.encode_seconds / 3600:.2g} h to encode, once"
    found += f"; {taken.memory_gb:.1f} GB of memory"
    if taken.gpu_gb:
        found += f", {taken.gpu_gb:.1f} GB of the GPU's"
    states, fixes = zip(
        *(_memory(visit, taken), _gpu_memory(taken), _hours(visit, hours)), strict=True
    )
    worst = next(state for state in ("fail", "warn", "ok") if state in states)
    return Finding(worst, found, "; ".join(fix for fix in fixes if fix))


def _ended(done: subprocess.CompletedProcess[str], visit: Visit) -> Finding:
    """Of a process that did not get to the end."""
    *_, last = ["", *filter(None, done.stderr.splitlines())]
    fewer = (
        "lower train.batch_size" if visit.local else "raise slurm.mem_gb, or lower train.batch_size"
    )
    if done.returncode < 0:
        return Finding(
            "fail", f"{visit.asked['label']}: killed by signal {-done.returncode}", fewer
        )
    if "OutOfMemory" in last or "MemoryError" in last:
        return Finding("fail", f"{visit.asked['label']}: {last}", "lower train.batch_size")
    return Finding("fail", f"{visit.asked['label']}: {last}", "a run would end with this too")


def _memory(visit: Visit, taken: Taken) -> tuple[str, str]:
    limit, wanted = _memory_limit_gb(visit), taken.memory_gb * visit.asked["tasks_per_node"]
    if limit is None or wanted < NEAR * limit:
        return "ok", ""
    what = f"set slurm.mem_gb: {math.ceil(1.5 * wanted)}"
    if visit.local:
        what = "lower train.batch_size, or `--jobs`"
    return "fail" if wanted > limit else "warn", f"{what} (now {limit:.1f} GB)"


def _memory_limit_gb(visit: Visit) -> float | None:
    """What all tasks on a node may hold together."""
    if visit.asked["mem_gb"] is not None:
        return float(visit.asked["mem_gb"])
    if told := os.environ.get("SLURM_MEM_PER_NODE"):
        return int(told) / 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _gpu_memory(taken: Taken) -> tuple[str, str]:
    if not taken.gpu_gb:
        return "ok", ""
    whole = torch.cuda.get_device_properties(0).total_memory / 1e9
    if taken.gpu_gb < NEAR * whole:
        return "ok", ""
    return "warn", f"the GPU has {whole:.0f} GB: lower train.batch_size"


def _hours(visit: Visit, hours: float) -> tuple[str, str]:
    limit = visit.asked["time_minutes"] / 60
    if visit.local or hours < NEAR * limit:
        return "ok", ""
    times = math.ceil(hours / limit)
    what = f"set slurm.time_minutes: {math.ceil(75 * hours)}, if the partition allows that long"
    if times > visit.asked["requeues"]:
        return "fail", f"{what}; now it would take {times} turns, and slurm.requeues ends it before"
    return "warn", f"{what}; now it takes {times} turns of {visit.asked['time_minutes']} minutes"


if __name__ == "__main__":
    load_plugins()
    asked = json.load(sys.stdin)
    print(json.dumps(asdict(take(RunSpec(**asked["spec"]), asked["paths"], asked["threads"]))))
