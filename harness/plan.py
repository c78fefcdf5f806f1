"""Sweep file -> the runs it asks for. Nothing is computed and nothing is written here."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from harness.config import (
    Config,
    ConfigError,
    Node,
    kind_of,
    no_such_key,
    node_of,
    overlay,
    undot,
    validate,
)
from harness.model import check_buildable
from harness.registry import load_plugins
from harness.spec import Resolver, RunSpec
from harness.sweepfile import SweepFile

ROW_KEYS = ("label", "paper", "seeds")
MAX_RUNS = 100_000
NEEDS = ("weights",)


class ReportSpec(Config):
    """Which table a sweep feeds."""

    table: str
    """`table1` ... `table4`, or a name of its own"""
    title: str
    """one line above the table"""
    metrics: list[str] = Field(min_length=1)
    """columns, e.g. `verb_top1`; names as in a run's result"""
    subsets: list[str] = []
    """shares of the test split also reported by themselves; their ratio, second to first, is the
    fusion score"""
    notes: list[str] = []
    """printed under the table"""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep."""

    row: str
    """row of the table it belongs to"""
    label: str
    """the row's name in print"""
    paper: str | None
    """the paper's name of the same row, if it has one"""
    in_table: bool
    """False for a run that others only need"""
    run_id: str
    spec: RunSpec


@dataclass(frozen=True)
class Sweep:
    """A sweep with one preset, resolved."""

    name: str
    preset: str
    file: str
    report: ReportSpec
    runs: tuple[PlannedRun, ...]
    paths: Mapping[str, str] = field(default_factory=dict)
    """where the input files lie: `sha256:...` -> path"""

    def record(self) -> dict[str, Any]:
        """What is stored of it: rows and run ids."""
        rows = [
            {
                "row": run.row,
                "label": run.label,
                "paper": run.paper,
                "in_table": run.in_table,
                "seed": run.spec.seed,
                "run_id": run.run_id,
            }
            for run in self.runs
        ]
        return {
            "name": self.name,
            "preset": self.preset,
            "report": self.report.model_dump(),
            "runs": rows,
        }


def plan(file: Path, preset: str | None = None, settings: Sequence[str] = ()) -> Sweep:
    """All runs of `file` under `preset` (its first one by default), with `key=value` settings.

    Raises ConfigError naming every mistake with its file and line.
    """
    load_plugins()
    text = SweepFile.read(file, preset, settings)
    report, messages = validate(ReportSpec, text.sections["report"], "report.")
    resolver = Resolver(file.parent)
    planner = _Planner(text, resolver)
    runs: list[PlannedRun] = []
    try:
        runs = planner.all()
    except ConfigError as error:
        messages += error.messages
    if messages:
        raise ConfigError(*messages)
    return Sweep(file.stem, text.preset, str(file), report, tuple(runs), resolver.paths)


class _Planner:
    def __init__(self, text: SweepFile, resolver: Resolver) -> None:
        self.text, self.resolver = text, resolver
        self.base = undot(text.sections.get("base") or Node({}, str(text.file)))
        self.bare = Node(
            {k: v for k, v in self.base.value.items() if k != "needs"}, self.base.where
        )
        self.needed: dict[str, PlannedRun] = {}
        self.making: list[str] = []
        self.messages: list[str] = []

    def all(self) -> list[PlannedRun]:
        rows = dict(self._rows())
        prerequisites = self.text.sections.get("needs") or Node({}, "")
        for name in prerequisites.value:
            if name in rows:
                where = prerequisites.value[name].where
                raise ConfigError(f"{where}: needs.{name}: {name!r} is a row too; rename one")
        seeds = self._seeds(self.text.sections.get("seeds") or node_of([0], str(self.text.file)))
        if len(rows) * len(seeds) > MAX_RUNS:
            raise ConfigError(f"{self.text.file}: {len(rows)} rows x {len(seeds)} seeds: too many")
        runs: dict[str, PlannedRun] = {}
        for row, node in rows.items():
            own = node.get("seeds")
            for seed in self._seeds(own) if own else seeds:
                try:
                    run = self._one(row, node, seed, rows)
                except ConfigError as error:
                    self.messages += error.messages
                    continue
                runs.setdefault(f"{run.row}/{run.run_id}", run)
        if self.messages:
            raise ConfigError(*self.messages)
        return [*self.needed.values(), *runs.values()]

    def _rows(self) -> Iterator[tuple[str, Node]]:
        """Row name -> what it lays over `base`."""
        runs, axes = self.text.sections.get("runs"), self.text.sections.get("axes")
        if not (runs or axes):
            raise ConfigError(f"{self.text.file}: neither `runs` nor `axes`: nothing to run")
        named = {key: undot(child) for key, child in runs.value.items()} if runs else {}
        if runs and not named:
            raise ConfigError(f"{runs.where}: runs: is empty; name at least one row")
        for name, node in named.items():
            if not isinstance(node.value, dict):
                what = kind_of(node.value)
                raise ConfigError(f"{node.where}: runs.{name}: a mapping is needed, not {what}")
        for suffix, crossed in self._cross(axes):
            for name, node in (named or {"": Node({}, crossed.where)}).items():
                yield " ".join(filter(None, (name, suffix))), overlay(node, crossed)

    def _cross(self, axes: Node | None) -> Iterator[tuple[str, Node]]:
        if axes is None:
            yield "", Node({}, "")
            return
        choices = []
        for key, values in axes.value.items():
            if not isinstance(values.value, tuple) or not values.value:
                what = "is empty" if values.value == () else f"is {kind_of(values.value)}"
                raise ConfigError(f"{values.where}: axes.{key}: {what}; a list of values is needed")
            short = key.rsplit(".", 1)[-1]
            choices.append(
                [
                    (_axis_label(short, value), undot(Node({key: value}, value.where)))
                    for value in values.value
                ]
            )
        for combination in itertools.product(*choices):
            node = Node({}, axes.where)
            for _, part in combination:
                node = overlay(node, part)
            yield ", ".join(label for label, _ in combination), node

    def _seeds(self, seeds: Node) -> list[Node]:
        """What each seed lays over a row: its number, and more where the seed is a mapping."""
        found = []
        if not isinstance(seeds.value, tuple) or not seeds.value:
            raise ConfigError(f"{seeds.where}: seeds: a list such as [0, 1, 2] is needed")
        for node in seeds.value:
            if isinstance(node.value, dict):
                if "seed" not in node.value:
                    raise ConfigError(f"{node.where}: seeds: a mapping needs the key `seed`")
                found.append(undot(node))
            elif isinstance(node.value, int) and not isinstance(node.value, bool):
                found.append(Node({"seed": node}, node.where))
            else:
                raise ConfigError(f"{node.where}: seeds: a whole number, not {node.value!r}")
        return found

    def _one(
        self, row: str, node: Node, seed: Node, rows: Mapping[str, Node], base: Node | None = None
    ) -> PlannedRun:
        merged = overlay(overlay(overlay(base or self.base, node), seed), self.text.settings)
        titles = {key: merged.value[key].plain() for key in ROW_KEYS if key in merged.value}
        merged = Node({k: v for k, v in merged.value.items() if k not in ROW_KEYS}, merged.where)
        spec = self.resolver.run(merged, self._needs(row, merged, seed, rows))
        check_buildable(spec, self.resolver.paths, merged.at(["fusion"]).where)
        label = str(titles.get("label", row))
        return PlannedRun(row, label, titles.get("paper"), True, spec.run_id, spec)

    def _needs(
        self, row: str, merged: Node, seed: Node, rows: Mapping[str, Node]
    ) -> dict[str, str]:
        wanted = merged.get("needs") or Node({}, merged.where)
        if not isinstance(wanted.value, dict):
            raise ConfigError(f"{wanted.where}: needs: a mapping is needed, e.g. {{weights: NAME}}")
        unknown = [kind for kind in wanted.value if kind not in NEEDS]
        if unknown:
            where = wanted.value[unknown[0]].where
            raise ConfigError(f"{where}: needs.{unknown[0]}: {no_such_key(unknown[0], NEEDS)}")
        return {
            kind: self._need(row, kind, name, seed, rows)
            for kind, name in wanted.value.items()
            if name.value is not None
        }

    def _need(self, row: str, kind: str, name: Node, seed: Node, rows: Mapping[str, Node]) -> str:
        """The id of the run called `name`: an entry of the section `needs`, or another row."""
        prerequisites = self.text.sections.get("needs") or Node({}, "")
        if name.value in self.making:
            chain = " -> ".join([*self.making, str(name.value)])
            raise ConfigError(f"{name.where}: needs.{kind}: goes in a circle: {chain}")
        self.making.append(row)
        try:
            if name.value in self.needed:
                return self.needed[name.value].run_id
            if name.value in prerequisites.value:
                node = undot(prerequisites.value[name.value])
                run = self._one(name.value, node, Node({}, node.where), rows, self.bare)
                self.needed[name.value] = PlannedRun(
                    run.row, run.label, None, False, run.run_id, run.spec
                )
                return run.run_id
            if name.value in rows and name.value != row:
                return self._one(name.value, rows[name.value], seed, rows).run_id
        finally:
            self.making.pop()
        known = sorted({*prerequisites.value, *rows} - {row})
        raise ConfigError(
            f"{name.where}: needs.{kind}: no run is called {name.value!r}. "
            f"Known: {', '.join(known) or 'none'}"
        )


def _axis_label(key: str, value: Node) -> str:
    plain = value.plain()
    if isinstance(plain, dict) and "name" in plain:
        options = ",".join(f"{k}={v}" for k, v in (plain.get("options") or {}).items())
        return f"{plain['name']}({options})" if options else str(plain["name"])
    return f"{key}={plain if isinstance(plain, str) else json.dumps(plain)}"
