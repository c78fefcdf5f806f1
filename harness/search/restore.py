"""Bring back what a damaged or deleted storage lost of a row's trials, from the search's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

OPEN = (TrialState.RUNNING.name, TrialState.WAITING.name)
LOST = "the storage lost how it ended: another trial has it from the record"


def restore(
    study: optuna.Study,
    kept: Sequence[Mapping[str, Any]],
    known: Mapping[str, BaseDistribution],
) -> None:
    """Add the trials of a record, `kept`, that the study lacks, or of which it lacks the end.

    Those that had not ended are put into the queue.
    """
    stored = study.get_trials(deepcopy=False)
    lost = list(kept[len(stored) :])
    for told, trial in zip(kept, stored, strict=False):
        if not trial.state.is_finished() and told["state"] not in OPEN:
            _void(study, trial)
            lost.append(told)
    numbers: dict[int, int] = {}
    for told in sorted(lost, key=lambda told: int(told["number"])):
        attrs = dict(told["attrs"])
        if "retry_of" in attrs:
            attrs["retry_of"] = numbers.get(attrs["retry_of"], attrs["retry_of"])
        numbers[told["number"]] = len(study.get_trials(deepcopy=False))
        if told["state"] in OPEN:
            attrs = {k: v for k, v in attrs.items() if k not in ("worker", "runs")}
            study.enqueue_trial(told["params"], user_attrs=attrs)
        else:
            study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState[told["state"]],
                    value=told["value"],
                    params=told["params"],
                    distributions={key: known[key] for key in told["params"]},
                    user_attrs=attrs,
                    system_attrs=told["system"],
                    intermediate_values={int(step): value for step, value in told["steps"]},
                )
            )


def _void(study: optuna.Study, trial: FrozenTrial) -> None:
    """End a trial that counts for nothing."""
    if trial.state is TrialState.WAITING:  # which Optuna does not let one end
        study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
    study._storage.set_trial_user_attr(trial._trial_id, "void", LOST)
    study.tell(trial.number, state=TrialState.FAIL)
