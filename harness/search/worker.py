"""A worker: it takes a trial from the desk, trains its runs, hands in the score, and again.

When the trials of a row are over it makes the final runs, those that the tables show. It ends when
nothing is left that it could do. Several processes may be one worker (`torchrun`, the tasks of a
SLURM job): rank 0 is at the desk, all of them train.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from harness.job import Told, leave, say
from harness.search.planning import Search
from harness.slurm import this_job

if TYPE_CHECKING:
    from harness.distributed import Group
    from harness.plan import PlannedRun
    from harness.search.desk import Claim, Desk, Verdict
    from harness.store import RunFolder

T = TypeVar("T")
DIVERGED = "FloatingPointError"
"""what a loss that is not finite is called in the trace of a run"""
LOOK_SECONDS = 1.0
"""between two looks at a desk that has nothing to do"""
AGAIN_SECONDS = 30.0
"""how long the other processes of a worker wait for a word"""


@dataclass
class Worker:
    """Called by submitit, or in this process."""

    search: Search
    root: str
    """the store, as an absolute path"""
    url: str | None
    """of the studies' database; None: the journal"""
    threads: int
    requeues: int = 0
    """how often its job may come back"""
    mlflow_uri: str | None = None
    folder: str = ""
    """what its job prints, if it is SLURM's"""
    code: str | None = None
    """the frozen code that the job runs"""
    patient: bool = True
    """wait while others are at the last trials: there may be something to do after them"""

    def checkpoint(self) -> Any:
        """What submitit asks for if USR2 comes before `__call__`: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def __call__(self) -> None:
        told, job = Told(), this_job()
        if job is not None:
            told.listen()
        restart = job[1] if job else 0
        if restart > self.requeues:
            say(f"came back {restart} times, slurm.requeues allows {self.requeues}: it ends here")
            return
        from harness.distributed import find_world, opened

        with opened(find_world()) as group:
            self._work(group, told)
        if told() and group.rank == 0 and job is not None:
            leave(told, self.requeues)

    def _work(self, group: Group, told: Told) -> None:
        from harness.lease import Lease
        from harness.live_sync import syncing
        from harness.run import run_in
        from harness.search.desk import Desk
        from harness.store import Store

        store = Store(Path(self.root))
        with contextlib.ExitStack() as held:
            shift: _Shift | None = None
            missing = [r for r in self.search.needed if store.run(r.run_id).state() != "done"]
            if group.tell(bool(missing)):
                say(f"not started: the search needs run {missing[0].run_id}, which is not done")
                return
            if group.rank == 0:
                desk, name = Desk(self.search, store, self.url), _name()
                held.callback(desk.close)
                file = desk.workers / f"{name}.json"
                held.callback(_forget, file)
                held.enter_context(Lease(file))
                shift = _Shift(self, desk, name, told, alone=group.size == 1)
            while (run_id := group.tell(shift.next() if shift else None)) is not None:
                if not run_id:  # nothing to do yet
                    continue
                on_step, stop = (shift.on_step, shift.stop) if shift else (_nothing, told)
                with (
                    _ends(shift, group.size),
                    syncing(store, run_id, self._uri(shift)),
                    _logged(store.run(run_id), here=this_job() is None),
                ):
                    run_in(group, store, run_id, on_step, self.threads, stop)

    def _uri(self, shift: _Shift | None) -> str | None:
        return self.mlflow_uri if shift is not None else None


def _name() -> str:
    """Of this worker: no other has it, not even one that comes back with the same pid."""
    return f"{socket.gethostname()}-{os.getpid()}-{time.time_ns() // 1000 % 10**10}"


def _forget(file: Path) -> None:
    for part in (file, file.with_suffix(".lock")):
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _logged(folder: RunFolder, here: bool) -> Iterator[None]:
    """What a run prints goes into its folder; a SLURM job has a log that is found by the job."""
    if not here:
        yield
        return
    folder.log_folder().mkdir(parents=True, exist_ok=True)
    with (
        open(folder.log_folder() / f"{os.getpid()}_0_log.err", "a", buffering=1) as log,
        contextlib.redirect_stderr(log),
    ):
        yield


def _nothing(step: int, total: int, loss: float) -> None:
    pass


@contextlib.contextmanager
def _ends(shift: _Shift | None, ranks: int) -> Iterator[None]:
    """Hand in how a run ended; what only concerns the run is no reason for the worker to end."""
    from harness.lease import LeaseTaken
    from harness.resume import Stopped
    from harness.run import passing

    try:
        yield
    except Stopped:
        if shift is not None:
            shift.stopped()
    except LeaseTaken:
        time.sleep(LOOK_SECONDS)
    except Exception as error:
        traceback.print_exc()
        if shift is not None and not passing(error):
            shift.failed(error)
        if passing(error) or ranks > 1:  # a full disk; or the other processes are in disorder
            raise


class _Shift:
    """What rank 0 of a worker does: what next, when to stop, and what came out."""

    def __init__(self, worker: Worker, desk: Desk, name: str, told: Told, alone: bool) -> None:
        self.worker, self.desk, self.name, self.told = worker, desk, name, told
        self.alone = alone
        self.claim: Claim | None = None
        self.run_id = ""
        self.verdict: Verdict = "go on"
        """of the desk on the run at work"""
        self._behind = self._looked = 0
        """epochs of it that are over, and that the desk was asked about"""

    def next(self) -> str | None:
        """The run to do; empty: none yet, ask again; None: the end."""
        until = time.monotonic() + AGAIN_SECONDS
        while not self.told():
            self.claim = self.claim or self.desk.claim(self.name)
            if self.claim is not None:
                if run_id := self._of_trial(self.claim):
                    return self._begin(run_id)
                if not self.alone and time.monotonic() > until:
                    return ""
                continue
            finals = self.desk.open_finals()
            if finals:
                return self._begin_final(finals[0])
            if not self.worker.patient or self.desk.over():
                return None
            if not self.alone and time.monotonic() > until:
                return ""
            time.sleep(LOOK_SECONDS)
        if self.claim is not None:
            self.desk.give_back(self.claim)
            self.claim = None
        return None

    def _of_trial(self, claim: Claim) -> str | None:
        """The next run of the trial; None if it was handed in, or others are at that run."""
        for run in claim.runs:
            folder = self.desk.store.run(run.run_id)
            state = folder.state()
            if state == "done":
                continue
            if state == "running":  # the same settings, in another trial or in a sweep
                time.sleep(LOOK_SECONDS)
                return None
            ended = folder.pruned() if state == "pruned" else {}
            if ended.get("study") == claim.row.study:  # in an earlier trial with these settings
                self._hand_in(self.desk.prune, claim, str(ended["why"]))
                return None
            if state == "failed" and DIVERGED in folder.failure_line():
                self._hand_in(self.desk.prune, claim, folder.failure_line())
                return None
            return run.run_id
        metric = self.desk.search.metric
        results = [self.desk.store.run(run.run_id).result() or {} for run in claim.runs]
        scores = [result["metrics"][metric] for result in results]
        self._hand_in(self.desk.complete, claim, sum(scores) / len(scores))
        return None

    def _hand_in(self, tell: Callable[[Claim, T], None], claim: Claim, what: T) -> None:
        self._report(claim)
        tell(claim, what)
        self.claim = None

    def _begin_final(self, run: PlannedRun) -> str:
        folder = self.desk.store.run(run.run_id)
        folder.write_spec(run.spec.model_dump(mode="json"), self.desk.trials.paths)
        return self._begin(run.run_id)

    def _begin(self, run_id: str) -> str:
        self.run_id, self.verdict, self._behind, self._looked = run_id, "go on", 0, 0
        job, folder = this_job(), self.desk.store.run(run_id)
        if job is not None and all(one["job"] != job[0] for one in folder.jobs()[-1:]):
            where, code = self.worker.folder, self.worker.code
            folder.add_job({"job": job[0], "folder": where, "time": time.time(), "code": code})
        return run_id

    # while a run is trained

    def on_step(self, step: int, total: int, loss: float) -> None:
        """After each step of training."""
        for run in self.claim.runs if self.claim is not None else ():
            if run.run_id == self.run_id:
                self._behind = (step - 1) * run.spec.train.epochs // max(1, total)

    def stop(self) -> bool:
        """Asked after each step: at the first of an epoch, whether the trial falls behind."""
        if self.told():
            return True
        if self.claim is None or self._behind <= self._looked:
            return False
        self._looked = self._behind
        self.verdict = self._report(self.claim)
        return self.verdict != "go on"

    def _report(self, claim: Claim) -> Verdict:
        """Tell the desk the epochs that it does not know."""
        metric, before = self.desk.search.metric, 0
        rows: dict[int, float] = {}
        for run in claim.runs:
            for row in self.desk.store.run(run.run_id).metrics():
                if metric in row:  # of `test` there is no score by epoch
                    rows[before + row["epoch"]] = float(row[metric])
            before += run.spec.train.epochs
        return self.desk.report(claim, rows)

    # how it ended

    def stopped(self) -> None:
        """By `stop`; if this process was told to leave, `next` gives the trial back."""
        claim = self.claim
        if claim is None or self.verdict == "go on":
            return
        if self.verdict == "lost":  # the desk thought this worker dead
            self.claim = None
            return
        why = f"pruned after epoch {self._looked}: others did better"
        self.desk.store.run(self.run_id).write_pruned({"study": claim.row.study, "why": why})
        self._hand_in(self.desk.prune, claim, why)

    def failed(self, error: Exception) -> None:
        """A loss that is not finite is an outcome, and a bad one; all else is a failure."""
        why = f"{type(error).__name__}: {error}"
        say(f"run {self.run_id}: {why}")
        claim = self.claim
        if claim is None:
            return
        if isinstance(error, FloatingPointError):
            self._hand_in(self.desk.prune, claim, why)
        else:
            self._hand_in(self.desk.fail, claim, why)
