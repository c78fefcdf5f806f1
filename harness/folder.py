"""The folder of one run: the only module that knows the names of its files.

runs/<run id>/        spec.json        what was asked; its hash is the folder's name
                      env.json         where and with what it ran
                      attempts.jsonl   one line each time work on it began
                      metrics.jsonl    one line per epoch
                      checkpoint.pt    where training stands; checkpoint.previous.pt the one before
                      weights.safetensors, predictions.npz
                      failure.json     trace of the last attempt, if it failed
                      pruned.json      which search ended it, and why
                      result.json      written last: it exists = the run is done
                      lease.json       who writes here
                      jobs.jsonl       SLURM jobs that were submitted for it
                      progress.json    how far the job at work is
                      export.lock      held by who sends the run to MLflow
                      profile/         the trace of `harness run --profile`
                      stale/<n>/       earlier results, kept when a run is repeated
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import ConfigError
from harness.evaluate import Predictions
from harness.files import lock_within, read_json, write_atomic, write_json
from harness.lease import Lease, break_lease, holder_alive, last_holder, lease_holder
from harness.predictions import read_predictions, write_predictions

KEPT_WHEN_STALE = ("env.json", "metrics.jsonl", "weights.safetensors", "predictions.npz")
EXPORT_WAIT_SECONDS = 5.0


@dataclass(frozen=True)
class RunFolder:
    """`runs/<run id>`; reading never creates anything."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    def state(self) -> str:
        """`new`, `running`, `done`, `failed`, `pruned` (a search ended it, for others did better),
        or `interrupted`: started, unfinished, left alone."""
        if (self.path / "result.json").exists():
            return "done"
        if not self.path.exists() or not (self.path / "lease.json").exists():
            return "new"
        if holder_alive(self.path / "lease.json"):
            return "running"
        if (self.path / "pruned.json").exists():
            return "pruned"
        failure = read_json(self.path / "failure.json")
        return "failed" if failure and failure.get("lasting", True) else "interrupted"

    def lease(self) -> Lease:
        """Context manager: be the one writer of this run."""
        return Lease(self.path / "lease.json")

    def holder(self) -> dict[str, Any]:
        """Who has the lease, or had it last: host, pid, SLURM job."""
        return lease_holder(self.path / "lease.json")

    def break_lease(self, holder: Mapping[str, Any]) -> None:
        """Free the lease of a holder that is known to be gone."""
        break_lease(self.path / "lease.json", holder)

    def heartbeat(self) -> float | None:
        """When the holder of the lease last showed that it lives, in Unix seconds."""
        try:
            return (self.path / "lease.json").stat().st_mtime
        except FileNotFoundError:
            return None

    def held_by(self, pid: int) -> bool:
        """Whether process `pid` of this host is the last that became its writer."""
        return last_holder(self.path / "lease.json") == pid

    @contextlib.contextmanager
    def exporting(self) -> Iterator[None]:
        """One at a time sends the run to MLflow, as far as the locks of the file system reach.

        After `EXPORT_WAIT_SECONDS` it goes on without: to send a run twice at once does no harm.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a folder that is only read, or has no locks
                lock = stack.enter_context(open(self.path / "export.lock", "w"))
                lock_within(lock, EXPORT_WAIT_SECONDS)
            yield

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
        for before in ("failure.json", "pruned.json"):
            (self.path / before).unlink(missing_ok=True)

    def attempts(self) -> int:
        """How often work on the run has begun."""
        return len(_lines(self.path / "attempts.jsonl"))

    def attempt_times(self) -> list[float]:
        """When each began, in Unix seconds."""
        return [json.loads(line)["time"] for line in _lines(self.path / "attempts.jsonl")]

    def add_job(self, job: Mapping[str, Any]) -> None:
        """Note that a SLURM job was submitted for the run."""
        with open(self.path / "jobs.jsonl", "a") as out:
            out.write(json.dumps(job, sort_keys=True) + "\n")

    def jobs(self) -> list[dict[str, Any]]:
        """SLURM jobs submitted for the run, the latest last: id, folder of its logs, and so on."""
        return [json.loads(line) for line in _lines(self.path / "jobs.jsonl")]

    def drop_job(self, job: str) -> None:
        """Forget a job that was taken back at once."""
        rest = [json.dumps(one, sort_keys=True) + "\n" for one in self.jobs() if one["job"] != job]
        write_atomic(self.path / "jobs.jsonl", lambda out: out.write("".join(rest).encode()))

    def note_progress(self, step: int, total: int) -> None:
        """Say how far the run is; nothing depends on it."""
        with contextlib.suppress(OSError):
            write_json(
                self.path / "progress.json", {"step": step, "total": total, "time": time.time()}
            )

    def progress(self) -> dict[str, Any]:
        """`step`, `total`, and the `time` of that in Unix seconds; empty if it was never noted."""
        return dict(read_json(self.path / "progress.json") or {})

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
            return [json.loads(line) for line in _lines(self.path / "metrics.jsonl")]
        except ValueError as error:
            raise ConfigError(
                f"{self.path / 'metrics.jsonl'}: damaged ({error}); delete it and the "
                f"checkpoints beside it, and run the sweep again"
            ) from None

    def cut_metrics(self, epochs: int) -> None:
        """Keep the lines of the first `epochs` epochs: what the checkpoint knows of."""
        self.write_metrics([row for row in self.metrics() if row["epoch"] <= epochs])

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """These lines, and no others."""
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

    @property
    def trace_file(self) -> Path:
        """What `harness run --profile` found."""
        return self.path / "profile" / "trace.json.gz"

    # what came out

    @property
    def predictions_file(self) -> Path:
        return self.path / "predictions.npz"

    def write_predictions(self, predictions: Predictions) -> None:
        write_predictions(self.predictions_file, predictions)

    def predictions(self) -> Predictions:
        """Of the test split."""
        try:
            return read_predictions(self.predictions_file)
        except ConfigError as error:
            again = "delete result.json beside it and run the sweep again"
            raise ConfigError(f"{error}; {again}") from None

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

    def write_failure(self, trace: str, lasting: bool = True) -> None:
        """Store why an attempt failed; unless `lasting`, the next sweep tries again by itself."""
        write_json(self.path / "failure.json", {"trace": trace, "lasting": lasting})

    def failure(self) -> str | None:
        """Trace of the last attempt, if it failed."""
        stored = read_json(self.path / "failure.json")
        return None if stored is None else str(stored["trace"])

    def failure_line(self) -> str:
        """Last line of that trace."""
        return (self.failure() or "no trace was stored").strip().splitlines()[-1]

    def failed_at(self) -> float:
        """When the last attempt failed, in Unix seconds; 0 if it did not."""
        try:
            return (self.path / "failure.json").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def forget_failure(self) -> None:
        """From now on the run counts as interrupted."""
        (self.path / "failure.json").unlink(missing_ok=True)

    def write_pruned(self, by: Mapping[str, Any]) -> None:
        """Store which `study` ended the run, and `why`."""
        write_json(self.path / "pruned.json", by)

    def pruned(self) -> dict[str, Any]:
        """What `write_pruned` stored; empty unless a search has ended the run."""
        return dict(read_json(self.path / "pruned.json") or {})

    def start_over(self) -> None:
        """Remove all that an unfinished attempt left."""
        self.drop_checkpoints()
        for name in (*KEPT_WHEN_STALE, "failure.json", "pruned.json"):
            (self.path / name).unlink(missing_ok=True)

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


def _lines(file: Path) -> list[str]:
    """Whole lines of a file; none if it is not there."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return []
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
