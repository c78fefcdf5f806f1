"""What a check of a machine found, and what to do about it."""

from __future__ import annotations

from typing import Literal, NamedTuple

State = Literal["ok", "warn", "fail", "skipped"]


class Finding(NamedTuple):
    """Result of one check."""

    state: State
    """`warn`: runs work, but slowly or not for long; `fail`: runs of this kind cannot work"""
    found: str
    fix: str = ""
    """what to do, for `warn` and `fail`"""
