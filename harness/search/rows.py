"""A search as it was planned, and the runs of its trials."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.config import Node, node_of, overlay, undot
from harness.plan import PlannedRun, Planner, Sweep
from harness.registry import load_plugins
from harness.resolve import Resolver
from harness.search.space import Space, settings_of
from harness.search.spec import SearchSpec, Seed, number_of
from harness.sweepfile import SweepFile
from harness.sweeprows import rows_of, seeds_of


@dataclass(frozen=True)
class SearchRow:
    """One row of a search."""

    name: str
    label: str
    study: str
    """its study in the storage; what is searched, or on what, differs: another study"""
    space: Space
    steps: int
    """epochs that a pruner may compare: those of a trial's first seed"""
    epochs: int
    """of a whole trial, over all its seeds, at most"""
    trials: int
    """how many complete or pruned ones there are to be, at most"""
    written: Mapping[str, Any] = field(default_factory=dict)
    """what the file has for the settings that are searched"""


@dataclass(frozen=True)
class Search:
    """A search with one preset, resolved. It can be sent to another process."""

    spec: SearchSpec
    text: SweepFile
    """its file without the section `search`"""
    written: Sweep
    """the final runs of the rows as the file has them"""
    needed: tuple[PlannedRun, ...]
    """what has to be done before any trial"""
    rows: tuple[SearchRow, ...]
    metric: str
    """what is judged, as a run's result names it: `select/action_top1`"""

    @property
    def name(self) -> str:
        return self.written.name

    @property
    def preset(self) -> str:
        return self.written.preset

    @property
    def title(self) -> str:
        return f"{self.name}, preset {self.preset or 'none'}"

    @property
    def digest(self) -> str:
        """Of the studies and the budget: workers of another digest do not do this search."""
        told = [*(row.study for row in self.rows), self.spec.model_dump(mode="json")]
        told += [run.run_id for run in self.written.runs]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]


class Trials:
    """Makes the runs of trials, in any process."""

    def __init__(self, search: Search) -> None:
        load_plugins()
        self.spec, self.text = search.spec, search.text
        self.planner = Planner(search.text, Resolver(search.text.file.parent))
        self.rows = rows_of(search.text)
        self.seeds = seeds_of(search.text, self.rows)

    def runs(self, row: SearchRow, values: Mapping[str, Any], label: str) -> tuple[PlannedRun, ...]:
        """One for each seed of a trial. Raises ConfigError where the values do not go together."""
        node, where = self._laid(row, values), str(self.text.file)
        found = [self._one(row, node, seed_node(seed, where)) for seed in self.spec.seeds]
        return tuple(replace(run, label=f"{run.label}, {label}", in_table=False) for run in found)

    def best(self, row: SearchRow, values: Mapping[str, Any]) -> tuple[PlannedRun, ...]:
        """The final runs of a row with the settings that were found; one for each final seed."""
        node = self._laid(row, values)
        found = [self._one(row, node, seed) for seed in self.seeds[row.name]]
        return tuple(
            replace(run, row=f"{row.name}, best", block=titled(run, self.spec.best))
            for run in found
        )

    def _one(self, row: SearchRow, node: Node, seed: Node) -> PlannedRun:
        return self.planner.one(row.name, node, seed, self.rows)

    def _laid(self, row: SearchRow, values: Mapping[str, Any]) -> Node:
        """A row with settings laid over it."""
        where, below = str(self.text.file), self.rows[row.name]
        settings = settings_of(values, row.space)
        over = {key: node_of(value, where) for key, value in settings.items()}
        return overlay(undot(below), undot(Node(over, where)))

    @property
    def paths(self) -> dict[str, str]:
        return self.planner.resolver.paths


def titled(run: PlannedRun, title: str) -> str:
    """The part of the table that a final run stands in; rows of different blocks stay apart."""
    return f"{run.block}, {title}" if run.block else title


def seed_node(seed: Seed, where: str) -> Node:
    """What a seed of a trial lays over its row."""
    return undot(node_of(seed if isinstance(seed, dict) else {"seed": seed}, where))


def final_seeds(text: SweepFile, row: str) -> list[int]:
    """Seeds of the final runs of a row."""
    return [int(node.value["seed"].value) for node in seeds_of(text, rows_of(text))[row]]


def trial_seeds(seeds: Sequence[Seed]) -> list[int]:
    """Seeds of a trial, without what else they change."""
    return [number_of(seed) for seed in seeds]
