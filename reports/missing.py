"""What a report lacks, and the command that makes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from reports.claims import judge
from reports.published import paper_tables
from reports.rows import Row
from reports.statistics import MIN_SEEDS

if TYPE_CHECKING:
    from reports.build import Report
    from reports.sections import Source

PAPER = {"table1": "Table 1", "table2": "Table 2", "table3": "Table 3", "table4": "Table 4"}
FAILED = "failed"


class Missing(NamedTuple):
    """One thing."""

    what: str
    command: str


def missing(report: Report) -> list[Missing]:
    """In the order of the sweeps; then tables of the paper that nothing stored is of."""
    found = [one for source in report.sources for one in _of(source)]
    stored = report.store.sweeps()
    there = {record["report"]["table"] for record in stored if record["preset"] == "ek100"}
    for name in paper_tables():
        if name not in there and not report.choice.sweeps:
            command = f"harness sweep sweeps/{name}.yaml --preset ek100"
            if name == "table4":
                command = "harness sweep sweeps/table4.yaml"
                if name in {record["report"]["table"] for record in stored}:
                    continue
            found.append(Missing(f"{PAPER[name]} of the paper, on its data", command))
    return found


def _of(source: Source) -> Iterator[Missing]:
    record = source.record
    again = f"harness sweep {record.get('file') or 'sweeps/' + record['name'] + '.yaml'}"
    if record.get("search"):
        again = again.replace(" sweep ", " search ", 1)
    if record["preset"]:
        again += f" --preset {record['preset']}"
    for text in record.get("settings", ()):
        again += f" --set '{text}'"
    where = f"{record['name']}, {source.preset}"
    by_state: dict[str, list[str]] = {}
    for row in source.rows:
        for seed in row.seeds:
            if seed.state != "done":
                by_state.setdefault(seed.state, []).append(f"{row.label}, seed {seed.seed}")
    for state, named in by_state.items():
        told = {"new": "not run", "pruned": "ended by a search"}.get(state, state)
        command = f"{again} --retry" if state == FAILED else again
        if state == "running":
            command = f"harness status {record['name']} --watch"
        yield Missing(f"{where}: {told}: {_few(named)}", command)
    stale = [row.label for row in source.rows if row.stale]
    if stale:
        yield Missing(
            f"{where}: made by code that has changed since: {_few(stale)}", f"{again} --stale rerun"
        )
    yield from _seeds(source, where, again)


def _seeds(source: Source, where: str, again: str) -> Iterator[Missing]:
    """More of them: for rows with fewer than three, and for claims that they would settle."""
    few = [row.label for row in source.rows if row.done and len(row.seeds) < MIN_SEEDS]
    if few and source.report.metrics:
        yield Missing(
            f"{where}: fewer than {MIN_SEEDS} seeds, which decide nothing: {_few(few)}",
            f"{again} --set 'seeds={list(range(MIN_SEEDS))}'".replace(", ", ","),
        )
    claims = source.record.get("claims", ())
    by_name: dict[str, Row] = {row.name: row for row in source.rows}
    for claim, one in zip(claims, judge(claims, source.store, by_name), strict=True):
        if one.verdict == "undecided" and one.needed is not None:
            seeds = sorted({seed.seed for row in source.rows for seed in row.seeds})
            new = [n for n in range(10_000) if n not in seeds][: one.needed - len(seeds)]
            told = f"{where}: undecided: {claim['says']}; {one.needed} seeds may settle it"
            yield Missing(told, f"{again} --set 'seeds={[*seeds, *new]}'".replace(", ", ","))


def _few(named: list[str]) -> str:
    shown = "; ".join(named[:6])
    return f"{shown}; and {len(named) - 6} more" if len(named) > 6 else shown
