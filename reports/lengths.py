"""Accuracy and time against the number of tokens that a head sees."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from harness.reportspec import ReportSpec
from harness.store import Store
from reports.looks import look
from reports.numbers import heading
from reports.rows import Row

Point = tuple[int, float, float | None, float | None]
"""tokens, score %, its standard deviation, seconds of an epoch"""


def tokens_of(store: Store, row: Row) -> int | None:
    """Tokens of a sample, of all streams; None where the run did not record them."""
    counted = (store.run(row.run_ids[0]).result() or {}).get("cost", {}).get("tokens")
    return sum(counted.values()) if counted else None


def by_length(report: ReportSpec, store: Store, rows: Sequence[Row]) -> dict[str, list[Point]]:
    """Head -> its points by length: rows of one label whose tokens differ in number."""
    metric = report.metrics[-1]
    found: dict[str, list[Point]] = {}
    for row in rows:
        score, tokens = row.summary(metric), tokens_of(store, row) if row.done else None
        if score is None or tokens is None or row.is_reference:
            continue
        spread = None if score.std is None else 100 * score.std
        point = (tokens, 100 * score.mean, spread, row.final("epoch_seconds"))
        found.setdefault(row.head, []).append(point)
    kept = {label: sorted(points) for label, points in found.items()}
    return {k: v for k, v in kept.items() if len({point[0] for point in v}) > 1}


def length_curves(report: ReportSpec, store: Store, rows: Sequence[Row]) -> Figure | None:
    """A line for each head; None unless some head was run at several lengths."""
    found = by_length(report, store, rows)
    if not found:
        return None
    figure = Figure(figsize=(9.2, 3.6))
    left, right = figure.subplots(1, 2)
    handles = []
    for place, points in enumerate(found.values()):
        drawn = look(place)
        tokens = [point[0] for point in points]
        spread = [point[2] or 0.0 for point in points]
        handles.append(
            left.errorbar(tokens, [p[1] for p in points], yerr=spread, capsize=3, **drawn)
        )
        timed = [(p[0], p[3]) for p in points if p[3] is not None]
        right.plot([t for t, _ in timed], [s for _, s in timed], **drawn)
    counts = sorted({point[0] for points in found.values() for point in points})
    for panel in (left, right):
        panel.set(xscale="log", xlabel="tokens of a sample, all streams")
        panel.set_xticks(counts)
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.xaxis.set_minor_formatter(NullFormatter())
    left.set(ylabel=f"{heading(report.metrics[-1])}, test split (%)")
    right.set(ylabel="seconds of an epoch of training", yscale="log")
    figure.legend(handles, found, loc="outside right center")
    return figure
