"""The gate of a baseline: a published checkpoint, scored here, against what its authors report.

Source: none, ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.reportspec import ReportSpec
from harness.store import Store
from harness.track import Tracked
from reports.costs import cost_column
from reports.footnotes import origin, samples_of
from reports.numbers import (
    MINUS,
    NONE,
    heading,
    in_order,
    percent,
    plain_heading,
    points,
    target_of,
)
from reports.results import raw_summary
from reports.rows import Row, collect
from reports.table import Cell, Column, Table, assembled, blank, label_column, seeds_column

DATA = "ek100"
"""the data that published baselines are of"""
ROUNDING = 1e-9


@dataclass(frozen=True)
class Gated:
    """A row that has published numbers, and by how many points it may differ from them."""

    row: Row
    gate: float

    @property
    def gaps(self) -> dict[str, float]:
        """Metric -> ours minus published, points; empty until every seed is done."""
        if len(self.row.done) < len(self.row.seeds):
            return {}
        found = {metric: self.row.summary(metric) for metric in self.row.published}
        return {m: 100 * s.mean - self.row.published[m] for m, s in found.items() if s is not None}

    @property
    def passed(self) -> bool | None:
        """Whether every number is near enough, above or below; None: not known yet."""
        gaps = self.gaps
        if len(gaps) < len(self.row.published) or not gaps:
            return None
        return all(abs(gap) <= self.gate + ROUNDING for gap in gaps.values())

    @property
    def in_words(self) -> str:
        """`passed`, `not passed`, or why that is not known."""
        if self.passed is None:
            return NONE if self.row.done or not self.row.published else "not run"
        return "passed" if self.passed else "not passed"

    @property
    def chief(self) -> str:
        """The metric that stands for the others: that of actions, else the first."""
        named = [m for m in self.row.published if target_of(m) == "action"]
        return [*named, *self.row.published][0]


def gated_rows(
    store: Store, runs: Mapping[str, Tracked], records: Sequence[Mapping[str, Any]]
) -> list[Gated]:
    """The rows with published numbers of every stored sweep that has a gate."""
    return [
        Gated(row, record["report"]["gate"])
        for record in records
        if record["report"].get("gate") is not None
        for row in collect(store, runs, record)
        if row.published
    ]


def gate_table(
    report: ReportSpec, subtitle: str, preset: str, store: Store, rows: Sequence[Row]
) -> Table:
    """Ours, published, the gap between them, and whether it is small enough."""
    assert report.gate is not None
    metrics = in_order(metric for row in rows for metric in row.published)
    titles = list(dict.fromkeys(map(plain_heading, metrics)))
    columns = [label_column(), seeds_column(), *map(_score_column, titles)]
    columns += _verdict_columns(report.gate, titles)
    columns += [cost_column("Params (M)", "params_m"), cost_column("GFLOPs", "gflops")]
    notes = list(_footnotes(report, preset, store, rows))
    return assembled(report.title, subtitle, columns, rows, report.table, notes)


def _score_column(title: str) -> Column:
    def ours(row: Row) -> Cell:
        metrics = _under(title, row)
        raw = {k: v for m in metrics for k, v in raw_summary(m, row.summary(m)).items()}
        return Cell(" / ".join(percent(row.summary(m)) for m in metrics) or NONE, raw)

    return title, ours, blank


def _verdict_columns(gate: float, titles: Sequence[str]) -> list[Column]:
    targets = " / ".join(title.split(" ")[0].lower() for title in titles)

    def published(row: Row) -> Cell:
        raw = {f"{metric}_published": value for metric, value in row.published.items()}
        return Cell(_joined(titles, row, {m: f"{v:.1f}" for m, v in row.published.items()}), raw)

    def gap(row: Row) -> Cell:
        gaps = Gated(row, gate).gaps
        raw = {f"{metric}_gap": value for metric, value in gaps.items()}
        return Cell(_joined(titles, row, {m: points(v) for m, v in gaps.items()}), raw)

    def verdict(row: Row) -> Cell:
        told = Gated(row, gate).in_words
        return Cell(told, {"gate": told})

    return [
        (f"Published {targets}", published, blank),
        (f"Ours {MINUS} published", gap, blank),
        (f"Within {gate:g}", verdict, blank),
    ]


def _under(title: str, row: Row) -> list[str]:
    """The row's metrics that a column shows."""
    return [metric for metric in row.published if plain_heading(metric) == title]


def _joined(titles: Sequence[str], row: Row, texts: Mapping[str, str]) -> str:
    """A text for each column, `–` where there is none; one `–` where there is none at all."""
    told = [texts.get(m, NONE) for title in titles for m in _under(title, row) or [""]]
    return NONE if set(told) <= {NONE} else " / ".join(told)


def _footnotes(report: ReportSpec, preset: str, store: Store, rows: Sequence[Row]) -> Iterator[str]:
    yield (
        f"A row passes the gate if each of its numbers lies within {report.gate:g} points of what "
        f"the authors of its checkpoint report, above or below."
    )
    counted: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if row.published:
            named = tuple(heading(metric).lower() for metric in row.published)
            counted.setdefault(named, []).append(row.label)
    told = [f"{', '.join(labels)}: {'; '.join(named)}" for named, labels in counted.items()]
    yield f"Counted as they report it. {'. '.join(told)}."
    yield from report.notes
    done = [row for row in rows if row.done]
    if done:
        yield f"Scores in % on the test split, {samples_of(done)} samples."
        yield from origin(preset, store, done)


def stamps(rows: Sequence[Row], gated: Sequence[Gated]) -> Iterator[str]:
    """The footnote that says of every encoder of a table whether its published baseline passed.

    `Baseline gate: orvit base passed (45.6, published 45.7); clip_vit base_16 not run.` Of several
    rows of one encoder it is that of the one that passed, else the nearest.
    """
    known: dict[str, list[Gated]] = {}
    for one in gated:
        if one.passed is not None and one.row.params.get("data.name") == DATA:
            for encoder in _encoders(one.row):
                known.setdefault(encoder, []).append(one)
    on_data = [row for row in rows if row.params.get("data.name") == DATA]
    used = dict.fromkeys(encoder for row in on_data for encoder in _encoders(row))
    told = [f"{encoder} {_verdict(known.get(encoder, []))}" for encoder in used]
    if told:
        yield f"Baseline gate: {'; '.join(told)}."


def _encoders(row: Row) -> list[str]:
    """`orvit base`: name and size of what sees something other than text."""
    prefixes = [f"encoders.{stream}" for stream in row.streams if stream != "text"]
    params = row.params
    told = [(params[f"{p}.name"], params.get(f"{p}.options.size", "")) for p in prefixes]
    return [" ".join(filter(None, pair)) for pair in told]


def _verdict(gated: Sequence[Gated]) -> str:
    if not gated:
        return "not run"
    best = min(gated, key=lambda one: (not one.passed, abs(one.gaps[one.chief])))
    found = best.row.summary(best.chief)
    assert found is not None
    numbers = f"{100 * found.mean:.1f}, published {best.row.published[best.chief]:.1f}"
    old = ", before the code changed" if best.row.stale else ""
    return f"{best.in_words} ({numbers}{old})"
