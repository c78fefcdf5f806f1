"""Optuna's samplers and pruners, by name and with their own options.

A sampler is made anew for each proposal, its random numbers keyed by (seed, proposal): the sequence
of proposals depends on what came before, and not on which process asks, or how often it was killed.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import optuna

from harness.config import no_such_key
from harness.search.spec import Parameter, Pruner, Sampler, grid_of

optuna.logging.set_verbosity(optuna.logging.WARNING)

SAMPLERS: Mapping[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "gp": optuna.samplers.GPSampler,
    "random": optuna.samplers.RandomSampler,
    "grid": optuna.samplers.GridSampler,
    "qmc": optuna.samplers.QMCSampler,
}
PRUNERS: Mapping[str, Callable[..., optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "asha": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
}
OURS = {
    "seed", "search_space", "warn_independent_sampling", "warn_asynchronous_seeding",
    "independent_sampler", "constraints_func", "gamma", "weights",
    "consider_prior", "consider_magic_clip", "prior_weight",
}  # fmt: skip
"""options that are set here, or that are no plain values, or on their way out of Optuna"""
STEADY = {"tpe": {"multivariate": True, "constant_liar": True}}
"""defaults of Optuna 5, written out: version 4 has others"""
ONE_SEED = ("grid", "qmc")
"""samplers whose proposals are parts of one sequence"""


class Grid(optuna.samplers.GridSampler):
    """A grid that does not ask a loop to stop, which only `Study.optimize` has."""

    def after_trial(self, *args: Any, **kwargs: Any) -> None:
        pass


def sampler(
    spec: Sampler, space: Mapping[str, Parameter], seed: int, proposal: int
) -> optuna.samplers.BaseSampler:
    """For the proposal of that number, from 0. Raises TypeError or ValueError for odd options."""
    cls = Grid if spec.name == "grid" else SAMPLERS[spec.name]
    mixed = int(np.random.SeedSequence([seed, proposal]).generate_state(1)[0])
    options = {**STEADY.get(spec.name, {}), **spec.options}
    known = inspect.signature(cls).parameters
    if spec.name == "grid":
        options["search_space"] = {key: grid_of(one) for key, one in space.items()}
    for name in ("warn_independent_sampling", "warn_asynchronous_seeding"):
        if name in known:
            options[name] = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "experimental", of what has been there for years
        return cls(seed=seed if spec.name in ONE_SEED else mixed, **options)


def pruner(spec: Pruner, steps: int) -> optuna.pruners.BasePruner:
    """For trials of so many steps. Raises TypeError or ValueError for odd options."""
    options = dict(spec.options)
    if spec.name == "hyperband":
        options.setdefault("max_resource", steps)
    if spec.name == "asha":
        options.setdefault("min_resource", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PRUNERS[spec.name](**options)


def option_problems(spec: Sampler | Pruner) -> Iterator[tuple[str, str]]:
    """(option, what is wrong with it)."""
    known = SAMPLERS if isinstance(spec, Sampler) else PRUNERS
    names = [
        name for name in inspect.signature(known[spec.name]).parameters
        if name not in OURS and name not in ("args", "kwargs")
    ]  # fmt: skip
    for name in spec.options:
        if name not in names:
            yield name, no_such_key(name, names)


def distributions(
    space: Mapping[str, Parameter],
) -> dict[str, optuna.distributions.BaseDistribution]:
    """The parameters as Optuna writes them down."""
    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for key, one in space.items():
        if one.categorical is not None:
            found[key] = optuna.distributions.CategoricalDistribution(one.categorical)
        elif one.integer is not None:
            step = int(one.step or 1)
            found[key] = optuna.distributions.IntDistribution(*one.integer, step=step)
        else:
            log = one.log_uniform is not None
            found[key] = optuna.distributions.FloatDistribution(*one.span, log=log, step=one.step)
    return found


def importances(
    space: Mapping[str, Parameter],
    done: Sequence[tuple[Mapping[str, Any], float]],
    direction: Literal["maximize", "minimize"],
) -> dict[str, float]:
    """Parameter -> share of what the values vary by (Hutter et al. 2014, by Optuna); empty where
    that cannot be told: of one parameter, or none that all trials have."""
    known = distributions(space)
    study = optuna.create_study(direction=direction)
    for params, value in done:
        own = {key: known[key] for key in params}
        trial = optuna.trial.create_trial(value=value, params=dict(params), distributions=own)
        study.add_trial(trial)
    if len(space) == 1:
        return {}
    try:
        fanova = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(optuna.importance.get_param_importances(study, evaluator=fanova))
    except (RuntimeError, ValueError):
        return {}


def grid_size(space: Mapping[str, Parameter]) -> int:
    """How many trials a grid has."""
    return int(np.prod([len(grid_of(one) or ()) for one in space.values()]))
