"""The CSV file of a manifest: a row per sample, in the order of the arrays."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from harness.config import Config
from harness.registry import unknown
from harness.splits import Ints

SPLITS = ("train", "select", "test")
NUMBER = r"-?[0-9]{1,9}"
"""a class that is written as a number"""
MANY = 10_000
"""classes above which a column of numbers must say that it means them"""
NAMED = 3
"""mistakes of one kind that are named; the others are counted"""

Report = Callable[[str], None]


class LabelsEntry(Config):
    """`labels` of a manifest."""

    file: Path
    """CSV file with a header and a row per sample"""
    targets: list[str] = Field(min_length=1)
    """columns of what is to be recognised: whole numbers from 0, or words"""
    id: str | None = None
    """column of the samples' names; None: their row numbers, from 0"""
    group: str | None = None
    """column of what samples are not independent of each other within: a video, a subject"""
    split: str | None = None
    """column of train, select or test; None: see `splits`"""
    classes: dict[str, int | list[str]] = {}
    """target -> how many classes it has, or their names in order; else those that occur"""


class SplitsEntry(Config):
    """`splits` of a manifest: shares that are drawn, by group where there is one."""

    select: float = Field(default=0.15, gt=0, lt=1)
    """of all samples, for every choice"""
    test: float = Field(default=0.2, gt=0, lt=1)
    """of all samples, for the table"""
    seed: int = Field(default=0, ge=0)
    """of the draw"""


@dataclass(frozen=True)
class Labelled:
    """What the CSV file says of every sample."""

    ids: list[str]
    groups: list[str]
    """empty where there is no such column"""
    split: list[str]
    targets: Mapping[str, Ints]
    classes: Mapping[str, list[str]]
    """target -> names of its classes, by number"""

    @cached_property
    def _rows(self) -> Mapping[str, Ints]:
        values = np.array(self.split)
        return {name: np.flatnonzero(values == name).astype(np.int64) for name in SPLITS}

    def rows_of(self, split: str) -> Ints:
        """Rows of a split, in order."""
        if split not in SPLITS:
            raise ValueError(unknown(split, list(SPLITS), "split"))
        return self._rows[split]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        targets = {name: values.tolist() for name, values in self.targets.items()}
        parts = [self.ids, self.groups, self.split, targets, dict(self.classes)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_labels(
    file: Path, entry: LabelsEntry, shares: SplitsEntry | None, report: Report
) -> Labelled | None:
    """The labels in a CSV file; None if anything is wrong, which `report` is told of."""
    rows = _table(file, report)
    if rows is None:
        return None
    header, body, at = rows
    wrong: list[str] = []

    def column(name: str, what: str) -> list[str]:
        if name not in header:
            wrong.append(f"{what}: {unknown(name, header, 'column')}")
            return [""] * len(body)
        place = header.index(name)
        return [row[place].strip() for row in body]

    targets = {name: column(name, "targets") for name in dict.fromkeys(entry.targets)}
    ids = column(entry.id, "id") if entry.id else [str(row) for row in range(len(body))]
    groups = column(entry.group, "group") if entry.group else []
    split = column(entry.split, "split") if entry.split else []
    wrong += [f"classes: {name} is none of the targets" for name in entry.classes.keys() - targets]
    if not wrong:
        wrong += _repeated(ids) if entry.id else []
        wrong += _empty({**targets, **({entry.group: groups} if entry.group else {})}, at)
        if entry.split:
            wrong += _split_problems(split, groups, at)
    numbered = {}
    for name, values in targets.items() if not wrong else ():
        numbered[name], found = _numbered(name, values, entry.classes.get(name), at)
        wrong += found
    if not wrong and not entry.split:
        split = drawn(len(body), groups, shares or SplitsEntry())
    if not wrong:
        lacking = [name for name in SPLITS if name not in split]
        wrong += [f"split: no sample is in {name}" for name in lacking]
    for message in wrong:
        report(message)
    if wrong:
        return None
    plain = {name: values for name, (values, _) in numbered.items() if values is not None}
    names = {name: classes for name, (_, classes) in numbered.items()}
    return Labelled(ids, groups, split, plain, names)


def _table(file: Path, report: Report) -> tuple[list[str], list[list[str]], list[int]] | None:
    """Header, rows, and in which line of the file each row ends."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as text:
            reader = csv.reader(text, strict=True)
            found = [(line, reader.line_num) for line in reader if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        told = error.strerror if isinstance(error, OSError) else str(error)
        report(f"cannot be read: {told}")
        return None
    lines, at = [line for line, _ in found], [number for _, number in found]
    if len(lines) < 2:
        report("holds no rows; a header and a row per sample are needed")
        return None
    header = [name.strip() for name in lines[0]]
    if len(set(header)) < len(header):
        report(f"names a column twice: {', '.join(header)}")
        return None
    odd = [number for line, number in found if len(line) != len(header)]
    if odd:
        report(f"line {_some(odd)}: another number of cells than the header's {len(header)}")
        return None
    return header, lines[1:], at[1:]


def _some(found: Sequence[object]) -> str:
    more = len(found) - NAMED
    return ", ".join(map(str, found[:NAMED])) + (f" and {more:,} more" if more > 0 else "")


def _repeated(ids: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    twice = [name for name in ids if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    return [f"id: {_some([repr(name) for name in twice])} is there twice"] if twice else []


def _empty(columns: Mapping[str, Sequence[str]], at: Sequence[int]) -> list[str]:
    found = []
    for name, values in columns.items():
        lines = [line for line, value in zip(at, values, strict=True) if not value]
        if lines:
            found.append(f"line {_some(lines)}: {name} is empty; every sample needs one")
    return found


def _split_problems(split: Sequence[str], groups: Sequence[str], at: Sequence[int]) -> list[str]:
    lines = [line for line, value in zip(at, split, strict=True) if value not in SPLITS]
    if lines:
        value = split[at.index(lines[0])]
        return [f"line {_some(lines)}: split is {value!r}; train, select or test are known"]
    sides: dict[str, set[str]] = {}
    for group, side in zip(groups, split, strict=False):
        sides.setdefault(group, set()).add(side)
    leaking = [f"{g} ({', '.join(sorted(s))})" for g, s in sides.items() if len(s) > 1]
    if leaking:
        return [f"group: {_some(leaking)} is in more than one split: the test would be seen before"]
    return []


Numbered = tuple[Ints | None, list[str]]


def _numbered(
    name: str, values: Sequence[str], given: int | list[str] | None, at: Sequence[int]
) -> tuple[Numbered, list[str]]:
    """(class of each sample, names of the classes), and what is wrong."""
    numbers = all(re.fullmatch(NUMBER, value) for value in values)
    if isinstance(given, list) or not numbers:
        if isinstance(given, int):
            odd = next(value for value in values if not re.fullmatch(NUMBER, value))
            return (None, []), [f"{name}: {odd!r} is no number, and classes says {given} of them"]
        known = list(given) if given is not None else sorted(set(values))
        if len(set(known)) < len(known):
            return (None, []), [f"classes: {name} names a class twice"]
        places = {value: place for place, value in enumerate(known)}
        strange = sorted(set(values) - places.keys())
        if strange:
            told = _some([repr(value) for value in strange])
            return (None, []), [f"{name}: {told} is none of its {len(known)} classes"]
        return (np.array([places[v] for v in values], np.int64), known), []
    found = np.array([int(value) for value in values], np.int64)
    count = given if given is not None else int(found.max()) + 1
    outside = np.flatnonzero((found < 0) | (found >= count))
    if len(outside):
        line, value = at[int(outside[0])], int(found[outside[0]])
        return (None, []), [f"line {line}: {name} is {value}, not in 0..{count - 1}"]
    if given is None and count > max(MANY, len(values)):
        return (None, []), [
            f"{name}: numbers up to {count - 1} would be {count} classes; is it an id? If not, say "
            f"`classes: {{{name}: {count}}}`"
        ]
    return (found, [str(number) for number in range(count)]), []


def drawn(samples: int, groups: Sequence[str], shares: SplitsEntry) -> list[Literal["train"] | str]:
    """The split of each sample: groups in a random order go to test, then to select, until each has
    its share of the samples; all others to train."""
    names = list(groups) if groups else [str(row) for row in range(samples)]
    sizes: dict[str, int] = {}
    for name in names:
        sizes[name] = sizes.get(name, 0) + 1
    order = np.random.default_rng(shares.seed).permutation(sorted(sizes))
    wanted = {"test": shares.test * samples, "select": shares.select * samples}
    side, had = {}, {"test": 0, "select": 0}
    for name in order.tolist():
        goes = next((s for s in had if had[s] < wanted[s]), "train")
        side[name] = goes
        if goes in had:
            had[goes] += sizes[name]
    return [side[name] for name in names]
