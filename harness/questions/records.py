"""The file of questions and those beside it: records made, masked anew, compared, written.

Source: none, ours.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.config import ConfigError
from harness.data.ek100.annotations import NOUNS, VERBS
from harness.data.ek100.questions import DIFFER, about, records
from harness.files import write_atomic
from harness.questions.checks import leaks_of
from harness.questions.lexicon import Lexicon
from harness.questions.masking import Policy, mask_pair
from harness.questions.rows import NO_CLASS, Content
from harness.questions.writers import Candidate

UNMASKED = ("verb_answer", "verb_class", "noun_answer", "noun_class", "verb_question_raw",
            "noun_question_raw")  # fmt: skip
"""of a record: what masking needs"""
_TYPES = {name: int if name.endswith("_class") else str for name in UNMASKED}


@dataclass
class Built:
    """What a build did."""

    records: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    """literal leaks, in words; any fails the build"""
    near: dict[str, list[str]] = field(default_factory=dict)
    """narration id -> words of its questions that are near its classes"""
    left: int = 0
    """contents that were not tried: beyond --limit or --max-cost, or another shard's"""


def record_of(
    content: Content, found: Candidate, lexicon: Lexicon, policy: Policy, tries: int
) -> tuple[dict[str, Any], list[str], list[str]]:
    """What the questions of a content are recorded as, and their literal and near leaks."""
    before = mask_pair(found.verb_question, found.noun_question, content, lexicon, False)
    pair = mask_pair(found.verb_question, found.noun_question, content, lexicon, True)
    asked = {"verb_question": pair.verb_question, "noun_question": pair.noun_question}
    literal, near = leaks_of([one.text for one in asked.values()], content, lexicon)
    own = before.own_verb + before.own_noun
    status = "masked" if own or before.cross else "ok"
    if tries > 1 and not own:
        status = "regenerated"
    fields = {
        "description": found.description,
        "verb_question_raw": found.verb_question,
        "noun_question_raw": found.noun_question,
        **{name: one.text for name, one in asked.items()},
        "verb_answer": content.verb,
        "noun_answer": content.noun,
        "verb_class": content.verb_class,
        "noun_class": content.noun_class,
        "mask": {
            "policy": policy,
            "lexicon_sha": lexicon.sha,
            "spans": {name: [list(span) for span in one.spans] for name, one in asked.items()},
        },
        "leak": {
            "own_verb": before.own_verb,
            "own_noun": before.own_noun,
            "cross": before.cross,
            "near": len(near),
            "status": status,
        },
    }
    return fields, literal, near


def check_out(out: Path, wanted: Mapping[str, Any], overwrite: bool) -> None:
    """Refuse to replace a file that was made in another way. Raises ConfigError."""
    if overwrite or not out.exists():
        return
    try:
        made = [about(record) for record in records(out)]
    except ValueError as error:
        raise ConfigError(f"--out: {error}; take another name, or --overwrite") from None
    for former in made[:1]:
        other = [name for name in DIFFER if former.get(name) != wanted.get(name)]
        if other:
            told = ", ".join(f"{n} was {former.get(n)!r}, is {wanted.get(n)!r}" for n in other)
            raise ConfigError(f"--out: {out} was made otherwise ({told}); take another name")


def check_losses(out: Path, built: Built) -> None:
    """Refuse to write a file that lacks rows which `out` has, or has them otherwise. Raises
    ConfigError."""
    if not out.exists():
        return
    new = {record["narration_id"]: _kept(record) for record in built.records}
    old = {record["narration_id"]: _kept(record) for record in records(out)}
    lost = [name for name in old if name not in new]
    other = [name for name in old if name in new and old[name] != new[name]]
    told = [
        f"{len(names):,} {what} ({names[0]}, ...)"
        for names, what in ((lost, "rows would be lost"), (other, "would be others"))
        if names
    ]
    if told:
        raise ConfigError(
            f"--out: {out} is left as it is: {' and '.join(told)}; take another name, or "
            f"--overwrite"
        )


def _kept(record: Mapping[str, Any]) -> tuple[Any, ...]:
    raw = [record.get(f"{name}_raw") or record[name] for name in ("verb_question", "noun_question")]
    origin = record.get("predicted_from") or {}
    return (*raw, record.get("label_source"), json.dumps(origin, sort_keys=True))


def write(out: Path, built: Built, report: str, overwrite: bool, failed_too: bool = True) -> None:
    """The files of a build; the one with questions only if nothing leaks, and nothing that is there
    is lost. Raises ConfigError."""
    if not overwrite and not built.leaks:
        check_losses(out, built)
    write_atomic(beside(out, ".report.md"), lambda file: file.write(report.encode()))
    failed = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in built.failed)
    if failed:
        write_atomic(beside(out, ".failed.jsonl"), lambda file: file.write(failed.encode()))
    elif failed_too:
        beside(out, ".failed.jsonl").unlink(missing_ok=True)
    if built.leaks:
        raise ConfigError(
            f"{out}: not written: {len(built.leaks)} questions still say their answer, e.g. "
            f"{built.leaks[0][:300]}"
        )
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in built.records)
    write_atomic(out, lambda file: file.writelines(line.encode() for line in lines))
    write_atomic(beside(out, ".csv"), lambda file: file.write(_csv(built.records).encode()))


def beside(out: Path, suffix: str) -> Path:
    return out.with_name(out.name + suffix)


TEXTS = ("narration_id", "verb_question", "noun_question", "verb_answer", "noun_answer",
         "description", "label_source")  # fmt: skip


def _csv(found: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, TEXTS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()


def masked_again(old: Sequence[Mapping[str, Any]], lexicon: Lexicon, policy: Policy) -> Built:
    """Records under another policy, or lexicon, from the texts as they were before masking.

    Raises ConfigError for a record without them.
    """
    built = Built()
    for record in old:
        name = record["narration_id"]
        nothing = record.get("verb_class") == NO_CLASS
        lacking = [key for key in UNMASKED if not isinstance(record.get(key), _TYPES[key])]
        lacking += [key for key in UNMASKED if record.get(key) == "" and not nothing]
        if lacking:
            raise ConfigError(f"{name}: holds no {', '.join(lacking)}; it cannot be masked anew")
        for key, known in (("verb_class", VERBS), ("noun_class", NOUNS)):
            if not NO_CLASS <= record[key] < known:
                raise ConfigError(f"{name}: {key}: {record[key]} is not a class in 0..{known - 1}")
        verb, verb_class, noun, noun_class, verb_question, noun_question = (
            record[key] for key in UNMASKED
        )
        source = record.get("label_source", "")
        content = Content("", verb, verb_class, noun, noun_class, source)
        given = Candidate(verb_question, noun_question, record.get("description", ""))
        tries = int((record.get("provenance") or {}).get("n_attempts") or 1)
        fields, literal, near = record_of(content, given, lexicon, policy, tries)
        built.records.append({**record, **fields})
        built.leaks += [f"{name}: {', '.join(literal)}"] if literal else []
        if near:
            built.near[name] = near
    return built
