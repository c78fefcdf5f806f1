"""What `harness cost` prints: the cost of a run, or of every row of a sweep, without running it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.config import ConfigError
from harness.plan import plan
from harness.registry import load_plugins
from harness.spec import Paths, RunSpec, dataset_of
from harness.store import Store

TOP = ("pre_logits", "fusion", "heads")


def costs_of(file: Path, preset: str | None, settings: list[str]) -> str:
    """The table of a sweep file, or of the `spec.json` of a run folder."""
    from harness.cost import cost  # imports fvcore, which the reports do not need

    load_plugins()
    found: list[tuple[str, Mapping[str, Any]]] = []
    for label, spec, paths in _models(file, preset, settings):
        try:
            found.append((label, cost(spec, dataset_of(spec, paths), paths)))
        except ValueError as error:
            raise ConfigError(f"{file}: {label}: {error}") from error
    width = max(len(label) for label, _ in found)
    lines = [f"{'':{width}}  {'GFLOPs':>10} {'recounted':>10} {'M params':>9} {'trained':>9}"]
    for label, counted in found:
        lines.append(
            f"{label:{width}}  {counted['gflops']:10.4g} {counted['gflops_recounted']:10.4g} "
            f"{counted['params_m']:9.4g} {counted['params_trained_m']:9.4g}"
        )
    lines.append("")
    lines += [f"{label}: {parts(counted)}" for label, counted in found]
    return "\n".join([*lines, "", found[0][1]["convention"]])


def _models(
    file: Path, preset: str | None, settings: list[str]
) -> Iterator[tuple[str, RunSpec, Paths]]:
    """Label, spec and paths of each different row; seeds cost the same."""
    if file.suffix == ".json":
        if file.name != "spec.json" or not file.is_file():
            raise ConfigError(f"{file}: give a sweep file, or the spec.json of a run folder")
        if preset or settings:
            raise ConfigError(f"{file}: --preset and --set change a sweep file, not a stored run")
        stored = Store(file.resolve().parent.parent).run(file.resolve().parent.name).spec()
        try:
            spec = RunSpec(**stored["spec"])
        except ValueError:
            raise ConfigError(f"{file}: was written by another version of the harness") from None
        yield file.resolve().parent.name, spec, stored["paths"]
        return
    planned = plan(file, preset, settings)
    rows = {run.row: run for run in reversed(planned.runs) if run.in_table}
    labels = [run.label for run in rows.values()]
    for run in reversed(rows.values()):
        alone = labels.count(run.label) == 1
        yield run.label if alone else f"{run.label} ({run.row})", run.spec, planned.paths


def parts(counted: Mapping[str, Any]) -> str:
    """`encoders.video 405 G, 147 M; fusion 8.1 G, 9.4 M; ...`, and what is counted apart."""
    flops, params = counted.get("gflops_by_part", {}), counted.get("params_m_by_part", {})
    told = [
        f"{part} {flops.get(part, 0.0):.4g} G, {params.get(part, 0.0):.4g} M"
        for part in dict.fromkeys([*params, *(name for name in flops if name in TOP)])
    ]
    if counted.get("gflops_apart"):
        told.append(f"RoIAlign apart {counted['gflops_apart']:.2g} G")
    return "; ".join(told)


def training_costs(
    file: Path, preset: str | None, settings: list[str], processes: int, threads: int
) -> Iterator[str]:
    """Lines of a table: what training each row takes, from a few steps on this machine."""
    from harness.hours import SUSTAINED_TFLOPS, estimate
    from harness.probe import Probed, probed

    load_plugins()
    rows = list(_models(file, preset, settings))
    trained = [
        (label, spec, paths) for label, spec, paths in rows if spec.train.method == "gradient"
    ]
    if not trained:
        raise ConfigError(f"{file}: no row is trained by gradient; there is nothing to try")
    width = max(len(label) for label, _, _ in trained)
    yield f"{'':{width}}  {'batch':>6} {'memory':>9} {'step':>9} {'run':>9} {'GPU-hours':>10}"
    few = [label for label, spec, _ in trained if spec.train.batch_size < processes]
    if few:
        raise ConfigError(f"{file}: {few[0]}: {processes} processes cannot share so small a batch")
    device, gpu = "this machine", False
    for label, spec, paths in trained:
        (found,) = probed([spec], paths, processes, threads)
        if not isinstance(found, Probed):
            yield f"{label:{width}}  {found}"
            continue
        device, gpu = found.device, not found.device.startswith("CPU")
        hours = found.hours * processes if gpu else estimate(spec, paths, 1, True) / 3600
        sizes = " and ".join(map(str, found.sizes))
        yield (
            f"{label:{width}}  {found.batch:6} {found.gb:6.3g} GB {found.step_seconds:7.3g} s "
            f"{found.hours:7.3g} h {hours:10.3g}  "
            f"{'measured' if found.measured else f'from batches of {sizes}'}"
        )
    yield ""
    yield (
        f"Memory of tensors, of one process, and time of training steps, on {device}; data loading "
        f"and evaluation are not in it. GPU-hours: "
        + ("as measured." if gpu else f"estimated, at {SUSTAINED_TFLOPS:g} TFLOP/s of a GPU.")
    )
