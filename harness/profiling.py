"""Where the time of a training step goes: `harness run SPEC --profile`.

Some steps of the run are made in memory, from its own data and starting weights; nothing of the run
is written but the trace. The parts are told apart by the clock: forward by hooks around encoders
and fusion, backward by when the gradient reaches what they gave. On a GPU every boundary waits for
it, so that a step takes a little longer than it will.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from harness.config import ConfigError
from harness.contracts import PartedTokens, Tokens
from harness.distributed import Group
from harness.feed import Feed
from harness.learner import Learner
from harness.optimise import set_learning_rates
from harness.registry import load_plugins
from harness.run import build, fix_randomness, needed_weights
from harness.spec import RunSpec, dataset_of
from harness.store import Store
from harness.train import steps_per_epoch

WARM_UP, STEPS = 5, 20
PARTS = ("data", "encoders", "fusion", "heads and loss", "optimiser", "other")


class Clock:
    """Seconds of each part; what is between two marks belongs to the part that is on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.part, self.last = "other", time.perf_counter()

    def mark(self, part: str) -> None:
        """From now on it is the turn of `part`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[self.part] += now - self.last
        self.part, self.last = part, now


def profile(store: Store, run_id: str, threads: int) -> str:
    """Make some steps of a run and trace them; the table, and where the trace is."""
    load_plugins()
    folder = store.run(run_id)
    stored = folder.spec()
    spec, paths = RunSpec(**stored["spec"]), stored["paths"]
    if spec.train.method != "gradient":
        raise ValueError(
            f"train.method is {spec.train.method}: no step is made that could be timed"
        )
    try:
        dataset = dataset_of(spec, paths)
        same = dataset.fingerprint() == spec.fingerprint
    except ValueError as error:
        raise ConfigError(f"{run_id}: {error}") from None
    if not same:
        raise ConfigError(
            f"{run_id}: the data of {spec.data.name} have changed since it was planned"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fix_randomness(spec.seed, threads)
    model, _ = build(spec, dataset, paths, needed_weights(store, spec), told=False)
    model.to(device)
    feed = Feed(spec, dataset, "train", model, device, store.tokens, threads)
    learner = Learner(spec, model, dataset, Group(), device)
    model.train()
    batches = feed.training(0, WARM_UP + STEPS, range(spec.train.batch_size))
    per_epoch = steps_per_epoch(spec, len(feed))
    clock = Clock(device)

    def step(number: int) -> None:
        clock.mark("data")
        batch = next(batches)
        clock.mark("other")
        set_learning_rates(
            learner.optimiser, number, spec.train.epochs * per_epoch, per_epoch, spec.train
        )
        learner.step(batch, number)
        clock.mark("other")

    with _told(model, learner.optimiser, clock):
        for number in range(WARM_UP):
            step(number)
        clock.seconds = dict.fromkeys(PARTS, 0.0)
        with torch.profiler.profile() as seen:
            for number in range(WARM_UP, WARM_UP + STEPS):
                step(number)
    folder.trace_file.parent.mkdir(parents=True, exist_ok=True)
    seen.export_chrome_trace(str(folder.trace_file))
    return table(clock.seconds, _scan_seconds(seen, device), STEPS, folder.trace_file)


def table(seconds: dict[str, float], scan: float, steps: int, trace: Path) -> str:
    """What is printed."""
    whole = sum(seconds.values())
    lines = [f"{'part of a step':24} {'ms':>9} {'share':>7}"]
    for name, value in seconds.items():
        title = {"data": "waiting for data", "other": "other, moving the batch"}.get(name, name)
        lines.append(f"{title:24} {1000 * value / steps:9.3f} {100 * value / whole:6.1f} %")
        if name == "fusion":
            lines.append(
                f"{'  of it the scan':24} {1000 * scan / steps:9.3f} {100 * scan / whole:6.1f} %"
            )
    lines.append(f"{'step':24} {1000 * whole / steps:9.3f} {100:6.1f} %")
    lines.append(
        f"mean of {steps} steps, forward and backward; the profiler itself slows them a bit"
    )
    lines.append(f"trace: {trace} (open it in https://ui.perfetto.dev or chrome://tracing)")
    return "\n".join(lines)


def _scan_seconds(seen: Any, device: torch.device) -> float:
    """Inside selective scans: the operators of `fusions.scan`, or those of mamba-ssm."""
    kind = "device_time_total" if device.type == "cuda" else "cpu_time_total"
    ours = [e for e in seen.key_averages() if e.key.startswith("harness::selective_scan")]
    theirs = [e for e in seen.key_averages() if e.key.startswith("SelectiveScan")]
    return sum(float(getattr(event, kind)) for event in ours or theirs) / 1e6


@contextmanager
def _told(model: nn.Module, optimiser: torch.optim.Optimizer, clock: Clock) -> Iterator[None]:
    """Hooks that mark the parts."""

    def begins(part: str) -> Callable[..., None]:
        return lambda *_: clock.mark(part)

    def gave(part: str) -> Callable[..., None]:
        """After a forward pass: what follows is others', and its backward is its own."""

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            clock.mark("heads and loss" if part == "fusion" else "other")
            for value in _tensors(output):
                if value.requires_grad:
                    value.register_hook(begins(part))

        return hook

    handles: list[Any] = []
    for encoder in cast(nn.ModuleDict, model.encoders).values():
        handles.append(encoder.register_forward_pre_hook(begins("encoders")))
        handles.append(encoder.register_forward_hook(gave("encoders")))
    fusion = cast(nn.Module, model.fusion)
    handles.append(fusion.register_forward_pre_hook(begins("fusion")))
    handles.append(fusion.register_forward_hook(gave("fusion")))
    handles.append(optimiser.register_step_pre_hook(begins("optimiser")))
    handles.append(optimiser.register_step_post_hook(begins("other")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tokens | PartedTokens):
        return [value.features]
    return [value] if isinstance(value, Tensor) else []
