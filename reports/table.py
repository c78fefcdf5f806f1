"""Rows -> one table, the model behind every rendering of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reports.numbers import NONE
from reports.published import Published, paper_tables
from reports.rows import Row

STALE = "†"


@dataclass(frozen=True)
class Cell:
    """A cell as it is printed, and the numbers behind it."""

    text: str
    raw: Mapping[str, Any] = field(default_factory=dict)
    """column of the CSV file -> number or text, not rounded"""
    bold: bool = False
    tied: bool = False
    """not set apart from the best; underlined"""
    why: str = ""
    """what keeps it empty"""
    runs: tuple[str, ...] = ()
    """the runs that its number is of"""


@dataclass(frozen=True)
class Table:
    """A table before it becomes Markdown, LaTeX or CSV."""

    title: str
    subtitle: str
    """which runs it shows"""
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    footnotes: tuple[str, ...]
    quoted: int = 0
    """how many rows at the end are only the paper's"""


Column = tuple[str, Callable[[Row], Cell], Callable[[Published], Cell]]
"""heading, the cell of one of our rows, the cell of a row that only the paper has"""


def assembled(
    title: str,
    subtitle: str,
    columns: Sequence[Column],
    rows: Sequence[Row],
    paper_table: str,
    footnotes: Sequence[str],
) -> Table:
    """Our rows, then those of the paper's table that the sweep does not have."""
    lines = [tuple(_with_runs(ours(row), row) for _, ours, _ in columns) for row in rows]
    named = {row.paper for row in rows}
    others = [p for p in paper_tables().get(paper_table, ()) if not named & set(p.names)]
    quoted = [tuple(theirs(paper) for _, _, theirs in columns) for paper in others]
    notes = [*footnotes, *empty_cells(lines)]
    header = tuple(name for name, _, _ in columns)
    return Table(title, subtitle, header, (*lines, *quoted), tuple(notes), len(quoted))


def _with_runs(cell: Cell, row: Row) -> Cell:
    """A number opens the runs that it was made of."""
    if cell.runs or not any(isinstance(value, int | float) for value in cell.raw.values()):
        return cell
    return replace(cell, runs=row.run_ids)


def empty_cells(lines: Sequence[Sequence[Cell]]) -> Iterator[str]:
    """What keeps cells empty, with the rows that it is so for."""
    rows: dict[str, list[str]] = {}
    for line in lines:
        for why in dict.fromkeys(cell.why for cell in line if cell.why and cell.text == NONE):
            rows.setdefault(why, []).append(str(line[0].raw.get("label", line[0].text)))
    if rows:
        told = [f"{why} ({', '.join(named)})" for why, named in rows.items()]
        yield f"{NONE}: {'; '.join(told)}."


def blank(paper: Published) -> Cell:
    return Cell(NONE, why="not run" if paper.ours else "quoted from the paper")


def unless_done(row: Row, otherwise: str) -> str:
    """Why a cell of the row is empty: it has no result, or `otherwise`."""
    return otherwise if row.done else row.unfinished


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
