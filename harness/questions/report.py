"""What a build made, in words: counts, what may still leak, examples.

Source: none, ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from harness.questions.records import Built
from harness.questions.rows import Row

EXAMPLES = 10


def summary(built: Built, rows: Sequence[Row], policy: str, spent: str) -> str:
    """The report as Markdown; its first lines are also printed."""
    return "\n".join([*_counts(built, rows, policy, spent), "", *_examples(built, rows)]) + "\n"


def _counts(built: Built, rows: Sequence[Row], policy: str, spent: str) -> Iterator[str]:
    statuses = Counter(record["leak"]["status"] for record in built.records)
    told = ", ".join(f"{count:,} {name}" for name, count in sorted(statuses.items()))
    count = len(rows) or len(built.records)
    other = count - len(built.records) - len(built.failed)
    yield (
        f"{count:,} rows: {len(built.records):,} with questions ({told or 'none'}), "
        f"{len(built.failed):,} failed, {other:,} not asked about"
    )
    pairs = Counter((r["verb_question"], r["noun_question"]) for r in built.records)
    hidden = sum(len(s) for r in built.records for s in r["mask"]["spans"].values())
    yield f"{len(pairs):,} different pairs of questions; {hidden:,} masks under policy {policy}"
    own = sum(bool(r["leak"]["own_verb"] or r["leak"]["own_noun"]) for r in built.records)
    yield f"{own:,} rows whose question said its own answer before masking"
    yield f"literal leaks: {len(built.leaks)}; near leaks in {len(built.near):,} rows"
    if spent:
        yield spent


def _examples(built: Built, rows: Sequence[Row]) -> Iterator[str]:
    narrations = {row.narration_id: row.content.narration for row in rows}
    yield "## Examples"
    yield ""
    for record in _spread(built.records):
        said = narrations.get(record["narration_id"])
        yield f"- {record['narration_id']}" + (f", narrated {said!r}:" if said else ":")
        yield f"  - verb: {record['verb_question']}"
        yield f"  - noun: {record['noun_question']}"
    if built.leaks:
        yield from ["", "## Literal leaks", "", *(f"- {one}" for one in built.leaks[:EXAMPLES])]
    if built.near:
        yield from ["", "## Near leaks: words that share a stem with the class", ""]
        by_id = {record["narration_id"]: record for record in built.records}
        for name in _spread(list(built.near)):
            record = by_id[name]
            answers = f"{record['verb_answer']} / {record['noun_answer']}"
            yield f"- {name} ({answers}): {', '.join(dict.fromkeys(built.near[name]))}"
    if built.failed:
        yield from ["", "## Failed", ""]
        yield from (f"- {row['narration_id']}: {row['why']}" for row in built.failed[:EXAMPLES])


def _spread(items: Sequence[Any]) -> Sequence[Any]:
    """A few of many, evenly."""
    return items[:: max(1, -(-len(items) // EXAMPLES))]
