"""`harness export`: what is done of a stored sweep -> an archive that names no place or machine."""

from __future__ import annotations

import hashlib
import json
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import ConfigError
from harness.evaluate import Predictions
from harness.registry import unknown
from harness.sharing.archive import (
    ENV,
    METRICS,
    PREDICTIONS,
    RECORD,
    RESULT,
    SPEC,
    WEIGHTS,
    json_bytes,
    score_problem,
    write_archive,
)
from harness.sharing.private import Private
from harness.store import RunFolder, Store

Record = Mapping[str, Any]
LOCAL = ("host", "pid")
"""of env.json: nothing to others"""


@dataclass(frozen=True)
class Exported:
    file: Path
    done: int
    """runs that came along"""
    left: Mapping[str, int]
    """state -> runs that did not, for they have no result"""
    named_by_path: int
    """samples whose names are absolute paths; predictions keep them"""


def export(
    store: Store,
    name: str,
    preset: str | None = None,
    out: Path | None = None,
    weights: bool = False,
    diff: bool = False,
) -> Exported:
    """Write the sweep `name` to `out`, `NAME-PRESET.tar.gz` by default.

    Weights of runs that others start from come along, with `weights` those of all; `diff` keeps
    what differed from the commit. Raises ConfigError for what is not there, or would overwrite.
    """
    record = _chosen(store, name, preset)
    file = out or Path(f"{name}-{record['preset'] or 'plain'}.tar.gz")
    if file.exists() or file.is_symlink():
        raise ConfigError(f"{file}: is there already; name another with --out, or move it away")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"{file}: no folder {file.parent}")
    runs = [store.run(run_id) for run_id in _with_needed(store, record)]
    states = {run.run_id: run.state() for run in runs}
    done = {run.run_id: run for run in runs if states[run.run_id] == "done"}
    left = Counter(state for state in states.values() if state != "done")
    if not done:
        raise ConfigError(f"{name}: nothing of it is done yet ({in_words(left)}); run it first")
    needed = {need for run in done.values() for need in _needs(run)}
    private = _private(store, runs)
    members: dict[str, bytes | Path] = {RECORD: _record(store, record, private)}
    by_path = 0
    for run in runs:
        own: dict[str, bytes | Path] = {}
        if run.spec() or run.run_id in done:
            own[SPEC] = json_bytes({"spec": _spec(run, private), "paths": {}})
        if run.run_id in done:
            said = _predictions(run)
            by_path += sum(str(one).startswith("/") for one in (said.ids if said else ()))
            own |= _told(run, private, diff)
            if said is not None:
                own[PREDICTIONS] = run.predictions_file
            if (weights or run.run_id in needed) and run.weights_file.is_file():
                own[WEIGHTS] = run.weights_file
        members |= {f"runs/{run.run_id}/{part}": content for part, content in own.items()}
    write_archive(file, name, record["preset"], members)
    return Exported(file, len(done), left, by_path)


def in_words(states: Mapping[str, int]) -> str:
    """`3 failed, 2 not run`."""
    named = {"new": "not run"}
    return ", ".join(f"{count} {named.get(state, state)}" for state, count in states.items())


def _chosen(store: Store, name: str, preset: str | None) -> Record:
    """The latest record of the sweep."""
    stored = store.sweeps()
    if not stored:
        raise ConfigError(f"{store.root}: no sweep has been run yet")
    mine = {one["preset"] or "plain": one for one in stored if one["name"] == name}
    if not mine:
        raise ConfigError(unknown(name, sorted({one["name"] for one in stored}), "sweep"))
    if preset is None and len(mine) > 1:
        known = ", ".join(mine)
        raise ConfigError(f"{name}: was run with presets {known}; say which with --preset")
    if preset is not None and preset not in mine:
        raise ConfigError(unknown(preset, list(mine), f"preset of {name}"))
    return mine[preset] if preset else next(iter(mine.values()))


def _with_needed(store: Store, record: Record) -> list[str]:
    """Its run ids, and those of runs that its runs start from."""
    found: dict[str, None] = {}
    waiting = [run["run_id"] for run in record["runs"]]
    while waiting:
        run_id = waiting.pop(0)
        if run_id not in found:
            found[run_id] = None
            waiting += _needs(store.run(run_id))
    return list(found)


def _needs(run: RunFolder) -> list[str]:
    return list(run.spec().get("spec", {}).get("needs", {}).values())


def _private(store: Store, runs: list[RunFolder]) -> Private:
    root = store.root.resolve()
    hosts = {socket.gethostname(), *(run.env().get("host") for run in runs)}
    paths = {path for run in runs for path in run.spec().get("paths", {}).values()}
    folders = [root, store.root.absolute(), Path.home(), Path.cwd()]
    return Private.of([*folders, *(path for path in paths if path.startswith("/"))], hosts)


def _spec(run: RunFolder, private: Private) -> dict[str, Any]:
    """A spec is hashed: it cannot be changed, and names no place unless a plugin put one in."""
    spec: dict[str, Any] | None = run.spec().get("spec")
    if spec is None:
        raise ConfigError(f"run {run.run_id}: its spec.json is gone; run its sweep again")
    if private.all(spec) != spec:
        raise ConfigError(
            f"run {run.run_id}: its spec, which its id stands for, holds an absolute path; the "
            f"plugin's option must be declared an input file, and the run made again"
        )
    return spec


def _predictions(run: RunFolder) -> Predictions | None:
    """Those of a run that is done; ConfigError if nobody could import them with its result."""
    result = run.result() or {}
    said = run.predictions() if run.predictions_file.exists() else None
    problem = score_problem(result["metrics"], said)
    if problem:
        raise ConfigError(
            f"run {run.run_id}: {problem}; make it anew: delete its result.json, and run its sweep"
        )
    return said


def _told(run: RunFolder, private: Private, diff: bool) -> dict[str, bytes | Path]:
    """Environment, metrics by epoch, result."""
    env = {key: value for key, value in run.env().items() if key not in LOCAL}
    changed = env.get("diff") or ""
    if changed and not diff:
        del env["diff"]
        env["diff_sha256"] = hashlib.sha256(changed.encode()).hexdigest()
        env["diff_lines"] = len(changed.splitlines())
    result = run.result() or {}
    free = {"bad_samples": private.all(result.get("bad_samples", {}), free=True)}
    told = {
        ENV: json_bytes(private.all(env, free=True)),
        RESULT: json_bytes({**private.all(result), **free}),
    }
    rows = [json.dumps(private.all(row), sort_keys=True) + "\n" for row in run.metrics()]
    return {**told, **({METRICS: "".join(rows).encode()} if rows else {})}


def _record(store: Store, record: Record, private: Private) -> bytes:
    plain = private.all(record)
    for row in plain.get("search", {}).get("rows", {}).values():
        for trial in row["trials"]:  # traces, and workers, which are called after their host
            trial["attrs"] = private.all(trial["attrs"], free=True)
            trial["attrs"].pop("worker", None)
    return json_bytes({"record": plain, "declared": private.all(store.declared(record))})
