"""Run folders -> MLflow: one collector, safe to repeat; workers never talk to MLflow.

A run folder is found again by the tag `harness.run_id`. Metrics carry the step and the time at
which they were recorded, so sending them again changes nothing. Where a run was made anew (or went
back to a checkpoint after it had been collected), the former MLflow run is kept with the tag
`harness.superseded` and a new one takes its place.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from harness.config import ConfigError
from harness.provenance import changes
from harness.registry import load_plugins
from harness.store import RunFolder, Store

EXPERIMENT = "harness"
BATCH = 900
"""metrics per call; MLflow takes 1000 at most"""
PARAM_LENGTH = 6000
PAGE = 1000

for _noisy in ("alembic", "mlflow.store.db.utils"):
    logging.getLogger(_noisy).setLevel(logging.WARNING)


@dataclass(frozen=True)
class Tracked:
    """What MLflow holds of a run."""

    run_id: str
    mlflow_id: str
    metrics: dict[str, float]
    """last values"""
    params: dict[str, str]
    tags: dict[str, str]


def uri(store: Store, override: str | None = None) -> str:
    """Tracking URI: the site's, or the SQLite file of the store as an absolute path."""
    file = store.mlflow_file.resolve()
    if override is None and "%" in str(file):
        raise ConfigError(f"{file}: MLflow opens no database with % in its path; take other `runs`")
    return override or f"sqlite:///{file}"


def prepare(store: Store, override: str | None = None) -> None:
    """Create the database and the experiment, by one process at a time.

    A new SQLite file opened by several at once is left broken; this comes before any worker.
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
    """One process at a time; what MLflow or its database raise becomes a ConfigError."""
    with open(store.mlflow_file.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        except (MlflowException, SQLAlchemyError) as error:
            first = str(error).splitlines()[0][:300]
            hint = "" if override else "; if it is damaged delete it: it is made of the run folders"
            raise ConfigError(f"{override or store.mlflow_file}: MLflow: {first}{hint}") from error


def _experiment(client: MlflowClient, store: Store, override: str | None) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found:
        return str(found.experiment_id)
    # a server decides itself; beside our own file artifacts must not depend on the working folder
    place = None if override else (store.root / "artifacts").resolve().as_uri()
    return str(client.create_experiment(EXPERIMENT, place))


def key(metric: str) -> str:
    """A metric's name in MLflow: `verb_top1[two_handed]` -> `verb_top1/two_handed`.

    Whatever else MLflow does not take in a name becomes an underscore.
    """
    return re.sub(r"[^\w\-./: ]", "_", metric.replace("[", "/").replace("]", ""))


def tracked(tracking_uri: str) -> dict[str, Tracked]:
    """Run id -> what MLflow holds of it."""
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return {}
    found: dict[str, Tracked] = {}
    token = None
    while True:
        page = client.search_runs(
            [experiment.experiment_id], "", ViewType.ACTIVE_ONLY, PAGE, page_token=token
        )
        for run in page:
            tags = dict(run.data.tags)
            run_id = tags.get("harness.run_id")
            if run_id and "harness.superseded" not in tags:
                found[run_id] = Tracked(
                    run_id, run.info.run_id, dict(run.data.metrics), dict(run.data.params), tags
                )
        token = page.token
        if not token:
            return found


def history(tracking_uri: str, run: Tracked, metric: str) -> list[tuple[int, float]]:
    """(step, value) of a metric, in order."""
    points = MlflowClient(tracking_uri).get_metric_history(run.mlflow_id, metric)
    return sorted((point.step, point.value) for point in points)


def collect(store: Store, override: str | None = None) -> None:
    """Bring MLflow up to date with every run folder."""
    load_plugins()
    with _exclusive(store, override):
        address = uri(store, override)
        client = MlflowClient(address)
        experiment = _experiment(client, store, override)
        known = tracked(address)
        sweeps = _sweeps_by_run(store)
        for folder in store.runs():
            tags = _tags(store, folder, sweeps.get(folder.run_id, []))
            if tags is not None:
                _upsert(client, experiment, folder, tags, known.get(folder.run_id))


def _sweeps_by_run(store: Store) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for record in store.sweeps():
        name = f"{record['name']}-{record['preset'] or 'plain'}"
        for run in record["runs"]:
            if name not in found.setdefault(run["run_id"], []):
                found[run["run_id"]].append(name)
    return found


def _tags(store: Store, folder: RunFolder, sweeps: list[str]) -> dict[str, str] | None:
    """The run's tags, None for a run that has nothing to show yet."""
    state, rows = folder.state(), folder.metrics()
    if state != "done" and not rows and state != "failed":
        return None
    env, result = folder.env(), folder.result() or {}
    spec = folder.spec()["spec"]
    last = f"{len(rows)}:{rows[-1]['time']}" if rows else "0:"
    return {
        "harness.run_id": folder.run_id,
        "harness.status": state,
        "harness.sweeps": ", ".join(sweeps),
        "harness.ceiling": result.get("ceiling", ""),
        "harness.stale": ", ".join(changes(store, folder.run_id)),
        "harness.implementations": ", ".join(
            f"{what}: {how}" for what, how in result.get("implementations", {}).items()
        ),
        "harness.starts": ", ".join(
            f"{stream}: {told['from']}" for stream, told in result.get("loaded", {}).items()
        ),
        "harness.commit": env.get("commit") or "",
        "harness.dirty": str(env.get("dirty", "")),
        "harness.fingerprint": spec["fingerprint"],
        "harness.method": spec["train"]["method"],
        "harness.host": env.get("host", ""),
        "harness.history": last,
        "harness.finished": str(result.get("finished", "")),
        "mlflow.runName": f"{spec['fusion']['name']} seed {spec['seed']} {folder.run_id}",
    }


def _upsert(
    client: MlflowClient,
    experiment: str,
    folder: RunFolder,
    tags: dict[str, str],
    known: Tracked | None,
) -> None:
    rows = folder.metrics()
    if known is not None and _diverged(known, rows, tags):
        client.set_tag(known.mlflow_id, "harness.superseded", "true")
        known = None
    if known is None:
        start = int(1000 * (rows[0]["time"] if rows else (folder.result() or {}).get("started", 0)))
        # all other tags come last: they say that what was before them is complete
        first = {"harness.run_id": folder.run_id}
        run = client.create_run(experiment, start_time=start or None, tags=first)
        known = Tracked(folder.run_id, run.info.run_id, {}, {}, first)
    if all(known.tags.get(name) == value for name, value in tags.items()):
        return
    spec = flatten(folder.spec()["spec"])
    params = [Param(k, str(v)[:PARAM_LENGTH]) for k, v in spec if k not in known.params]
    for place in range(0, len(params), 100):
        client.log_batch(known.mlflow_id, params=params[place : place + 100])
    had = int(known.tags.get("harness.history", "0:").split(":")[0])
    metrics = [metric for row in rows[had:] for metric in _epoch_metrics(row)]
    result = folder.result()
    if result is not None and known.tags.get("harness.finished") != tags["harness.finished"]:
        metrics += list(_final_metrics(result, rows[-1]["epoch"] if rows else 0))
    for place in range(0, len(metrics), BATCH):
        client.log_batch(known.mlflow_id, metrics=metrics[place : place + BATCH])
    changed = [RunTag(k, v) for k, v in tags.items() if known.tags.get(k) != v]
    client.log_batch(known.mlflow_id, tags=changed)
    status = {"done": "FINISHED", "failed": "FAILED", "running": "RUNNING"}
    end = int(1000 * result["finished"]) if result else None
    client.set_terminated(known.mlflow_id, status.get(tags["harness.status"], "KILLED"), end)


def _diverged(known: Tracked, rows: list[dict[str, Any]], tags: Mapping[str, str]) -> bool:
    """True if what was collected is not the beginning of what the folder holds now."""
    count, _, last = known.tags.get("harness.history", "0:").partition(":")
    had = int(count)
    if had > len(rows) or (had and str(rows[had - 1]["time"]) != last):
        return True
    finished = known.tags.get("harness.finished", "")
    return bool(finished) and finished != tags["harness.finished"]


def _epoch_metrics(row: Mapping[str, Any]) -> Iterator[Metric]:
    for name, value in row.items():
        if name not in ("epoch", "step", "time"):
            yield Metric(key(name), float(value), int(1000 * row["time"]), int(row["epoch"]))


def _final_metrics(result: Mapping[str, Any], epoch: int) -> Iterator[Metric]:
    named = {k: v for k, v in result["metrics"].items() if k.startswith("test/") or not epoch}
    named |= {
        f"cost/{name}": value
        for name, value in result["cost"].items()
        if isinstance(value, int | float)
    }
    for ceiling, values in result["ceilings"].items():
        named |= {f"ceiling/{ceiling}/{name}": value for name, value in values.items()}
    for name, value in named.items():
        yield Metric(key(name), float(value), int(1000 * result["finished"]), epoch)


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`{"a": {"b": 1}}` -> `("a.b", 1)`."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from flatten(inner, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value
