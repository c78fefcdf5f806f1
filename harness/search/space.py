"""From the parameters of a row to the settings of a trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from harness.search.spec import Parameter, holds

if TYPE_CHECKING:
    import optuna

Space = Mapping[str, Parameter]


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Values of the parameters that apply, in order; the trial remembers them."""
    values: dict[str, Any] = {}
    for key, one in space.items():
        if holds(one, values):
            values[key] = _suggest(trial, key, one)
    return values


def _suggest(trial: optuna.Trial, key: str, one: Parameter) -> Any:
    if one.categorical is not None:
        return trial.suggest_categorical(key, one.categorical)
    if one.integer is not None:
        return trial.suggest_int(key, *one.integer, step=int(one.step or 1))
    log = one.log_uniform is not None
    return trial.suggest_float(key, *one.span, step=one.step, log=log)


def settings_of(values: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Setting -> value, with those that follow a parameter."""
    return {name: value for key, value in values.items() for name in (key, *space[key].also)}


def examples(space: Space) -> Iterator[dict[str, Any]]:
    """Values of a few trials, among them each end of every range and each category."""
    for key, one in space.items():
        for value in one.categorical if one.categorical is not None else one.span:
            yield _with(space, {**_conditions(space, key), key: value})


def _conditions(space: Space, key: str) -> dict[str, Any]:
    """What has to be so that `key` is tried."""
    found: dict[str, Any] = {}
    for other, wanted in space[key].when.items():
        first = wanted[0] if isinstance(wanted, list) else wanted
        found |= {**_conditions(space, other), other: first}
    return found


def _with(space: Space, given: Mapping[str, Any]) -> dict[str, Any]:
    """A whole trial with the `given` values and the first of every other parameter."""
    values: dict[str, Any] = {}
    for key, one in space.items():
        if key in given or holds(one, values):
            first = one.categorical[0] if one.categorical is not None else one.span[0]
            values[key] = given.get(key, first)
    return values


def problems(space: Space) -> Iterator[tuple[str, str]]:
    """(parameter, what is wrong with its conditions)."""
    above: list[str] = []
    for key, one in space.items():
        for other, wanted in one.when.items():
            known = space[other].categorical if other in above else None
            accepted = wanted if isinstance(wanted, list) else [wanted]
            if other not in above:
                told = ", ".join(above) or "none"
                yield key, f"when: no parameter above it is called {other!r}. Above it: {told}"
            elif known is not None and (odd := [v for v in accepted if v not in known]):
                yield key, f"when: {other} is never {odd[0]!r}; it is one of {known}"
        above.append(key)
