"""Where each run of a sweep is: from its folder, and from squeue where a cluster is at hand."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.slurm import Queued, available, queue
from harness.store import RunFolder, Store

SILENT_SECONDS = 180
"""a heartbeat comes every 20 s; without one for so long a running job is stuck"""
ENDS = ("done", "pruned", "failed", "lost", "cancelled", "blocked")
HELD = ("held", "Held", "NeverSatisfied")
"""in squeue's reason for a job that will not start by itself"""
STATES = (
    "done",
    "pruned",
    "running",
    "queued",
    "waiting",
    "stuck",
    "new",
    "cancelled",
    "lost",
    "blocked",
    "failed",
)
MEANING = {
    "pruned": "a search ended it, for others did better",
    "waiting": "for a run it needs",
    "lost": "its job is over and left no result; the same sweep again goes on from its checkpoint",
    "cancelled": "the same sweep again goes on from its checkpoint",
    "blocked": "a run it needs has no result",
    "stuck": "the job does not move",
    "new": "never submitted",
}


@dataclass(frozen=True)
class Status:
    """Of one run."""

    run_id: str
    label: str
    seed: int
    state: str
    """one of STATES"""
    note: str
    job: str
    node: str


def statuses(store: Store, record: dict[str, Any], ask: bool = True) -> list[Status]:
    """Of every run of a sweep's record, each once; unless to `ask`, from the folders alone.

    squeue is asked before the folders are read: a job that is over has written its result by then.
    Raises SlurmError if squeue does not answer; where there is none, folders alone are read.
    """
    rows = list({row["run_id"]: row for row in record["runs"]}.values())
    jobs = {row["run_id"]: found for row in rows if (found := store.run(row["run_id"]).jobs())}
    ask = ask and bool(jobs) and available()
    known = queue([found[-1]["job"] for found in jobs.values()]) if ask else None
    return [_status(store, row, jobs.get(row["run_id"], []), known) for row in rows]


def _status(
    store: Store, row: dict[str, Any], jobs: list[dict[str, Any]], known: dict[str, Queued] | None
) -> Status:
    folder = store.run(row["run_id"])
    job = jobs[-1]["job"] if jobs else ""
    queued = (known or {}).get(job)
    state, note = _state(store, folder, job, queued, known is not None)
    preempted = max(0, int(folder.holder().get("restart", 0)))
    if preempted and state != "done":
        note += f"; requeued {preempted} times"
    node = queued.node if queued and state in ("running", "stuck") else ""
    if not node and state == "running":
        node = str(folder.holder().get("host", ""))
    return Status(folder.run_id, row["label"], row["seed"], state, note, job, node)


def _state(
    store: Store, folder: RunFolder, job: str, queued: Queued | None, asked: bool
) -> tuple[str, str]:
    """(state, what else there is to say)."""
    stored = folder.state()
    if stored == "done":
        return "done", _when(folder)
    if job and folder.jobs()[-1].get("worker") and stored != "running":
        # a worker of a search: its job goes on with other runs
        if stored in ("new", "interrupted") and queued is not None and not queued.over:
            return "waiting", f"for a worker, after epoch {len(folder.metrics())}"
        queued, job = None, ""
    if queued is not None and not queued.over:
        return _in_queue(folder, job, queued)
    if stored == "running" and (not job or not asked or _somebody_else(folder, job)):
        return "running", _progress(folder)
    if stored == "failed":
        return "failed", folder.failure_line()
    if stored == "pruned":
        return "pruned", str(folder.pruned().get("why", ""))
    for need in (folder.spec().get("spec") or {}).get("needs", {}).values():
        if store.run(need).state() == "failed":
            return "blocked", f"run {need} failed"
    if job and asked:
        if queued is not None and queued.state == "CANCELLED":
            return "cancelled", f"after epoch {len(folder.metrics())}"
        state = queued.state if queued else "forgotten by squeue"
        return "lost", f"job {state}; {_last_words(folder)}"
    if stored == "new":
        return ("queued", "squeue is not here") if job else ("new", "")
    return "lost", f"interrupted after epoch {len(folder.metrics())}"


def _in_queue(folder: RunFolder, job: str, queued: Queued) -> tuple[str, str]:
    if queued.state == "PENDING":
        if any(word in queued.reason for word in HELD):
            return "stuck", f"{queued.reason}: `scontrol release {job}`, or cancel and submit again"
        if queued.reason.startswith("Dependency"):
            return "waiting", ""
        return "queued", queued.reason
    if queued.state != "RUNNING":
        return "queued", queued.state
    holder, beat = folder.holder(), folder.heartbeat()
    if holder.get("job") == job and beat is not None and not holder.get("released"):
        silent = time.time() - beat
        if silent > SILENT_SECONDS:
            return "stuck", f"no sign of life for {silent:.0f} s"
        return "running", _progress(folder)
    return "running", "starting"


def _somebody_else(folder: RunFolder, job: str) -> bool:
    """Whether a run is held by another than its latest job, e.g. a local sweep."""
    return folder.holder().get("job") != job


def _when(folder: RunFolder) -> str:
    result = folder.result() or {}
    took = result.get("finished", 0) - result.get("started", 0)
    return f"{_span(took)} in its last attempt"


def _progress(folder: RunFolder) -> str:
    """`epoch 3/20, 5 min left`."""
    spec = folder.spec().get("spec") or {}
    epochs = spec.get("train", {}).get("epochs", 0)
    rows, noted = folder.metrics(), folder.progress()
    seconds = [row["epoch_seconds"] for row in rows if "epoch_seconds" in row]
    done = len(rows) / epochs if epochs else 0.0
    if noted.get("total"):
        done = max(done, noted["step"] / noted["total"])
    text = f"epoch {min(len(rows) + 1, epochs)}/{epochs}"
    if seconds and epochs:
        left = (1 - done) * epochs * sorted(seconds)[len(seconds) // 2]
        text += f", {_span(left)} left"
    return text


def _span(seconds: float) -> str:
    """`50 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{max(0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _last_words(folder: RunFolder) -> str:
    """The last line its job wrote to stderr, and not srun's that it ended."""
    for file in reversed(log_files(folder)):
        lines = [line.strip() for line in _tail(file) if line.strip()]
        if told := [line for line in lines if not line.startswith("srun:")] or lines:
            return told[-1][:200]
    return "it printed nothing"


def _tail(file: Path, size: int = 4096) -> list[str]:
    with open(file, "rb") as source:
        source.seek(0, 2)
        source.seek(max(0, source.tell() - size))
        return source.read().decode(errors="replace").splitlines()


def log_files(folder: RunFolder) -> list[Path]:
    """What the processes of a run printed: of its latest job, or of the local launcher."""
    jobs = folder.jobs()
    if jobs:
        where, job = Path(jobs[-1]["folder"]), jobs[-1]["job"]
        return sorted(where.glob(f"{job}_*_log.out")) + sorted(where.glob(f"{job}_*_log.err"))
    found = [*folder.log_folder().glob("*_log.out"), *folder.log_folder().glob("*_log.err")]
    return sorted(found, key=lambda file: file.stat().st_mtime)[-2:]


def table(title: str, found: Sequence[Status]) -> str:
    """One line per run, and what the states that need a word mean."""
    counts = {state: sum(one.state == state for one in found) for state in STATES}
    total = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    lines = [f"{title}: {len(found)} runs: {total}"]
    for one in found:
        where = f"job {one.job}" if one.job and one.state not in ("done", "new") else ""
        where += f" on {one.node}" if one.node else ""
        name = f"{one.label}, seed {one.seed}"
        lines.append(f"{one.run_id}  {name:<36.36}  {one.state:<8} {where:<22} {one.note}".rstrip())
    lines += [f"{state}: {MEANING[state]}" for state in MEANING if counts[state]]
    return "\n".join(lines)


def at_rest(one: Status) -> int:
    """0 for a run at work or in trouble, more for one that waits, most for one that is done."""
    return 2 if one.state == "done" else int(one.state in ("new", "queued", "waiting"))


__all__ = ["ENDS", "Status", "at_rest", "log_files", "statuses", "table"]
