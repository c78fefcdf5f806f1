"""The section `report` of a sweep file: which table it feeds, and what can be wrong with that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from harness.config import Config, Node
from harness.registry import unknown

if TYPE_CHECKING:
    from harness.plan import PlannedRun


class ReportSpec(Config):
    """Which table a sweep feeds."""

    table: str
    """`table1` ... `table4`, or a name of its own"""
    title: str
    """one line above the table"""
    metrics: list[str] = []
    """columns, e.g. `verb_top1`; names as in a run's result. None: a table of cost"""
    subsets: list[str] = []
    """shares of the test split also reported by themselves"""
    fusion_score: bool = False
    """of two `subsets`: also the ratio of the second's scores to the first's"""
    leakage: bool = False
    """of rows that differ in the source of their questions: also a table of models by source, with
    what each source gains and what of the gain survives when questions come from predictions"""
    reference: str | None = None
    """row that every other is compared with, by the last of `metrics`, in a column of its own"""
    notes: list[str] = []
    """printed under the table"""
    gate: float | None = Field(default=None, gt=0)
    """points by which a row may differ from its `published` numbers and pass; both are shown"""

    @model_validator(mode="after")
    def _two(self) -> Self:
        if self.fusion_score and len(self.subsets) != 2:
            raise ValueError(f"fusion_score compares two subsets, here are {len(self.subsets)}")
        return self


def report_problems(
    report: ReportSpec | None,
    node: Node,
    known: list[str],
    runs: Sequence[PlannedRun],
) -> list[str]:
    """What the rows cannot give: metrics (`known` are those that runs have), a reference row."""
    if report is None:
        return []
    rows = list(dict.fromkeys(run.row for run in runs if run.in_table))
    if report.reference is not None and rows and report.reference not in rows:
        at = node.at(["reference"]).where
        return [f"{at}: report.reference: {unknown(report.reference, rows, 'row')}"]
    where = node.at(["metrics"]).where
    numbers = any(run.published for run in runs)
    if report.gate is not None:
        at = node.at(["gate"]).where
        lacking = [f"{at}: report.gate: no row has `published` numbers"]
        wrong = [] if numbers or not runs else lacking
        if report.metrics or report.subsets:
            wrong.append(f"{where}: report.metrics: with a gate it is what the rows have published")
        return wrong
    if numbers:
        return [f"{node.where}: report.gate: is missing, and rows have `published` numbers"]
    trained = any(run.spec.train.method != "cost" for run in runs if run.in_table)
    if trained and not report.metrics:
        return [f"{where}: report.metrics: is missing; name at least one of {', '.join(known)}"]
    if runs and not trained and report.metrics:
        return [f"{where}: report.metrics: no row is trained or evaluated; leave it out"]
    wrong = [name for name in report.metrics if name not in known]
    return [f"{where}: report.metrics: {unknown(name, known, 'metric')}" for name in wrong]
