"""What results on EK100 are held against: the segments of a split, their classes and shares.

Source: none, ours; the annotations name theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.data.ek100.annotations import (
    TRAIN,
    VALIDATION,
    Annotations,
    NoColumn,
    Segment,
    rows,
    segments,
    word,
)

Ints = npt.NDArray[np.int64]
Strings = npt.NDArray[np.str_]
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
    if path.is_dir():
        found = Annotations.read(path, train=(path / TRAIN).is_file())
        shares = [found.subset(segment) for segment in found.validation]
        actions = np.array(found.actions, np.int64) if found.train else None
        return _truth(path / VALIDATION, found.validation, shares, actions)
    if not path.is_file():
        raise ValueError(f"{path}: no such file, or folder of annotations")
    try:
        whole = segments(path)
    except NoColumn:
        pairs = list(rows(path, {"narration_id": word, "video_id": word}))
        ids, videos = (np.array(column, np.str_) for column in zip(*pairs, strict=True))
        return Truth(path, ids, videos, np.full(len(ids), "", np.str_), {}, None)
    return _truth(path, whole, [""] * len(whole), None)


def _truth(
    file: Path, found: Sequence[Segment], shares: Sequence[str], actions: Ints | None
) -> Truth:
    targets = {
        "verb": np.array([segment.verb for segment in found], np.int64),
        "noun": np.array([segment.noun for segment in found], np.int64),
    }
    ids = np.array([segment.narration_id for segment in found])
    videos = np.array([segment.video for segment in found])
    return Truth(file, ids, videos, np.array(shares, np.str_), targets, actions)


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
