"""The claims of a stored sweep as a table: each with its verdict, or what is missing for one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from harness.store import Store
from reports.differences import Difference
from reports.hits import difference, runs_of_both
from reports.numbers import MINUS, NONE, heading, interval_of, p_value, points
from reports.rows import Row
from reports.statistics import MIN_SEEDS
from reports.table import Cell, Table
from reports.verdicts import LEVEL, MOST_SEEDS, Judged, verdicts

HEADER = (
    "Claim", "Contrast", "Metric", "Difference, points", "Margin", "p", "p, equal", "Verdict",
    "What is missing",
)  # fmt: skip


def claims_table(
    record: Mapping[str, Any], where: str, store: Store, rows: Sequence[Row]
) -> Table | None:
    """A row for each claim; None if the sweep makes none."""
    claims = record.get("claims", ())
    if not claims:
        return None
    by_name = {row.name: row for row in rows}
    judged = judge(claims, store, by_name)
    pairs = zip(claims, judged, strict=True)
    lines = [_line(claim, by_name, verdict) for claim, verdict in pairs]
    title = f"Claims of: {record['report']['title']}"
    notes = (*_declared(record, store), *_reading(judged))
    return Table(title, where, HEADER, tuple(lines), notes)


def judge(
    claims: Sequence[Mapping[str, Any]], store: Store, rows: Mapping[str, Row]
) -> list[Judged]:
    """The verdict on each claim; all are judged together."""
    found: list[tuple[Difference | None, float]] = []
    for claim in claims:
        row, than = rows.get(claim["row"]), rows.get(claim["than"])
        both = row is not None and than is not None and row.done and than.done
        told = difference(store, row, than, claim["metric"]) if both and row and than else None
        found.append((told, claim["margin"] / 100))
    return verdicts(found)


def _line(claim: Mapping[str, Any], rows: Mapping[str, Row], judged: Judged) -> tuple[Cell, ...]:
    row, than = rows.get(claim["row"]), rows.get(claim["than"])
    ids = runs_of_both(row, than) if row and than else ()
    labels = [one.label if one else claim[key] for one, key in ((row, "row"), (than, "than"))]
    told = judged.difference
    raw: dict[str, Any] = {"claim": claim["name"], "verdict": judged.verdict}
    if told is not None:
        low, high = told.interval
        raw |= {"difference": told.mean, "low": low, "high": high, "seeds": told.seeds}
    missing = _missing(judged, row, than)
    return (
        Cell(claim["says"], {"says": claim["says"]}),
        Cell(f"{labels[0]} {MINUS} {labels[1]}", {"row": claim["row"], "than": claim["than"]}),
        Cell(heading(claim["metric"]), {"metric": claim["metric"]}),
        Cell(interval_of(told), raw, runs=ids, why="" if told else missing),
        Cell(f"{claim['margin']:g}", {"margin": claim["margin"]}),
        Cell(p_value(judged.p) if told else NONE, {"p_holm": judged.p}, why=missing),
        Cell(p_value(judged.p_equal) if told else NONE, {"p_equal_holm": judged.p_equal},
             why=missing),
        Cell(judged.verdict, bold=judged.verdict != "undecided"),
        Cell(missing, {"missing": missing}),
    )  # fmt: skip


def _missing(judged: Judged, row: Row | None, than: Row | None) -> str:
    """What keeps a claim from a verdict, and how many seeds would settle it."""
    told = judged.difference
    if judged.verdict == "equivalent" and told is not None and judged.p < LEVEL:
        return f"nothing; it is {'above' if told.mean > 0 else 'below'} zero, by less than matters"
    if judged.verdict != "undecided":
        return "nothing"
    for one in (row, than):
        if one is None or not one.done:
            return f"{one.label if one else 'a row'}: {one.state() if one else 'not in the sweep'}"
    if told is None:
        return "the rows have no seed in common, or were not tested on the same samples"
    if told.seeds < MIN_SEEDS:
        return f"at least {MIN_SEEDS} seeds, here {told.seeds}"
    if not told.enough:
        return "a difference that varies: it is the same with every seed"
    needed = judged.needed
    if needed is None:
        return (
            f"more test samples: with {MOST_SEEDS} seeds a difference of "
            f"{100 * judged.floor:.1f} points could be found, this one seems to be "
            f"{points(100 * told.mean)}"
        )
    more = needed - told.seeds
    each = ", each tested on samples of its own" if told.folds else ""
    plural = "s" if more > 1 else ""
    return f"{more} more seed{plural} ({needed} in all{each}), if it is what it seems"


def _declared(record: Mapping[str, Any], store: Store) -> Iterator[str]:
    """When the claims were made, and what was known by then."""
    by_text: dict[str, list[str]] = {}
    known = store.declared(record)
    for claim in record["claims"]:
        one = known.get(claim["name"])
        if one is None:
            text = "not known when"
        else:
            day = time.strftime("%Y-%m-%d", time.gmtime(one["time"]))
            done = one["done"]
            text = f"on {day}, " + (
                f"when {done} of its runs were done ALREADY" if done else "before any of its runs"
            )
        by_text.setdefault(text, []).append(claim["says"])
    for text, says in by_text.items():
        yield f"Declared {text}: {'; '.join(says)}."


def _reading(judged: Iterable[Judged]) -> Iterator[str]:
    count = sum(one.difference is not None for one in judged)
    yield (
        f"Supported, against: better or worse, p < {LEVEL}. Equivalent: differs by less than the "
        f"margin either way, two one-sided tests (p, equal < {LEVEL}). Undecided is none of these, "
        f"and not equal. Differences with 95 % intervals for other seeds and other samples at "
        f"once; p adjusted for the {count} claims that can be judged (Holm); docs/statistics.md."
    )
