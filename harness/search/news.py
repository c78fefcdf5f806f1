"""What is said of a search: a line as a trial or a final run ends, and a summary."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from harness.search.desk import Desk


@dataclass
class Told:
    """What was already said of a search."""

    trials: set[tuple[str, int]] = field(default_factory=set)
    finals: set[str] = field(default_factory=set)


def known(desk: Desk) -> Told:
    """All that had ended before."""
    trials = {
        (row.name, t.number)
        for row in desk.search.rows
        for t in desk.all(row.name)
        if t.state.is_finished()
    }
    finals = {r.run_id for r in desk.finals() if desk.store.run(r.run_id).state() == "done"}
    return Told(trials, finals)


def say_news(desk: Desk, told: Told) -> None:
    """A line for each trial and final run that has ended since."""
    for row in desk.search.rows:
        for trial in desk.all(row.name):
            if not trial.state.is_finished() or (row.name, trial.number) in told.trials:
                continue
            told.trials.add((row.name, trial.number))
            values = "  ".join(f"{key.split('.', 1)[-1]} {_short(value)}"
                               for key, value in trial.params.items())  # fmt: skip
            attrs = trial.user_attrs
            why = attrs.get("failed") or attrs.get("ended") or ""
            score = "" if trial.value is None else f"{100 * trial.value:.1f}"
            name = f"{row.label}, trial {trial.number}"
            print(f"{trial.state.name.lower():<9} {name:<36} {score:>5}  {values}  {why}".rstrip(),
                  file=sys.stderr, flush=True)  # fmt: skip
    for run in desk.finals():
        state = desk.store.run(run.run_id).state()
        if state in ("done", "failed") and run.run_id not in told.finals:
            told.finals.add(run.run_id)
            name = f"{run.label}, {run.block or 'final'}, seed {run.spec.seed}"
            print(f"{state:<9} {name}", file=sys.stderr, flush=True)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def summary(desk: Desk) -> str:
    """One line per row: trials, and the best of them."""
    lines = [f"{desk.search.title}: {desk.search.metric}"]
    for row in desk.search.rows:
        states = [trial.state.name for trial in desk.all(row.name)]
        counts = ", ".join(
            f"{states.count(state)} {state.lower()}"
            for state in ("COMPLETE", "PRUNED", "RUNNING", "WAITING", "FAIL")
            if state in states
        )
        best = desk.best(row)
        if best is not None:
            values = ", ".join(f"{key} {_short(value)}" for key, value in best.params.items())
            told = f"best {100 * float(best.value or 0):.1f} with {values}"
        elif desk.given_up(row):
            told = f"given up: {desk.failed(row)[-1].user_attrs['failed'].splitlines()[-1]}"
        else:
            told = "not over" if desk.left(row) else "no trial was complete"
        lines.append(f"{row.label:<28} {counts or 'no trials'}; {told}")
    done = [desk.store.run(run.run_id).state() for run in desk.finals()]
    lines.append(f"final runs: {done.count('done')} of {len(done)} done")
    return "\n".join(lines)


def complete(desk: Desk) -> bool:
    """Whether every row has its trials, and every final run its result."""
    good = all(desk.best(row) is not None and not desk.given_up(row) for row in desk.search.rows)
    return good and all(desk.store.run(run.run_id).state() == "done" for run in desk.finals())
