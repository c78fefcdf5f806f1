"""The rows of a sweep file: `runs` crossed with `axes`, and the seeds each row has.

Nothing here knows what a setting means. All mistakes of a section are found before any is raised.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.config import ConfigError, Node, kind_of, node_of, overlay, undot
from harness.sweepfile import SweepFile

MAX_RUNS = 100_000
ROW_KEYS = ("label", "paper", "block", "published", "seeds")
"""what a row says beside its settings"""


@dataclass(frozen=True)
class Titles:
    """What a row is called, and what is known of it from elsewhere."""

    label: str
    """the row's name in print"""
    paper: str | None = None
    """the paper's name of the same row, if it has one"""
    block: str | None = None
    """part of the table it stands in: rows of different blocks are not compared"""
    published: Mapping[str, float] = field(default_factory=dict)
    """metric -> what its authors report, %"""


def titles_of(row: str, node: Node) -> Titles:
    """Of the row called `row`. Raises ConfigError with every mistake."""
    given = {key: node.value[key] for key in ROW_KEYS if key in node.value}
    refuse(
        f"{given[key].where}: {key}: text is needed, not {kind_of(given[key].value)}"
        for key in ("label", "paper", "block")
        if key in given and not isinstance(given[key].value, str)
    )
    numbers = given.get("published") or Node({}, node.where)
    if not isinstance(numbers.value, dict):
        raise ConfigError(
            f"{numbers.where}: published: a mapping is needed, e.g. {{action_top1: 45.7}}, not "
            f"{kind_of(numbers.value)}"
        )
    refuse(
        f"{number.where}: published.{metric}: a number of 0 to 100 (%) is needed, not "
        f"{number.plain()!r}"
        for metric, number in numbers.value.items()
        if not _is_percent(number.value)
    )
    texts = {key: given[key].value for key in ("label", "paper", "block") if key in given}
    published = {metric: float(number.value) for metric, number in numbers.value.items()}
    return Titles(**{"label": row, **texts}, published=published)


def _is_percent(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value <= 100


def rows_of(text: SweepFile) -> dict[str, Node]:
    """Row name -> what it lays over `base`."""
    runs, axes = text.sections.get("runs"), text.sections.get("axes")
    if not (runs or axes):
        raise ConfigError(f"{text.file}: neither `runs` nor `axes`: nothing to run")
    named = {key: undot(child) for key, child in runs.value.items()} if runs else {}
    if runs and not named:
        raise ConfigError(f"{runs.where}: runs: is empty; name at least one row")
    refuse(
        f"{node.where}: runs.{name}: a mapping is needed, not {kind_of(node.value)}"
        for name, node in named.items()
        if not isinstance(node.value, dict)
    )
    choices = _choices(axes)
    count = max(1, len(named)) * math.prod(len(options) for options in choices)
    if count > MAX_RUNS:
        raise ConfigError(f"{text.file}: {count} rows; {MAX_RUNS} are the most")
    found = {}
    for combination in itertools.product(*choices):
        crossed = Node({}, axes.where if axes else "")
        for _, part in combination:
            crossed = overlay(crossed, part)
        suffix = ", ".join(label for label, _ in combination)
        for name, node in (named or {"": Node({}, crossed.where)}).items():
            found[" ".join(filter(None, (name, suffix)))] = overlay(node, crossed)
    return found


def seeds_of(text: SweepFile, rows: dict[str, Node]) -> dict[str, list[Node]]:
    """Row name -> what each of its seeds lays over it. A row may have `seeds` of its own."""
    shared = text.sections.get("seeds")
    axis = (text.sections.get("axes") or Node({}, "")).get("seed")
    if shared and axis:
        raise ConfigError(f"{axis.where}: axes.seed: `seeds` ({shared.where}) says it already")
    seeds = _seeds(shared or axis or node_of([0], str(text.file)))
    known: dict[int, list[Node]] = {}
    found = {}
    for row, node in rows.items():
        own = node.get("seeds")
        if own and id(own.value) not in known:  # aliases share their value
            known[id(own.value)] = _seeds(own)
        found[row] = known[id(own.value)] if own else seeds
    count = sum(map(len, found.values()))
    if count > MAX_RUNS:
        raise ConfigError(f"{text.file}: {count} runs; {MAX_RUNS} are the most")
    return found


def settings_for(row: Node, settings: Node) -> Node:
    """`--set` without the encoders of streams that the row leaves out (`encoders.text: null`)."""
    encoders, given = row.get("encoders"), settings.get("encoders")
    if encoders is None or given is None or not isinstance(encoders.value, dict):
        return settings
    if not isinstance(given.value, dict):
        return settings
    out = {stream for stream, node in encoders.value.items() if node.value is None}
    kept = {stream: node for stream, node in given.value.items() if stream not in out}
    return Node({**settings.value, "encoders": Node(kept, given.where)}, settings.where)


def refuse_given(node: Node, instead: str) -> None:
    """What the harness fills in is not written by hand."""
    for key in ("seed", "version", "fingerprint"):
        if key in node.value:
            hint = f"; {instead}" if key == "seed" else "; leave it out"
            raise ConfigError(f"{node.value[key].where}: {key}: is not set here{hint}")


def refuse(messages: Iterator[str] | list[str]) -> None:
    """Raise ConfigError if there are messages."""
    if found := list(messages):
        raise ConfigError(*found)


def _choices(axes: Node | None) -> list[list[tuple[str, Node]]]:
    """For every axis (label, what it lays over a row) of each value; `seed` is not an axis."""
    crossed = {k: v for k, v in _flat(axes.value) if k != "seed"} if axes else {}
    refuse(
        f"{values.where}: axes.{key}: "
        f"{'is empty' if values.value == () else f'is {kind_of(values.value)}'}; "
        f"a list of values is needed"
        for key, values in crossed.items()
        if not isinstance(values.value, tuple) or not values.value
    )
    return [
        [
            (_label(key.rsplit(".", 1)[-1], value), undot(Node({key: value}, value.where)))
            for value in values.value
        ]
        for key, values in crossed.items()
    ]


def _flat(axes: Mapping[str, Node], prefix: str = "") -> Iterator[tuple[str, Node]]:
    """`{data: {options: {x: [...]}}}`, as --set has it, -> `data.options.x`."""
    for key, child in axes.items():
        if isinstance(child.value, dict):
            yield from _flat(child.value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", child


def _label(key: str, value: Node) -> str:
    plain = value.plain()
    if isinstance(plain, dict) and "name" in plain:
        given = plain.get("options")
        options = ",".join(f"{k}={v}" for k, v in given.items()) if isinstance(given, dict) else ""
        return f"{plain['name']}({options})" if options else str(plain["name"])
    return f"{key}={plain if isinstance(plain, str) else json.dumps(plain)}"


def _seeds(seeds: Node) -> list[Node]:
    if not isinstance(seeds.value, tuple) or not seeds.value:
        raise ConfigError(f"{seeds.where}: seeds: a list such as [0, 1, 2] is needed")
    refuse(
        f"{node.where}: seeds: {problem}"
        for node in seeds.value
        if (problem := _seed_problem(node)) is not None
    )
    return [
        undot(node) if isinstance(node.value, dict) else Node({"seed": node}, node.where)
        for node in seeds.value
    ]


def _seed_problem(node: Node) -> str | None:
    number = node.get("seed") if isinstance(node.value, dict) else node
    if number is None:
        return "a mapping needs the key `seed`"
    if not isinstance(number.value, int) or isinstance(number.value, bool):
        return f"a whole number, not {number.plain()!r}"
    return None if 0 <= number.value < 2**32 else f"0 to {2**32 - 1}, not {number.value}"
