"""Workers of a search as SLURM jobs: submit and exit.

A worker leaves when nothing is left that it could begin, and does not wait for others: what becomes
possible later, such as the final runs, is for those who still work, and for the same command again.
"""

from __future__ import annotations

import contextlib
import json
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from harness.launch import sort
from harness.refusals import check_setup
from harness.search.control import Ways
from harness.search.desk import Desk
from harness.search.rows import Search
from harness.search.worker import Worker
from harness.slurm import queue
from harness.store import Store
from harness.submit import (
    How,
    asked_for,
    check_request,
    prepare_code,
    send,
    startable,
    submit,
)

SENT = "jobs.jsonl"
"""in the folder of a search: where the jobs of its workers are, a line for each submission"""


def submit_workers(search: Search, store: Store, ways: Ways, how: How, retry: bool) -> str:
    """Hand workers to SLURM, as many as are wanted and not in its queue; what was done.

    Raises SlurmError with SLURM's own words.
    """
    check_setup(how.settings)
    waits: list[str] = []
    if search.needed:
        needed = replace(search.written, runs=search.needed)
        outcome, runs = sort(store, needed, retry, ())
        if outcome.failed:
            failed = "; ".join(f"{run_id}: {why}" for run_id, why in outcome.failed.items())
            return f"nothing submitted: what the search needs failed: {failed}"
        done = submit(store, needed, startable(runs, outcome), how)
        waits = [*done.jobs.values(), *done.queued.values()]
    with closing(Desk(search, store, ways.url)) as desk, store.submitting():
        if retry:
            desk.retry()
        desk.reap()
        desk.take_over()
        if desk.over():
            return f"{search.title}: nothing is left to do"
        count = max(0, ways.jobs - len(alive_jobs(desk)))
        if not count:
            return f"{search.title}: its {ways.jobs} workers are in the queue already"
        check_request(search.name, how)
        code = prepare_code(store) if how.snapshot else None
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        folder = store.jobs.resolve() / f"{search.name}-{stamp}"
        worker = Worker(
            search, str(store.root.resolve()), ways.told, how.threads, how.settings.requeues,
            how.mlflow_uri, str(folder), code.name if code else None, patient=False,
        )  # fmt: skip
        with open(desk.folder / SENT, "a") as out:  # before: none of its jobs may be unknown
            out.write(json.dumps({"folder": str(folder), "digest": search.digest}) + "\n")
        jobs = send(folder, asked_for(search.name, how, code, waits), [worker] * count)
    first = jobs[0].split("_")[0]
    return f"{search.title}: {count} workers submitted (job {first})"


def worker_jobs(store: Store, what: str | None) -> list[str]:
    """SLURM jobs that are not over of the workers of the search `what`, or of all."""
    searches = [record for record in store.sweeps() if record.get("search")]
    folders = [store.search(r["name"], r["preset"]) for r in searches if what in (None, r["name"])]
    return [job for folder in folders for job in _alive(folder / SENT)]


def alive_jobs(desk: Desk) -> list[str]:
    """SLURM jobs of the search's workers that are not over; those of another version of its file do
    another search."""
    return _alive(desk.folder / SENT, desk.search.digest)


def _alive(file: Path, digest: str | None = None) -> list[str]:
    """Of the folders of jobs that are named in a file."""
    jobs = []
    for line in file.read_text().splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError):  # cut short by a full disk
            told = json.loads(line)
            if digest in (None, told["digest"]):
                found = Path(told["folder"]).glob("*_submitted.pkl")
                jobs += [one.name.removesuffix("_submitted.pkl") for one in found]
    known = queue(jobs) if jobs else {}
    return sorted(job for job in jobs if job in known and not known[job].over)
