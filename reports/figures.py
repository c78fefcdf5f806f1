"""Learning curves, and accuracy against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from harness.reportspec import ReportSpec
from harness.store import Store
from harness.track import histories, key
from reports.costs import row_cost
from reports.gains import gain_bars
from reports.leakage import leakage_bars
from reports.lengths import length_curves
from reports.looks import looks as looks_of
from reports.numbers import heading
from reports.results import subset_metrics
from reports.rows import Row, SeedResult, trained
from reports.spectra import spectra

STYLE = Path(__file__).parent / "style.mplstyle"
MAX_PANELS = 2
Histories = Mapping[str, Sequence[tuple[int, float]]]
"""run id -> (epoch, value)"""
COSTS = {
    "gflops": ("GFLOPs per sample", "MFLOPs per sample"),
    "params_m": ("million parameters", "thousand parameters"),
}
FRONT = "nothing cheaper is better"
LOG_SPAN = 5
"""costs that differ by more than this factor have a logarithmic axis"""
MIN_GAP = 0.04
"""ceilings closer than this share of the axis have one label"""


def drawn(report: ReportSpec, store: Store, rows: Sequence[Row], uri: str) -> dict[str, Figure]:
    """Name -> figure, of those that the rows have numbers for."""
    made = {
        "accuracy-cost": accuracy_cost(report, rows),
        "curves": learning_curves(report, rows, uri),
        "length": length_curves(report, store, rows),
        "gain": gain_bars(report, store, rows),
        "spectra": spectra(store, rows),
        "leakage": leakage_bars(report, rows) if report.leakage else None,
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def responses(record: Mapping[str, Any], store: Store) -> dict[str, Figure]:
    """`response-<parameter>` -> figure, of a search."""
    from reports.responses import response_curves  # Optuna, which other figures do not need

    found = response_curves(record, store)
    return {f"response-{key.replace('.', '-')}": figure for key, figure in found.items()}


def save(figure: Figure, path: Path) -> None:
    """As `<path>.png` and `<path>.pdf`; its layout is settled once, and stays."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for suffix, metadata in ((".png", {}), (".pdf", {"CreationDate": None})):
        figure.savefig(path.with_name(path.name + suffix), metadata=metadata)


def style() -> Any:
    """Context in which all figures are made."""
    return matplotlib.rc_context(fname=STYLE)


def learning_curves(report: ReportSpec, rows: Sequence[Row], tracking_uri: str) -> Figure | None:
    """Score on the select split by epoch: mean over seeds, and their standard deviation as band."""
    metrics = subset_metrics(report)[:MAX_PANELS]
    looks = looks_of(rows)
    figure = Figure(figsize=(3.6 * len(metrics) + 2.4, 3.6))
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    lines: dict[str, Any] = {}
    shown = trained(rows)
    for panel, metric in zip(panels, metrics, strict=True):
        known = histories(tracking_uri, shown, f"select/{key(metric)}")
        for row in rows:
            epochs, values = _curve(row, known)
            if not len(epochs):
                continue
            look = {k: v for k, v in looks[row.name].items() if k != "marker"}
            mean = 100 * values.mean(axis=0)
            (lines[row.name],) = panel.plot(epochs, mean, **look)
            if len(values) > 1:
                std = 100 * values.std(axis=0, ddof=1)
                panel.fill_between(
                    epochs, mean - std, mean + std, color=look["color"], alpha=0.18, linewidth=0
                )
        panel.set(xlabel="epoch", ylabel=f"{heading(metric)}, select split (%)")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        _draw_ceilings(panel, _ceilings(rows, metric))
    if not lines:
        return None
    labels = [row.label for row in rows if row.name in lines]
    figure.legend(lines.values(), labels, loc="outside right center")
    return figure


def _curve(row: Row, known: Histories) -> tuple[list[int], Any]:
    """(epochs that all its seeds have, values (seeds, epochs))."""
    seeds = [_history(seed, known) for seed in row.done]
    epochs = sorted(set.intersection(*map(set, seeds))) if seeds else []
    return epochs, np.array([[seed[epoch] for epoch in epochs] for seed in seeds])


def _history(seed: SeedResult, known: Histories) -> dict[int, float]:
    """Epoch -> mean over the runs of a seed; empty for what is not trained by epochs."""
    found: dict[int, list[float]] = {}
    for run in seed.runs:
        for epoch, value in known.get(run.run_id, ()):
            found.setdefault(epoch, []).append(value)
    return {epoch: sum(values) / len(values) for epoch, values in found.items()}


def _ceilings(rows: Sequence[Row], metric: str) -> dict[str, float]:
    """Ceiling name -> share, for the ceilings that bound a row of the table."""
    found = {row.ceiling_name: row.ceiling(metric) for row in rows}
    return {name: value for name, value in found.items() if value is not None}


def _draw_ceilings(panel: Axes, ceilings: Mapping[str, float]) -> None:
    """Dashed lines, named at the right edge; names that would overlap share a place."""
    if not ceilings:
        return
    low, high = panel.get_ylim()
    values = [100 * value for value in ceilings.values()]
    low, high = min(low, *values), max(high, *values)
    panel.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    places: list[tuple[float, list[str]]] = []
    for name, value in sorted(ceilings.items(), key=lambda pair: pair[1]):
        panel.axhline(100 * value, color="0.45", linestyle=(0, (4, 3)), linewidth=0.9, zorder=1)
        if places and 100 * value - places[-1][0] < MIN_GAP * (high - low):
            places[-1][1].append(name)
        else:
            places.append((100 * value, [name]))
    edge = panel.secondary_yaxis("right")
    edge.set_yticks([place for place, _ in places], [", ".join(names) for _, names in places])
    edge.tick_params(length=0, labelcolor="0.35")
    edge.spines["right"].set_visible(False)


def accuracy_cost(report: ReportSpec, rows: Sequence[Row]) -> Figure | None:
    """A point per row against GFLOPs and against parameters, and the front of those that nothing
    cheaper reaches; reference rows, whose GFLOPs are not counted, are lines."""
    metric, looks = report.metrics[0], looks_of(rows)
    shown = [(row, found) for row in rows if (found := row.summary(metric)) is not None]
    models = [row for row, _ in shown if not row.is_reference]
    names = [n for n in COSTS if any(row_cost(row, n) is not None for row in models)]
    if not names:
        return None
    figure = Figure(figsize=(3.4 * len(names) + 2.8, 3.6))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    handles: dict[str, Any] = {}
    for panel, name in zip(panels, names, strict=True):
        points: list[tuple[float, float]] = []
        for row, found in shown:
            look, cost = looks[row.name], row_cost(row, name)
            if row.is_reference:
                line = panel.axhline(100 * found.mean, color=look["color"], linestyle=":")
                handles[f"{row.label} (reference)"] = line
            elif cost is not None:
                points.append((cost, 100 * found.mean))
                look = {**look, "linestyle": "none", "capsize": 3, "capthick": 1.2}
                look |= {"markeredgecolor": "white", "markeredgewidth": 0.6}
                error = None if found.std is None else 100 * found.std
                drawn = panel.errorbar(*points[-1], yerr=error, label=row.label, **look)
                handles[row.label] = drawn
        look = {"where": "post", "color": "0.6", "linewidth": 1, "zorder": 1}
        (handles[FRONT],) = panel.step(*zip(*pareto(points), strict=True), **look)
        panel.set(xlabel=_cost_axis(panel, [cost for cost, _ in points], *COSTS[name]))
    panels[0].set(ylabel=f"{heading(metric)}, test split (%)")
    figure.legend(handles.values(), handles.keys(), loc="outside right center")
    return figure


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (cost, score) that no other reaches at the same cost or less, by cost."""
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front


def _cost_axis(panel: Axes, costs: Sequence[float], large: str, small: str) -> str:
    """A scale with plain numbers that do not run into each other; what it counts, in its unit."""
    factor, unit = (1, large) if max(costs) >= 0.1 else (1000, small)
    low, high = min(costs), max(costs)
    if low > 0 and high / low > LOG_SPAN:
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
        panel.xaxis.set_minor_formatter(NullFormatter())
    else:
        panel.xaxis.set_major_locator(MaxNLocator(4))
    panel.xaxis.set_major_formatter(lambda value, place: f"{factor * value:.4g}")
    return unit
