"""How long runs may take, before they are submitted: measured where a like run has been made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from statistics import median

from harness.plan import PlannedRun
from harness.slurm import SlurmSettings
from harness.spec import Paths, RunSpec
from harness.store import Store

SUSTAINED_TFLOPS = 20.0
"""of one GPU in training, assumed where nothing was measured"""
SUSTAINED_TFLOPS_CPU = 0.05
"""of the CPUs of a run"""


def hours(store: Store, runs: Sequence[PlannedRun], settings: SlurmSettings, paths: Paths) -> str:
    """What the runs may cost, in words: hours of a run, and GPU-hours (or node-hours) in all."""
    unit, each = unit_of(settings)
    total, lines, estimated = 0.0, [], False
    for run, seconds, how in expected(store, runs, settings, paths):
        left = 1 - len(store.run(run.run_id).metrics()) / max(1, run.spec.train.epochs)
        total += left * seconds / 3600 * each
        estimated |= how == "estimated"
        lines.append(f"{run.run_id}  {run.label:<36.36} {left * seconds / 3600:8.2f} h  {how}")
    most = len(lines) * settings.time_minutes / 60 * each
    ends = f"{len(lines)} runs: {total:.1f} {unit}; {most:.1f} if each took its time limit once"
    return "\n".join([*lines, ends, *([how_estimated(settings)] if estimated else [])])


def unit_of(settings: SlurmSettings) -> tuple[str, int]:
    """What hours are counted in, and how many of it a run has."""
    gpus = settings.gpus_per_node * settings.nodes
    return ("GPU-hours", gpus) if gpus else ("node-hours", settings.nodes)


def how_estimated(settings: SlurmSettings) -> str:
    """What stands behind a duration that was not measured."""
    assumed = SUSTAINED_TFLOPS if settings.gpus_per_node else SUSTAINED_TFLOPS_CPU
    return (
        f"estimated: three times the forward pass, {assumed:g} TFLOP/s per "
        f"{'GPU' if settings.gpus_per_node else 'run'} assumed; data loading is not in it"
    )


def expected(
    store: Store, runs: Sequence[PlannedRun], settings: SlurmSettings, paths: Paths
) -> Iterator[tuple[PlannedRun, float, str]]:
    """Each run once, its seconds of training as a whole, and `measured` or `estimated`."""
    gpus, known = settings.gpus_per_node * settings.nodes, _measured(store)
    estimated: dict[str, float] = {}
    for run in {run.run_id: run for run in runs}.values():
        like = _like(run.spec)
        if like not in known and like not in estimated:
            estimated[like] = estimate(run.spec, paths, max(1, gpus), bool(gpus))
        how = "measured" if like in known else "estimated"
        yield run, known.get(like) or estimated[like], how


def _like(spec: RunSpec) -> str:
    """What runs of equal duration have in common: all but the seed, rates, and needed weights."""
    plain = spec.model_dump(mode="json", exclude={"seed", "needs", "fingerprint"})
    plain["train"].pop("peak_lr", None)
    return json.dumps(plain, sort_keys=True)


def _measured(store: Store) -> dict[str, float]:
    """Seconds of training of each kind of run in the store, the median over its epochs."""
    found: dict[str, list[float]] = {}
    for folder in store.runs():
        seconds = [row["epoch_seconds"] for row in folder.metrics() if "epoch_seconds" in row]
        if seconds:
            spec = RunSpec(**folder.spec()["spec"])
            found.setdefault(_like(spec), []).append(median(seconds) * spec.train.epochs)
    return {like: median(values) for like, values in found.items()}


def estimate(spec: RunSpec, paths: Paths, devices: int, gpu: bool) -> float:
    """Seconds of training, from the cost of a forward pass."""
    from harness.cost import cost
    from harness.spec import dataset_of

    config = spec.train
    if config.method != "gradient":
        return 60.0
    dataset = dataset_of(spec, paths)
    counted = cost(spec, dataset, paths)
    stored = [name for name, one in spec.encoders.items() if one.frozen and one.cache != "none"]
    once = sum(counted["gflops_by_part"].get(f"encoders.{name}", 0.0) for name in stored)
    macs = float(counted["gflops"] - once) * 1e9
    steps = config.steps_per_epoch or len(dataset.split("train")) // config.batch_size
    flops = 2 * 3 * macs * config.batch_size * steps * config.epochs
    return flops / (1e12 * (SUSTAINED_TFLOPS if gpu else SUSTAINED_TFLOPS_CPU) * devices)
