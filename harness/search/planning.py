"""Search file -> `Search`, with every mistake named. Nothing is computed or written here."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.config import ConfigError, Node, node_of, overlay, undot, validate
from harness.plan import PlannedRun, Planner, Sweep, planned
from harness.registry import load_plugins, unknown
from harness.resolve import Resolver
from harness.search.engines import grid_size, option_problems, pruner, sampler
from harness.search.rows import Search, SearchRow, final_seeds, seed_node, titled, trial_seeds
from harness.search.space import Space, examples, problems
from harness.search.spec import SearchSpec, grid_of
from harness.sweepfile import SweepFile
from harness.sweeprows import ROW_KEYS, refuse, rows_of

NOT_SEARCHED = (*ROW_KEYS, "needs", "seed", "version", "fingerprint")
LONGER_THAN_ENOUGH = 100_000
"""trials of a row without a limit of trials"""


def plan_search(file: Path, preset: str | None = None, settings: Sequence[str] = ()) -> Search:
    """The search in `file` under `preset`, with `key=value` settings.

    Raises ConfigError naming every mistake with its file and line.
    """
    load_plugins()
    text = SweepFile.read(file, preset, settings)
    for setting in settings:
        if setting.startswith(("search.space", "search.rows")):
            raise ConfigError(f"--set {setting}: what is searched is changed in the file, not here")
    node = text.sections.pop("search", None)
    if node is None:
        raise ConfigError(f"{file}: no section `search`; `harness sweep {file}` runs it as it is")
    spec, messages = validate(SearchSpec, node, "search.")
    refuse(messages)
    assert isinstance(spec, SearchSpec)
    refuse([*_in_itself(spec, node, text)])
    if "claims" in text.sections:
        raise ConfigError(
            f"{text.sections['claims'].where}: claims: a search has none; declare them in the "
            f"sweep that is run with the settings it finds"
        )
    planner = Planner(text, Resolver(text.file.parent))
    written = planned(text, settings, planner)
    rows = rows_of(text)
    judged = _Judged(spec, node, planner, rows)
    found = tuple(judged.row(name, written) for name in rows)
    refuse(judged.messages)
    text.file = text.file.resolve()  # for processes that start elsewhere
    blocked = [
        replace(run, block=titled(run, spec.written or "")) if run.in_table else run
        for run in written.runs
        if spec.written is not None or not run.in_table
    ]
    return Search(
        spec, text, replace(written, runs=tuple(blocked)), tuple(planner.needed.values()), found,
        f"{spec.objective.split}/{spec.objective.metric}",
    )  # fmt: skip


def _in_itself(spec: SearchSpec, node: Node, text: SweepFile) -> Iterator[str]:
    """What is wrong with the section, whatever the rows are."""
    names = list(rows_of(text))
    for row in spec.rows:
        if row not in names:
            yield f"{node.at(['rows', row]).where}: search.rows: {unknown(row, names, 'row')}"
    for part, of in (("sampler", spec.sampler), ("pruner", spec.pruner)):
        for option, why in option_problems(of):
            where = node.at([part, "options", option]).where
            yield f"{where}: search.{part}.options.{option}: {why}"
    if spec.pruner.name != "none" and spec.objective.split == "test":
        yield (
            f"{node.at(['pruner']).where}: search.pruner: {spec.pruner.name} compares after each "
            f"epoch, and test is only scored at the end; take split: select, or name: none"
        )
    for row in names:
        if shared := sorted(set(trial_seeds(spec.seeds)) & set(final_seeds(text, row))):
            told = ", ".join(map(str, shared))
            yield (
                f"{node.at(['seeds']).where}: search.seeds: {told} is also a seed of the final "
                f"runs of {row}; these must be fresh"
            )
            break


def different(space: Space) -> int:
    """How many different trials there are, at most."""
    sizes = [
        len(found) if (found := grid_of(one.model_copy(update={"points": None}))) else None
        for one in space.values()
    ]
    whole = [size for size in sizes if size is not None]
    return math.prod(whole) if len(whole) == len(sizes) else LONGER_THAN_ENOUGH


def _value(plain: Any, key: str) -> Any:
    """What stands at a dotted key; None if nothing does."""
    for part in key.split("."):
        plain = plain.get(part) if isinstance(plain, Mapping) else None
    return plain


class _Judged:
    """Makes the rows of a search, and collects what is wrong with them."""

    def __init__(
        self, spec: SearchSpec, node: Node, planner: Planner, rows: Mapping[str, Node]
    ) -> None:
        self.spec, self.node, self.planner, self.rows = spec, node, planner, rows
        self.messages: list[str] = []

    def row(self, name: str, written: Sweep) -> SearchRow:
        """The row called `name`; where something is wrong, `messages` grow."""
        space, spec = self.spec.space_of(name), self.spec
        wrong = list(self._in_space(space))
        for key, why in wrong:
            self._say(key, name, why)
        label = next((run.label for run in written.runs if run.row == name), name)
        most = spec.budget.trials or min(LONGER_THAN_ENOUGH, different(space))
        bare = SearchRow(name, label, "", space, 1, 1, most)
        if wrong:
            return bare
        runs = self._examples(name, space)
        if not runs:
            return bare
        self._fits(name, runs[0])
        steps = max(run.spec.train.epochs for run in runs)
        self._engines(space, steps)
        lowest = [run.run_id for run in runs[: len(spec.seeds)]]
        trials = bare.trials
        if spec.sampler.name == "grid":
            trials = min(trials, grid_size(space))
        file = next((run.spec for run in written.runs if run.row == name), None)
        values = {key: _value(file.model_dump(), key) for key in space} if file else {}
        study = f"{written.name}/{name}/{self._digest(space, lowest)}"
        epochs = steps * len(spec.seeds)
        return replace(bare, study=study, steps=steps, epochs=epochs, trials=trials, written=values)

    def _in_space(self, space: Space) -> Iterator[tuple[str, str]]:
        """(parameter, what is wrong with it)."""
        yield from problems(space)
        for key, one in space.items():
            for setting in (key, *one.also):
                if setting.split(".")[0] in NOT_SEARCHED:
                    yield key, f"{setting} is no setting of a run that can be searched"
            if self.spec.sampler.name == "grid" and grid_of(one) is None:
                yield key, f"a grid needs `points` of {one.kind}"
            if self.spec.sampler.name == "grid" and one.when:
                yield key, "a grid has no conditions; take another sampler"

    def _examples(self, name: str, space: Space) -> list[PlannedRun]:
        """Runs with the ends of every range; first those with all the lowest values."""
        runs: list[PlannedRun] = []
        ids: dict[str, dict[str, Any]] = {}
        for values in examples(space):
            node = self._node(name, space, values)
            seeds = self.spec.seeds if not runs else self.spec.seeds[:1]
            for seed in seeds:
                try:
                    where = self.node.at(["seeds"]).where
                    run = self.planner.one(name, node, seed_node(seed, where), self.rows)
                except ConfigError as error:
                    self.messages += [m for m in error.messages if m not in self.messages]
                    continue
                runs.append(run)
            if runs and (same := ids.setdefault(runs[-1].run_id, values)) != values:
                key = next(key for key in values if values.get(key) != same.get(key))
                self._say(
                    key, name, f"{same.get(key)!r} and {values[key]!r} make the same run: --set, "
                    f"or the row's method, has the last word on it",
                )  # fmt: skip
        return runs

    def _node(self, name: str, space: Space, values: Mapping[str, Any]) -> Node:
        row, own = self.rows[name], self.spec.rows.get(name, {})
        over: dict[str, Node] = {}
        for key, value in values.items():
            path = ["rows", name, key] if key in own else ["space", key]
            for setting in (key, *space[key].also):
                over[setting] = node_of(value, self.node.at(path).where)
        try:
            return overlay(undot(row), undot(Node(over, row.where)))
        except ConfigError as error:
            self.messages += error.messages
            return row

    def _fits(self, name: str, run: PlannedRun) -> None:
        """What the objective and the pruner need of a row's runs."""
        known, metric = self.planner.metrics_of(run.spec), self.spec.objective.metric
        where = self.node.at(["objective", "metric"]).where
        if metric not in known:
            self._once(f"{where}: search.objective.metric: {unknown(metric, known, 'metric')}")
        elif run.spec.train.method == "cost":
            self._once(f"{where}: search.objective.metric: {name} only counts cost, it has none")
        if self.spec.pruner.name == "none":
            return
        where, pruner_name = self.node.at(["pruner"]).where, self.spec.pruner.name
        if run.spec.train.method != "gradient":
            self._once(
                f"{where}: search.pruner: {pruner_name} compares after each epoch, and "
                f"{name} is not trained by epochs (train.method: {run.spec.train.method})"
            )
        elif run.spec.train.epochs < 2:
            self._once(
                f"{where}: search.pruner: {pruner_name} compares after each epoch, and {name} has "
                f"one; raise train.epochs, or take name: none"
            )

    def _engines(self, space: Space, steps: int) -> None:
        """Options that Optuna refuses."""
        for part, make in (
            ("sampler", lambda: sampler(self.spec.sampler, space, 0, 0)),
            ("pruner", lambda: pruner(self.spec.pruner, steps)),
        ):
            try:
                make()
            except (TypeError, ValueError) as error:
                where = self.node.at([part, "options"]).where
                self._once(f"{where}: search.{part}.options: {error}")

    def _digest(self, space: Space, lowest: Sequence[str]) -> str:
        """Of all that makes a trial of one study worth what it is worth in another."""
        told = {
            "lowest": list(lowest),
            "space": {key: one.model_dump(mode="json") for key, one in space.items()},
            **self.spec.model_dump(mode="json", include={"objective", "sampler", "pruner", "seed"}),
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]

    def _say(self, key: str, row: str, why: str) -> None:
        own = key in self.spec.rows.get(row, {})
        path = ["rows", row, key] if own else ["space", key]
        shown = f"rows.{row}.{key}" if own else f"space.{key}"
        self._once(f"{self.node.at(path).where}: search.{shown}: {why}")

    def _once(self, message: str) -> None:
        if message not in self.messages:
            self.messages.append(message)
