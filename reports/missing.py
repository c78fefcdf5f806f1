"""What a report lacks, and the command that makes it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from reports.claims import judge
from reports.hits import shared_seeds
from reports.published import paper_tables
from reports.rows import Row, in_words
from reports.statistics import MIN_SEEDS

if TYPE_CHECKING:
    from reports.build import Report
    from reports.sections import Source

FAILED = "failed"


class Missing(NamedTuple):
    """One thing."""

    what: str
    command: str
    """empty where none does it alone"""


def missing(report: Report) -> list[Missing]:
    """In the order of the sweeps; then tables of the paper that nothing stored is of."""
    found = [one for source in report.sources for one in _of(source)]
    if report.choice.sweeps:
        return found
    stored = [(r["report"]["table"], r["preset"]) for r in report.store.sweeps()]
    for name in paper_tables():
        costs = name == "table4"
        if any(table == name and (costs or preset == "ek100") for table, preset in stored):
            continue
        preset = "" if costs else " --preset ek100"
        command = f"harness sweep sweeps/{name}.yaml{preset}"
        found.append(Missing(f"{name.replace('table', 'Table ')} of the paper, as it is", command))
    return found


def _of(source: Source) -> Iterator[Missing]:
    record, where = source.record, f"{source.record['name']}, {source.preset}"
    by_state: dict[str, list[str]] = {}
    for row in source.rows:
        for seed in row.seeds:
            if seed.state != "done":
                by_state.setdefault(seed.state, []).append(f"{row.label}, seed {seed.seed}")
    for state, named in by_state.items():
        command = f"{_again(source)} --retry" if state == FAILED else _again(source)
        if state == "running":
            command = f"harness status {shlex.quote(record['name'])} --watch"
        yield Missing(f"{where}: {in_words(state)}: {_few(named)}", command)
    stale = [row.label for row in source.rows if row.stale]
    if stale:
        what = f"{where}: made by code that has changed since: {_few(stale)}"
        yield Missing(what, f"{_again(source)} --stale rerun")
    yield from _seeds(source, where)


def _again(source: Source, seeds: Sequence[int] = ()) -> str:
    """The command that made the sweep; with other seeds, if some are given."""
    record = source.record
    words = ["harness", "search" if record.get("search") else "sweep"]
    words.append(record.get("file") or f"sweeps/{record['name']}.yaml")
    words += ["--preset", record["preset"]] if record["preset"] else []
    for text in record.get("settings", ()):
        if not (seeds and text.startswith("seeds=")):
            words += ["--set", text]
    if seeds:
        words += ["--set", f"seeds=[{','.join(map(str, seeds))}]"]
    return shlex.join(words)


def _seeds(source: Source, where: str) -> Iterator[Missing]:
    """More of them: for rows with fewer than three, and for claims that they would settle."""
    rows = [row for row in source.rows if not row.is_reference]
    few = [row.label for row in rows if row.done and len(row.seeds) < MIN_SEEDS]
    if few and source.report.metrics:
        what = f"{where}: fewer than {MIN_SEEDS} seeds, which decide nothing: {_few(few)}"
        yield Missing(what, _with_seeds(source, MIN_SEEDS))
    claims = source.record.get("claims", ())
    by_name: dict[str, Row] = {row.name: row for row in source.rows}
    for claim, one in zip(claims, judge(claims, source.store, by_name), strict=True):
        if one.verdict == "undecided" and one.needed is not None:
            here = len(shared_seeds(by_name[claim["row"]], by_name[claim["than"]]))
            what = f"{where}: undecided: {claim['says']}; {one.needed} seeds may settle it"
            yield Missing(what, _with_seeds(source, one.needed, here))


def _with_seeds(source: Source, wanted: int, here: int = 0) -> str:
    """The command for so many seeds of every row; empty where seeds are more than a number."""
    seeds = sorted({seed.seed for row in source.rows for seed in row.seeds})
    if source.record.get("search") or not _plain(source):
        return ""
    here = min(here or len(seeds), len(seeds))
    new = [n for n in range(wanted + len(seeds)) if n not in seeds]
    return _again(source, [*seeds, *new[: max(0, wanted - here)]])


def _plain(source: Source) -> bool:
    """Whether seeds of a row differ in nothing but their number: no folds, no data of their own."""
    for row in source.rows:
        found = []
        for seed in row.seeds:
            for run_id in seed.run_ids:
                spec = source.store.run(run_id).spec().get("spec", {})
                found.append({k: v for k, v in spec.items() if k not in ("seed", "needs")})
        if any(len(seed.run_ids) > 1 for seed in row.seeds) or any(s != found[0] for s in found):
            return False
    return True


def _few(named: list[str]) -> str:
    shown = "; ".join(named[:6])
    return f"{shown}; and {len(named) - 6} more" if len(named) > 6 else shown
