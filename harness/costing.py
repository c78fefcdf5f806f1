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
