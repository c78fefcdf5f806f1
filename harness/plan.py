"""Sweep file -> the runs it asks for. Nothing is computed and nothing is written here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.claimspec import Claim, claims_of
from harness.config import ConfigError, Node, kind_of, no_such_key, overlay, undot, validate
from harness.evaluate import metric_names
from harness.model import check_buildable
from harness.registry import load_plugins, unknown
from harness.reportspec import ReportSpec, report_problems
from harness.resolve import Resolver
from harness.slurm import SlurmSettings
from harness.spec import RunSpec, dataset_of
from harness.sweepfile import SweepFile
from harness.sweeprows import (
    ROW_KEYS,
    refuse,
    refuse_given,
    rows_of,
    seeds_of,
    settings_for,
    titles_of,
)

NEEDS = ("weights",)


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep."""

    row: str
    """row of the table it belongs to"""
    label: str
    """the row's name in print"""
    paper: str | None
    """the paper's name of the same row, if it has one"""
    block: str | None
    """part of the table it stands in"""
    published: Mapping[str, float]
    """metric -> what its authors report, %"""
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
    settings: tuple[str, ...] = ()
    """what `--set` changed"""
    slurm: SlurmSettings = field(default_factory=SlurmSettings)
    """what its runs ask a cluster for, where that is not what the site's do"""
    claims: Mapping[str, Claim] = field(default_factory=dict)
    """what it is to find out"""

    @property
    def run_ids(self) -> list[str]:
        """Each once, in order."""
        return list(dict.fromkeys(run.run_id for run in self.runs))

    def record(self) -> dict[str, Any]:
        """What is stored of it: rows and run ids."""
        rows = [
            {
                "row": run.row,
                "label": run.label,
                "paper": run.paper,
                **({"block": run.block} if run.block else {}),
                "published": dict(run.published),
                "in_table": run.in_table,
                "seed": run.spec.seed,
                "run_id": run.run_id,
            }
            for run in self.runs
        ]
        return {
            "name": self.name,
            "preset": self.preset,
            "file": self.file,
            "settings": [text for text in self.settings if not text.startswith("slurm.")],
            "report": self.report.model_dump(),
            "claims": [{"name": k, **claim.model_dump()} for k, claim in self.claims.items()],
            "runs": rows,
        }


def together(sweeps: Sequence[Sweep]) -> Sweep:
    """All runs of several sweeps, to be launched as one."""
    runs = tuple(run for sweep in sweeps for run in sweep.runs)
    paths = {key: path for sweep in sweeps for key, path in sweep.paths.items()}
    return replace(sweeps[0], name=", ".join(s.name for s in sweeps), runs=runs, paths=paths)


def plan(
    file: Path,
    preset: str | None = None,
    settings: Sequence[str] = (),
    resolver: Resolver | None = None,
) -> Sweep:
    """All runs of `file` under `preset` (its first one by default), with `key=value` settings.

    Raises ConfigError naming every mistake with its file and line.
    """
    load_plugins()
    text = SweepFile.read(file, preset, settings)
    if "search" in text.sections:
        where = text.sections["search"].where
        raise ConfigError(
            f"{where}: search: this file is a search; `harness search {file}` runs it"
        )
    return planned(text, settings, Planner(text, resolver or Resolver(file.parent)))


def planned(text: SweepFile, settings: Sequence[str], planner: Planner) -> Sweep:
    """The runs that a file asks for as it is written. Raises ConfigError."""
    report, messages = validate(ReportSpec, text.sections["report"], "report.")
    written = text.sections.get("slurm")
    asked, wrong = validate(SlurmSettings, written, "slurm.") if written else (None, [])
    messages += wrong
    runs: list[PlannedRun] = []
    claims: dict[str, Claim] = {}
    try:
        runs, known = planner.all(), planner.metrics()
        messages += report_problems(report, text.sections["report"], known, runs)
        claims, wrong = claims_of(text.sections.get("claims"), report, runs, known)
        messages += wrong
    except ConfigError as error:
        messages += error.messages
    refuse(messages)
    return Sweep(
        text.file.stem,
        text.preset,
        str(text.file),
        report,
        tuple(runs),
        planner.resolver.paths,
        tuple(settings),
        asked or SlurmSettings(),
        claims,
    )


class Planner:
    """Makes the runs of a file; what they have in common is resolved once."""

    def __init__(self, text: SweepFile, resolver: Resolver) -> None:
        self.text, self.resolver = text, resolver
        self.base = undot(text.sections.get("base") or Node({}, str(text.file)))
        self.bare = Node(
            {k: v for k, v in self.base.value.items() if k != "needs"}, self.base.where
        )
        self.prerequisites = text.sections.get("needs") or Node({}, "")
        self.needed: dict[str, PlannedRun] = {}
        self.known: dict[int, list[str]] = {}
        """data of a run, by identity -> names of the metrics it has"""
        self.making: list[str] = []
        self.messages: list[str] = []

    def metrics(self) -> list[str]:
        """Names of the metrics that runs have."""
        return list(dict.fromkeys(name for names in self.known.values() for name in names))

    def all(self) -> list[PlannedRun]:
        """Of every row and seed, after those that are only needed."""
        rows = rows_of(self.text)
        self._check_needs(rows)
        runs: dict[str, PlannedRun] = {}
        for row, seeds in seeds_of(self.text, rows).items():
            for seed in seeds:
                try:
                    run = self.one(row, rows[row], seed, rows)
                except ConfigError as error:
                    self.messages += error.messages
                    continue
                runs.setdefault(f"{run.row}/{run.run_id}", run)
        refuse(self.messages)
        unused = [name for name in self.prerequisites.value if name not in self.needed]
        refuse(
            f"{self.prerequisites.value[name].where}: needs.{name}: no run needs it; "
            f"write `needs.weights: {name}` in `base` or in a row, or leave it out"
            for name in unused
        )
        planned = {run.run_id for run in runs.values()}
        only_needed = [run for run in self.needed.values() if run.run_id not in planned]
        return [*only_needed, *runs.values()]

    def _check_needs(self, rows: Mapping[str, Node]) -> None:
        messages = []
        for name, node in self.prerequisites.value.items():
            if name in rows:
                messages.append(f"{node.where}: needs.{name}: {name!r} is a row too; rename one")
            elif not isinstance(node.value, dict):
                what = kind_of(node.value)
                messages.append(f"{node.where}: needs.{name}: a mapping is needed, not {what}")
        refuse(messages)

    def one(
        self, row: str, node: Node, seed: Node, rows: Mapping[str, Node], base: Node | None = None
    ) -> PlannedRun:
        """The run that `node` and `seed`, laid over `base`, make. Raises ConfigError."""
        merged = overlay(base or self.base, node)
        refuse_given(merged, "write `seeds: [0, 1, 2]`")
        refuse_given(self.text.settings, "take --set seeds=[0,1,2]")
        merged = overlay(merged, seed)
        if self.text.settings.value:
            merged = overlay(merged, settings_for(merged, self.text.settings))
        titles = titles_of(row, merged)
        published = merged.get("published") or Node({}, merged.where)
        merged = Node({k: v for k, v in merged.value.items() if k not in ROW_KEYS}, merged.where)
        spec = self.resolver.run(merged, self._needs(row, merged, seed, rows))
        check_buildable(spec, self.resolver.paths, merged.at(["fusion"]).where)
        known = self.metrics_of(spec)
        refuse(
            f"{number.where}: published: {unknown(name, known, 'metric of this row')}"
            for name, number in published.value.items()
            if name not in known
        )
        chosen, where = spec.train.choose_by, merged.at(["train", "choose_by"]).where
        if chosen is not None and chosen not in known:
            what = unknown(chosen, known, "metric of this row")
            raise ConfigError(f"{where}: train.choose_by: {what}")
        return PlannedRun(row, **asdict(titles), in_table=True, run_id=spec.run_id, spec=spec)

    def metrics_of(self, spec: RunSpec) -> list[str]:
        """Names of the metrics that a run has."""
        key = id(spec.data)  # equal parts of a sweep are one object
        if key not in self.known:
            dataset = dataset_of(spec, self.resolver.paths)
            self.known[key] = metric_names(dataset.targets, dataset.actions())
        return self.known[key]

    def _needs(
        self, row: str, merged: Node, seed: Node, rows: Mapping[str, Node]
    ) -> dict[str, str]:
        wanted = merged.get("needs") or Node({}, merged.where)
        if not isinstance(wanted.value, dict):
            raise ConfigError(f"{wanted.where}: needs: a mapping is needed, e.g. {{weights: NAME}}")
        refuse(
            f"{node.where}: needs.{kind}: {no_such_key(kind, NEEDS)}"
            for kind, node in wanted.value.items()
            if kind not in NEEDS
        )
        return {
            kind: self._need(row, kind, name, seed, rows)
            for kind, name in wanted.value.items()
            if name.value is not None
        }

    def _need(self, row: str, kind: str, name: Node, seed: Node, rows: Mapping[str, Node]) -> str:
        """The id of the run called `name`: an entry of the section `needs`, or another row."""
        prerequisites = self.prerequisites
        if not isinstance(name.value, str):
            what = kind_of(name.value)
            raise ConfigError(f"{name.where}: needs.{kind}: the name of a run, not {what}")
        if name.value in self.making:
            chain = " -> ".join([*self.making, str(name.value)])
            raise ConfigError(f"{name.where}: needs.{kind}: goes in a circle: {chain}")
        self.making.append(row)
        try:
            if name.value in self.needed:
                return self.needed[name.value].run_id
            if name.value in prerequisites.value:
                node = undot(prerequisites.value[name.value])
                run = self.one(name.value, node, Node({}, node.where), rows, self.bare)
                self.needed[name.value] = replace(run, paper=None, published={}, in_table=False)
                return run.run_id
            if name.value in rows and name.value != row:
                run = self.one(name.value, rows[name.value], seed, rows)
                self.needed[run.run_id] = replace(run, in_table=False)
                return run.run_id
        finally:
            self.making.pop()
        known = sorted({*prerequisites.value, *rows} - {row})
        raise ConfigError(
            f"{name.where}: needs.{kind}: no run is called {name.value!r}. "
            f"Known: {', '.join(known) or 'none'}"
        )
