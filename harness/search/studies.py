"""The studies of a search, one for each row: what was tried, what came out, what is left to do."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.plan import PlannedRun
from harness.search.engines import distributions, pruner
from harness.search.restore import restore
from harness.search.rows import Search, SearchRow, Trials
from harness.search.storage import FileLock, cut_tail, opened
from harness.store import Store

COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING)


class Studies:
    """Opens the studies of a search, and makes them where they are not there yet."""

    def __init__(self, search: Search, store: Store, url: str | None) -> None:
        self.search, self.store, self.url = search, store, url
        self._finals: dict[tuple[str, int], tuple[PlannedRun, ...]] = {}
        self.folder = store.search(search.name, search.preset)
        self.workers = self.folder / "workers"
        self.workers.mkdir(parents=True, exist_ok=True)
        self.journal = self.folder / "study.journal"
        then = (lambda: cut_tail(self.journal)) if url is None else (lambda: None)
        self.lock = FileLock(self.folder / "lock", then)
        with self.lock:
            self._storage = opened(self.journal, url, self.lock)
            self.studies = {row.name: self._study(row, self._storage) for row in search.rows}
            self._bring_back()

    def close(self) -> None:
        """Leave the database, if it is one."""
        if isinstance(self._storage, optuna.storages.RDBStorage):
            self._storage.remove_session()
            self._storage.engine.dispose()

    @cached_property
    def trials(self) -> Trials:
        """Plans the runs of trials; made when the first one is asked for."""
        return Trials(self.search)

    def _study(self, row: SearchRow, storage: Any) -> optuna.Study:
        spec = self.search.spec
        if row.study in optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name=row.study, storage=storage)
        else:
            direction = spec.objective.direction
            study = optuna.create_study(storage=storage, study_name=row.study, direction=direction)
        study.pruner = pruner(spec.pruner, row.steps)
        told = {
            "row": row.name,
            "objective": self.search.metric,
            "sampler": spec.sampler.model_dump(),
            "pruner": spec.pruner.model_dump(),
            "seed": spec.seed,
            "optuna": sorted({*study.user_attrs.get("optuna", []), optuna.__version__}),
        }
        for name, value in told.items():
            if study.user_attrs.get(name) != value:
                study.set_user_attr(name, value)
        return study

    def _bring_back(self) -> None:
        """What the record knows of trials and the storage lost: it was damaged, or deleted."""
        stored = self.store.read_search(self.search.name, self.search.preset)
        for row in self.search.rows:
            kept = stored.get("search", {}).get("rows", {}).get(row.name, {})
            if kept.get("study") == row.study:
                restore(self.studies[row.name], kept["trials"], distributions(row.space))

    def all(self, row: str) -> list[FrozenTrial]:
        """Every trial of a row, by number."""
        return self.studies[row].get_trials(deepcopy=False)

    def left(self, row: SearchRow) -> bool:
        """Whether the row has trials that are not begun, or not ended."""
        open_ = (TrialState.RUNNING, TrialState.WAITING)
        return any(t.state in open_ for t in self.all(row.name)) or self.room(row)

    def room(self, row: SearchRow) -> bool:
        """Whether another trial may be proposed."""
        trials, budget = self.all(row.name), self.search.spec.budget
        if sum(t.state in COUNTED for t in trials) >= row.trials or self.given_up(row):
            return False
        spent = self.spent(row).values()
        if budget.minutes is not None and sum(s for _, s in spent) >= 60 * budget.minutes:
            return False
        if budget.epochs is None:
            return True
        ahead = sum(t.state in (TrialState.RUNNING, TrialState.WAITING) for t in trials)
        return sum(e for e, _ in spent) + (ahead + 1) * row.epochs <= budget.epochs

    def given_up(self, row: SearchRow) -> bool:
        """Whether too many of its trials failed."""
        return len(self.failed(row)) >= self.search.spec.failures

    def failed(self, row: SearchRow) -> list[FrozenTrial]:
        """Trials that failed by themselves and were not tried again."""
        trials = self.all(row.name)
        again = {t.user_attrs.get("retry_of") for t in trials}
        return [t for t in trials if "failed" in t.user_attrs and t.number not in again]

    def spent(self, row: SearchRow) -> dict[str, tuple[int, float]]:
        """Run id -> (epochs, seconds of training) of all ended trials; what several share, once."""
        found: dict[str, tuple[int, float]] = {}
        for trial in self.all(row.name):
            found |= {run: (e, s) for run, (e, s) in trial.user_attrs.get("spent", {}).items()}
        return found

    def best(self, row: SearchRow) -> FrozenTrial | None:
        """The best complete trial of a row whose search is over; of equal ones the first. None for
        a row that was given up: it did not have what the others had."""
        if self.left(row) or self.given_up(row):
            return None
        done = [t for t in self.all(row.name) if t.state is TrialState.COMPLETE]
        sign = -1 if self.search.spec.objective.direction == "maximize" else 1
        return min(done, key=lambda t: (sign * float(t.value or 0.0), t.number), default=None)

    def finals(self) -> Iterator[PlannedRun]:
        """Runs that the tables show, as far as they are known."""
        yield from (run for run in self.search.written.runs if run.in_table)
        for row in self.search.rows:
            best = self.best(row)
            if best is not None and (row.name, best.number) not in self._finals:
                self._finals[row.name, best.number] = self.trials.best(row, best.params)
            if best is not None:
                yield from self._finals[row.name, best.number]

    def open_finals(self) -> list[PlannedRun]:
        """Those that nobody is at and that have neither a result nor a failure."""
        settled = ("done", "failed", "running")
        return [r for r in self.finals() if self.store.run(r.run_id).state() not in settled]

    def over(self) -> bool:
        """Whether nothing is left to be done, by anybody."""
        if any(self.left(row) for row in self.search.rows):
            return False
        ends = ("done", "failed")
        return all(self.store.run(run.run_id).state() in ends for run in self.finals())
