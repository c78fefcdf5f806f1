"""A stored sweep -> the parts of its report: tables, each with the figures of its rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harness.config import ConfigError
from harness.registry import unknown
from harness.reportspec import ReportSpec
from harness.store import Store
from harness.track import Tracked, key
from reports.claims import claims_table
from reports.costs import cost_table
from reports.footnotes import cost_footnotes, results_footnotes
from reports.gate import Gated, gate_table, stamps
from reports.leakage import leakage_table
from reports.results import results_table
from reports.rows import Row, collect
from reports.table import Table

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """One table of a report, under the name of its files."""

    stem: str
    table: Table
    rows: tuple[Row, ...]
    figures: str = ""
    """which it has: those of `results`, of a `search`, or none"""
    report: ReportSpec | None = None
    kind: str = ""
    """`claims`, if it is of those"""


@dataclass(frozen=True)
class Source:
    """A stored sweep with all its rows, and what is needed to make its sections."""

    store: Store
    runs: Mapping[str, Tracked]
    record: Record
    gated: Sequence[Gated]

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        return collect(self.store, self.runs, self.record)

    @cached_property
    def report(self) -> ReportSpec:
        return ReportSpec(**self.record["report"])

    @property
    def preset(self) -> str:
        return preset_of(self.record)

    @property
    def stem(self) -> str:
        return f"{self.record['name']}-{self.preset}"

    @property
    def where(self) -> str:
        where = f"sweep {self.record['name']}, preset {self.preset}"
        if self.record.get("settings"):
            where += f", changed by --set {', '.join(self.record['settings'])}"
        return where

    def sections(self, views: Sequence[str], wanted: set[str]) -> Iterator[Section]:
        """Those among `views` that are wanted; the first of them is the sweep's own table."""
        _check_metrics(self.record, self.report, self.rows)
        report = self.report
        if self.record.get("search") and views[0] in wanted:
            from reports.search import search_table, warning  # Optuna, which others do not need

            notes = [*warning(self.record["search"]), *report.notes]
            report = report.model_copy(update={"notes": notes})
            table = search_table(self.record, self.where, self.store, self.rows)
            yield Section(f"{self.stem}-search", table, self.rows, "search")
        for name in views:
            if name not in wanted:
                continue
            if report.gate is not None:
                args = (report, self.where, self.preset, self.store, self.rows)
                yield Section(self.stem, gate_table(*args), self.rows)
            elif name == "table4" or not report.metrics:
                yield self._costs(name)
            else:
                yield from self._results(report)
        claims = claims_table(self.record, self.where, self.store, self.rows)
        if claims is not None and views[0] in wanted:
            yield Section(f"{self.stem}-claims", claims, self.rows, kind="claims")

    def _costs(self, name: str) -> Section:
        own = name == self.record["report"]["table"]
        notes = [
            *(self.report.notes if own else ()),
            *cost_footnotes(self.preset, self.store, self.rows),
        ]
        title = self.report.title if own else "Table 4. Cost"
        return Section(
            _cost_stem(self.record), cost_table(title, self.where, self.rows, notes), self.rows
        )

    def _results(self, report: ReportSpec) -> Iterator[Section]:
        """A table for each part that rows are set apart in."""
        blocks: dict[str, list[Row]] = {}
        for row in self.rows:
            blocks.setdefault(row.block, []).append(row)
        slugs = [_slug(block) for block in blocks]
        for number, (block, rows) in enumerate(blocks.items()):
            title, stem = report.title, self.stem
            if block:
                slug = slugs[number]
                if not slug or slugs.count(slug) > 1:
                    slug = f"{slug}-{number + 1}".strip("-")
                title, stem = f"{title}: {block}", f"{stem}-{slug}"
            part = report.model_copy(update={"title": title})
            told = list(stamps(rows, self.gated))
            notes = results_footnotes(part, self.preset, self.store, rows, told)
            if report.leakage:
                told = list(report.notes)
                leaks = leakage_table(part, self.where, self.store, rows, told)
                yield Section(f"{stem}-leakage", leaks, tuple(rows))
            table = results_table(part, self.where, self.store, rows, notes)
            yield Section(stem, table, tuple(rows), "results", part)


def preset_of(record: Record) -> str:
    return record["preset"] or "plain"


def views(record: Record, records: Sequence[Record]) -> list[str]:
    """The tables that a sweep's runs give: its own, and the cost of Table 3's as Table 4."""
    own = record["report"]["table"]
    others = {r["report"]["table"] for r in records if preset_of(r) == preset_of(record)}
    costs = own == "table3" and "table4" not in others and not record.get("search")
    return [own, "table4"] if costs else [own]


def _slug(text: str) -> str:
    """For a file's name: `Paper cost: patch tokens` -> `paper-cost-patch-tokens`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _cost_stem(record: Record) -> str:
    """`table4-demo` for the sweeps `table3` and `table4`; another sweep puts its name between."""
    between = "" if record["name"] in ("table3", "table4") else f"-{record['name']}"
    return f"table4{between}-{preset_of(record)}"


def _check_metrics(record: Record, report: ReportSpec, rows: Sequence[Row]) -> None:
    """A metric that no finished run has is a mistake in the sweep file."""
    known = sorted({name for row in rows for seed in row.done for name in seed.metrics or ()})
    if not known:
        return
    first = report.metrics[:1]
    names = [*report.metrics, *(f"{m}[{subset}]" for m in first for subset in report.subsets)]
    wrong = [name for name in names if key(name) not in known]
    if wrong:
        where = f"sweep {record['name']}: report"
        raise ConfigError(*(f"{where}: {unknown(key(name), known, 'metric')}" for name in wrong))
