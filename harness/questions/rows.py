"""What questions are made about: segments with a narration, a verb and a noun.

Source: none, ours; the columns are those of the EK100 annotations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from harness.data.ek100.annotations import NOUNS, VERBS, class_below, rows, seconds, word

TRUE, PREDICTED = "ground_truth", "predicted"
NO_CLASS = -1
"""of a segment of which nothing was recognised in time: it gets the questions that all get"""


class Content(NamedTuple):
    """All that the questions to a row depend on: rows that share it share their questions."""

    narration: str
    """lower case, single spaces"""
    verb: str
    """as annotated: `pick-up`"""
    verb_class: int
    noun: str
    """as annotated: `board:chopping`"""
    noun_class: int
    label_source: str
    """`ground_truth` or `predicted`"""
    alone: str = ""
    """narration id of a row that shares its questions with no other"""


class Row(NamedTuple):
    """One segment."""

    narration_id: str
    video: str
    start: float
    """seconds"""
    content: Content
    predicted_from: Mapping[str, Any] | None = None
    """of a predicted row: checkpoint, window and fold of what its words come from"""


def read_rows(file: Path) -> tuple[Row, ...]:
    """The rows of a CSV file of segments, or of JSON lines with the same names. Raises ValueError
    with file and line."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file of segments")
    return _read(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _read(file: Path, _mtime_ns: int) -> tuple[Row, ...]:
    lines = rows(file, COLUMNS) if file.suffix != ".jsonl" else _json_rows(file)
    found: dict[str, Row] = {}
    for name, video, start, narration, verb, verb_class, noun, noun_class in lines:
        content = Content(plain(narration), verb, verb_class, noun, noun_class, TRUE)  # type: ignore[arg-type]
        row = Row(name, video, start, content)  # type: ignore[arg-type]
        if row.narration_id in found:
            raise ValueError(f"{file}: the narration id {row.narration_id} is there twice")
        found[row.narration_id] = row
    if not found:
        raise ValueError(f"{file}: no rows")
    return tuple(found.values())


def _json_rows(file: Path) -> Iterator[tuple[object, ...]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            yield tuple(read(str(record[name])) for name, read in COLUMNS.items())
        except (KeyError, TypeError, ValueError) as error:
            needed = ", ".join(COLUMNS)
            raise ValueError(f"{file}:{number}: not a row with {needed}: {error}") from None


def plain(narration: str) -> str:
    """Lower case, single spaces."""
    return " ".join(narration.lower().split())


def _named(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text.strip().lower()


COLUMNS: Mapping[str, Callable[[str], object]] = {
    "narration_id": word,
    "video_id": word,
    "start_timestamp": seconds,
    "narration": str,
    "verb": _named,
    "verb_class": class_below(VERBS),
    "noun": _named,
    "noun_class": class_below(NOUNS),
}


def by_content(found: Iterable[Row]) -> dict[Content, list[Row]]:
    """Rows that share what their questions depend on, in order of their first row."""
    groups: dict[Content, list[Row]] = {}
    for row in found:
        groups.setdefault(row.content, []).append(row)
    return groups


def in_words(text: str, kind: str) -> str:
    """A key as it is said: `pick-up` -> `pick up`, `board:chopping` -> `chopping board`."""
    if kind == "verb":
        return text.replace("-", " ")
    head, *modifiers = text.split(":")
    return " ".join([*modifiers, head]).replace("-", " ")
