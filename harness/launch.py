"""Runs -> processes: `inline` in this one, `local` through submitit behind a bounded queue.

The same sweep may be launched twice at once, or again after a crash: every run is claimed by its
lease, so each is executed once, and both commands end when the whole sweep is settled.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.lease import LeaseTaken
from harness.live_sync import syncing
from harness.plan import PlannedRun, Sweep
from harness.progress import Live, epoch_note
from harness.provenance import changes
from harness.store import RunFolder, Store

POLL_SECONDS = 0.3
NO_TIME_LIMIT_MINUTES = 60 * 24 * 365


@dataclass
class Outcome:
    """What became of a sweep's runs, by run id."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """run id -> why, in one line"""
    skipped: list[str] = field(default_factory=list)
    """done before this command"""


@dataclass
class _Queue:
    """The runs not yet settled, in order, each once."""

    store: Store
    outcome: Outcome
    waiting: list[PlannedRun] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    attempts: dict[str, int] = field(default_factory=dict)
    """how often work on a run had begun when this command came"""

    def add(self, run: PlannedRun) -> None:
        """Put a run in the queue."""
        self.waiting.append(run)
        self.attempts[run.run_id] = self.store.run(run.run_id).attempts()

    def next(self) -> PlannedRun | None:
        """A run whose needs are met and that nobody else is at; None if there is none now."""
        for run in list(self.waiting):
            missing = [need for need in run.spec.needs.values() if need not in self.done]
            if any(need in self.outcome.failed for need in missing):
                self.settle(run, f"not started: it needs run {missing[0]}, which failed")
            elif (state := self.store.run(run.run_id).state()) == "done":
                self.settle(run, None)
            elif state == "failed" and self.failed_elsewhere(run):
                self.settle(run, self.store.run(run.run_id).failure_line())
            elif not missing and state != "running":
                self.waiting.remove(run)
                return run
        return None

    def failed_elsewhere(self, run: PlannedRun) -> bool:
        """True if another command tried it meanwhile: once is enough."""
        return self.store.run(run.run_id).attempts() > self.attempts[run.run_id]

    def settle(self, run: PlannedRun, failure: str | None) -> None:
        """Note how a run ended."""
        if run in self.waiting:
            self.waiting.remove(run)
        if failure is None:
            self.done.add(run.run_id)
            self.outcome.done.append(run.run_id)
        else:
            self.outcome.failed[run.run_id] = failure


def launch(
    store: Store,
    sweep: Sweep,
    launcher: str,
    jobs: int,
    threads: int,
    retry: bool = False,
    rerun: Sequence[str] = (),
    mlflow_uri: str | None = None,
) -> Outcome:
    """Bring every run of the sweep to an end.

    `retry`: run those again that failed before. `rerun`: ids of finished runs to make anew; their
    old results are kept aside. `mlflow_uri`: where it is a server, runs send themselves to it.
    """
    outcome, runs = sort(store, sweep, retry, rerun)
    queue = _Queue(store, outcome)
    queue.done.update(outcome.skipped)
    for run in runs:
        queue.add(run)
    counting = all(run.spec.train.method == "cost" for run in queue.waiting)
    with Live() as live:
        if launcher == "inline" or counting:  # to count takes less than to start a process
            _inline(store, queue, threads, live, None if counting else mlflow_uri)
        else:
            _local(store, queue, jobs, threads, live, mlflow_uri)
    return outcome


def sort(
    store: Store, sweep: Sweep, retry: bool, rerun: Sequence[str]
) -> tuple[Outcome, list[PlannedRun]]:
    """Store every spec of a sweep; what is settled already, and the runs that are not."""
    for run_id in rerun:
        # another command may be at it, or have made it anew meanwhile
        with contextlib.suppress(LeaseTaken), store.run(run_id).lease():
            if changes(store, run_id):
                store.run(run_id).set_aside()
    outcome, rest = Outcome(), []
    for run in {run.run_id: run for run in sweep.runs}.values():
        folder = store.run(run.run_id)
        folder.write_spec(run.spec.model_dump(mode="json"), sweep.paths)
        if folder.state() == "done":
            outcome.skipped.append(run.run_id)
        elif folder.state() == "failed" and not retry:
            outcome.failed[run.run_id] = f"{folder.failure_line()} (failed before; --retry)"
        else:
            rest.append(run)
    return outcome, rest


def _inline(store: Store, queue: _Queue, threads: int, live: Live, mlflow_uri: str | None) -> None:
    from harness.run import run as execute

    while queue.waiting:
        run = queue.next()
        if run is None:
            time.sleep(POLL_SECONDS)
            continue
        folder, name = store.run(run.run_id), f"{run.label}, seed {run.spec.seed}"
        started = time.time()

        def on_step(
            step: int, total: int, loss: float, run: PlannedRun = run, name: str = name
        ) -> None:
            if not live.due(run.run_id):
                return
            note = f"step {step}/{total}  loss {loss:.3f}"
            rows = store.run(run.run_id).metrics()
            if rows:
                note = epoch_note({**rows[-1], "train/loss": loss}, run.spec.train.epochs)
            live.update(run.run_id, name, step, total, note)

        try:
            with syncing(store, run.run_id, mlflow_uri):
                execute(store, run.run_id, on_step, threads)
        except LeaseTaken:
            queue.waiting.append(run)
            continue
        except Exception:
            _end(queue, run, folder, live, started)
            continue
        _end(queue, run, folder, live, started)


def work(root: str, run_id: str, threads: int, mlflow_uri: str | None = None) -> None:
    """What a submitit job does: one run, in a process of its own."""
    from harness.run import run as execute

    store = Store(Path(root))
    try:
        with syncing(store, run_id, mlflow_uri):
            execute(store, run_id, lambda step, total, loss: None, threads)
    except LeaseTaken:
        return  # another command is at it; this one's queue looks again


def _local(
    store: Store, queue: _Queue, jobs: int, threads: int, live: Live, mlflow_uri: str | None
) -> None:
    gpus = gpu_ids()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for libraries that read it as they load
    free = list(range(jobs))
    active: list[tuple[PlannedRun, Any, int, float]] = []
    with signals() as told:
        while queue.waiting or active:
            if told:
                for _, job, _, _ in active:
                    job.cancel()
                raise KeyboardInterrupt
            for entry in list(active):
                run, job, slot, started = entry
                folder = store.run(run.run_id)
                _show(live, run, folder)
                if job.done():
                    active.remove(entry)
                    free.append(slot)
                    if folder.state() == "running":  # taken by another command in between
                        queue.waiting.append(run)
                    else:
                        _end(queue, run, folder, live, started)
            while free and (next_run := queue.next()) is not None:
                slot = free.pop(0)
                gpu = gpus[slot % len(gpus)] if gpus else None
                job = _submit(store, next_run, threads, gpu, mlflow_uri)
                active.append((next_run, job, slot, time.time()))
            time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that none comes between starting a worker and noting it."""
    told: list[int] = []
    known = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda n, _: told.append(n)) for number in known}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _submit(
    store: Store, run: PlannedRun, threads: int, gpu: int | None, mlflow_uri: str | None
) -> Any:
    from submitit import LocalExecutor

    folder = store.run(run.run_id).log_folder()
    executor = LocalExecutor(folder=folder)
    executor.update_parameters(timeout_min=NO_TIME_LIMIT_MINUTES)
    if gpu is not None:
        executor.update_parameters(gpus_per_node=1, visible_gpus=(gpu,))
    return executor.submit(work, str(store.root.resolve()), run.run_id, threads, mlflow_uri)


def gpu_ids() -> list[int]:
    """Ids of the GPUs that runs are dealt."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return [int(part) for part in visible.split(",") if part.strip().isdigit()]
    return list(range(torch.cuda.device_count()))


def _show(live: Live, run: PlannedRun, folder: RunFolder) -> None:
    name, epochs = f"{run.label}, seed {run.spec.seed}", run.spec.train.epochs
    if not live.due(run.run_id):
        return
    rows = folder.metrics()
    note = epoch_note(rows[-1], epochs) if rows else "starting"
    live.update(run.run_id, name, rows[-1]["epoch"] if rows else 0, epochs, note)


def _end(queue: _Queue, run: PlannedRun, folder: RunFolder, live: Live, started: float) -> None:
    """Note and say how a run ended, as its folder has it."""
    name, seconds = f"{run.label}, seed {run.spec.seed}", time.time() - started
    result = folder.result()
    if result is not None:
        queue.settle(run, None)
        tops = {k: v for k, v in result["metrics"].items() if re.fullmatch(r"test/\w+_top1", k)}
        shown = "test " + "  ".join(f"{k[5:]} {100 * v:.1f}" for k, v in list(tops.items())[-3:])
        if run.spec.train.method == "cost":
            shown = "{gflops:.4g} GFLOPs  {params_m:.4g} M parameters".format(**result["cost"])
        live.end(run.run_id, f"done    {run.run_id}  {name:<40} {seconds:5.0f} s  {shown}")
        return
    failure = "its process was ended" if folder.failure() is None else folder.failure_line()
    queue.settle(run, failure)
    live.end(run.run_id, f"FAILED  {run.run_id}  {name:<40} {seconds:5.0f} s  {failure}")
