"""Rows -> a file of questions: written, masked, checked; resumed where it was left.

    <out>                    a JSON record per row, by narration id; written once all is settled
    <out>.csv                the texts of it
    <out>.failed.jsonl       rows without questions, and why
    <out>.report.md          counts, what may still leak, examples
    <out>.parts/             answers of a language model (journal.py)

The same answers give the same file, byte by byte: masking again, or under another policy, asks
nothing. A row is in the file or among the failed, never lost; one literal leak fails the build.

Source: paper sec. 3.1.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from harness.questions.budget import OutOfBudget
from harness.questions.chat import Unanswered
from harness.questions.checks import form_problems
from harness.questions.journal import key_of
from harness.questions.lexicon import Lexicon
from harness.questions.masking import Policy, mask_pair
from harness.questions.records import Built, record_of
from harness.questions.rows import NO_CLASS, Content, Row, by_content
from harness.questions.template import questions
from harness.questions.writers import Candidate, Writer, said

SCHEMA_VERSION = 1
OnDone = Callable[[int, int, str], None]
"""called with (contents settled, contents in all, what is to be said)"""


@dataclass(frozen=True)
class Settled:
    """What became of one content."""

    found: Candidate | None
    """None: nothing that could be taken"""
    tries: int
    why: str
    """of what was not taken"""


def settle(
    contents: Mapping[Content, Sequence[Row]],
    writer: Writer,
    lexicon: Lexicon,
    policy: Policy,
    jobs: int,
    on_done: OnDone,
) -> dict[Content, Settled]:
    """Candidates for every content, several at once. Those that the budget does not allow lack.

    Raises ConfigError where the model will never answer; what was settled before is in the journal.
    """
    if jobs == 1:
        return _one_by_one(contents, writer, lexicon, policy, on_done)
    waiting, settled = deque(contents.items()), dict[Content, Settled]()
    left = 0
    running: dict[Future[Settled], Content] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    content, rows = waiting.popleft()
                    task = pool.submit(_settle, content, rows, writer, lexicon, policy)
                    running[task] = content
                for task in wait(running, return_when=FIRST_COMPLETED).done:
                    content = running.pop(task)
                    try:
                        settled[content] = task.result()
                    except OutOfBudget:  # of others all may be answered already
                        left += 1
                    on_done(len(settled) + left, len(contents), content.narration)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return settled


def _one_by_one(
    contents: Mapping[Content, Sequence[Row]],
    writer: Writer,
    lexicon: Lexicon,
    policy: Policy,
    on_done: OnDone,
) -> dict[Content, Settled]:
    """As `settle`, in this thread."""
    settled: dict[Content, Settled] = {}
    for number, (content, rows) in enumerate(contents.items(), 1):
        with contextlib.suppress(OutOfBudget):
            settled[content] = _settle(content, rows, writer, lexicon, policy)
        on_done(number, len(contents), content.narration)
    return settled


def _settle(
    content: Content, rows: Sequence[Row], writer: Writer, lexicon: Lexicon, policy: Policy
) -> Settled:
    """The first candidate that is a question and, under `paper`, does not say its own answer; else
    the first that is a question: masking then hides that too."""
    if content.verb_class == NO_CLASS:
        return Settled(Candidate(*questions(content, 0, lexicon.classes)), 1, "")
    first = _look(content, rows, writer, lexicon, policy, retry=False)
    if first.found is None and writer.retry:
        return _look(content, rows, writer, lexicon, policy, retry=True)
    return first


def _look(
    content: Content,
    rows: Sequence[Row],
    writer: Writer,
    lexicon: Lexicon,
    policy: Policy,
    retry: bool,
) -> Settled:
    second_best, problems, tries = None, list[str](), 0
    try:
        for found in writer.candidates(content, rows, retry):
            tries += 1
            if isinstance(found, str):
                problems.append(found)
                continue
            wrong = [
                f"{kind}: {problem}"
                for kind, text in (("verb_question", found.verb_question),
                                   ("noun_question", found.noun_question))
                for problem in form_problems(text)
            ]  # fmt: skip
            if wrong:
                problems.append("; ".join(wrong))
                continue
            if policy == "strict":
                return Settled(found, tries, "")
            pair = mask_pair(found.verb_question, found.noun_question, content, lexicon, False)
            if not (pair.own_verb or pair.own_noun):
                return Settled(found, tries, "")
            second_best = second_best or found
    except Unanswered as error:
        problems.append(str(error))
    return Settled(second_best, tries, " | ".join(problems) or "it said nothing")


def assemble(
    contents: Mapping[Content, Sequence[Row]],
    settled: Mapping[Content, Settled],
    writer: Writer,
    lexicon: Lexicon,
    policy: Policy,
    allow_leak: bool,
) -> Built:
    """The records of all rows, by narration id."""
    built = Built(left=len(contents) - len(settled))
    for content, one in settled.items():
        rows = contents[content]
        if one.found is None:
            built.failed += [{"narration_id": row.narration_id, "why": one.why} for row in rows]
            continue
        fields, literal, near = record_of(content, one.found, lexicon, policy, one.tries)
        provenance = {**writer.provenance, **one.found.provenance}
        if literal:
            built.leaks.append(f"{rows[0].narration_id}: {', '.join(literal)}: {fields}")
        for row in rows:
            leak = allow_leak or one.found.allow_leak
            extra: dict[str, Any] = {"allow_leak": True} if leak else {}
            extra |= {"predicted_from": dict(row.predicted_from)} if row.predicted_from else {}
            built.records.append(
                {"schema_version": SCHEMA_VERSION, "narration_id": row.narration_id, **fields,
                 "label_source": content.label_source, **extra, "provenance": provenance}
            )  # fmt: skip
            if near:
                built.near[row.narration_id] = near
    built.records.sort(key=lambda record: record["narration_id"])
    built.failed.sort(key=lambda record: record["narration_id"])
    return built


def shard_of(content: Content, shards: int) -> int:
    """Which of several processes a content is for: those that share a description are for one."""
    return int(key_of("shard", said=said(content)), 16) % shards


def contents_of(
    rows: Sequence[Row], limit: int | None, shard: int, shards: int
) -> dict[Content, list[Row]]:
    """The contents that are this process's share, in the order of the rows."""
    groups = by_content(rows)
    mine = (content for content in groups if shards == 1 or shard_of(content, shards) == shard)
    return {content: groups[content] for content in itertools.islice(mine, limit)}
