"""Run folders -> MLflow: the collector, safe to repeat; where MLflow is, and what it holds.

Only the collector opens MLflow's database. A tracking server may also be reached by the runs
themselves (`live_sync.py`); both send a run by `record.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from harness.config import ConfigError
from harness.database import is_database, points
from harness.live_sync import remote
from harness.record import Tracked, current, flatten, key, send, up_to_date, view
from harness.store import Store

EXPERIMENT = "harness"

for _noisy in ("alembic", "mlflow.store.db.utils"):
    logging.getLogger(_noisy).setLevel(logging.WARNING)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # each retry, at length


class ServerAway(ConfigError):
    """The tracking server does not answer; the run folders hold everything."""


@dataclass(frozen=True)
class Collected:
    """What one look at all run folders did."""

    address: str
    runs: int
    sent: int
    """runs of which MLflow did not know everything"""
    running: int
    """runs that a process is at"""
    known: Mapping[str, Tracked] | None = field(default=None, repr=False)
    """what MLflow holds, as `tracked`; None if something was sent meanwhile"""

    def __str__(self) -> str:
        return (
            f"{self.address}: {self.runs} runs, {self.sent} brought up to date, "
            f"{self.running} running"
        )


def uri(store: Store, override: str | None = None) -> str:
    """Tracking URI: the site's, or the SQLite file of the store as an absolute path."""
    file = store.mlflow_file.resolve()
    if override is None and "%" in str(file):
        raise ConfigError(f"{file}: MLflow opens no database with % in its path; take other `runs`")
    return override or f"sqlite:///{file}"


def prepare(store: Store, override: str | None = None) -> None:
    """Create the database and the experiment, by one process at a time.

    A new SQLite file opened by several at once is left broken; this comes before any worker. Raises
    ServerAway, or ConfigError with what else MLflow says.
    """
    store.root.mkdir(parents=True, exist_ok=True)
    with _exclusive(store, override):
        if override is None and not store.mlflow_file.exists():
            # made beside its place: a process killed while tables are made leaves no half database
            beside = store.mlflow_file.with_name(".mlflow.db.partial")
            for left in (beside, beside.with_name(f"{beside.name}-journal")):
                left.unlink(missing_ok=True)
            _experiment(MlflowClient(f"sqlite:///{beside.resolve()}"), store, override)
            beside.rename(store.mlflow_file)
        _experiment(MlflowClient(uri(store, override)), store, override)


@contextlib.contextmanager
def _exclusive(store: Store, override: str | None) -> Iterator[None]:
    """As `answering`; with a database also one process at a time."""
    with contextlib.ExitStack() as stack:
        if not remote(override):  # a server must not make others wait for who waits for it
            file = store.mlflow_file.with_suffix(".lock")
            fcntl.flock(stack.enter_context(open(file, "w")), fcntl.LOCK_EX)
        with answering(store, override):
            yield


@contextlib.contextmanager
def answering(store: Store, override: str | None = None) -> Iterator[None]:
    """What MLflow or its database raise becomes a ConfigError, ServerAway where that is so."""
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        causes = list(_causes(error))
        if any(isinstance(cause, RequestException) for cause in causes):
            raise ServerAway(
                f"{override}: MLflow's server does not answer ({_why(causes)}); nothing is lost, "
                f"`harness sync` completes the record when it is back"
            ) from error
        first = str(error).splitlines()[0][:300]
        hint = "" if override else "; if it is damaged delete it: it is made of the run folders"
        raise ConfigError(f"{override or store.mlflow_file}: MLflow: {first}{hint}") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _why(causes: list[BaseException]) -> str:
    """What the operating system said, e.g. `Connection refused`, else what the innermost says."""
    parts = [part for cause in causes for part in (cause, *cause.args)]
    said = [part.strerror for part in parts if isinstance(part, OSError) and part.strerror]
    return said[-1] if said else str(causes[-1]).splitlines()[0][:200]


def _experiment(client: MlflowClient, store: Store, override: str | None) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found:
        return str(found.experiment_id)
    # a server decides itself; beside our own file artifacts must not depend on the working folder
    place = None if override else (store.root / "artifacts").resolve().as_uri()
    try:
        return str(client.create_experiment(EXPERIMENT, place))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return _experiment(client, store, override)  # another host has made it meanwhile


def tracked(tracking_uri: str) -> dict[str, Tracked]:
    """Run id -> what MLflow holds of it. Raises MlflowException."""
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return {}
    return {run_id: runs[0] for run_id, runs in current(client, experiment.experiment_id).items()}


def history(tracking_uri: str, run: Tracked, metric: str) -> list[tuple[int, float]]:
    """(step, value) of a metric, in order. Raises MlflowException."""
    logged = MlflowClient(tracking_uri).get_metric_history(run.mlflow_id, metric)
    return sorted((point.step, point.value) for point in logged)


def histories(
    tracking_uri: str, runs: Sequence[Tracked], metric: str
) -> dict[str, list[tuple[int, float]]]:
    """Run id -> `history`, of many runs: of a database in a few queries, of a server one by one."""
    if not is_database(tracking_uri):
        return {run.run_id: history(tracking_uri, run, metric) for run in runs}
    ids = {run.mlflow_id: run.run_id for run in runs}
    found: dict[str, list[tuple[int, float]]] = {run.run_id: [] for run in runs}
    for mlflow_id, step, value in points(tracking_uri, list(ids), metric):
        found[ids[mlflow_id]].append((step, value))
    return {run_id: sorted(values) for run_id, values in found.items()}


def collect(store: Store, override: str | None = None) -> Collected:
    """Bring MLflow up to date with every run folder. Raises ServerAway or ConfigError."""
    from harness.provenance import changes  # torch, which a run that sends itself has no need of
    from harness.registry import load_plugins

    load_plugins()
    total = sent = running = 0
    with _exclusive(store, override):
        address = uri(store, override)
        client = MlflowClient(address)
        experiment = _experiment(client, store, override)
        known, sweeps = current(client, experiment), _sweeps_by_run(store)
        for folder in store.runs():
            run_id = folder.run_id

            def stale(run_id: str) -> list[str]:
                return changes(store, run_id)

            total += 1
            running += folder.state() == "running"
            had, seen = known.get(run_id, []), view(folder, sweeps.get(run_id, []), stale)
            if seen is None or (len(had) == 1 and up_to_date(had[0], seen)):
                continue
            sent += send(client, experiment, folder, sweeps.get(run_id, []), stale)
    held = None if sent else {run_id: runs[0] for run_id, runs in known.items()}
    return Collected(address, total, sent, running, held)


def collect_run(store: Store, run_id: str, address: str) -> None:
    """Bring a tracking server up to date with one run. Raises ServerAway or ConfigError."""
    with answering(store, address):
        client = MlflowClient(address)
        experiment = _experiment(client, store, address)
        send(client, experiment, store.run(run_id), _sweeps_by_run(store).get(run_id, []), None)


def sync(store: Store, override: str | None, every: float | None = None) -> Iterator[str]:
    """Collect; with `every` again after so many seconds, until no run is running.

    Yields in one line what was done, whenever that differs. A server that does not answer is
    waited for while runs are running, then it is a ServerAway.
    """
    said = away = ""
    while True:
        try:
            prepare(store, override)
            found = collect(store, override)
            line, running, away = str(found), found.running, ""
            if line != said:
                yield line
            said = line
        except ServerAway as error:
            running = sum(folder.state() == "running" for folder in store.runs())
            if every is None or not running:
                raise
            if not away:
                print(error, file=sys.stderr, flush=True)
            away = str(error)
        if every is None or not running:
            return
        time.sleep(every)


def _sweeps_by_run(store: Store) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for record in store.sweeps():
        name = f"{record['name']}-{record['preset'] or 'plain'}"
        for run in record["runs"]:
            if name not in found.setdefault(run["run_id"], []):
                found[run["run_id"]].append(name)
    return found


__all__ = [
    "Collected", "ServerAway", "Tracked", "answering", "collect", "collect_run", "flatten",
    "histories", "history", "key", "prepare", "sync", "tracked", "uri",
]  # fmt: skip
