"""The table of costs, and the columns of cost that other tables have."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reports.numbers import MINUS, NONE, points, size
from reports.published import Published, comparable, published
from reports.rows import Row
from reports.table import Cell, Column, Table, assembled, blank, label_column, unless_done

NO_PAPER = "the paper has no such row"


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
    columns.append(difference_column("table4", ["gflops", "params_m"], _cost_difference))
    compared = [row for row in rows if not row.is_reference]
    return assembled(title, subtitle, columns, compared, "table4", footnotes)


def cost_column(title: str, name: str, with_state: bool = False) -> Column:
    def ours(row: Row) -> Cell:
        value = row_cost(row, name)
        text = row.state() if with_state and not row.done else size(value)
        return Cell(text, {name: value}, why=unless_done(row, "not counted"))

    def theirs(paper: Published) -> Cell:
        return Cell("not run" if paper.ours else "quoted") if with_state else blank(paper)

    return title, ours, theirs


def row_cost(row: Row, name: str) -> float | None:
    """A cost of the model; of a reference row its fitted coefficients, and no GFLOPs."""
    if not row.is_reference:
        return row.final(f"cost/{name}")
    fitted = row.final("cost/coefficients")
    return fitted / 1e6 if fitted is not None and name == "params_m" else None


def _cost_difference(row: Row, name: str, printed: float) -> float | None:
    value = row_cost(row, name)
    return None if value is None else value - printed


def difference_column(
    table: str, metrics: Sequence[str], difference: Callable[[Row, str, float], float | None]
) -> Column:
    """`ours − paper`, or what keeps the two from being compared."""

    def ours(row: Row) -> Cell:
        paper = published(table, row.paper)
        if paper is None or not row.done:
            return Cell(NONE, why=unless_done(row, NO_PAPER))
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
        return theirs(paper) if paper else Cell(NONE, why=NO_PAPER)

    return title, ours, theirs
