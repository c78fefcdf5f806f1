"""What rank 0 of a worker does at the desk: what next, when to stop, and what came out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from harness.job import Told, say
from harness.plan import PlannedRun
from harness.search.desk import Claim, Desk, Verdict
from harness.slurm import this_job

if TYPE_CHECKING:
    from harness.search.worker import Worker

T = TypeVar("T")
DIVERGED = "FloatingPointError"
"""what a loss that is not finite is called in the trace of a run"""
LOOK_SECONDS = 1.0
"""between two looks at a desk that has nothing to do"""
AGAIN_SECONDS = 30.0
"""how long the other processes of a worker wait for a word"""


class Shift:
    """Of one worker."""

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
            if self.desk.over() or not (self.worker.patient or self.desk.in_doubt()):
                return None
            if not self.alone and time.monotonic() > until:
                return ""
            time.sleep(LOOK_SECONDS)
        self.leave()
        return None

    def leave(self, died: bool = False) -> None:
        """Give the trial back."""
        if self.claim is not None:
            self.desk.give_back(self.claim, died)
            self.claim = None

    def has_failed(self) -> bool:
        """Whether the run at work has failed, and not been interrupted."""
        return self.desk.store.run(self.run_id).state() == "failed"

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
            told = {"job": job[0], "folder": where, "time": time.time(), "code": code}
            folder.add_job({**told, "worker": True})
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
        try:
            self.verdict = self._report(self.claim)
        except (StorageInternalError, SQLAlchemyError, OSError) as error:
            say(f"the studies cannot be reached, the run goes on: {error}")
        return self.verdict != "go on"

    def _report(self, claim: Claim) -> Verdict:
        """Tell the desk the epochs that it does not know: of the first seed, for those of others
        are not later steps of the same training."""
        metric = self.desk.search.metric
        rows = self.desk.store.run(claim.runs[0].run_id).metrics()
        # of `test` there is no score by epoch
        return self.desk.report(claim, {r["epoch"]: float(r[metric]) for r in rows if metric in r})

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
