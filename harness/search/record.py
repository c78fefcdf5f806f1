"""What is stored of a search: all that its report prints, and enough to rebuild its studies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial

from harness.plan import PlannedRun
from harness.search.rows import trial_seeds
from harness.search.storage import masked

if TYPE_CHECKING:
    from harness.search.desk import Desk
    from harness.search.rows import SearchRow


def record(desk: Desk) -> dict[str, Any]:
    """As `Sweep.record`, with the runs of every trial and of the best settings, and `search`."""
    search, spec = desk.search, desk.search.spec
    written = search.written.record()
    shown = {run.run_id for run in search.written.runs if run.in_table}
    finals = [run for run in desk.finals() if run.block == spec.best or run.run_id not in shown]
    return {
        **written,
        "runs": [*written["runs"], *map(_shown, finals), *_trial_runs(desk)],
        "search": {
            "digest": search.digest,
            "metric": search.metric,
            "objective": spec.objective.model_dump(),
            "sampler": spec.sampler.model_dump(),
            "pruner": spec.pruner.model_dump(),
            "budget": spec.budget.model_dump(),
            "seed": spec.seed,
            "seeds": trial_seeds(spec.seeds),
            "written": spec.written,
            "best": spec.best,
            "storage": masked(desk.url) or desk.journal.name,
            "order": [row.name for row in search.rows],
            "rows": {row.name: _row(desk, row) for row in search.rows},
        },
    }


def _shown(run: PlannedRun) -> dict[str, Any]:
    return {
        "row": run.row,
        "label": run.label,
        "paper": run.paper,
        "block": run.block,
        "published": dict(run.published),
        "in_table": run.in_table,
        "seed": run.spec.seed,
        "run_id": run.run_id,
    }


def _trial_runs(desk: Desk) -> Iterator[dict[str, Any]]:
    """Of each trial that has runs."""
    for row in desk.search.rows:
        for trial in desk.all(row.name):
            runs = trial.user_attrs.get("runs", ())
            for seed, run_id in zip(trial_seeds(desk.search.spec.seeds), runs, strict=False):
                yield {
                    "row": f"{row.name}, trial {trial.number}",
                    "label": f"{row.label}, trial {trial.number}",
                    "paper": None,
                    "published": {},
                    "in_table": False,
                    "seed": seed,
                    "run_id": run_id,
                }


def _row(desk: Desk, row: SearchRow) -> dict[str, Any]:
    study, best = desk.studies[row.name], desk.best(row)
    return {
        "label": row.label,
        "study": row.study,
        "optuna": study.user_attrs["optuna"],
        "order": list(row.space),
        "space": {key: one.model_dump(mode="json") for key, one in row.space.items()},
        "trials": [_trial(trial) for trial in desk.all(row.name)],
        "written": dict(row.written),
        "left": desk.left(row),
        "given_up": desk.given_up(row),
        "best": None if best is None else best.number,
    }


def _trial(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name,
        "params": trial.params,
        "value": trial.value,
        "steps": sorted(trial.intermediate_values.items()),
        "attrs": trial.user_attrs,
        "system": json.loads(json.dumps(trial.system_attrs, default=str)),
    }
