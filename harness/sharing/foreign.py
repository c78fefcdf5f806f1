"""What an archive says, checked before anything of it is written: types, ids, scores.

Collectors and reports take for granted what their own runs wrote; here somebody else did.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from harness.claimspec import Claim
from harness.config import Config, ConfigError
from harness.evaluate import Predictions
from harness.files import file_digest
from harness.predictions import read_predictions
from harness.reportspec import ReportSpec
from harness.sharing.archive import (
    ENV,
    METRICS,
    PREDICTIONS,
    RECORD,
    RESULT,
    SPEC,
    WEIGHTS,
    Manifest,
    Name,
    Preset,
    RunId,
    fitting,
    json_of,
    manifest_of,
    read_members,
    run_of,
    score_problem,
)
from harness.spec import RunSpec

TAGS = (
    "run_id", "status", "sweeps", "ceiling", "implementations", "starts", "stored", "superseded",
)  # fmt: skip
"""of a run in MLflow: what a dataset tells of itself is tagged beside them"""
ROW_NAME = re.compile(r"\w+|(train|lr|select)/.*")
"""of a metric by epoch; those of test, cost and ceilings come from the result alone"""


class Open(Config):
    """What is read of something that may hold more."""

    model_config = ConfigDict(extra="allow", strict=True)


class RunIdOnly(Open):
    run_id: RunId


class SweepRun(RunIdOnly):
    row: str
    label: str
    paper: str | None
    block: str | None = None
    published: dict[str, float] = {}
    in_table: bool
    seed: int


class NamedClaim(Claim):
    name: str


class SweepRecord(Open):
    name: Name
    preset: Preset
    settings: list[str] = []
    report: ReportSpec
    claims: list[NamedClaim] = []
    runs: list[SweepRun]
    search: dict[str, Any] | None = None


class Declared(Open):
    time: float
    done: int


class Stored(Config):
    """The member sweep.json."""

    record: SweepRecord
    declared: dict[str, Declared]


class Start(Open):
    """What an encoder's weights were loaded from."""

    kind: str = Field(alias="from")


class Group(Open):
    """Parameters that are trained alike."""

    name: str
    parameters: int
    peak_lr: float


class Result(Open):
    """What collectors and reports read of it."""

    metrics: dict[str, float]
    cost: dict[str, Any]
    ceilings: dict[str, dict[str, float]]
    ceiling: str = ""
    finished: float
    code: dict[str, str] = {}
    needs: dict[RunId, str] = {}
    loaded: dict[str, Start] = {}
    implementations: dict[str, str] = {}
    stored: dict[str, str] = {}
    told: dict[str, str] = {}
    groups: list[Group] = []
    classes: dict[str, list[str]] = {}
    bad_samples: dict[str, dict[str, str]] = {}
    samples: dict[str, int] = {}


class Env(Open):
    commit: str | None = None
    code: dict[str, str] = {}


@dataclass(frozen=True)
class Run:
    """One run of an archive."""

    spec: RunSpec
    result: Mapping[str, Any] | None
    """None if it was not done"""


@dataclass
class Archive:
    file: Path
    digest: str
    manifest: bytes
    runs: dict[str, Run] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    declared: dict[str, Any] = field(default_factory=dict)
    """claim -> when it was first made, and how many of its runs were done by then"""


def read_archive(file: Path) -> Archive:
    """All that is needed to decide what to do with an archive. Raises ConfigError if anything in it
    is damaged, unknown, or does not belong together."""
    members = read_members(file)
    _, manifest = next(members)
    found = Archive(file, file_digest(file), manifest)
    for run_id, parts in by_run(members):
        if run_id:
            found.runs[run_id] = _run(parts, run_id, f"{file}: run {run_id}")
        else:
            told = json_of(parts[RECORD], f"{file}: {RECORD}")
            fitting(Stored, told, f"{file}: {RECORD}")
            found.record, found.declared = told["record"], told["declared"]
    _check_record(found, manifest_of(manifest, file))
    return found


def by_run(members: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(run id, part -> content) one run after the other; the id is empty for what is of none."""
    for run_id, group in groupby(members, key=lambda member: run_of(member[0])):
        yield run_id, {name.rsplit("/", 1)[-1]: content for name, content in group}


def metric_rows(content: bytes) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl. Raises ValueError."""
    return [json.loads(line) for line in content.decode().splitlines()]


def _run(parts: Mapping[str, bytes], run_id: str, where: str) -> Run:
    if SPEC not in parts or (len(parts) > 1 and not {ENV, RESULT} <= set(parts)):
        raise ConfigError(f"{where}: has {', '.join(parts)} alone")
    asked = json_of(parts[SPEC], f"{where}: {SPEC}")
    if set(asked) != {"spec", "paths"} or asked["paths"]:
        raise ConfigError(f"{where}: {SPEC}: a spec without paths is needed")
    spec = fitting(RunSpec, asked["spec"], f"{where}: {SPEC}")
    if spec.run_id != run_id:
        raise ConfigError(f"{where}: its spec is that of run {spec.run_id}")
    for need in spec.needs.values():
        fitting(RunIdOnly, {"run_id": need}, f"{where}: {SPEC}: needs")
    if RESULT not in parts:
        return Run(spec, None)
    fitting(Env, json_of(parts[ENV], f"{where}: {ENV}"), f"{where}: {ENV}")
    _check_rows(parts.get(METRICS, b""), f"{where}: {METRICS}")
    told = json_of(parts[RESULT], f"{where}: {RESULT}")
    result = fitting(Result, told, f"{where}: {RESULT}")
    wrong = [name for name in result.metrics if not name.startswith(("test/", "select/"))]
    wrong += sorted(set(result.told) & set(TAGS))
    if wrong:
        raise ConfigError(f"{where}: {RESULT}: nothing in it may be called {wrong[0]!r}")
    if not set(result.needs) <= set(spec.needs.values()):
        raise ConfigError(f"{where}: its result needs other runs than its spec")
    _check_predictions(parts, result, run_id, where)
    return Run(spec, told)


def _check_rows(content: bytes, where: str) -> None:
    try:
        rows = metric_rows(content)
        for row in rows:
            if not {"epoch", "step", "time"} <= set(row) or type(row["epoch"]) is not int:
                raise ValueError(f"no epoch, step and time in {row}")
            for name, value in row.items():
                if type(value) not in (int, float) or not ROW_NAME.fullmatch(name):
                    raise ValueError(f"{name!r}: {value!r}")
        if any(row["epoch"] >= later["epoch"] for row, later in pairwise(rows)):
            raise ValueError("its epochs are not in order")
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{where}: not metrics by epoch ({error})") from None


def _check_predictions(parts: Mapping[str, bytes], result: Result, run_id: str, where: str) -> None:
    """They are of this run, by these weights, and give the scores of the result."""
    said: Predictions | None = None
    if PREDICTIONS in parts:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / PREDICTIONS
            file.write_bytes(parts[PREDICTIONS])
            try:
                said = read_predictions(file)
            except (ConfigError, zlib.error, NotImplementedError):  # which name another file
                raise ConfigError(f"{where}: {PREDICTIONS}: cannot be read") from None
        made_by = said.made_by
        if not isinstance(made_by, dict) or made_by.get("run", run_id) != run_id:
            raise ConfigError(f"{where}: its predictions were made by another run")
        if WEIGHTS in parts:
            digest = hashlib.sha256(parts[WEIGHTS]).hexdigest()
            if made_by.get("weights", digest) != digest:
                raise ConfigError(f"{where}: its predictions were made by other weights")
    problem = score_problem(result.metrics, said)
    if problem:
        raise ConfigError(f"{where}: {problem}")


def _check_record(found: Archive, about: Manifest) -> None:
    """The record is that of the manifest, and names each run once, with its own seed."""
    if (found.record["name"], found.record["preset"]) != (about.sweep, about.preset):
        raise ConfigError(f"{found.file}: its manifest is of another sweep than its record")
    seen = set()
    for run in found.record["runs"]:
        key = (run["row"], run["run_id"])
        known = found.runs.get(run["run_id"])
        if key in seen or (known is not None and known.spec.seed != run["seed"]):
            why = "twice" if key in seen else f"as seed {run['seed']}, but has another"
            raise ConfigError(f"{found.file}: {RECORD}: row {run['row']!r} has run {key[1]} {why}")
        seen.add(key)
