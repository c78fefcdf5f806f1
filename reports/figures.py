"""Learning curves, and accuracy against cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from harness.reportspec import ReportSpec
from harness.store import Store
from harness.track import history, key
from reports.leakage import leakage_bars
from reports.numbers import heading
from reports.rows import Row, SeedResult
from reports.table import row_cost, subset_metrics

STYLE = Path(__file__).parent / "style.mplstyle"
DASHES = ("-", "--", ":")
MARKERS = "osD^vPXh"
MAX_PANELS = 2
LOG_SPAN = 5
"""costs that differ by more than this factor have a logarithmic axis"""
MIN_GAP = 0.04
"""ceilings closer than this share of the axis have one label"""


def write_figures(
    report: ReportSpec, rows: Sequence[Row], tracking_uri: str, out: Path, stem: str
) -> list[Path]:
    """`<stem>-curves`, `<stem>-accuracy-cost` and, where it is asked for, `<stem>-leakage`, as PNG
    and PDF; none without numbers."""
    with matplotlib.rc_context(fname=STYLE):
        made = {
            "curves": learning_curves(report, rows, tracking_uri),
            "accuracy-cost": accuracy_cost(report, rows),
            "leakage": leakage_bars(report, rows) if report.leakage else None,
        }
        return [
            file
            for name, figure in made.items()
            if figure is not None
            for file in _save(figure, out / f"{stem}-{name}")
        ]


def write_responses(record: Mapping[str, Any], store: Store, out: Path, stem: str) -> list[Path]:
    """`<stem>-response-<parameter>` of a search, as PNG and PDF."""
    from reports.responses import response_curves  # Optuna, which other figures do not need

    with matplotlib.rc_context(fname=STYLE):
        return [
            file
            for key, figure in response_curves(record, store).items()
            for file in _save(figure, out / f"{stem}-response-{key.replace('.', '-')}")
        ]


def _save(figure: Figure, path: Path) -> Iterator[Path]:
    for suffix, metadata in ((".png", {}), (".pdf", {"CreationDate": None})):
        file = path.with_name(path.name + suffix)
        figure.savefig(file, metadata=metadata)
        yield file


def _looks(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Row -> its colour, dashes and marker, the same in every figure."""
    colours = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    return {
        row.name: {
            "color": colours[place % len(colours)],
            "linestyle": DASHES[place // len(colours) % len(DASHES)],
            "marker": MARKERS[place % len(MARKERS)],
        }
        for place, row in enumerate(rows)
    }


def learning_curves(report: ReportSpec, rows: Sequence[Row], tracking_uri: str) -> Figure | None:
    """Score on the select split by epoch: mean over seeds, and their standard deviation as band."""
    metrics = subset_metrics(report)[:MAX_PANELS]
    looks = _looks(rows)
    figure = Figure(figsize=(3.6 * len(metrics) + 2.4, 3.6))
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    drawn: dict[str, Any] = {}
    for panel, metric in zip(panels, metrics, strict=True):
        for row in rows:
            epochs, values = _curve(row, tracking_uri, f"select/{key(metric)}")
            if not len(epochs):
                continue
            look = {k: v for k, v in looks[row.name].items() if k != "marker"}
            mean = 100 * values.mean(axis=0)
            (drawn[row.name],) = panel.plot(epochs, mean, **look)
            if len(values) > 1:
                std = 100 * values.std(axis=0, ddof=1)
                panel.fill_between(
                    epochs, mean - std, mean + std, color=look["color"], alpha=0.18, linewidth=0
                )
        panel.set(xlabel="epoch", ylabel=f"{heading(metric)}, select split (%)")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        _draw_ceilings(panel, _ceilings(rows, metric))
    if not drawn:
        return None
    labels = [row.label for row in rows if row.name in drawn]
    figure.legend(drawn.values(), labels, loc="outside right center")
    return figure


def _curve(row: Row, tracking_uri: str, metric: str) -> tuple[list[int], Any]:
    """(epochs that all its seeds have, values (seeds, epochs))."""
    seeds = [_history(seed, tracking_uri, metric) for seed in row.done]
    epochs = sorted(set.intersection(*map(set, seeds))) if seeds else []
    return epochs, np.array([[seed[epoch] for epoch in epochs] for seed in seeds])


def _history(seed: SeedResult, tracking_uri: str, metric: str) -> dict[int, float]:
    """Epoch -> mean over the runs of a seed; empty for what is not trained by epochs."""
    found: dict[int, list[float]] = {}
    for run in seed.runs:
        if run.params.get("train.method") == "gradient":
            for epoch, value in history(tracking_uri, run, metric):
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
    """One point per row; reference rows, whose GFLOPs are not counted, are lines."""
    metric, looks = report.metrics[0], _looks(rows)
    figure = Figure(figsize=(6.4, 3.6))
    panel = figure.subplots()
    costs: list[float] = []
    for row in rows:
        found, gflops = row.summary(metric), row_cost(row, "gflops")
        if found is None:
            continue
        look = looks[row.name]
        if row.is_reference:
            label = f"{row.label} (reference)"
            panel.axhline(100 * found.mean, color=look["color"], linestyle=":", label=label)
        elif gflops is not None:
            costs.append(gflops)
            look = {**look, "linestyle": "none", "capsize": 3, "capthick": 1.2}
            look |= {"markeredgecolor": "white", "markeredgewidth": 0.6}
            error = None if found.std is None else 100 * found.std
            panel.errorbar(gflops, 100 * found.mean, yerr=error, label=row.label, **look)
    if not costs:
        return None
    unit = _cost_axis(panel, costs)
    panel.set(xlabel=f"{unit} per sample", ylabel=f"{heading(metric)}, test split (%)")
    figure.legend(loc="outside right center")
    return figure


def _cost_axis(panel: Axes, costs: Sequence[float]) -> str:
    """A scale with plain numbers that do not run into each other; the unit it is in."""
    factor, unit = (1, "GFLOPs") if max(costs) >= 0.1 else (1000, "MFLOPs")
    low, high = min(costs), max(costs)
    if low > 0 and high / low > LOG_SPAN:
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
        panel.xaxis.set_minor_formatter(NullFormatter())
    else:
        panel.xaxis.set_major_locator(MaxNLocator(4))
    panel.xaxis.set_major_formatter(lambda value, place: f"{factor * value:.4g}")
    return unit
