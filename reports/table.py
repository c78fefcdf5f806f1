"""Rows -> one table, the model behind every rendering of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.reportspec import ReportSpec
from harness.store import Store
from reports.differences import marks
from reports.hits import difference
from reports.numbers import MINUS, NONE, heading, percent, points, share, size, target_of
from reports.published import Published, comparable, paper_tables, published
from reports.rows import Row
from reports.statistics import Summary, exceeds, summary

STALE, TOO_GOOD = "†", "‡"


@dataclass(frozen=True)
class Cell:
    """A cell as it is printed, and the numbers behind it."""

    text: str
    raw: Mapping[str, Any] = field(default_factory=dict)
    """column of the CSV file -> number or text, not rounded"""
    bold: bool = False
    tied: bool = False
    """not set apart from the best; underlined"""


@dataclass(frozen=True)
class Table:
    """A table before it becomes Markdown, LaTeX or CSV."""

    title: str
    subtitle: str
    """which runs it shows"""
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    footnotes: tuple[str, ...]


Column = tuple[str, Callable[[Row], Cell], Callable[[Published], Cell]]
"""heading, the cell of one of our rows, the cell of a row that only the paper has"""


def results_table(
    report: ReportSpec,
    subtitle: str,
    store: Store,
    rows: Sequence[Row],
    footnotes: Sequence[str],
) -> Table:
    """Scores, ceilings, cost and the paper's numbers."""
    scores = [_metric_column(metric, store, rows) for metric in report.metrics]
    columns = [label_column(), seeds_column(), *scores]
    told = {row.information for row in rows if row.done}
    if told - {"none", "ground-truth question", "text"} or any(row.asked for row in rows):
        columns.insert(1, _information_column())
    if any(row.ceiling(metric) is not None for row in rows for metric in report.metrics):
        columns.append(_ceiling_column(report))
    columns += [_subset_column(report, subset) for subset in report.subsets]
    if report.fusion_score:
        columns.append(_fusion_score_column(report))
    columns += [cost_column("Params (M)", "params_m"), cost_column("GFLOPs", "gflops")]
    if any(published(report.table, row.paper) for row in rows):
        columns += _paper_columns(report)
    return assembled(report.title, subtitle, columns, rows, report.table, footnotes)


def cost_table(title: str, subtitle: str, rows: Sequence[Row], footnotes: Sequence[str]) -> Table:
    """The paper's Table 4: GFLOPs and parameters, and what a GPU took where there was one."""
    columns: list[Column] = [label_column()]
    for column, name in (("GFLOPs", "gflops"), ("Params (M)", "params_m")):
        columns.append(cost_column(column, name, with_state=name == "gflops"))
        columns.append(_paper_cost_column(f"Paper {column}", name))
    columns.append(cost_column("Trained (M)", "params_trained_m"))
    for on_gpu, name in (("Latency (ms)", "latency_ms"), ("GPU memory (GB)", "memory_gb")):
        if any(row_cost(row, name) is not None for row in rows):
            columns.append(cost_column(on_gpu, name))
    columns.append(_difference_column("table4", ["gflops", "params_m"], _cost_difference))
    compared = [row for row in rows if not row.is_reference]
    return assembled(title, subtitle, columns, compared, "table4", footnotes)


def assembled(
    title: str,
    subtitle: str,
    columns: Sequence[Column],
    rows: Sequence[Row],
    paper_table: str,
    footnotes: Sequence[str],
) -> Table:
    """Our rows, then those of the paper's table that the sweep does not have."""
    cells = [tuple(ours(row) for _, ours, _ in columns) for row in rows]
    named = {row.paper for row in rows}
    for paper in paper_tables().get(paper_table, ()):
        if not named & set(paper.names):
            cells.append(tuple(theirs(paper) for _, _, theirs in columns))
    header = tuple(name for name, _, _ in columns)
    return Table(title, subtitle, header, tuple(cells), tuple(footnotes))


def blank(paper: Published) -> Cell:
    return Cell(NONE)


def label_column() -> Column:
    def ours(row: Row) -> Cell:
        text = row.title + (" (reference)" if row.is_reference else "")
        raw = {"row": row.name, "label": row.label, "paper": row.paper}
        return Cell(f"{text} {STALE}" if row.stale else text, raw)

    return "Row", ours, lambda paper: Cell(paper.model, {"paper": paper.model})


def seeds_column() -> Column:
    def ours(row: Row) -> Cell:
        raw = {
            "state": row.state(),
            "seeds": " ".join(str(seed.seed) for seed in row.done),
            "run_ids": " ".join(run_id for seed in row.seeds for run_id in seed.run_ids),
            "stale": " ".join(row.stale),
        }
        return Cell(row.state(), raw)

    def theirs(paper: Published) -> Cell:
        text = "not run" if paper.ours else "quoted"
        return Cell(text, {"state": text})

    return "Seeds", ours, theirs


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
        return Cell(percent(found) + mark, raw, bold=told == "best", tied=told == "tied")

    return heading(metric), ours, blank


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
            return Cell(NONE, raw)
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
        return Cell(NONE if set(texts) == {NONE} else " / ".join(texts), raw)

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
            return Cell(NONE)
        found = summary(list(fusion_score(report, row).values()))
        return Cell(percent(found, scale=1, digits=2), raw_summary("fusion_score", found))

    return "Fusion score", ours, blank


def cost_column(title: str, name: str, with_state: bool = False) -> Column:
    def ours(row: Row) -> Cell:
        value = row_cost(row, name)
        text = row.state() if with_state and not row.done else size(value)
        return Cell(text, {name: value})

    def theirs(paper: Published) -> Cell:
        return Cell(("not run" if paper.ours else "quoted") if with_state else NONE)

    return title, ours, theirs


def row_cost(row: Row, name: str) -> float | None:
    """A cost of the model; of a reference row its fitted coefficients, and no GFLOPs."""
    if not row.is_reference:
        return row.final(f"cost/{name}")
    fitted = row.final("cost/coefficients")
    return fitted / 1e6 if fitted is not None and name == "params_m" else None


def _paper_columns(report: ReportSpec) -> list[Column]:
    def theirs(paper: Published) -> Cell:
        known = [paper.scores.get(metric) for metric in report.metrics]
        text = " / ".join(NONE if value is None else f"{value:.1f}" for value in known)
        return Cell(text, {f"paper_{metric}": value for metric, value in paper.scores.items()})

    def ours(row: Row) -> Cell:
        paper = published(report.table, row.paper)
        return theirs(paper) if paper else Cell(NONE)

    quoted: Column = (f"Paper {_targets(report.metrics)}", ours, theirs)
    return [quoted, _difference_column(report.table, report.metrics, _score_difference)]


def _score_difference(row: Row, metric: str, printed: float) -> float | None:
    found = row.summary(metric)
    return None if found is None else 100 * found.mean - printed


def _cost_difference(row: Row, name: str, printed: float) -> float | None:
    value = row_cost(row, name)
    return None if value is None else value - printed


def _difference_column(
    table: str, metrics: Sequence[str], difference: Callable[[Row, str, float], float | None]
) -> Column:
    """`ours − paper`, or what keeps the two from being compared."""

    def ours(row: Row) -> Cell:
        paper = published(table, row.paper)
        if paper is None or not row.done:
            return Cell(NONE)
        reason = comparable(row, paper)
        if reason:
            return Cell(reason, {"not_comparable": reason})
        raw = {
            f"{metric}_ours_minus_paper": difference(row, metric, paper.scores[metric])
            for metric in metrics
            if metric in paper.scores
        }
        told = [NONE if value is None else points(value) for value in raw.values()]
        return Cell(" / ".join(told) or "other metrics", raw)

    return f"Ours {MINUS} paper", ours, blank


def _paper_cost_column(title: str, name: str) -> Column:
    def theirs(paper: Published) -> Cell:
        return Cell(f"{paper.scores[name]:g}", {f"paper_{name}": paper.scores[name]})

    def ours(row: Row) -> Cell:
        paper = published("table4", row.paper)
        return theirs(paper) if paper else Cell(NONE)

    return title, ours, theirs
