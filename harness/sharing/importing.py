"""`harness import`: the runs of an archive into the store, its sweep beside or into those here.

Everything is checked before anything is written. A run is written under its lease and its result
last, the record of the sweep behind all runs: cut short, the same command completes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.config import Config, ConfigError
from harness.files import write_atomic
from harness.lease import LeaseTaken
from harness.sharing.archive import (
    ENV,
    METRICS,
    PREDICTIONS,
    SPEC,
    WEIGHTS,
    Name,
    fitting,
    read_members,
)
from harness.sharing.foreign import Archive, Run, by_run, metric_rows, read_archive
from harness.sharing.merging import merged
from harness.spec import RunSpec
from harness.store import RunFolder, Store


@dataclass
class Imported:
    """What an import did."""

    title: str
    added: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    """done here too, with the same scores"""
    kept: dict[str, str] = field(default_factory=dict)
    """run -> its name, and how its scores here, which stay, differ from the archive's"""
    running: dict[str, str] = field(default_factory=dict)
    """run -> its name; a process is at it here, and it is left alone"""
    told: list[str] = field(default_factory=list)
    """what differs in the record of the sweep, where ours stays"""


class Renamed(Config):
    name: Name


def import_sweep(store: Store, file: Path, name: str | None = None) -> Imported:
    """Take in an archive of `harness export`; `name` is what its sweep is to be called here.

    Raises ConfigError, with nothing written, for an archive that is not whole or not true, and for
    a sweep that cannot be joined with the one of its name.
    """
    archive = read_archive(file)
    record = archive.record
    if name is not None:
        record = {**record, "name": fitting(Renamed, {"name": name}, "--as").name}
    _joined(store, record, archive)
    done = Imported(f"{record['name']}, preset {record['preset'] or 'plain'}")
    _write_runs(store, archive, done)
    with store.submitting():  # another import may have changed it meanwhile
        ours, joined, done.told = _joined(store, record, archive)
        if ours is None:
            _declare(store, record, archive)
        if joined != ours:
            (store.write_search if joined.get("search") else store.write_sweep)(joined)
    return done


def _joined(
    store: Store, record: Mapping[str, Any], archive: Archive
) -> tuple[Mapping[str, Any] | None, Mapping[str, Any], list[str]]:
    """(the record that is here, the one that is to be, what differs)."""
    key = (record["name"], record["preset"])
    ours = next((one for one in store.sweeps() if (one["name"], one["preset"]) == key), None)
    if ours is None or ours == record:
        return ours, record, []
    if ours.get("search") or record.get("search"):
        raise ConfigError(
            f"{archive.file}: {key[0]}, preset {key[1] or 'plain'}, is here already, and searches "
            f"are not joined; --as NAME stores it under another name"
        )

    def spec_of(run_id: str) -> RunSpec | None:
        known = archive.runs.get(run_id)
        return known.spec if known else _spec_here(store.run(run_id))

    return ours, *merged(ours, record, spec_of, str(archive.file))


def _spec_here(folder: RunFolder) -> RunSpec | None:
    try:
        return RunSpec(**folder.spec()["spec"])
    except (KeyError, ValidationError):  # not planned, or by another version
        return None


def _declare(store: Store, record: Mapping[str, Any], archive: Archive) -> None:
    """Claims were made when they were made there."""
    known, told = store.declared(record), archive.declared
    said = {"sweep": record["name"], "preset": record["preset"], "imported": archive.file.name}
    store.declared_elsewhere(
        {**said, "claim": one, **{key: told[one["name"]][key] for key in ("time", "done")}}
        for one in record.get("claims", ())
        if one["name"] in told and one["name"] not in known
    )


def _write_runs(store: Store, archive: Archive, done: Imported) -> None:
    members = read_members(archive.file)
    if next(members)[1] != archive.manifest:
        raise ConfigError(f"{archive.file}: was changed while it was read")
    imported = {"archive": archive.file.name, "digest": archive.digest}
    names = {run["run_id"]: f"{run['label']}, seed {run['seed']}" for run in archive.record["runs"]}
    for run_id, parts in by_run(members):
        if not run_id:
            continue
        run, folder = archive.runs[run_id], store.run(run_id)
        if not folder.spec():
            folder.write_spec(json.loads(parts[SPEC])["spec"], {})
        if run.result is None:
            continue
        try:
            if folder.state() != "done" and _write(folder, run, parts, imported):
                done.added.append(run_id)
            elif difference := _difference(folder, run):
                done.kept[run_id] = f"{names.get(run_id, 'needed by others')}: {difference}"
            else:
                done.known.append(run_id)
                _add_weights(folder, parts)
        except LeaseTaken:
            done.running[run_id] = names.get(run_id, "needed by others")


def _write(
    folder: RunFolder, run: Run, parts: Mapping[str, bytes], imported: Mapping[str, str]
) -> bool:
    """Make it a run that is done; False if it is one meanwhile."""
    assert run.result is not None
    with folder.lease() as lease, lease.held():
        if folder.state() == "done":
            return False
        folder.start_over()
        folder.write_env({**json.loads(parts[ENV]), "imported": dict(imported)})
        if METRICS in parts:
            folder.write_metrics(metric_rows(parts[METRICS]))
        for part, file in ((WEIGHTS, folder.weights_file), (PREDICTIONS, folder.predictions_file)):
            if part in parts:
                _write_bytes(file, parts[part])
        folder.write_result(run.result)
    return True


def _write_bytes(file: Path, content: bytes) -> None:
    write_atomic(file, lambda out: out.write(content))


def _difference(folder: RunFolder, run: Run) -> str:
    """How the scores of a run that is done here differ; empty if they do not."""
    ours, theirs = (folder.result() or {})["metrics"], (run.result or {})["metrics"]
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            return f"{name} is {ours.get(name)} here, {theirs.get(name)} in the archive"
    return ""


def _add_weights(folder: RunFolder, parts: Mapping[str, bytes]) -> None:
    """Those that an earlier archive left out: runs that started from them would seem stale."""
    if WEIGHTS not in parts or folder.weights_file.exists():
        return
    said = folder.predictions().made_by if folder.predictions_file.exists() else {}
    digest = hashlib.sha256(parts[WEIGHTS]).hexdigest()
    if said.get("weights", digest) == digest:
        with folder.lease() as lease, lease.held():
            _write_bytes(folder.weights_file, parts[WEIGHTS])
