"""What results on EK100 are held against: the segments of a split, their classes and shares.

Source: github.com/epic-kitchens/epic-kitchens-100-annotations (CC BY-NC 4.0, not part of this
project). Shares are those of the published evaluation: `unseen` are segments of participants who
are not in the training set; `tail` are verbs, nouns, and for actions either, of the classes that
share the last fifth of the training set.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Strings = npt.NDArray[np.str_]

VERBS, NOUNS = 97, 300
VALIDATION, TRAIN = "EPIC_100_validation.csv", "EPIC_100_train.csv"
TAIL_VERBS, TAIL_NOUNS = "EPIC_100_tail_verbs.csv", "EPIC_100_tail_nouns.csv"
UNSEEN = "EPIC_100_unseen_participant_ids_validation.csv"
NAMED = 3
"""ids that a message lists before it only counts"""


@dataclass(frozen=True)
class Truth:
    """The segments that results must cover."""

    source: Path
    ids: Strings
    """(N,) narration ids"""
    groups: Strings
    """(N,) videos"""
    subsets: Strings
    """(N,) shares, as `Predictions` have them; empty where only one file was read"""
    targets: dict[str, Ints]
    """`verb` and `noun` -> (N,); empty for a split whose classes are not public"""
    actions: Ints | None
    """(A, 2) the pairs that exist in training and validation set; None without a training set"""


def read_truth(path: Path) -> Truth:
    """A folder of annotations (its validation set), or one file; ValueError if they are not it.

    A file without classes, such as EPIC_100_test_timestamps.csv, gives ids alone.
    """
    folder = path.is_dir()
    file = path / VALIDATION if folder else path
    needed = [file, *(path / name for name in (TAIL_VERBS, TAIL_NOUNS, UNSEEN) if folder)]
    missing = [one.name for one in needed if not one.is_file()]
    if missing:
        raise ValueError(
            f"{path}: no {', '.join(missing)}; give the folder, or one file, of the annotations "
            f"(github.com/epic-kitchens/epic-kitchens-100-annotations)"
        )
    public = "verb_class" in _header(file)
    columns = ["narration_id", "participant_id", "video_id"]
    rows = _columns(file, columns + (["verb_class", "noun_class"] if public else []))
    ids, participants, videos = (np.array(rows[name], np.str_) for name in columns)
    if not len(ids) or len(set(ids.tolist())) < len(ids):
        raise ValueError(f"{file}: no segments, or one of them twice")
    targets: dict[str, Ints] = {}
    if public:
        targets["verb"] = _classes(file, rows["verb_class"], VERBS)
        targets["noun"] = _classes(file, rows["noun_class"], NOUNS)
    subsets, actions = np.full(len(ids), "", np.str_), None
    if folder:
        tails = [
            np.isin(targets[name], _classes(path / list_, _columns(path / list_, [name])[name], n))
            for name, list_, n in (("verb", TAIL_VERBS, VERBS), ("noun", TAIL_NOUNS, NOUNS))
        ]
        unseen = np.isin(
            participants, _columns(path / UNSEEN, ["participant_id"])["participant_id"]
        )
        subsets = subset_names(unseen, *tails)
        if (path / TRAIN).is_file():
            train = _columns(path / TRAIN, ["verb_class", "noun_class"])
            verbs = [*targets["verb"].tolist(), *map(int, train["verb_class"])]
            nouns = [*targets["noun"].tolist(), *map(int, train["noun_class"])]
            actions = actions_of(zip(verbs, nouns, strict=True))
    return Truth(file, ids, videos, subsets, targets, actions)


def subset_names(
    unseen: npt.NDArray[np.bool_], verb: npt.NDArray[np.bool_], noun: npt.NDArray[np.bool_]
) -> Strings:
    """(N,) names of shares: whose kitchen is unseen, whose verb and whose noun is of the tail."""
    named = {"unseen": unseen, "tail@verb": verb, "tail@noun": noun, "tail@action": verb | noun}
    held = zip(*(rows.tolist() for rows in named.values()), strict=True)
    return np.array([" ".join(n for n, has in zip(named, row, strict=True) if has) for row in held])


def actions_of(pairs: Iterable[tuple[int, int]]) -> Ints:
    """(A, 2) the pairs that occur, in the order of the published heads: that of the text `v:n`."""
    ordered = sorted(set(pairs), key=lambda pair: f"{pair[0]}:{pair[1]}")
    return np.array(ordered, np.int64)


def order_of(ids: Sequence[str], truth: Truth, what: str) -> Ints:
    """(N,) where each segment stands among `ids`; ValueError naming ids that lack, are unknown or
    twice."""
    place = {name: number for number, name in enumerate(ids)}
    wanted = truth.ids.tolist()
    known = set(wanted)
    wrong = {
        "missing": [name for name in wanted if name not in place],
        f"unknown in {truth.source.name}": [name for name in place if name not in known],
        "more than once": [name for n, name in enumerate(ids) if place[name] != n],
    }
    told = [f"{len(names)} {how} ({_some(names)})" for how, names in wrong.items() if names]
    if told:
        raise ValueError(
            f"{what}: not the {len(wanted)} segments of {truth.source}: {'; '.join(told)}"
        )
    return np.array([place[name] for name in wanted], np.int64)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _header(file: Path) -> list[str]:
    with open(file, newline="", encoding="utf-8-sig") as lines:
        return next(csv.reader(lines), [])


def _columns(file: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Column -> its values."""
    lacking = [name for name in names if name not in _header(file)]
    if lacking:
        raise ValueError(f"{file}: no column {', '.join(lacking)}; is it of the annotations?")
    with open(file, newline="", encoding="utf-8-sig") as lines:
        rows = list(csv.DictReader(lines))
    return {name: [row[name] or "" for row in rows] for name in names}


def _classes(file: Path, values: Sequence[str], count: int) -> Ints:
    for line, text in enumerate(values, 2):
        if not text.isdecimal() or int(text) >= count:
            raise ValueError(f"{file}: row {line}: {text!r} is not a class in 0..{count - 1}")
    return np.array([int(text) for text in values], np.int64)
