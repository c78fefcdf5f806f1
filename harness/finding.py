"""What a check of a machine found, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

NAMED = 3
"""that a finding names; it counts the others"""

State = Literal["ok", "warn", "fail", "skipped"]


class Finding(NamedTuple):
    """Result of one check."""

    state: State
    """`warn`: runs work, but slowly or not for long; `fail`: runs of this kind cannot work"""
    found: str
    fix: str = ""
    """what to do, for `warn` and `fail`"""


class Look(NamedTuple):
    """One thing that was looked at, and all that the finding only counts."""

    check: str
    finding: Finding
    every: tuple[str, ...] = ()


def looked(check: str, told: str, bad: Iterable[str], fix: str, state: State) -> Look:
    """ok, or `state` where some are bad, and which."""
    every = tuple(bad)
    if not every:
        return Look(check, Finding("ok", told))
    return Look(check, Finding(state, f"{told}; {len(every):,} not: {some(every)}", fix), every)


def some(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")
