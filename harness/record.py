"""One run folder -> its one run in MLflow, however often, from wherever and by how many it is sent.

The MLflow run is found again by the tag `harness.run_id`. Metrics carry the step and the time at
which they were recorded, so sending them again changes nothing. Where a run was made anew (or went
back to a checkpoint after it had been sent), the former MLflow run is kept with the tag
`harness.superseded` and a new one takes its place.

Two that send the same run wait for each other at a lock in its folder. Where that lock does not
reach, as between hosts on some file systems, this remains true: who has made an MLflow run looks
again, and of several all but one, the same for everyone, are deleted; who has written looks at the
folder again and writes what is new in it, so that an older view does not stay.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")  # seconds; its own 120, 7 times, are long
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from harness import database
from harness.store import RunFolder

BATCH = 900
"""metrics per call; MLflow takes 1000 at most"""
PARAM_LENGTH = 6000
PAGE = 200
"""runs per answer: a slow server must send one within the request's timeout"""
LOOKS = 3
"""how often a sender looks at the folder before it leaves what is newer to the next"""

Held = tuple[str, dict[str, float], dict[str, str], dict[str, str]]
"""id in MLflow, last metrics, params, tags"""
Stale = Callable[[str], Sequence[str]]
"""run id -> what a finished run was made with that is another now"""


@dataclass(frozen=True)
class Tracked:
    """What MLflow holds of a run."""

    run_id: str
    mlflow_id: str
    metrics: dict[str, float]
    """last values"""
    params: dict[str, str]
    tags: dict[str, str]


@dataclass(frozen=True)
class View:
    """What a run folder holds at one moment, and the tags that say so."""

    rows: list[dict[str, Any]]
    result: dict[str, Any] | None
    tags: dict[str, str]


def key(metric: str) -> str:
    """A metric's name in MLflow: `verb_top1[two_handed]` -> `verb_top1/two_handed`.

    Whatever else MLflow does not take in a name becomes an underscore.
    """
    return re.sub(r"[^\w\-./: ]", "_", metric.replace("[", "/").replace("]", ""))


def current(client: MlflowClient, experiment: str, only: str = "") -> dict[str, list[Tracked]]:
    """Run id -> its MLflow runs that are not superseded: one, or several if hosts raced.

    The first of them is the one to keep. `only`: a run id, to look for no other. Raises
    MlflowException.
    """
    found: dict[str, list[Tracked]] = {}
    for mlflow_id, metrics, params, tags in _all(client, experiment, only):
        run_id = tags.get("harness.run_id")
        if run_id and "harness.superseded" not in tags:
            found.setdefault(run_id, []).append(Tracked(run_id, mlflow_id, metrics, params, tags))
    return {run_id: sorted(runs, key=lambda run: run.mlflow_id) for run_id, runs in found.items()}


def _all(client: MlflowClient, experiment: str, only: str) -> Iterator[Held]:
    """Every run of MLflow, or those of one run id."""
    if not only and database.is_database(client.tracking_uri):
        for mlflow_id, (metrics, params, tags) in database.runs(
            client.tracking_uri, experiment
        ).items():
            yield mlflow_id, metrics, params, tags
        return
    where, token = f"tags.`harness.run_id` = '{only}'" if only else "", None
    while True:
        page = client.search_runs([experiment], where, ViewType.ACTIVE_ONLY, PAGE, page_token=token)
        for run in page:
            data = run.data
            yield run.info.run_id, dict(data.metrics), dict(data.params), dict(data.tags)
        token = page.token
        if not token:
            return


def view(folder: RunFolder, sweeps: Sequence[str], stale: Stale | None) -> View | None:
    """The run as it is now, None if it has nothing to show yet.

    Without `stale` a finished run gets no tag `harness.stale`: the next collector adds it.
    """
    state = folder.state()
    result = folder.result() if state == "done" else None  # first: rows may be newer, not older
    rows = folder.metrics()
    if state not in ("done", "failed") and not rows:
        return None
    env, said = folder.env(), result or {}
    spec = folder.spec()["spec"]
    tags = {
        **{f"harness.{what}": told for what, told in said.get("told", {}).items()},
        "harness.run_id": folder.run_id,
        "harness.status": state,
        "harness.sweeps": ", ".join(sweeps),
        "harness.ceiling": said.get("ceiling", ""),
        "harness.implementations": ", ".join(
            f"{what}: {how}" for what, how in said.get("implementations", {}).items()
        ),
        "harness.starts": ", ".join(
            f"{stream}: {told['from']}" for stream, told in said.get("loaded", {}).items()
        ),
        "harness.stored": ", ".join(
            f"{stream}: {how}" for stream, how in said.get("stored", {}).items()
        ),
        "harness.groups": "; ".join(
            f"{group['name']}: {group['parameters']} at {group['peak_lr']:g}"
            for group in said.get("groups", ())
        ),
        "harness.commit": env.get("commit") or "",
        "harness.dirty": str(env.get("dirty", "")),
        "harness.fingerprint": spec["fingerprint"],
        "harness.method": spec["train"]["method"],
        "harness.host": env.get("host", ""),
        "harness.began": str(rows[0]["time"] if rows else said.get("started", "")),
        "harness.history": f"{len(rows)}:{rows[-1]['time']}" if rows else "0:",
        "harness.finished": str(said.get("finished", "")),
        "mlflow.runName": f"{spec['fusion']['name']} seed {spec['seed']} {folder.run_id}",
    }
    if stale is not None or result is None:
        tags["harness.stale"] = ", ".join(stale(folder.run_id)) if stale and result else ""
    return View(rows, result, tags)


def up_to_date(known: Tracked, seen: View) -> bool:
    """Whether MLflow holds all that the folder held when it was seen."""
    return all(known.tags.get(name) == value for name, value in seen.tags.items())


def send(
    client: MlflowClient,
    experiment: str,
    folder: RunFolder,
    sweeps: Sequence[str],
    stale: Stale | None,
) -> bool:
    """Bring the MLflow run of `folder` up to date; False if there was nothing to send.

    Raises MlflowException; what was cut short is completed by the next call.
    """
    sent, known = False, None
    with folder.exporting():
        for _ in range(LOOKS):
            known = known or _find(client, experiment, folder.run_id)
            seen = view(folder, sweeps, stale)  # after `known`: it must not be the older one
            if seen is None or (known is not None and up_to_date(known, seen)):
                break
            if known is not None and _diverged(known, seen):
                client.set_tag(known.mlflow_id, "harness.superseded", "true")
                known = None
            known = known or _create(client, experiment, folder.run_id, seen)
            try:
                known = _write(client, known, seen, folder)
            except MlflowException as error:
                if not _deleted(client, known, error):
                    raise
                known = None  # by another host, which keeps its own
            if known is not None and not up_to_date(known, seen):
                break  # MLflow knows more of it than this host's view of the folder
            sent = True
    return sent


def _find(client: MlflowClient, experiment: str, run_id: str) -> Tracked | None:
    """The run's one MLflow run; others that were made at the same time are deleted."""
    runs = current(client, experiment, run_id).get(run_id, [])
    for other in runs[1:]:
        client.delete_run(other.mlflow_id)
    return runs[0] if runs else None


def _deleted(client: MlflowClient, known: Tracked, error: MlflowException) -> bool:
    """Whether `error` was raised because another sender has deleted the MLflow run."""
    if error.error_code != "INVALID_PARAMETER_VALUE":  # e.g. no answer: do not ask again
        return False
    return bool(client.get_run(known.mlflow_id).info.lifecycle_stage == "deleted")


def _create(client: MlflowClient, experiment: str, run_id: str, seen: View) -> Tracked:
    """A new MLflow run, or the one that another made meanwhile."""
    start = int(1000 * float(seen.tags["harness.began"] or 0))
    # all other tags come last: they say that what was before them is complete
    first = {name: seen.tags[name] for name in ("harness.run_id", "harness.began")}
    first["harness.sending"] = seen.tags["harness.history"]
    run = client.create_run(experiment, start_time=start or None, tags=first)
    made = Tracked(run_id, run.info.run_id, {}, {}, first)
    return _find(client, experiment, run_id) or made


def _write(client: MlflowClient, known: Tracked, seen: View, folder: RunFolder) -> Tracked:
    """Send what MLflow does not have; returns what it has then."""
    if known.tags.get("harness.finished") and seen.result is None:
        return known  # an old view of a run that is done
    tags = dict(seen.tags)
    if _count(known, "harness.history") > len(seen.rows):  # the run is at its checkpoint again
        tags["harness.history"] = known.tags["harness.history"]
    sending = known.tags.get("harness.sending", "")
    if _count(known, "harness.sending") <= len(seen.rows) and sending != tags["harness.history"]:
        # before any row: if this is cut short, the next one knows which rows may be there
        sending = tags["harness.history"]
        client.set_tag(known.mlflow_id, "harness.sending", sending)
    spec = flatten(folder.spec()["spec"])
    params = [Param(k, str(v)[:PARAM_LENGTH]) for k, v in spec if k not in known.params]
    for place in range(0, len(params), 100):
        client.log_batch(known.mlflow_id, params=params[place : place + 100])
    rows = seen.rows[_count(known, "harness.history") :]
    metrics = [metric for row in rows for metric in _epoch_metrics(row)]
    if seen.result and known.tags.get("harness.finished") != tags["harness.finished"]:
        metrics += _final_metrics(seen.result, seen.rows[-1]["epoch"] if seen.rows else 0)
    for place in range(0, len(metrics), BATCH):
        client.log_batch(known.mlflow_id, metrics=metrics[place : place + BATCH])
    if known.tags.get("harness.status", "running") != tags["harness.status"]:
        _set_status(client, known.mlflow_id, seen)
    changed = [RunTag(k, v) for k, v in tags.items() if known.tags.get(k) != v]
    if changed:
        client.log_batch(known.mlflow_id, tags=changed)
    logged = {param.key: param.value for param in params}
    now = known.tags | tags | {"harness.sending": sending}
    return replace(known, params=known.params | logged, tags=now)


def _set_status(client: MlflowClient, mlflow_id: str, seen: View) -> None:
    state = seen.tags["harness.status"]
    if state == "running":
        client.update_run(mlflow_id, "RUNNING")
        return
    end = seen.result["finished"] if seen.result else seen.rows[-1]["time"] if seen.rows else 0
    status = {"done": "FINISHED", "failed": "FAILED"}.get(state, "KILLED")
    client.set_terminated(mlflow_id, status, int(1000 * end) or None)


def _diverged(known: Tracked, seen: View) -> bool:
    """True if what was sent is not the beginning of what the folder holds now.

    A folder with fewer rows is none: the run is at its checkpoint again, or it is an old view. The
    rows that come next decide.
    """
    began = known.tags.get("harness.began")
    if began and began != seen.tags["harness.began"]:
        return True
    for name in ("harness.history", "harness.sending"):
        count, last = _count(known, name), known.tags.get(name, "").partition(":")[2]
        if count > len(seen.rows):
            if seen.result is not None:
                return True
        elif count and str(seen.rows[count - 1]["time"]) != last:
            return True
    finished = known.tags.get("harness.finished")
    return bool(finished) and seen.tags["harness.finished"] not in ("", finished)


def _count(known: Tracked, tag: str) -> int:
    """Rows that a tag like `12:1700000000.5` speaks of."""
    return int(known.tags.get(tag, "0:").partition(":")[0])


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
