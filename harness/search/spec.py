"""The section `search` of a sweep file: what is tried, how it is judged, and how much of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from harness.config import Config

KINDS = ("uniform", "log_uniform", "integer", "categorical")
Scalar = str | bool | int | float | None
Seed = int | dict[str, Any]


def number_of(seed: Seed) -> int:
    """Of a seed that may change other settings too."""
    return int(seed["seed"]) if isinstance(seed, dict) else seed


class Parameter(Config):
    """Values of one setting that are tried: exactly one of the first four."""

    uniform: tuple[float, float] | None = None
    """from, to"""
    log_uniform: tuple[float, float] | None = None
    """from, to, evenly over the orders of magnitude"""
    integer: tuple[int, int] | None = None
    """from, to, both tried"""
    categorical: list[Scalar] | None = Field(default=None, min_length=2)
    """the values themselves"""
    step: float | None = Field(default=None, gt=0)
    """of `uniform` and `integer`: between two values"""
    points: int | None = Field(default=None, ge=2)
    """of a range, for the sampler `grid`: how many values of it, evenly spaced"""
    when: dict[str, Scalar | list[Scalar]] = {}
    """tried only if another parameter, above it, has this value, or one of these"""
    also: list[str] = []
    """other settings that get the same value"""

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def span(self) -> tuple[float, float]:
        """From and to of a range."""
        return self.uniform or self.log_uniform or self.integer or (0, 0)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            what = " and ".join(given) or "none"
            raise ValueError(f"exactly one of {', '.join(KINDS)} is needed, here is {what}")
        if self.categorical is not None:
            values = self.categorical
            twice = [one for place, one in enumerate(values) if one in values[:place]]
            if twice:
                raise ValueError(f"categorical: {twice[0]!r} equals a value before it")
            if self.step is not None or self.points is not None:
                raise ValueError("step and points are for ranges, not for categorical")
            return self
        low, high = self.span
        if low > high:
            raise ValueError(f"{given[0]}: {low:g} is more than {high:g}; write [low, high]")
        if low == high:
            raise ValueError(f"{given[0]}: {low:g} to {high:g} is one value; set it in `base`")
        if self.log_uniform is not None and low <= 0:
            raise ValueError(f"log_uniform: {low:g} has no logarithm; begin above 0")
        if self.log_uniform is not None and self.step is not None:
            raise ValueError("step is for uniform and integer; log_uniform has points")
        if self.integer is not None and self.step is not None and self.step != int(self.step):
            raise ValueError(f"step of integers: a whole number is needed, not {self.step:g}")
        if self.step is not None:
            count = (high - low) / self.step
            if abs(count - round(count)) > 1e-9:
                last = low + self.step * int(count)
                raise ValueError(
                    f"steps of {self.step:g} from {low:g} end at {last:g}, not {high:g}"
                )
        return self


class Objective(Config):
    """What is best."""

    metric: str
    """e.g. `action_top1`; with several seeds their mean"""
    direction: Literal["maximize", "minimize"] = "maximize"
    split: Literal["select", "test"] = "select"
    allow_test: bool = False
    """choose on the very samples that the table shows; it is printed under every table then"""

    @model_validator(mode="after")
    def _not_on_test(self) -> Self:
        if self.split == "test" and not self.allow_test:
            raise ValueError(
                "split: test is what the tables show, and who chooses by it shows what chance "
                "liked best; take select, or write allow_test: true, which every table then says"
            )
        return self


class Sampler(Config):
    """Who proposes."""

    name: Literal["tpe", "gp", "random", "grid", "qmc"] = "tpe"
    options: dict[str, Any] = {}
    """of Optuna's sampler, under its own names"""


class Pruner(Config):
    """Who ends trials that fall behind."""

    name: Literal["none", "median", "asha", "hyperband"] = "none"
    options: dict[str, Any] = {}
    """of Optuna's pruner, under its own names; a step of it is an epoch"""


class Budget(Config):
    """Of every row, so that each gets the same; the first limit that is reached ends its search."""

    trials: int | None = Field(default=None, gt=0)
    """complete or pruned"""
    epochs: int | None = Field(default=None, gt=0)
    """trained in all its trials: none is begun that could exceed them"""
    minutes: float | None = Field(default=None, gt=0)
    """of training in all its trials: none is begun after them"""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.trials is None and self.epochs is None and self.minutes is None:
            raise ValueError("name at least one of trials, epochs, minutes")
        return self


class SearchSpec(Config):
    """A search over the rows of a sweep."""

    space: dict[str, Parameter] = Field(min_length=1)
    """setting, e.g. `train.peak_lr.fusion` -> its values"""
    rows: dict[str, dict[str, Parameter | None]] = {}
    """row -> settings that only it searches, or searches otherwise; null: not this one"""
    objective: Objective
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    budget: Budget
    seeds: list[Seed] = Field(default=[1000], min_length=1)
    """of each trial, numbers or mappings as in the section `seeds`, which has those of the final
    runs: they are others"""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """of the sampler"""
    failures: int = Field(default=3, gt=0)
    """failed trials (not pruned, diverged or killed) after which a row is given up"""
    written: str | None = Field(default="as written", min_length=1)
    """title of the table of rows with the settings that the file has; null: none is made"""
    best: str = Field(default="at the best settings found", min_length=1)
    """title of the table of rows with the settings that the search has found"""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for seed in self.seeds:
            if isinstance(seed, dict) and not isinstance(seed.get("seed"), int):
                raise ValueError("seeds: a mapping needs the key `seed`, a whole number")
        if len({number_of(seed) for seed in self.seeds}) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds} has a seed twice")
        if self.written == self.best:
            raise ValueError("written and best are titles of two tables; they must differ")
        return self

    def space_of(self, row: str) -> dict[str, Parameter]:
        """What a row searches, in order."""
        laid: dict[str, Parameter | None] = {**self.space, **self.rows.get(row, {})}
        return {key: parameter for key, parameter in laid.items() if parameter is not None}


def grid_of(parameter: Parameter) -> list[Scalar] | None:
    """Its values on a grid; None for a range that has neither `points` nor whole numbers."""
    if parameter.categorical is not None:
        return list(parameter.categorical)
    low, high = parameter.span
    if parameter.points is not None:
        count = parameter.points
        if parameter.log_uniform is not None:
            between = math.log(high / low) / (count - 1)
            found = [low * math.exp(between * place) for place in range(count)]
        else:
            found = [low + (high - low) * place / (count - 1) for place in range(count)]
        if parameter.integer is not None:
            return list(dict.fromkeys(round(value) for value in found))
        return [*found[:-1], float(high)]
    step = parameter.step or (1 if parameter.integer is not None else None)
    if step is None:
        return None
    count = int((high - low) / step + 1e-9) + 1
    whole = parameter.integer is not None
    return [int(low + step * i) if whole else low + step * i for i in range(count)]


def holds(parameter: Parameter, values: Mapping[str, Any]) -> bool:
    """Whether a parameter is tried, given those above it."""
    for other, wanted in parameter.when.items():
        accepted = wanted if isinstance(wanted, list) else [wanted]
        if other not in values or values[other] not in accepted:
            return False
    return True
