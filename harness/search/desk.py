"""The desk at which workers ask for trials and hand in what came out.

One study for each row, in one storage. Everything that asks or tells holds one lock, so that the
count of trials is exact however many workers there are. A worker that dies leaves a trial RUNNING:
whoever comes next to the desk sees it by the worker's lease, tells Optuna FAIL, and puts the same
values in the queue again. Their runs are the same runs then, and go on from their checkpoints.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.config import ConfigError
from harness.lease import holder_alive, lease_holder
from harness.plan import PlannedRun
from harness.search.engines import ONE_SEED, sampler
from harness.search.rows import SearchRow
from harness.search.space import suggest
from harness.search.studies import COUNTED, Studies

DEATHS = 10
"""how often the workers of one trial may die without an epoch between, before it has failed"""
SILENT_SECONDS = 60.0
"""without a sign of life from another host, after which a worker may be dead"""
VOID = "its worker died before it had settings: the next trial has them"
Verdict = Literal["go on", "prune", "lost"]
"""on a trial: as it says, fall behind and end, or another worker has it"""


@dataclass
class Claim:
    """A trial that a worker is at."""

    row: SearchRow
    trial: optuna.Trial
    runs: tuple[PlannedRun, ...]
    reported: set[int] = field(default_factory=set)
    """steps that Optuna knows"""


class Desk(Studies):
    """The studies, and who is at which trial."""

    def claim(self, worker: str) -> Claim | None:
        """A trial for the worker of that name; None if there is none now."""
        with self.lock:
            for row, trial in self._left_behind():
                if "runs" in trial.user_attrs:
                    self._again(row, trial, "its worker died", died=True)
                elif self.search.spec.sampler.name not in ONE_SEED:
                    self._tell(row, trial.number, TrialState.FAIL, void=VOID)
                elif (claim := self._go_on(row, trial, worker)) is not None:
                    return claim
            while rows := [row for row in self.search.rows if self._has_work(row)]:
                if (claim := self._ask(min(rows, key=self._begun), worker)) is not None:
                    return claim
        return None

    def reap(self) -> None:
        """Put what dead workers left back into the queue."""
        with self.lock:
            dead = [found for found in self._left_behind() if "runs" in found[1].user_attrs]
            for row, trial in dead:
                self._again(row, trial, "its worker died", died=True)
            for file in self.workers.glob("*.json"):
                if not holder_alive(file):
                    forget(file)
            if dead:
                self.write()

    def in_doubt(self) -> bool:
        """Whether a worker on another host may be dead: nobody can tell until its lease expires."""
        for row in self.search.rows:
            for trial in self.all(row.name):
                file = self.workers / f"{trial.user_attrs.get('worker')}.json"
                if trial.state is TrialState.RUNNING and silent(file):
                    return True
        return False

    def _left_behind(self) -> list[tuple[SearchRow, FrozenTrial]]:
        """Running trials whose worker is dead."""
        return [
            (row, trial)
            for row in self.search.rows
            for trial in self.all(row.name)
            if trial.state is TrialState.RUNNING and not self._alive(trial)
        ]

    def _alive(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get("worker")
        return worker is not None and holder_alive(self.workers / f"{worker}.json")

    def _has_work(self, row: SearchRow) -> bool:
        return self.room(row) or any(t.state is TrialState.WAITING for t in self.all(row.name))

    def _begun(self, row: SearchRow) -> int:
        return sum(t.state in COUNTED and t.state is not TrialState.WAITING
                   for t in self.all(row.name))  # fmt: skip

    def _ask(self, row: SearchRow, worker: str) -> Claim | None:
        self._seat_sampler(row, len(self.all(row.name)))
        return self._settle(row, self.studies[row.name].ask(), worker)

    def _go_on(self, row: SearchRow, trial: FrozenTrial, worker: str) -> Claim | None:
        """With a trial whose worker died before it had its values: its place in the sequence must
        not be lost."""
        self._seat_sampler(row, trial.number)
        again = optuna.Trial(self.studies[row.name], trial._trial_id)
        return self._settle(row, again, worker)

    def _seat_sampler(self, row: SearchRow, number: int) -> None:
        """The sampler for trial `number`: it depends on how many were proposed before it."""
        before, spec = self.all(row.name)[:number], self.search.spec
        proposals = sum(not {"retry_of", "void"} & set(trial.user_attrs) for trial in before)
        self.studies[row.name].sampler = sampler(spec.sampler, row.space, spec.seed, proposals)

    def _settle(self, row: SearchRow, trial: optuna.Trial, worker: str) -> Claim | None:
        """Give a trial its values and its runs; None if the values do not go together."""
        trial.set_user_attr("worker", worker)
        values = suggest(trial, row.space)
        try:
            label = f"trial {trial.number}"
            runs = self.trials.runs(row, values, label)
        except ConfigError as error:
            self._tell(row, trial.number, TrialState.FAIL, failed=str(error))
            self.write()
            return None
        for run in runs:
            spec = run.spec.model_dump(mode="json")
            self.store.run(run.run_id).write_spec(spec, self.trials.paths)
        trial.set_user_attr("runs", [run.run_id for run in runs])  # last: from now on it is whole
        self.write()
        return Claim(row, trial, runs)

    def _again(self, row: SearchRow, trial: FrozenTrial, why: str, died: bool = False) -> None:
        """The same values in the queue, and FAIL: in this order, so that a crash loses neither."""
        attrs = trial.user_attrs
        lines = sum(len(self.store.run(run).metrics()) for run in attrs.get("runs", ()))
        further = lines > attrs.get("lines", 0)  # than when a worker of it died before
        deaths = died + (0 if further else int(attrs.get("deaths", 0)))
        if deaths > DEATHS:
            why = f"its worker died {deaths} times"
            self._tell(row, trial.number, TrialState.FAIL, failed=why)
            return
        study = self.studies[row.name]
        if all(t.user_attrs.get("retry_of") != trial.number for t in self.all(row.name)):
            told = {"retry_of": trial.number, "deaths": deaths, "lines": lines}
            study.enqueue_trial(trial.params, user_attrs=told)
        if trial.state is TrialState.RUNNING:
            self._tell(row, trial.number, TrialState.FAIL, ended=why)

    def retry(self) -> None:
        """Failed trials are tried again, with the same values; failed final runs too."""
        with self.lock:
            for row in self.search.rows:
                for trial in self.failed(row):
                    self._again(row, trial, "")
            for run in self.finals():
                self.store.run(run.run_id).forget_failure()
            self.write()

    def report(self, claim: Claim, rows: Mapping[int, float]) -> Verdict:
        """Tell the values of steps (from 1); what to do with the trial then."""
        new = {step: value for step, value in sorted(rows.items()) if step not in claim.reported}
        with self.lock:
            if not self._mine(claim):
                return "lost"
            for step, value in new.items():
                claim.trial.report(value, step)
            claim.reported |= set(new)
            return "prune" if new and claim.trial.should_prune() else "go on"

    def complete(self, claim: Claim, value: float) -> None:
        """The trial is done, and worth `value`."""
        self._end(claim, TrialState.COMPLETE, value)

    def prune(self, claim: Claim, why: str) -> None:
        """The trial ended early."""
        self._end(claim, TrialState.PRUNED, ended=why)

    def fail(self, claim: Claim, why: str) -> None:
        """The trial cannot be done."""
        self._end(claim, TrialState.FAIL, failed=why)

    def give_back(self, claim: Claim, died: bool = False) -> None:
        """The worker has to leave, or others of it died: another goes on."""
        with self.lock:
            if self._mine(claim):
                self._again(claim.row, self._now(claim), "its worker had to leave", died)
                self.write()

    def _end(self, claim: Claim, state: TrialState, value: float | None = None, **why: str) -> None:
        with self.lock:
            if self._mine(claim):
                spent = {run.run_id: self._used(run.run_id) for run in claim.runs}
                claim.trial.set_user_attr("spent", spent)
                self._tell(claim.row, claim.trial.number, state, value, **why)
                self.write()

    def _used(self, run_id: str) -> tuple[int, float]:
        """(epochs, seconds) of a run; an epoch in which it failed, or diverged, counts as one."""
        folder = self.store.run(run_id)
        rows = folder.metrics()
        seconds = sum(row.get("epoch_seconds", 0.0) for row in rows)
        if folder.state() != "failed":
            return len(rows), round(seconds, 3)
        began = max([*folder.attempt_times()[-1:], *(row["time"] for row in rows[-1:])])
        return len(rows) + 1, round(seconds + max(0.0, folder.failed_at() - began), 3)

    def _now(self, claim: Claim) -> FrozenTrial:
        return self.all(claim.row.name)[claim.trial.number]

    def _mine(self, claim: Claim) -> bool:
        """Whether nobody thought its worker dead and took the trial over."""
        return self._now(claim).state is TrialState.RUNNING

    def _tell(
        self, row: SearchRow, number: int, state: TrialState, value: float | None = None,
        **told: str,
    ) -> None:  # fmt: skip
        study = self.studies[row.name]
        trial_id = self.all(row.name)[number]._trial_id
        for name, text in told.items():
            study._storage.set_trial_user_attr(trial_id, name, text)
        study.tell(number, value, state=state)

    def take_over(self) -> None:
        """From now on the record is of this search, and not of another version of its file."""
        with self.lock:
            self.write(first=True)

    def write(self, first: bool = False) -> None:
        """Bring the record of the search up to date, unless a newer search has taken it over."""
        from harness.search.record import record

        with self.lock:
            stored = self.store.read_search(self.search.name, self.search.preset)
            if first or stored.get("search", {}).get("digest") in (None, self.search.digest):
                self.store.write_search(record(self))


def silent(file: Path) -> bool:
    """Whether the lease of a worker on another host was not renewed for long."""
    if not holder_alive(file) or lease_holder(file).get("host") == socket.gethostname():
        return False
    try:
        return time.time() - file.stat().st_mtime > SILENT_SECONDS
    except FileNotFoundError:
        return False


def forget(file: Path) -> None:
    """Remove the lease of a worker that has ended."""
    for part in (file, file.with_suffix(".lock")):
        part.unlink(missing_ok=True)
