"""The folder `runs/`: a folder per run, and what belongs to no single one.

runs/<run id>/        see `harness.folder`
runs/sweeps/*.json    which runs a sweep consists of
runs/tokens/          tokens of frozen encoders
runs/jobs/            what SLURM jobs were asked to do, and what they printed
runs/code/            the code they run
runs/doctor/          what `harness doctor` asked and found on the cluster
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import ConfigError
from harness.files import read_json, write_json
from harness.folder import RunFolder


@dataclass(frozen=True)
class Store:
    """The folder `runs/`."""

    root: Path

    def run(self, run_id: str) -> RunFolder:
        return RunFolder(self.root / run_id)

    def runs(self) -> Iterator[RunFolder]:
        """Every run folder, by id."""
        for file in sorted(self.root.glob("*/spec.json")):
            yield RunFolder(file.parent)

    @property
    def tokens(self) -> Path:
        """Where tokens of frozen encoders are kept."""
        return self.root / "tokens"

    @property
    def jobs(self) -> Path:
        """What SLURM jobs were asked to do, and what they printed."""
        return self.root / "jobs"

    @property
    def code(self) -> Path:
        """The code that they run."""
        return self.root / "code"

    @property
    def doctor(self) -> Path:
        """What `harness doctor` asked and found."""
        return self.root / "doctor"

    @contextlib.contextmanager
    def submitting(self) -> Iterator[None]:
        """One process at a time: what two of them submit would be submitted twice."""
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / ".submit.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @property
    def mlflow_file(self) -> Path:
        return self.root / "mlflow.db"

    @property
    def report_folder(self) -> Path:
        return self.root / "report"

    def write_sweep(self, record: Mapping[str, Any]) -> Path:
        """Store which runs a sweep consists of; the same sweep again only becomes the latest."""
        record = {key: value for key, value in record.items() if key != "time"}
        digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:8]
        file = (
            self.root / "sweeps" / f"{record['name']}-{record['preset'] or 'plain'}-{digest}.json"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        self._declare(record)
        write_json(file, {**record, "time": time.time()})
        return file

    def _declare(self, record: Mapping[str, Any]) -> None:
        """Note when each claim was first made, and how many runs of its rows were done by then."""
        known = self.declared(record)
        for claim in record.get("claims", ()):
            if claim["name"] in known:
                continue
            rows = (claim["row"], claim["than"])
            runs = {run["run_id"] for run in record["runs"] if run["row"] in rows}
            done = sum(self.run(run_id).state() == "done" for run_id in runs)
            said = {"sweep": record["name"], "preset": record["preset"], "claim": claim}
            self.declared_elsewhere([{**said, "time": time.time(), "done": done}])

    def declared(self, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Name of a claim -> `time` in Unix seconds and `done`, of when it was first made so."""
        found: dict[str, dict[str, Any]] = {}
        told = list(self._claims_told())
        for claim in record.get("claims", ()):
            for one in told:
                here = (one["sweep"], one["preset"]) == (record["name"], record["preset"])
                if here and one["claim"] == claim:
                    found.setdefault(claim["name"], one)
        return found

    def declared_elsewhere(self, told: Iterable[Mapping[str, Any]]) -> None:
        """Note claims with the time they were first made, here or where a sweep comes from."""
        for one in told:
            self._claims_file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._claims_file, "a") as out:  # the line before may have been cut short
                out.write("\n" + json.dumps(one) + "\n")

    def _claims_told(self) -> Iterator[dict[str, Any]]:
        lines = self._claims_file.read_text().splitlines() if self._claims_file.exists() else []
        for line in filter(None, lines):
            with contextlib.suppress(ValueError):  # cut short: it is declared anew
                yield json.loads(line)

    @property
    def _claims_file(self) -> Path:
        return self.root / "sweeps" / "claims.jsonl"

    def search(self, name: str, preset: str) -> Path:
        """The folder of a search: its studies, and what its workers print."""
        return self.root / f"{name}-{preset or 'plain'}"

    def write_search(self, record: Mapping[str, Any]) -> None:
        """As `write_sweep`, for one that grows: it has one file."""
        name = f"{record['name']}-{record['preset'] or 'plain'}-search.json"
        file = self.root / "sweeps" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {**record, "time": time.time()})

    def read_search(self, name: str, preset: str) -> dict[str, Any]:
        """What `write_search` wrote last; empty if it never did."""
        file = self.root / "sweeps" / f"{name}-{preset or 'plain'}-search.json"
        return {key: value for key, value in (read_json(file) or {}).items() if key != "time"}

    def sweeps(self) -> list[dict[str, Any]]:
        """The latest record of every sweep and preset, by name."""
        latest: dict[tuple[str, str], tuple[float, dict[str, Any]]] = {}
        for file in (self.root / "sweeps").glob("*.json"):
            record = read_json(file)
            if not isinstance(record, dict) or not {"name", "preset", "runs"} <= set(record):
                raise ConfigError(f"{file}: damaged; delete it and run its sweep again")
            key = (record["name"], record["preset"])
            when = record.pop("time", None) or file.stat().st_mtime  # older versions stored none
            if key not in latest or when > latest[key][0]:
                latest[key] = (when, record)
        return [record for _, (_, record) in sorted(latest.items())]


__all__ = ["RunFolder", "Store"]
