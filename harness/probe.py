"""What training a run would take: peak memory and time, from steps on a few made-up samples.

Nothing is read but the sizes of the data. The batch is doubled until it is the run's, and what was
measured is the answer, or until a step takes long: then memory and time of the whole batch follow
from the last two, in which both are linear.

Memory is that of tensors: weights, gradients, the optimiser's state, activations. On a CPU it is
followed by torch's profiler, on a GPU asked of its allocator; a process needs some more.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from harness.batch import Batch, each_tensor
from harness.contracts import Dataset, Encoder, Tokens
from harness.distributed import Group
from harness.learner import Learner
from harness.model import Model
from harness.spec import Paths, RunSpec, dataset_of
from harness.splits import Labels
from harness.train import steps_per_epoch

LONG_SECONDS = 1.5
"""of a step: no larger batch is tried"""


@dataclass(frozen=True)
class Point:
    """One batch size that was tried."""

    batch: int
    seconds: float
    gb: float


@dataclass(frozen=True)
class Probed:
    """What a run takes."""

    batch: int
    """of one process"""
    gb: float
    """peak memory of its tensors"""
    step_seconds: float
    hours: float
    """of all steps; data loading and evaluation are not in it"""
    measured: bool
    """at that very batch size; else it follows from the `sizes`"""
    sizes: tuple[int, ...]
    device: str


def probe(spec: RunSpec, paths: Paths, processes: int, threads: int) -> Probed:
    """Train a few steps of the run's model, with random weights, on samples that are all zero."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = dataset_of(spec, paths)
    share = -(-spec.train.batch_size // processes)
    points = list(_points(spec, dataset, paths, share, device))
    last = points[-1]
    gb, seconds = last.gb, last.seconds
    if last.batch < share and len(points) > 1:
        before = points[-2]
        more = (share - last.batch) / (last.batch - before.batch)
        gb += more * (last.gb - before.gb)
        seconds += more * (last.seconds - before.seconds)
    elif last.batch < share:
        gb, seconds = gb * share / last.batch, seconds * share / last.batch
    steps = steps_per_epoch(spec, len(dataset.split("train"))) * spec.train.epochs
    return Probed(
        batch=share,
        gb=gb,
        step_seconds=seconds,
        hours=steps * seconds / 3600,
        measured=last.batch == share,
        sizes=tuple(point.batch for point in points[-2:]),
        device=torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {threads} threads",
    )


def _points(
    spec: RunSpec, dataset: Dataset, paths: Paths, share: int, device: torch.device
) -> Iterator[Point]:
    """The run's batch halved again and again, smallest first, until a step takes long."""
    model = Model(spec, dataset, paths).to(device).train()
    example = _example(spec, model, dataset, device)
    for number, size in enumerate(_first_sizes(share)):
        accumulate = min(spec.train.accumulate, size)
        own = spec.train.model_copy(update={"batch_size": size, "accumulate": accumulate})
        learner = Learner(spec.model_copy(update={"train": own}), model, dataset, Group(), device)
        batch = _repeated(example, size)
        learner.step(batch, 0)  # the optimiser's state is made, and kernels are compiled
        held = _held(model, learner)
        begun = time.perf_counter()
        learner.step(batch, 1)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
        yield Point(size, seconds, _peak_gb(learner, batch, held, device))
        if number and seconds > LONG_SECONDS:
            return


def _first_sizes(share: int) -> list[int]:
    """1, ... share / 4, share / 2, share."""
    sizes = [share]
    while sizes[0] > 1:
        sizes.insert(0, sizes[0] // 2)
    return sizes


def _example(spec: RunSpec, model: Model, dataset: Dataset, device: torch.device) -> Batch:
    """One sample: raw, or tokens where they will be stored."""
    inputs: dict[str, Any] = {}
    side: dict[str, Any] = {}
    for stream, encoder in sorted(spec.encoders.items()):
        module = cast(Encoder, model.encoders[stream])
        stored = module.passes_on or (encoder.frozen and encoder.cache != "none")
        if stored and module.stream.kind == "text":
            features = torch.zeros(1, module.stream.shape[0], module.width)
            inputs[stream] = Tokens(features, torch.ones(features.shape[:2], dtype=torch.bool))
            continue
        if type(module).fit is not Encoder.fit:
            words = " ".join(["word"] * module.stream.shape[0])
            module.fit(
                [words if module.stream.kind == "text" else torch.zeros(module.stream.shape)]
            )
        made, beside = each_tensor(module.example(), lambda x: x.to(device))
        if stored:
            with torch.no_grad():
                inputs[stream] = module.eval()(made, **beside)
        else:
            inputs[stream], side[stream] = made, beside
    targets = {name: torch.zeros(1, dtype=torch.int64, device=device) for name in dataset.targets}
    empty = np.array([""], np.str_)
    labels = Labels(empty, empty, empty, {name: np.zeros(1, np.int64) for name in targets})
    return Batch(each_tensor(inputs, lambda x: x.to(device)), side, targets, lambda: labels)


def _repeated(one: Batch, count: int) -> Batch:
    def many(value: Tensor) -> Tensor:
        return value.repeat(count, *[1] * (value.ndim - 1))

    inputs, side, targets = each_tensor((one.inputs, one.side, one.targets), many)
    return Batch(inputs, side, targets, one.known)


def _held(model: nn.Module, learner: Learner) -> int:
    """Bytes of weights, of the optimiser's state, and of averaged weights."""
    values = [*model.parameters(), *model.buffers()]
    for state in learner.optimiser.state.values():
        values += [value for value in state.values() if isinstance(value, Tensor)]
    if learner.average is not None:
        values += list(learner.average.parameters())
    return sum(v.nbytes for v in {id(value): value for value in values}.values())


def _peak_gb(learner: Learner, batch: Batch, held: int, device: torch.device) -> float:
    learner.optimiser.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        learner.step(batch, 2)
        return torch.cuda.max_memory_allocated(device) / 1e9
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        learner.step(batch, 2)
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    inputs = sum(value.nbytes for value in _tensors(batch))
    return (held + inputs + peak) / 1e9


def _tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []

    def note(value: Tensor) -> Tensor:
        found.append(value)
        return value

    each_tensor((batch.inputs, batch.side, batch.targets), note)
    return found


def probed(specs: Sequence[RunSpec], paths: Paths, processes: int, threads: int) -> Iterator[Any]:
    """Each spec's `Probed`, or in words why there is none; each in a process of its own."""
    from harness.doctor.machine import words

    command, env = words(__name__)
    for spec in specs:
        asked = {
            "spec": spec.model_dump(mode="json"),
            "paths": dict(paths),
            "processes": processes,
            "threads": threads,
        }
        done = subprocess.run(
            command, env=env, input=json.dumps(asked), capture_output=True, text=True, check=False
        )
        if done.returncode:
            *_, last = ["it was killed", *filter(None, done.stderr.splitlines())]
            yield last
        else:
            yield Probed(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """The process of one spec: asked on stdin, answers on stdout."""
    from harness.registry import load_plugins

    load_plugins()
    asked = json.load(sys.stdin)
    found = probe(RunSpec(**asked["spec"]), asked["paths"], asked["processes"], asked["threads"])
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
