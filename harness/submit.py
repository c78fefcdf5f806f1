"""A sweep -> SLURM jobs: one array for the runs that wait for the same, submitted and left alone.

A run that needs others becomes a job that starts when theirs are over. Every job is written down in
its run's folder, so that a sweep submitted again asks SLURM only for what is neither done nor in
the queue.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from harness.job import Job
from harness.launch import Outcome
from harness.plan import PlannedRun, Sweep
from harness.provenance import ROOT, source
from harness.refusals import advised, check_setup, check_shares
from harness.slurm import (
    SlurmError,
    SlurmSettings,
    available,
    cancel,
    command,
    executor,
    max_array,
    mine,
    parameters,
    queue,
    script,
)
from harness.snapshot import path_line, take
from harness.store import Store

LIMITS = ("limit", "MaxSubmit", "MaxJobs")
"""words in what sbatch says when there is no room, rather than a mistake"""


@dataclass
class Submitted:
    """What became of a sweep's runs, by run id."""

    jobs: dict[str, str] = field(default_factory=dict)
    """run id -> job, of this command"""
    queued: dict[str, str] = field(default_factory=dict)
    """run id -> job, of an earlier one"""
    elsewhere: list[str] = field(default_factory=list)
    """a process outside of SLURM is at them"""
    left: list[str] = field(default_factory=list)
    """not submitted: there was no room, or they need a run that is at work elsewhere"""


@dataclass(frozen=True)
class How:
    """What belongs to a submission and not to a run."""

    settings: SlurmSettings
    threads: int
    mlflow_uri: str | None
    snapshot: bool = True


def submit(store: Store, sweep: Sweep, runs: Sequence[PlannedRun], how: How) -> Submitted:
    """Submit `runs`, those of the sweep without a result, except what is in the queue already.

    Raises SlurmError with SLURM's own words, or ConfigError; then nothing of this command stays in
    the queue.
    """
    check_shares(sweep, how.settings)
    check_setup(how.settings)
    with store.submitting():
        done = Submitted(queued=active(store, [run.run_id for run in runs]))
        done.elsewhere = [run.run_id for run in runs if _elsewhere(store, run.run_id)]
        taken = {*done.queued, *done.elsewhere}
        rest = [run for run in runs if run.run_id not in taken]
        # SLURM cannot wait for a process that is not its own
        later = {
            r.run_id for r in rest if not set(done.elsewhere).isdisjoint(r.spec.needs.values())
        }
        wanted = {run.run_id: run for run in rest if run.run_id not in later}
        room = len(wanted)
        if how.settings.max_submitted is not None and wanted:
            room = max(0, how.settings.max_submitted - mine())
        size = max_array() if wanted else 0
        prepared = prepare_code(store) if how.snapshot and wanted else None
        if wanted:
            check_request(sweep.name, how)
        for group in _groups(wanted):
            for start in range(0, len(group), size):
                part = group[start : min(start + size, start + room)]
                try:
                    done.jobs |= _array(store, sweep, part, how, prepared, done)
                except SlurmError as error:
                    if done.jobs and any(word in str(error) for word in LIMITS):
                        room = 0
                        break
                    _take_back(store, done.jobs)
                    raise advised(error, how.settings) from None
                room -= len(part)
        done.left = [run.run_id for run in rest if run.run_id not in done.jobs]
    return done


def startable(runs: Sequence[PlannedRun], outcome: Outcome) -> list[PlannedRun]:
    """Those of `runs` that need no failed run; the others are noted as failed."""
    for run in runs:
        if failed := [need for need in run.spec.needs.values() if need in outcome.failed]:
            outcome.failed[run.run_id] = f"not started: it needs run {failed[0]}, which failed"
    return [run for run in runs if run.run_id not in outcome.failed]


def active(store: Store, run_ids: Sequence[str]) -> dict[str, str]:
    """Run id -> its job, for those whose latest job is not over."""
    latest = {i: jobs[-1]["job"] for i in run_ids if (jobs := store.run(i).jobs())}
    known = queue(latest.values()) if latest else {}
    return {i: job for i, job in latest.items() if job in known and not known[job].over}


def _elsewhere(store: Store, run_id: str) -> bool:
    folder = store.run(run_id)
    return folder.state() == "running" and not folder.holder().get("job")


def prepare_code(store: Store) -> Path:
    """Freeze the code; the folder jobs import it from."""
    return take(ROOT, store.code.resolve(), source())


def _groups(runs: Mapping[str, PlannedRun]) -> list[list[PlannedRun]]:
    """Runs that wait for the same runs, in an order in which needs come first."""
    groups: list[list[PlannedRun]] = []
    placed: set[str] = set()
    rest = dict(runs)
    while rest:
        ready = [run for run in rest.values() if not _open(run, rest)]
        assert ready, "needs go in a circle"  # planning refuses that
        by_needs: dict[frozenset[str], list[PlannedRun]] = {}
        for run in ready:
            by_needs.setdefault(frozenset(run.spec.needs.values()), []).append(run)
            placed.add(run.run_id)
        groups += by_needs.values()
        rest = {run_id: run for run_id, run in rest.items() if run_id not in placed}
    return groups


def _open(run: PlannedRun, rest: Mapping[str, PlannedRun]) -> bool:
    return any(need in rest for need in run.spec.needs.values())


def _array(
    store: Store,
    sweep: Sweep,
    runs: Sequence[PlannedRun],
    how: How,
    code: Path | None,
    done: Submitted,
) -> dict[str, str]:
    """Submit some runs that wait for the same; run id -> job."""
    if not runs:
        return {}
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    folder = store.jobs.resolve() / f"{sweep.name.replace(', ', '+')}-{stamp}"
    waits = [job for need in runs[0].spec.needs.values() if (job := _job_of(need, done))]
    asked = asked_for(sweep.name, how, code, waits)
    tasks = [
        Job(
            str(store.root.resolve()),
            run.run_id,
            how.threads,
            how.settings.requeues,
            how.mlflow_uri,
        )
        for run in runs
    ]
    jobs = send(folder, asked, tasks)
    found = {run.run_id: job for run, job in zip(runs, jobs, strict=True)}
    for run_id, job in found.items():
        store.run(run_id).add_job(
            {
                "job": job,
                "folder": str(folder),
                "time": time.time(),
                "code": code.name if code else None,
            }
        )
    return found


def send(folder: Path, asked: Mapping[str, Any], tasks: Sequence[Callable[[], None]]) -> list[str]:
    """Submit one job, or one array; the ids. Raises SlurmError with what sbatch said."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    made = executor(folder, asked)
    try:
        if len(tasks) == 1:
            return [made.submit(tasks[0]).job_id]
        with made.batch():
            jobs = [made.submit(task) for task in tasks]
    except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError) as error:
        raise SlurmError(f"sbatch: {_words(error)}") from None
    return [job.job_id for job in jobs]


def asked_for(name: str, how: How, code: Path | None, waits: Sequence[str] = ()) -> dict[str, Any]:
    """What the job is submitted with, in submitit's words."""
    asked = parameters(how.settings, f"harness-{name}", how.threads)
    asked["setup"] = _setup(how, code)
    if waits:
        asked["dependency"] = "afterany:" + ":".join(waits)
    return asked


def dry_run(store: Store, sweep: Sweep, runs: Sequence[PlannedRun], how: How) -> str:
    """The scripts that `submit` would hand to sbatch, for what is not in the queue."""
    queued = active(store, [run.run_id for run in runs]) if available() else {}
    wanted = {run.run_id: run for run in runs if run.run_id not in queued}
    code = store.code.resolve() / "<digest>" if how.snapshot else None
    names = {run_id: f"<job of {run_id}>" for run_id in wanted}
    told = []
    for group in _groups(wanted):
        needs = group[0].spec.needs.values()
        waits = [names.get(need) or queued[need] for need in needs if need in {*names, *queued}]
        text = script(
            store.jobs.resolve() / sweep.name, asked_for(sweep.name, how, code, waits), len(group)
        )
        title = ", ".join(dict.fromkeys(run.label for run in group))
        told.append(f"# {len(group)} runs: {title}\n{text}")
    return "\n".join(told) or "nothing to submit"


def _setup(how: How, code: Path | None) -> list[str]:
    """The lines of shell before a run: the first that fails ends the job and says so."""
    lines = ["set -eE", "trap 'echo \"harness: setup failed: $BASH_COMMAND\" >&2' ERR"]
    lines += how.settings.setup
    lines += ["set +eE", "trap - ERR", f"export OMP_NUM_THREADS={how.threads}"]
    return [*lines, path_line(code)] if code else lines


def _job_of(need: str, done: Submitted) -> str | None:
    """The job a needed run is in; None if it has a result."""
    return done.jobs.get(need) or done.queued.get(need)


def check_request(name: str, how: How) -> None:
    """Raise SlurmError if no node can ever do what is asked: sbatch alone would queue some such."""
    text = script(Path("/tmp"), asked_for(name, how, None), 1)
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(text)
        file.flush()
        try:
            command("sbatch", "--test-only", file.name)
        except SlurmError as error:
            if "down, drained or reserved" not in str(error):  # those may come back
                raise advised(error, how.settings) from None


def _take_back(store: Store, jobs: Mapping[str, str]) -> None:
    cancel(jobs.values())
    for run_id, job in jobs.items():
        store.run(run_id).drop_job(job)


def _words(error: Exception) -> str:
    """What sbatch said."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    said = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines]
    return " ".join(said) if said else type(error).__name__
