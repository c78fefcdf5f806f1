"""What a SLURM job does: one run, and how it leaves when it is told to.

USR2 comes before the time limit, and from some clusters before a preemption: the run writes a
checkpoint after the step it is at, and the job puts itself back into the queue. TERM comes alone
from a cancel, or before SLURM itself requeues the job: the checkpoint is written all the same. A
job killed without a word goes on from its last checkpoint.

Imports little, so that signals are heeded before torch is loaded.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from harness.slurm import SlurmError, command, queue, this_job

LOOK_SECONDS = 5
"""between two looks at a run that another job still holds"""
NOTE_SECONDS = 10
"""between two notes of how far the run is"""
GRACE_SECONDS = 300
"""that SLURM may take between TERM and the end"""
REQUEUE_SECONDS = 120
"""that SLURM may take to end a job it was asked to requeue"""


@dataclass
class Told:
    """What this process was told by signals."""

    requeue: bool = False
    leave: bool = False

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.requeue or self.leave

    def listen(self) -> None:
        """From now on, instead of submitit's handlers."""

        def usr2(number: int, frame: FrameType | None) -> None:
            self.requeue = True

        def term(number: int, frame: FrameType | None) -> None:
            self.leave = True

        signal.signal(signal.SIGUSR2, usr2)
        signal.signal(signal.SIGTERM, term)


@dataclass
class Job:
    """Called by submitit, in every process of a run."""

    root: str
    """the store, as an absolute path"""
    run_id: str
    threads: int
    requeues: int
    """how often it may come back"""
    mlflow_uri: str | None = None

    def checkpoint(self) -> Any:
        """What submitit asks for if USR2 comes before `__call__`: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def __call__(self) -> None:
        told = Told()
        told.listen()
        name, restart = this_job() or ("", 0)
        first = int(os.environ.get("SLURM_PROCID") or 0) == 0
        say(f"run {self.run_id}, job {name}, requeued {restart} times")
        if restart > self.requeues:
            say(f"came back {restart} times, slurm.requeues allows {self.requeues}: it ends here")
            return
        from harness.live_sync import syncing
        from harness.resume import Stopped
        from harness.run import run
        from harness.store import Store

        store = Store(Path(self.root))
        folder = store.run(self.run_id)
        if first:
            if missing := _unmet(store, self.run_id):
                say(f"not started: {missing}")
                return
            _wait_for_lease(folder, told)
        noted = 0.0

        def on_step(step: int, total: int, loss: float) -> None:
            nonlocal noted
            if first and time.monotonic() - noted > NOTE_SECONDS:
                noted = time.monotonic()
                folder.note_progress(step, total)

        uri = self.mlflow_uri if first else None
        try:
            with syncing(store, self.run_id, uri):
                run(store, self.run_id, on_step, self.threads, stop=told)
        except Stopped:
            if first:
                say(f"run {self.run_id}: checkpoint written")
                leave(told, self.requeues)


def leave(told: Told, requeues: int) -> None:
    """Back into the queue, or out of it."""
    name, restart = this_job() or ("", 0)
    say(f"job {name} leaves")
    waited = time.monotonic() + GRACE_SECONDS
    while not told.requeue and time.monotonic() < waited and _still_running(name):
        time.sleep(2)  # to end now would count as the job's own end: SLURM is about to requeue
    if told.requeue and restart >= requeues:
        say(f"it came back {restart} times, slurm.requeues allows no more")
    elif told.requeue:
        command("scontrol", "requeue", name)
        time.sleep(REQUEUE_SECONDS)
    sys.exit(1)


def say(line: str) -> None:
    """One line to the log of a job."""
    print(f"harness: {line}", file=sys.stderr, flush=True)


def _unmet(store: Any, run_id: str) -> str | None:
    """Which needed run has no result, in words."""
    for need in store.run(run_id).spec()["spec"].get("needs", {}).values():
        state = store.run(need).state()
        if state != "done":
            return f"it needs run {need}, which is {state}"
    return None


def _wait_for_lease(folder: Any, told: Told) -> None:
    """Until nobody else is at the run.

    A holder on another host may be dead and its lease young: SLURM knows whether its job is over.
    """
    while folder.state() == "running" and not told():
        holder = folder.holder()
        mine = this_job()
        if mine and holder.get("job") == mine[0]:
            return  # this job before it was requeued; the lease lets its later self in
        if holder.get("job") and _over(holder["job"]):
            say(f"job {holder['job']}, which held run {folder.run_id}, is over")
            folder.break_lease(holder)
            return
        say(f"process {holder.get('pid')} on {holder.get('host')} holds run {folder.run_id}")
        time.sleep(LOOK_SECONDS)


def _over(job: str) -> bool:
    """Whether another job has ended; False where squeue cannot be asked."""
    try:
        found = queue([job])
    except SlurmError:
        return False
    return job not in found or found[job].over


def _still_running(job: str) -> bool:
    """Whether SLURM has the job as running: it was told to end, and not cancelled."""
    try:
        said = subprocess.run(
            ["squeue", "--noheader", "--format=%T", "--jobs", job],
            capture_output=True, text=True, timeout=30, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return False
    return said == "RUNNING"
