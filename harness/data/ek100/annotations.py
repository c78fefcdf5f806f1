"""The annotations of EPIC-Kitchens-100: segments with their classes, and the lists beside them.

Source: github.com/epic-kitchens/epic-kitchens-100-annotations, whose CSV files are read as they are
(CC BY-NC 4.0; they are not part of this project).

Times are the CSV's time stamps. Its frame numbers are of a clock that some videos do not keep, and
are not used.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

VERBS, NOUNS, ACTIONS = 97, 300, 3806
TRAIN, VALIDATION = "EPIC_100_train.csv", "EPIC_100_validation.csv"
TAIL_VERBS, TAIL_NOUNS = "EPIC_100_tail_verbs.csv", "EPIC_100_tail_nouns.csv"
UNSEEN = "EPIC_100_unseen_participant_ids_validation.csv"
PAIRS = "actions.csv"
VIDEO_INFO = "EPIC_100_video_info.csv"
FILES = (TRAIN, VALIDATION, TAIL_VERBS, TAIL_NOUNS, UNSEEN)
WHERE_FROM = "git clone https://github.com/epic-kitchens/epic-kitchens-100-annotations"

Pair = tuple[int, int]


class NoColumn(ValueError):
    """A file lacks a column that was asked for."""


class Segment(NamedTuple):
    """One narrated action."""

    narration_id: str
    participant: str
    video: str
    start: float
    """seconds"""
    stop: float
    verb: int
    noun: int
    """the first noun; the benchmark counts no other"""
    narration: str


@dataclass(frozen=True)
class Annotations:
    train: tuple[Segment, ...]
    """empty where only the validation set was asked for"""
    validation: tuple[Segment, ...]
    tail_verbs: frozenset[int]
    tail_nouns: frozenset[int]
    unseen: frozenset[str]
    """participants of the validation set who are not in the training set"""
    actions: tuple[Pair, ...]
    """the (verb, noun) pairs that occur, in the order in which the published heads count them"""
    digest: str
    """SHA-256 of the files"""

    @staticmethod
    def read(folder: Path, train: bool | Path = True) -> Annotations:
        """What lies in `folder`; the training set may be another file, and `train=False` does
        without, for scoring.

        Raises ValueError that names the file, and the line, of every mistake.
        """
        wanted = {name: folder / name for name in FILES if train or name != TRAIN}
        if isinstance(train, Path):
            wanted[TRAIN] = train
        missing = [
            n if f.parent == folder else str(f) for n, f in wanted.items() if not f.is_file()
        ]
        if missing:
            raise ValueError(
                f"{folder}: no {', '.join(missing)} here; get the annotations with `{WHERE_FROM}`"
            )
        if (folder / PAIRS).is_file():
            wanted[PAIRS] = folder / PAIRS
        stamps = tuple(file.stat().st_mtime_ns for file in wanted.values())
        return _read(folder, tuple(wanted.items()), stamps)

    def subset(self, segment: Segment) -> str:
        """The shares of the validation set that a segment is in, as `contracts.Sample` has them."""
        verb, noun = segment.verb in self.tail_verbs, segment.noun in self.tail_nouns
        return share_names(segment.participant in self.unseen, verb, noun)


def share_names(unseen: bool, verb: bool, noun: bool) -> str:
    """Shares of a segment whose kitchen is unseen, whose verb and whose noun is of the tail.

    `tail` are the classes that share the last fifth of the training set; of actions, those with
    such a verb or such a noun.
    """
    named = {"unseen": unseen, "tail@verb": verb, "tail@noun": noun, "tail@action": verb or noun}
    return " ".join(name for name, holds in named.items() if holds)


@lru_cache(maxsize=4)
def _read(
    folder: Path, files: tuple[tuple[str, Path], ...], _stamps: tuple[int, ...]
) -> Annotations:
    digest, names = hashlib.sha256(), dict(files)
    for name, file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ValueError(f"{file}: {error.strerror or error}") from None
        digest.update(name.encode() + b"\0" + content)
    train = segments(names[TRAIN]) if TRAIN in names else ()
    validation = segments(folder / VALIDATION)
    if shared := {s.narration_id for s in train} & {s.narration_id for s in validation}:
        raise ValueError(
            f"{folder / VALIDATION}: {min(shared)} and {len(shared) - 1} more narration ids are in "
            f"{TRAIN} too"
        )
    occurring = actions_of((s.verb, s.noun) for s in (*train, *validation))
    actions = _listed(folder / PAIRS) if PAIRS in names else occurring
    if lacking := set(occurring) - set(actions):
        raise ValueError(
            f"{folder / PAIRS}: lacks {len(lacking)} pairs of verb and noun that occur, e.g. "
            f"{min(lacking)}; without this file they are counted from the annotations"
        )
    return Annotations(
        train,
        validation,
        frozenset(_column(folder / TAIL_VERBS, "verb", class_below(VERBS))),
        frozenset(_column(folder / TAIL_NOUNS, "noun", class_below(NOUNS))),
        frozenset(_column(folder / UNSEEN, "participant_id", str)),
        actions,
        digest.hexdigest(),
    )


def actions_of(pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    """The pairs that occur, ordered as the text `verb:noun`: 0:0, 0:1, 0:10, ..."""
    return tuple(sorted(set(pairs), key=lambda pair: f"{pair[0]}:{pair[1]}"))


def segments(file: Path) -> tuple[Segment, ...]:
    """The rows of a training or validation file. Raises ValueError with file and line."""
    found: dict[str, Segment] = {}
    for segment in rows(file, _SEGMENT):
        if segment[0] in found:
            raise ValueError(f"{file}: the narration id {segment[0]} is there twice")
        found[str(segment[0])] = Segment(*segment)  # type: ignore[arg-type]
    if not found:
        raise ValueError(f"{file}: no rows")
    return tuple(found.values())


def seconds(text: str) -> float:
    """`00:01:02.34` -> 62.34. Raises ValueError."""
    match = re.fullmatch(r"(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a time like 00:01:02.34")
    hours, minutes, rest = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def class_below(count: int) -> Callable[[str], int]:
    """Text -> a class of 0 .. count - 1; ValueError for anything else."""

    def read(text: str) -> int:
        if not text.strip().isdecimal() or int(text) >= count:
            raise ValueError(f"{text!r} is not a class in 0..{count - 1}")
        return int(text)

    return read


def word(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+", text):
        raise ValueError(f"{text!r} is not an id")
    return text


_SEGMENT: Mapping[str, Callable[[str], object]] = {
    "narration_id": word,
    "participant_id": word,
    "video_id": word,
    "start_timestamp": seconds,
    "stop_timestamp": seconds,
    "verb_class": class_below(VERBS),
    "noun_class": class_below(NOUNS),
    "narration": str,
}


def rows(
    file: Path, columns: Mapping[str, Callable[[str], object]]
) -> Iterator[tuple[object, ...]]:
    """The columns of each row, converted. Raises ValueError with file and line."""
    try:
        yield from _rows(file, columns)
    except OSError as error:  # of the disk: reading does not say of which file
        raise ValueError(f"{file}: {error.strerror or error}") from None


def _rows(
    file: Path, columns: Mapping[str, Callable[[str], object]]
) -> Iterator[tuple[object, ...]]:
    with open(file, newline="", encoding="utf-8-sig") as lines:
        reader = csv.reader(lines)
        try:
            header = next(reader, [])
            lacking = [name for name in columns if name not in header]
            if lacking:
                raise NoColumn(
                    f"{file}:1: no column {', '.join(lacking)}; there are {', '.join(header)}"
                )
            places = {name: header.index(name) for name in columns}
            for row in reader:
                if len(row) != len(header):
                    raise ValueError(
                        f"{file}:{reader.line_num}: {len(row)} values in {len(header)} columns; "
                        f"is the file cut off?"
                    )
                values = []
                for name, convert in columns.items():
                    try:
                        values.append(convert(row[places[name]]))
                    except ValueError as error:
                        raise ValueError(f"{file}:{reader.line_num}: {name}: {error}") from None
                yield tuple(values)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{file}:{reader.line_num + 1}: not CSV text: {error}") from None


def _column(file: Path, name: str, convert: Callable[[str], object]) -> list:
    return [value for (value,) in rows(file, {name: convert})]


def _listed(file: Path) -> tuple[Pair, ...]:
    """The pairs of `actions.csv` (id, verb, noun, action), in the order of their ids."""
    whole = class_below(1_000_000)
    listed = sorted(
        rows(file, {"id": whole, "verb": class_below(VERBS), "noun": class_below(NOUNS)})
    )  # type: ignore[type-var]
    if [row[0] for row in listed] != list(range(len(listed))):
        raise ValueError(f"{file}: ids are not 0..{len(listed) - 1}, each once")
    return tuple((row[1], row[2]) for row in listed)  # type: ignore[misc]


def splits(
    found: Annotations, share: float, folds: int = 0, fold: int = 0
) -> dict[str, tuple[Segment, ...]]:
    """`train`, `select` and `test`.

    `select` holds `share` of each participant's training videos, at least one of those who have
    three, chosen by a digest of the video's name; `test` is the validation set. With `folds` each
    participant's training videos are dealt to so many parts, and `test` is the part `fold`, of
    which nothing is in `train` or `select`.
    """
    videos: dict[str, set[str]] = {}
    for segment in found.train:
        videos.setdefault(segment.participant, set()).add(segment.video)
    held, tested = set[str](), set[str]()
    for own in videos.values():
        order = sorted(own, key=lambda name: hashlib.sha256(name.encode()).digest())
        if folds:
            tested.update(order[fold::folds])
            order = [name for name in order if name not in tested]
        held.update(order[: max(round(share * len(order)), int(len(order) > 2))])
    left = tuple(segment for segment in found.train if segment.video not in tested)
    return {
        "train": tuple(segment for segment in left if segment.video not in held),
        "select": tuple(segment for segment in left if segment.video in held),
        "test": tuple(s for s in found.train if s.video in tested) if folds else found.validation,
    }
