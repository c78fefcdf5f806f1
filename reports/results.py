"""The table of scores: ours with their spread, what bounds them, what they cost, the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.reportspec import ReportSpec
from harness.store import Store
from reports.costs import NO_PAPER, cost_column, difference_column
from reports.differences import Difference, holm, marks
from reports.hits import difference, prepare, runs_of_both
from reports.numbers import MINUS, NONE, heading, interval_of, percent, share, target_of
from reports.published import Published, published
from reports.rows import Row
from reports.statistics import ALPHA, Summary, exceeds, summary
from reports.table import (
    Cell,
    Column,
    Table,
    assembled,
    blank,
    label_column,
    seeds_column,
    unless_done,
)

TOO_GOOD = "‡"
NO_PAIR = "no seed in common, or not the same test samples"


def results_table(
    report: ReportSpec,
    subtitle: str,
    store: Store,
    rows: Sequence[Row],
    footnotes: Sequence[str],
) -> Table:
    """Scores, ceilings, cost and the paper's numbers."""
    prepare(store, rows, report.metrics)
    scores = [_metric_column(metric, store, rows) for metric in report.metrics]
    columns = [label_column(), seeds_column(), *scores]
    told = {row.information for row in rows if row.done}
    if told - {"none", "ground-truth question", "text"} or any(row.asked for row in rows):
        columns.insert(1, _information_column())
    if any(row.ceiling(metric) is not None for row in rows for metric in report.metrics):
        columns.append(_ceiling_column(report))
    if any(row.name == report.reference for row in rows):
        columns.append(_reference_column(report, store, rows))
    columns += [_subset_column(report, subset) for subset in report.subsets]
    if report.fusion_score:
        columns.append(_fusion_score_column(report))
    columns += [cost_column("Params (M)", "params_m"), cost_column("GFLOPs", "gflops")]
    if any(published(report.table, row.paper) for row in rows):
        columns += _paper_columns(report)
    return assembled(report.title, subtitle, columns, rows, report.table, footnotes)


def _information_column() -> Column:
    def ours(row: Row) -> Cell:
        text = f"{row.information} ({row.asked})" if row.asked else row.information
        return Cell(text, {"information": row.information, "questions": row.asked})

    def theirs(paper: Published) -> Cell:
        return Cell(paper.information, {"information": paper.information})

    return "Test-time information", ours, theirs


def _metric_column(metric: str, store: Store, rows: Sequence[Row]) -> Column:
    found = marks(
        [row.values(metric) for row in rows],
        lambda first, second: difference(store, rows[first], rows[second], metric),
    )
    marked = {row.name: mark for row, mark in zip(rows, found, strict=True)}

    def ours(row: Row) -> Cell:
        mark = f" {TOO_GOOD}" if above_ceiling(row, metric) else ""
        found = row.summary(metric)
        told = marked[row.name]
        raw = {**raw_summary(metric, found), f"{metric}_mark": told}
        why = unless_done(row, "this row has no such metric")
        return Cell(percent(found) + mark, raw, told == "best", told == "tied", why)

    return heading(metric), ours, blank


def _reference_column(report: ReportSpec, store: Store, rows: Sequence[Row]) -> Column:
    """The last metric less that of the reference row; p is adjusted over the rows (Holm)."""
    metric = report.metrics[-1]
    base = next(row for row in rows if row.name == report.reference)
    found: dict[str, Difference] = {}
    for row in rows:
        told = difference(store, row, base, metric) if row is not base and row.done else None
        if told is not None:
            found[row.name] = told
    adjusted = dict(zip(found, holm([one.p for one in found.values()]), strict=True))

    def ours(row: Row) -> Cell:
        if row is base:
            return Cell(NONE, why="the row that others are compared with")
        told = found.get(row.name)
        if told is None:
            return Cell(NONE, why=unless_done(row, NO_PAIR) if base.done else base.unfinished)
        low, high = told.interval
        p = adjusted[row.name]
        sure = " *" if told.enough and p < ALPHA else ""
        raw: dict[str, Any] = {"difference": told.mean, "low": low, "high": high}
        raw |= {"p_holm": p, "seeds": told.seeds, "clusters": told.clusters}
        named = {f"{metric}_minus_reference_{name}": value for name, value in raw.items()}
        return Cell(interval_of(told) + sure, named, runs=runs_of_both(row, base))

    return f"{heading(metric)} {MINUS} {base.label}, points", ours, blank


def above_ceiling(row: Row, metric: str, subset: str = "") -> bool:
    """Whether the row's mean lies further above its ceiling than chance explains."""
    name = f"{metric}[{subset}]" if subset else metric
    found, ceiling = row.summary(name), row.ceiling(name)
    count = row.count(metric, subset)
    if found is None or ceiling is None or not count:
        return False
    return exceeds(found.mean, ceiling, count)


def raw_summary(name: str, found: Summary | None) -> dict[str, float | int | None]:
    if found is None:
        return {f"{name}_mean": None, f"{name}_std": None, f"{name}_n": 0}
    return {f"{name}_mean": found.mean, f"{name}_std": found.std, f"{name}_n": found.n}


def _ceiling_column(report: ReportSpec) -> Column:
    def ours(row: Row) -> Cell:
        values = {metric: row.ceiling(metric) for metric in report.metrics}
        raw = {f"{metric}_ceiling": value for metric, value in values.items()}
        if all(value is None for value in values.values()):
            return Cell(NONE, raw, why=unless_done(row, "no ceiling is known"))
        text = " / ".join(share(value) for value in values.values())
        return Cell(f"{text} ({row.ceiling_name})", {**raw, "ceiling": row.ceiling_name})

    return f"Ceiling {_targets(report.metrics)}", ours, blank


def _targets(metrics: Sequence[str]) -> str:
    names = [target_of(metric) for metric in metrics]
    told = zip(names, metrics, strict=True)
    return " / ".join(n if names.count(n) == 1 else heading(m).lower() for n, m in told)


def subset_metrics(report: ReportSpec) -> list[str]:
    """Metrics that are also shown by subset; for a fusion score all but the action, which is two of
    them at once."""
    if not report.fusion_score:
        return list(report.metrics)
    return [m for m in report.metrics if target_of(m) != "action"] or list(report.metrics)


def _subset_column(report: ReportSpec, subset: str) -> Column:
    metrics = subset_metrics(report)

    def ours(row: Row) -> Cell:
        raw: dict[str, Any] = {}
        texts = []
        for metric in metrics:
            found = row.summary(f"{metric}[{subset}]")
            mark = f" {TOO_GOOD}" if above_ceiling(row, metric, subset) else ""
            texts.append((NONE if found is None else share(found.mean)) + mark)
            raw |= raw_summary(f"{metric}/{subset}", found)
        text = NONE if set(texts) == {NONE} else " / ".join(texts)
        return Cell(text, raw, why=unless_done(row, f"no samples of {subset}"))

    title = subset.replace("_", " ").capitalize()
    return f"{title} {_targets(metrics)}", ours, blank


def fusion_score(report: ReportSpec, row: Row) -> dict[int, float]:
    """Seed -> mean over metrics of the second subset's score relative to the first's."""
    first, second = report.subsets
    ratios: dict[int, list[float]] = {}
    for metric in subset_metrics(report):
        below, above = row.values(f"{metric}[{first}]"), row.values(f"{metric}[{second}]")
        for seed in below:
            if below[seed] > 0 and seed in above:
                ratios.setdefault(seed, []).append(above[seed] / below[seed])
    return {seed: sum(values) / len(values) for seed, values in ratios.items()}


def _fusion_score_column(report: ReportSpec) -> Column:
    def ours(row: Row) -> Cell:
        if len(row.streams) < 2:
            return Cell(NONE, why=unless_done(row, "one stream alone"))
        found = summary(list(fusion_score(report, row).values()))
        text = percent(found, scale=1, digits=2)
        return Cell(text, raw_summary("fusion_score", found), why=unless_done(row, "no ratio"))

    return "Fusion score", ours, blank


def _paper_columns(report: ReportSpec) -> list[Column]:
    def theirs(paper: Published) -> Cell:
        known = [paper.scores.get(metric) for metric in report.metrics]
        text = " / ".join(NONE if value is None else f"{value:.1f}" for value in known)
        return Cell(text, {f"paper_{metric}": value for metric, value in paper.scores.items()})

    def ours(row: Row) -> Cell:
        paper = published(report.table, row.paper)
        return theirs(paper) if paper else Cell(NONE, why=NO_PAPER)

    quoted: Column = (f"Paper {_targets(report.metrics)}", ours, theirs)
    return [quoted, difference_column(report.table, report.metrics, _score_difference)]


def _score_difference(row: Row, metric: str, printed: float) -> float | None:
    found = row.summary(metric)
    return None if found is None else 100 * found.mean - printed
