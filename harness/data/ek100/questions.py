"""The questions to each segment: from a file of JSON lines, or made from the annotations.

    ground_truth, predicted   files that `harness questions build` wrote, or others like them
    shuffled                  the true questions of another segment of the split
    constant                  the same two to all
    verb_category, noun_category, category     the class's category, as a number
    verb_named, noun_named    the class itself, as a number, in the question for the other
    narration                 the narration as it is, verb and noun included
    masked_narration          the narration with verb and noun masked, all their forms
    shuffled_narration        the narration of another segment, as it is

Source: paper sec. 3.1; it does not say how the two are joined; here one follows the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

BETWEEN = " </s> "
ASKED = ("verb_question", "noun_question")
CONSTANT = BETWEEN.join(("What is the person doing?", "What is the person using?"))
FROM_FILES = ("ground_truth", "predicted", "shuffled")
CATEGORIES = {"verb_category": (True, False), "noun_category": (False, True),
              "category": (True, True)}  # fmt: skip
"""question source -> whether it tells the category of the verb, and of the noun"""
NAMED = ("verb_named", "noun_named")
"""sources that say one class itself, in the other's question"""
SETTINGS = ("seed", "temperature", "top_p", "max_tokens", "revision")
DIFFER = ("label_source", "backend", "model", "prompt", "settings", "policy", "lexicon",
          "allow_leak")  # fmt: skip
"""what all records of one file have in common"""


@dataclass(frozen=True)
class Asked:
    """What a file of questions holds."""

    texts: Mapping[str, str]
    """narration id -> the verb question and the noun question"""
    told: str
    """what results made with it say of it"""
    label_source: str
    """`ground_truth`, `predicted`, or empty where the file does not say"""
    windows: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)
    """of predicted questions: narration id -> first and last second that was seen of the video"""
    allow_leak: bool = False


def read(file: Path, wanted: Sequence[str]) -> Mapping[str, str]:
    """Narration id -> the verb question and the noun question. `<MASK>` becomes `<mask>`.

    Raises ValueError, with the line, for what is no such record, and if a wanted one is missing.
    """
    found = asked_in(file).texts
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(
            f"{file}: no questions to {len(missing)} of {len(wanted)} segments, e.g. "
            f"{', '.join(missing[:3])}"
        )
    return {name: found[name] for name in wanted}


def asked_in(file: Path) -> Asked:
    """All that is in a file; as `read`."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file of questions; see docs/questions.md")
    return _read(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(file: Path, _mtime_ns: int) -> Asked:
    texts: dict[str, str] = {}
    windows: dict[str, tuple[float, float] | None] = {}
    sources: set[str] = set()
    told: dict[str, None] = {}
    leaks = False
    for record in records(file):
        name = record["narration_id"]
        texts[name] = BETWEEN.join(record[key] for key in ASKED).replace("<MASK>", "<mask>")
        kind = about(record)
        sources.add(str(kind["label_source"] or ""))
        leaks = leaks or kind["allow_leak"]
        told[_told(record)] = None
        seen = (record.get("predicted_from") or {}).get("window")
        windows[name] = (float(seen[0]), float(seen[1])) if seen else None
    if len(sources) > 1:
        named = ", ".join(source or "not said" for source in sorted(sources))
        raise ValueError(f"{file}: mixes questions from different labels: {named}")
    return Asked(texts, "; ".join(told), next(iter(sources), ""), windows, leaks)


def records(file: Path) -> Iterator[dict[str, Any]]:
    """The records of a file. Raises ValueError, with the line, for what is none, or is there
    twice."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file of questions; see docs/questions.md")
    known: set[str] = set()
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # a question may hold other line ends
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            name, asked = record["narration_id"], [record[key] for key in ASKED]
            if not isinstance(name, str):
                raise TypeError(f"{name!r} is no text")
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}:{number}: not a record with narration_id, {', '.join(ASKED)}: {error}"
            ) from None
        if name in known:
            raise ValueError(f"{file}:{number}: {name} is there twice")
        if not all(isinstance(text, str) and text.strip() for text in asked):
            raise ValueError(f"{file}:{number}: a question of {name} is empty")
        known.add(name)
        yield record


def about(record: Mapping[str, Any]) -> dict[str, Any]:
    """What records of one file have in common, and files made otherwise have not."""
    origin = record.get("provenance") or {}
    mask = record.get("mask") or {}
    return {
        "label_source": record.get("label_source"),
        "backend": origin.get("backend"),
        "model": origin.get("model"),
        "prompt": origin.get("prompt_sha256"),
        "settings": {name: origin.get(name) for name in SETTINGS if name in origin},
        "policy": mask.get("policy"),
        "lexicon": mask.get("lexicon_sha"),
        "allow_leak": bool(record.get("allow_leak")),
    }


def _told(record: Mapping[str, Any]) -> str:
    """`questions by openai (gpt-x), policy paper`; of replayed ones who wrote them first."""
    from harness.questions.template import TOLD

    kind, origin = about(record), record.get("provenance") or {}
    while origin.get("replayed"):
        origin = origin["replayed"]
        kind |= {"backend": origin.get("backend"), "model": origin.get("model")}
    if kind["backend"] == "template":
        level = str(kind["model"]).removeprefix("level ")
        told = TOLD[int(level)] if level in ("0", "1", "2") else "template questions"
    elif kind["backend"]:
        told = f"questions by {kind['backend']}" + (f" ({kind['model']})" if kind["model"] else "")
    else:
        told = "questions of unknown origin"
    told += f", policy {kind['policy']}" if kind["policy"] and kind["backend"] != "template" else ""
    return told + (", leak allowed" if kind["allow_leak"] else "")


def constant(wanted: Sequence[str]) -> Mapping[str, str]:
    """The same two questions for all."""
    return dict.fromkeys(wanted, CONSTANT)


def from_annotations(files: Sequence[Path], folder: Path, source: str) -> Mapping[str, str]:
    """Questions that need no file: of the segments in `files`, by the classes in `folder`.

    Raises ValueError where the annotations lack what is needed.
    """
    stamps = tuple(file.stat().st_mtime_ns for file in files)
    return _from_annotations(tuple(files), folder, source, stamps)


@lru_cache(maxsize=4)
def _from_annotations(
    files: tuple[Path, ...], folder: Path, source: str, _stamps: tuple[int, ...]
) -> Mapping[str, str]:
    from harness.data.ek100.classes import Classes
    from harness.questions import template
    from harness.questions.lexicon import Lexicon
    from harness.questions.masking import mask_pair
    from harness.questions.rows import by_content, read_rows

    classes = Classes.read(folder)
    lexicon = Lexicon(classes) if source == "masked_narration" else None
    found: dict[str, str] = {}
    for content, rows in by_content(row for file in files for row in read_rows(file)).items():
        if source in CATEGORIES:
            asked = template.categories(content, classes, *CATEGORIES[source])
        elif source in NAMED:
            asked = template.named(content, verb=source == "verb_named")
        else:
            asked = template.questions(content, 2, classes)
        texts = asked.verb_question, asked.noun_question
        if lexicon is not None:
            pair = mask_pair(*texts, content, lexicon, True)
            texts = pair.verb_question.text, pair.noun_question.text
        text = BETWEEN.join(texts).replace("<MASK>", "<mask>")
        found |= {row.narration_id: text for row in rows}
    return found


def shuffled(names: Sequence[str], seed: int) -> dict[str, str]:
    """Each of the names -> another of them: a fixed permutation without a fixed point."""
    order = np.random.default_rng(seed).permutation(len(names))
    return {names[a]: names[b] for a, b in zip(order, np.roll(order, 1), strict=True)}
