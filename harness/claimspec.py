"""The section `claims` of a sweep file: what it is to find out, said before it is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from harness.config import Config, Node, kind_of, validate
from harness.registry import unknown
from harness.reportspec import ReportSpec

if TYPE_CHECKING:
    from harness.plan import PlannedRun


class Claim(Config):
    """One row is better than another."""

    says: str
    """in a few words, e.g. `Sharing A helps`"""
    row: str
    """the row that is to be better"""
    than: str
    """the row it is compared with"""
    metric: str | None = None
    """what they are compared by; the last of `report.metrics`"""
    margin: float = Field(default=1.0, gt=0, lt=100)
    """points; a difference below it, either way, is too small to matter"""


def claims_of(
    node: Node | None,
    report: ReportSpec | None,
    runs: Sequence[PlannedRun],
    metrics: Sequence[str],
) -> tuple[dict[str, Claim], list[str]]:
    """The claims by name, with their metric filled in, and what is wrong with them; `metrics` are
    those that the runs have."""
    found: dict[str, Claim] = {}
    messages: list[str] = []
    if node is None:
        return found, messages
    for name, child in node.value.items():
        if not isinstance(child.value, dict):
            messages.append(
                f"{child.where}: claims.{name}: a mapping is needed, not {kind_of(child.value)}"
            )
            continue
        claim, wrong = validate(Claim, child, f"claims.{name}.")
        messages += wrong
        if isinstance(claim, Claim) and report is not None and runs:
            default = report.metrics[-1] if report.metrics else ""
            full = claim.model_copy(update={"metric": claim.metric or default})
            messages += _problems(name, full, child, runs, metrics)
            found[name] = full
    return found, messages


def _problems(
    name: str, claim: Claim, node: Node, runs: Sequence[PlannedRun], metrics: Sequence[str]
) -> Iterator[str]:
    rows = list(dict.fromkeys(run.row for run in runs if run.in_table))
    for key, row in (("row", claim.row), ("than", claim.than)):
        if row not in rows:
            yield (
                f"{node.at([key]).where}: claims.{name}.{key}: {unknown(row, rows, 'row')}; a "
                f"preset without the row takes out the claim too: `claims: {{{name}: null}}`"
            )
    if claim.row == claim.than:
        yield f"{node.where}: claims.{name}: {claim.row!r} is compared with itself"
    if claim.metric not in metrics:
        what = unknown(str(claim.metric), list(metrics), "metric")
        yield f"{node.at(['metric']).where}: claims.{name}.metric: {what}"
