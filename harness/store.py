"""The run folder: the only module that knows the names of its files.

runs/<run id>/        spec.json        what was asked; its hash is the folder's name
                      env.json         where and with what it ran
                      attempts.jsonl   one line each time work on it began
                      metrics.jsonl    one line per epoch
                      checkpoint.pt    where training stands; checkpoint.previous.pt the one before
                      weights.safetensors, predictions.npz
                      failure.json     trace of the last attempt, if it failed
                      result.json      written last: it exists = the run is done
                      lease.json       who writes here
                      stale/<n>/       earlier results, kept when a run is repeated
runs/sweeps/*.json    which runs a sweep consists of
runs/tokens/          tokens of frozen encoders
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.config import ConfigError
from harness.evaluate import Predictions
from harness.files import read_json, write_atomic, write_json
from harness.lease import Lease, holder_alive

KEPT_WHEN_STALE = ("env.json", "metrics.jsonl", "weights.safetensors", "predictions.npz")


@dataclass(frozen=True)
class RunFolder:
    """`runs/<run id>`; reading never creates anything."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    def state(self) -> str:
        """`new`, `running`, `done`, `failed`, or `interrupted`: started, unfinished, left alone."""
        if (self.path / "result.json").exists():
            return "done"
        if not self.path.exists() or not (self.path / "lease.json").exists():
            return "new"
        if holder_alive(self.path / "lease.json"):
            return "running"
        return "failed" if (self.path / "failure.json").exists() else "interrupted"

    def lease(self) -> Lease:
        """Context manager: be the one writer of this run."""
        return Lease(self.path / "lease.json")

    # what was asked, and with what it ran

    def write_spec(self, spec: Mapping[str, Any], paths: Mapping[str, str]) -> None:
        """Store the spec once; a later call only brings the paths of input files up to date."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.spec_file, {"spec": spec, "paths": dict(paths)})

    @property
    def spec_file(self) -> Path:
        return self.path / "spec.json"

    def spec(self) -> dict[str, Any]:
        """`{"spec": ..., "paths": ...}`."""
        return dict(read_json(self.spec_file) or {})

    def method(self) -> str | None:
        """`train.method` of the spec."""
        method = self.spec().get("spec", {}).get("train", {}).get("method")
        return None if method is None else str(method)

    def write_env(self, env: Mapping[str, Any]) -> None:
        write_json(self.path / "env.json", env)

    def add_attempt(self, attempt: Mapping[str, Any]) -> None:
        """Note that a process has begun to work on the run."""
        with open(self.path / "attempts.jsonl", "a") as out:
            out.write(json.dumps(attempt, sort_keys=True) + "\n")
        (self.path / "failure.json").unlink(missing_ok=True)  # that was the attempt before

    def attempts(self) -> int:
        """How often work on the run has begun."""
        try:
            return len((self.path / "attempts.jsonl").read_text().splitlines())
        except FileNotFoundError:
            return 0

    def env(self) -> dict[str, Any]:
        return dict(read_json(self.path / "env.json") or {})

    # metrics by epoch

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line; `row` holds `epoch`, `step`, `time` (Unix seconds) and metrics."""
        with open(self.path / "metrics.jsonl", "a") as out:
            out.write(json.dumps(row, sort_keys=True) + "\n")
            out.flush()
            os.fsync(out.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines; one cut short by a crash is left out."""
        try:
            text = (self.path / "metrics.jsonl").read_text()
        except FileNotFoundError:
            return []
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise ConfigError(
                f"{self.path / 'metrics.jsonl'}: damaged ({error}); delete it and the "
                f"checkpoints beside it, and run the sweep again"
            ) from None

    def cut_metrics(self, epochs: int) -> None:
        """Keep the lines of the first `epochs` epochs: what the checkpoint knows of."""
        rows = [row for row in self.metrics() if row["epoch"] <= epochs]
        text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
        write_atomic(self.path / "metrics.jsonl", lambda out: out.write(text.encode()))

    # checkpoints and weights

    def save_checkpoint(self, save: Callable[[Any], None]) -> None:
        """Write a checkpoint by `save(file)`; the one before it is kept."""
        current, previous = self.path / "checkpoint.pt", self.path / "checkpoint.previous.pt"
        if current.exists():
            # a second name for the old file: at no moment is there no whole checkpoint
            previous.unlink(missing_ok=True)
            os.link(current, previous)
        write_atomic(current, save)

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, newest first."""
        names = ("checkpoint.pt", "checkpoint.previous.pt")
        return [self.path / name for name in names if (self.path / name).exists()]

    def drop_checkpoints(self) -> None:
        """Once the result is written nothing is resumed from them."""
        for file in self.checkpoints():
            file.unlink()

    @property
    def weights_file(self) -> Path:
        return self.path / "weights.safetensors"

    # what came out

    def write_predictions(self, predictions: Predictions) -> None:
        arrays: dict[str, npt.NDArray[Any]] = {
            "ids": predictions.ids,
            "groups": predictions.groups,
            "subsets": predictions.subsets,
        }
        arrays |= {f"target/{name}": value for name, value in predictions.targets.items()}
        arrays |= {f"logits/{name}": value for name, value in predictions.logits.items()}
        write_atomic(
            self.path / "predictions.npz",
            lambda out: np.savez_compressed(out, **arrays),  # type: ignore[arg-type]
        )

    def predictions(self) -> Predictions:
        """Of the test split."""
        file = self.path / "predictions.npz"
        try:
            with np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ConfigError(
                f"{file}: cannot be read ({error}); delete result.json beside it and run the sweep "
                f"again"
            ) from None
        return Predictions(
            ids=arrays["ids"],
            groups=arrays["groups"],
            subsets=arrays["subsets"],
            targets={k[7:]: v for k, v in arrays.items() if k.startswith("target/")},
            logits={k[7:]: v for k, v in arrays.items() if k.startswith("logits/")},
        )

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Last of all: from now on the run is done."""
        write_json(self.path / "result.json", result)
        self.drop_checkpoints()

    def result(self) -> dict[str, Any] | None:
        file = self.path / "result.json"
        result = read_json(file)
        if result is not None and not (isinstance(result, dict) and "metrics" in result):
            raise ConfigError(f"{file}: damaged; delete it and run the sweep again")
        return result

    def write_failure(self, trace: str) -> None:
        write_json(self.path / "failure.json", {"trace": trace})

    def failure(self) -> str | None:
        """Trace of the last attempt, if it failed."""
        stored = read_json(self.path / "failure.json")
        return None if stored is None else str(stored["trace"])

    def log_folder(self) -> Path:
        """What the process that ran it printed."""
        return self.path / "log"

    def set_aside(self) -> None:
        """Move a finished result to `stale/<n>/`, so that the run can be made again."""
        names = [n for n in ("result.json", *KEPT_WHEN_STALE) if (self.path / n).exists()]
        number = 1 + sum(1 for _ in (self.path / "stale").glob("[0-9]*"))
        partial, aside = self.path / "stale" / ".partial", self.path / "stale" / str(number)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in names:
            os.link(self.path / name, partial / name)
        partial.rename(aside)  # all of it is kept before any of it may be written again
        for name in names:  # the result goes first: without it the run counts as not done
            (self.path / name).unlink()


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
    def mlflow_file(self) -> Path:
        return self.root / "mlflow.db"

    @property
    def report_folder(self) -> Path:
        return self.root / "report"

    def write_sweep(self, record: Mapping[str, Any]) -> Path:
        """Store which runs a sweep consists of; the same sweep again only becomes the latest."""
        digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:8]
        file = (
            self.root / "sweeps" / f"{record['name']}-{record['preset'] or 'plain'}-{digest}.json"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, record)
        return file

    def sweeps(self) -> list[dict[str, Any]]:
        """The latest record of every sweep and preset, by name."""
        latest: dict[tuple[str, str], tuple[float, dict[str, Any]]] = {}
        for file in (self.root / "sweeps").glob("*.json"):
            record = read_json(file)
            if not isinstance(record, dict) or not {"name", "preset", "runs"} <= set(record):
                raise ConfigError(f"{file}: damaged; delete it and run its sweep again")
            key = (record["name"], record["preset"])
            if key not in latest or file.stat().st_mtime > latest[key][0]:
                latest[key] = (file.stat().st_mtime, record)
        return [record for _, (_, record) in sorted(latest.items())]
