"""Who writes questions: templates, a language model in two steps, or a file of earlier ones.

A writer gives one candidate after another for the same row until who asks is content; a language
model says other words each time, the others have one.

Source: paper sec. 3.1 and Figure 2 for the two steps.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from harness.data.ek100.classes import Classes
from harness.questions import template
from harness.questions.budget import LETTERS_PER_TOKEN, Budget, Prices, estimate, tokens_of
from harness.questions.journal import Answer, Journal, key_of
from harness.questions.prompts import STEPS, Prompt, prompt, readable
from harness.questions.rows import PREDICTED, TRUE, Content, Row, in_words

TRIES = 3
"""answers that a step is given, the first one counted"""


@dataclass(frozen=True)
class Candidate:
    """Two questions before masking, and where they come from."""

    verb_question: str
    noun_question: str
    description: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """of these two; what is so for all is in the writer's"""
    allow_leak: bool = False
    """they were made with that allowed"""

    def __post_init__(self) -> None:
        for name in ("verb_question", "noun_question", "description"):
            object.__setattr__(self, name, readable(getattr(self, name)))


class Writer(Protocol):
    """Candidates for a content; a text in place of one says why there is none."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Of all it writes; what another file's must agree with."""

    retry: bool
    """whether what had no acceptable candidate is asked about again"""

    def candidates(
        self, content: Content, rows: Sequence[Row], retry: bool
    ) -> Iterator[Candidate | str]: ...

    def forecast(self, contents: Sequence[Content]) -> str | None:
        """What it will cost; None: nothing."""


class Template:
    """Level 0, 1 or 2."""

    retry = False

    def __init__(self, level: int, classes: Classes) -> None:
        self.level, self.classes = level, classes
        self.provenance = {
            "backend": "template", "model": f"level {level}", "prompt_id": "template",
            "prompt_sha256": key_of("template", version=template.VERSION, level=level),
        }  # fmt: skip

    def candidates(
        self, content: Content, rows: Sequence[Row], retry: bool
    ) -> Iterator[Candidate | str]:
        yield Candidate(*template.questions(content, self.level, self.classes))

    def forecast(self, contents: Sequence[Content]) -> str | None:
        return None


class Replay:
    """Questions that were made before, by narration id."""

    retry = False

    def __init__(self, files: Sequence[Path]) -> None:
        from harness.data.ek100.questions import records

        self.known = {record["narration_id"]: record for file in files for record in records(file)}
        digests = sorted(key_of("replay", text=file.read_text()) for file in files)
        self.provenance = {
            "backend": "replay", "model": "", "prompt_id": "",
            "prompt_sha256": key_of("replays", files=digests),
        }  # fmt: skip

    def candidates(
        self, content: Content, rows: Sequence[Row], retry: bool
    ) -> Iterator[Candidate | str]:
        for row in rows:
            if (found := self.known.get(row.narration_id)) is not None:
                if (why := _about_another(found, content)) is not None:
                    yield why
                    return
                verb, noun = (
                    str(found.get(f"{kind}_question_raw") or found[f"{kind}_question"])
                    for kind in ("verb", "noun")
                )
                origin = {"replayed": found.get("provenance", {})}
                leak = bool(found.get("allow_leak"))
                yield Candidate(verb, noun, found.get("description") or "", origin, leak)
                return
        yield "no questions to it in the file"

    def forecast(self, contents: Sequence[Content]) -> str | None:
        return None


class Model(Protocol):
    """Who answers a conversation."""

    backend: str

    def ask(
        self, messages: Sequence[Mapping[str, str]], schema: dict[str, Any], seed: int, again: bool
    ) -> Answer: ...


class Described:
    """A language model: first a description of the narration, then two questions about that."""

    def __init__(
        self,
        model: Model,
        journal: Journal,
        budget: Budget,
        *,
        name: str,
        settings: Mapping[str, Any],
        seed: int,
        retry: bool = False,
        prompts: Path | None = None,
    ) -> None:
        self.model, self.journal, self.budget, self.seed = model, journal, budget, seed
        self.retry = retry
        self.prompts = {step: prompt(step, prompts) for step in STEPS}
        self.facts = {"backend": model.backend, "model": name, "seed": seed, **settings}
        self.provenance = {
            **self.facts, "code_version": version("mambavl-bench"),
            "prompt_id": "+".join(f"{p.name}.{p.text.version}" for p in self.prompts.values()),
            "prompt_sha256": key_of("prompts", **{k: p.sha256 for k, p in self.prompts.items()}),
        }  # fmt: skip
        self.asked = 0
        """requests that were made by this process"""
        self._lock = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}

    def candidates(
        self, content: Content, rows: Sequence[Row], retry: bool
    ) -> Iterator[Candidate | str]:
        found = self._described(content, retry)
        if isinstance(found, str):
            yield found
            return
        description, first = found
        ask, inputs = self.prompts["ask"], self._inputs(content, description)
        for number in self._tries(ask, inputs, retry):
            answer = self._answered(ask, inputs, number)
            texts = ask.read(answer.text)
            if texts is None or answer.refused:
                yield f"ask: {_why(answer)}"
                continue
            yield Candidate(
                texts["verb_question"], texts["noun_question"], description,
                _told([first, answer], number + 1),
            )  # fmt: skip

    def _described(self, content: Content, retry: bool) -> tuple[str, Answer] | str:
        """The description, and the answer it is from; else why there is none."""
        step, why, inputs = self.prompts["describe"], "", {"narration": said(content)}
        for number in self._tries(step, inputs, retry):
            answer = self._answered(step, inputs, number)
            texts = step.read(answer.text)
            if texts is not None and not answer.refused:
                return texts["description"], answer
            why = _why(answer)
        return f"describe: {why}"

    def _tries(self, step: Prompt, inputs: Mapping[str, str], retry: bool) -> Iterator[int]:
        """Numbers of the answers to look at: all there are, and new ones: up to TRIES in all, or
        with `retry` as many more."""
        new = 0
        for number in itertools.count():
            if self._key(step, inputs, number) not in self.journal.answers:
                if number >= TRIES and not (retry and new < TRIES):
                    return
                new += 1
            yield number

    def _inputs(self, content: Content, description: str) -> dict[str, str]:
        verb, noun = in_words(content.verb, "verb"), in_words(content.noun, "noun")
        return {"description": description, "verb": verb, "noun": noun}

    def _key(self, step: Prompt, inputs: Mapping[str, str], number: int) -> str:
        return key_of(
            step.name, prompt=step.sha256, number=number, inputs=dict(inputs), **self.facts
        )

    def _answered(self, step: Prompt, inputs: Mapping[str, str], number: int) -> Answer:
        """The answer in the journal, else the model's, which is put there. Raises Unanswered."""
        key = self._key(step, inputs, number)
        with self._lock:
            mine = self._busy.setdefault(key, threading.Lock())
        with mine:  # rows that share a narration wait for its one description
            known = self.journal.answers.get(key)
            if known is not None:
                return known
            messages = step.messages(**inputs)
            put_aside = self.budget.promise(messages, int(self.facts["max_tokens"]))
            answer = None
            try:
                answer = self.model.ask(messages, step.schema, self.seed + number, number > 0)
                answer = counted(answer, put_aside.guessed)
                self.journal.add(key, answer)
            finally:
                self.budget.settle(put_aside, answer)
                with self._lock:
                    self.asked += 1
            return answer

    def forecast(self, contents: Sequence[Content]) -> str | None:
        """Requests that are still to be made, if every first answer will do."""
        describe, ask = self.prompts["describe"], self.prompts["ask"]
        keys: dict[str, int] = {}
        for content in contents:
            first = {"narration": said(content)}
            key = self._key(describe, first, 0)
            known = self.journal.answers.get(key)
            if known is None:
                keys[key] = tokens_of(describe.messages(**first))
            texts = describe.read(known.text) if known else None
            description = texts["description"] if texts else "word " * 20
            second = self._inputs(content, description)
            key = self._key(ask, second, 0)
            if key not in self.journal.answers:
                keys[key] = tokens_of(ask.messages(**second))
        return estimate(sum(keys.values()), len(keys), self.budget.prices) if keys else None


def _about_another(found: Mapping[str, Any], content: Content) -> str | None:
    """Why a record is no question to a content."""
    source = found.get("label_source") or ("" if content.label_source == PREDICTED else TRUE)
    if source != content.label_source:
        return f"the file's question is made from labels of {source or 'unknown origin'}"
    for name in ("verb_class", "noun_class"):
        if found.get(name) not in (None, getattr(content, name)):
            return f"the file's question is about another {name.replace('_', ' ')}"
    return None


def counted(answer: Answer, guessed: int) -> Answer:
    """An answer with its tokens, guessed where the server does not count them."""
    if answer.tokens_in or answer.tokens_out:
        return answer
    out = -(-len(answer.text) // LETTERS_PER_TOKEN)
    return replace(answer, tokens_in=guessed, tokens_out=out)


def said(content: Content) -> str:
    """The narration; of a row that has none its verb and noun."""
    words = (in_words(content.verb, "verb"), in_words(content.noun, "noun"))
    return content.narration or " ".join(words)


def _why(answer: Answer) -> str:
    """What is wrong with an answer that nothing can be read from."""
    if answer.refused:
        return f"refused: {answer.text[:120]!r}"
    ended = "cut by --max-tokens" if answer.cut else "not the JSON that was asked for"
    return f"{ended}: {answer.text[:120]!r}"


def _told(answers: Sequence[Answer], tries: int) -> dict[str, Any]:
    """What is recorded of the answers that two questions come from."""
    last = answers[-1]
    told = {
        "model_revision": last.model_revision,
        "response_id": last.response_id,
        "host": last.host,
        "created": round(last.created, 3),
        "n_attempts": tries,
        "usage": {
            "in": sum(answer.tokens_in for answer in answers),
            "out": sum(answer.tokens_out for answer in answers),
        },
    }
    return {**told, **last.settings}


def forecast_of(contents: Sequence[Content]) -> str:
    """What a language model's questions to these contents will take, before one is chosen."""
    describe, ask = prompt("describe"), prompt("ask")
    narrations = {said(content) for content in contents}
    first = sum(tokens_of(describe.messages(narration=one)) for one in narrations)
    words = {"description": "word " * 20, "verb": "word", "noun": "word"}
    second = len(contents) * tokens_of(ask.messages(**words))
    return estimate(first + second, len(narrations) + len(contents), Prices())
