"""Bring a search to its end: what it needs first, then workers, as many as are asked for.

This process only starts workers and tells what they did. It may be killed, or started twice: the
desk knows what is left, and the same command goes on.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import TrialState

from harness.launch import NO_TIME_LIMIT_MINUTES, gpu_ids, launch, signals
from harness.lease import holder_alive, lease_holder
from harness.search.desk import Desk
from harness.search.news import Told, complete, known, say_news
from harness.search.rows import Search
from harness.search.worker import Worker
from harness.store import Store

POLL_SECONDS = 1.0
FRUITLESS = 3
"""workers in a row that end by themselves without having begun anything: the next would too"""
KILLED = 10
"""of those that were killed: a next one may be luckier"""


@dataclass
class Ways:
    """How a search is run; no part of what comes out."""

    launcher: str
    jobs: int
    threads: int
    url: str | None = None
    """of the studies' database"""
    told: str | None = None
    """what workers are told of it"""
    mlflow_uri: str | None = None


def search_here(search: Search, store: Store, ways: Ways, retry: bool) -> bool:
    """Run the search on this machine; whether all of it is done."""
    needed = replace(search.written, runs=search.needed)
    if search.needed:
        outcome = launch(
            store, needed, ways.launcher, ways.jobs, ways.threads, retry, (), ways.mlflow_uri
        )
        for run_id, why in outcome.failed.items():
            print(f"FAILED  {run_id}: {why}; the search needs it", file=sys.stderr)
        if outcome.failed:
            return False
    with closing(Desk(search, store, ways.url)) as desk:
        return _to_the_end(search, store, ways, desk, retry)


def _to_the_end(search: Search, store: Store, ways: Ways, desk: Desk, retry: bool) -> bool:
    if retry:
        desk.retry()
    desk.reap()
    desk.take_over()
    told = known(desk)
    root = str(store.root.resolve())
    worker = Worker(search, root, ways.told, ways.threads, mlflow_uri=ways.mlflow_uri)
    if desk.over():
        pass
    elif ways.launcher == "inline":
        worker()
    else:
        _local(desk, worker, ways, told)
    desk.write()
    say_news(desk, told)
    return complete(desk)


def _local(desk: Desk, worker: Worker, ways: Ways, told: Told) -> None:
    from submitit import LocalExecutor

    gpus = gpu_ids()
    os.environ["OMP_NUM_THREADS"] = str(ways.threads)
    executor = LocalExecutor(folder=desk.folder / "log")
    executor.update_parameters(timeout_min=NO_TIME_LIMIT_MINUTES)
    at_work: dict[int, Any] = {}
    fruitless, before = 0, _done(desk)
    with signals() as said:
        while True:
            if said:
                for job in at_work.values():
                    job.cancel()
                raise KeyboardInterrupt
            say_news(desk, told)
            for slot, job in list(at_work.items()):
                if job.done():
                    del at_work[slot]
                    fruitless = 0 if _done(desk) > before else fruitless + 1
                    before, last = _done(desk), job
            if not at_work and desk.over():
                return
            if fruitless and fruitless >= (FRUITLESS if _ended_itself(last) else KILLED):
                print(f"workers end without a result: {_last_words(last)}", file=sys.stderr)
                for job in at_work.values():
                    job.cancel()
                return
            elsewhere = others_here(desk) - len(at_work)
            free = [slot for slot in range(ways.jobs) if slot not in at_work]
            for slot in free[: max(0, ways.jobs - len(at_work) - max(0, elsewhere))]:
                if desk.over():
                    break
                if gpus:
                    gpu = gpus[slot % len(gpus)]
                    executor.update_parameters(gpus_per_node=1, visible_gpus=(gpu,))
                at_work[slot] = executor.submit(worker)
            time.sleep(POLL_SECONDS)


def _done(desk: Desk) -> int:
    """Grows whenever a worker has begun a run, or ended one."""
    runs = {run.run_id for run in desk.finals()}
    ended = 0
    for row in desk.search.rows:
        for trial in desk.all(row.name):
            runs |= set(trial.user_attrs.get("runs", ()))
            ended += trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    folders = [desk.store.run(run_id) for run_id in runs]
    return ended + sum(one.attempts() + (one.state() == "done") for one in folders)


def others_here(desk: Desk) -> int:
    """Workers of the search that live on this machine."""
    mine = desk.workers.glob(f"{desk.search.digest}-*.json")
    files = [file for file in mine if holder_alive(file)]
    return sum(lease_holder(file).get("host") == socket.gethostname() for file in files)


def _ended_itself(job: Any) -> bool:
    return bool(job.paths.result_pickle.exists())


def _last_words(job: Any) -> str:
    try:
        lines = [line for line in job.paths.stderr.read_text().splitlines() if line.strip()]
    except OSError:
        lines = []
    return f"{lines[-1] if lines else 'they print nothing'} ({job.paths.stderr})"
