"""Which classes fusion helps: a bar for each, of the best fused row less the best single stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from harness.reportspec import ReportSpec
from harness.store import Store
from reports.footnotes import best_on_select
from reports.hits import difference_by_sample
from reports.numbers import MINUS, heading, target_of
from reports.rows import Row

MAX_BARS = 24
MAX_PANELS = 2


def class_gains(store: Store, first: Row, second: Row, metric: str) -> list[tuple[int, float, int]]:
    """(class, points won by the first, samples), the most won first; empty where the rows were not
    tested on the same samples, and for recalls and actions, which have no such classes."""
    told = None if "_recall" in metric else difference_by_sample(store, first, second, metric)
    if told is None or target_of(metric) not in told.truths:
        return []
    truth = told.truths[target_of(metric)]
    count = np.bincount(truth)
    won = np.bincount(truth, weights=told.values)
    found = [(c, 100 * float(won[c] / count[c]), int(count[c])) for c in np.flatnonzero(count)]
    return sorted(((int(c), gain, n) for c, gain, n in found), key=lambda one: (-one[1], one[0]))


def class_names(store: Store, row: Row) -> Mapping[str, Sequence[str]]:
    """Target -> names of its classes, as the run recorded them; empty where it has not."""
    return dict((store.run(row.run_ids[0]).result() or {}).get("classes", {}))


def gain_bars(report: ReportSpec, store: Store, rows: Sequence[Row]) -> Figure | None:
    """A panel for each metric of one target; of many classes those that gain and lose most."""
    models = [row for row in rows if row.done and not row.is_reference]
    chief = report.metrics[0]
    single = best_on_select([row for row in models if len(row.streams) == 1], chief)
    fused = best_on_select([row for row in models if len(row.streams) > 1], chief)
    if single is None or fused is None:
        return None
    gains = {m: class_gains(store, fused, single, m) for m in report.metrics}
    shown = {metric: found for metric, found in gains.items() if found}
    if not shown:
        return None
    shown = dict(list(shown.items())[:MAX_PANELS])
    names = class_names(store, fused)
    most = max(min(MAX_BARS, len(found)) for found in shown.values())
    figure = Figure(figsize=(4.2 * len(shown) + 0.6, 0.24 * most + 1.5))
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for panel, (metric, found) in zip(panels, shown.items(), strict=True):
        part = found
        if len(found) > MAX_BARS:
            part = [*found[: 2 * MAX_BARS // 3], *found[-(MAX_BARS // 3) :]]
        labels = [_named(names.get(target_of(metric), ()), one) for one, _, _ in part]
        values = [gain for _, gain, _ in part]
        colours = ["C0" if value >= 0 else "C1" for value in values]
        panel.barh(range(len(part)), values, color=colours, height=0.7, zorder=2)
        panel.set_yticks(range(len(part)), labels)
        panel.invert_yaxis()
        panel.axvline(0, color="0.4", linewidth=0.9)
        panel.grid(axis="y", visible=False)
        left_out = f" ({len(part)} of {len(found)} classes)" if len(part) < len(found) else ""
        panel.set(xlabel=f"points of {heading(metric)}{left_out}")
    figure.suptitle(f"{fused.label} {MINUS} {single.label}, by true class", fontsize=10)
    return figure


def _named(names: Sequence[str], one: int) -> str:
    return names[one] if one < len(names) else str(one)
