"""How numbers and metric names look in print."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from reports.differences import Difference
from reports.statistics import Summary

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
"""a cell without a number"""
RULES = {
    "_each": "each",
    "_3806": "pairs that exist",
    "_joint": "head over actions",
    "_marginal": "summed over actions",
}
"""part of a metric's name -> what it says of how the metric is counted"""


def percent(found: Summary | None, scale: float = 100, digits: int = 1) -> str:
    """`70.9 ± 0.4`; `70.9 (n=1)` where one seed says nothing about the spread."""
    if found is None:
        return NONE
    mean = f"{scale * found.mean:.{digits}f}"
    if found.std is None:
        return f"{mean} (n=1)"
    return f"{mean} ± {scale * found.std:.{digits}f}"


def share(value: float | None) -> str:
    """A share in %, without its spread."""
    return NONE if value is None else f"{100 * value:.1f}"


def points(difference: float) -> str:
    """`+1.2`, `−0.3`, `0.0`: a difference in percentage points."""
    text = f"{difference:+.1f}".replace("-", MINUS)
    return text[1:] if text[1:] == "0.0" else text


def interval_of(found: Difference | None) -> str:
    """`+1.2 [+0.4, +2.0]`, points; `–` where there is none."""
    if found is None:
        return NONE
    low, high = (points(100 * bound) for bound in found.interval)
    return f"{points(100 * found.mean)} [{low}, {high}]"


def p_value(p: float) -> str:
    """`0.012`, `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def size(value: float | None) -> str:
    """Three significant digits, all digits before the point."""
    if value is None:
        return NONE
    if abs(value) >= 100:
        return f"{value:.1f}"
    return np.format_float_positional(value, precision=3, fractional=False, trim="-")


def heading(metric: str) -> str:
    """`verb_top1` -> `Verb top-1`."""
    target, kind = _split(metric)
    return f"{target.capitalize()} {kind}".strip()


def plain_heading(metric: str) -> str:
    """`action_joint_top1` -> `Action top-1`: without how it is counted."""
    return heading(metric).split(",")[0]


def in_order(metrics: Iterable[str]) -> list[str]:
    """Those of verbs, of nouns, of actions, then others."""
    named = {"verb": 0, "noun": 1, "action": 2}
    return sorted(metrics, key=lambda metric: named.get(target_of(metric), len(named)))


def target_of(metric: str) -> str:
    """`verb_top1` -> `verb`."""
    return _split(metric)[0]


def _split(metric: str) -> tuple[str, str]:
    match = re.fullmatch(r"(.+?)(_joint|_marginal)?_(top|recall)(\d+)(_each|_3806)?", metric)
    if not match:
        return metric, ""
    target, head, kind, k, rule = match.groups()
    told = [f"top-{k}" if kind == "top" else f"recall@{k}"]
    told += [RULES[part] for part in (head, rule) if part]
    return target, ", ".join(told)
