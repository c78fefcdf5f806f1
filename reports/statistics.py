"""Means, spreads and tests; small functions of plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MIN_SEEDS = 3
"""fewer seeds than this decide nothing"""
ALPHA = 0.05
NO_SPREAD = 1e-12
"""a standard deviation below this is rounding"""


@dataclass(frozen=True)
class Summary:
    """A row's value of one metric over its seeds."""

    mean: float
    std: float | None
    """sample standard deviation (n - 1 in the denominator); None for one seed"""
    n: int


def summary(values: Sequence[float]) -> Summary | None:
    """None where there is no value."""
    if not values:
        return None
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(float(np.mean(values)), std, len(values))


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Confidence interval of the mean; None with fewer than two values."""
    found = summary(values)
    if found is None or found.std is None:
        return None
    from scipy import stats  # takes half a second to import

    reach = float(stats.t.ppf(0.5 + level / 2, found.n - 1)) * found.std / math.sqrt(found.n)
    return found.mean - reach, found.mean + reach


def significantly_better(first: Mapping[int, float], second: Mapping[int, float]) -> bool:
    """Whether `first` beats `second` in a two-sided paired t test over the seeds they share.

    Both map a seed to a value. Differences that do not vary at all come from models that do not
    depend on the seed; they say nothing about its spread and are not significant.
    """
    shared = sorted(set(first) & set(second))
    found = summary([first[seed] - second[seed] for seed in shared])
    if found is None or found.n < MIN_SEEDS or found.std is None or found.std < NO_SPREAD:
        return False
    t = found.mean / (found.std / math.sqrt(found.n))
    from scipy import stats

    return t > 0 and 2 * float(stats.t.sf(t, found.n - 1)) < ALPHA


def clear_winner(
    rows: Sequence[Mapping[int, float]], differences: Callable[[int, int], Sequence[float]]
) -> int | None:
    """Index of the row with the largest mean, if it is significantly better than the next one.

    Two things have to say so: the seeds, and the sampled groups or samples, whose differences
    between two rows `differences` gives. Other seeds, or another test set, would agree then.
    """
    means = [(float(np.mean(list(values.values()))), i) for i, values in enumerate(rows) if values]
    if len(means) < 2:
        return None
    (_, best), (_, second) = sorted(means, key=lambda pair: -pair[0])[:2]
    if not significantly_better(rows[best], rows[second]):
        return None
    interval = t_interval(differences(best, second))
    return best if interval is not None and interval[0] > 0 else None


def exceeds(share: float, ceiling: float, samples: int) -> bool:
    """Whether `share` of `samples` lies more than 3 binomial standard errors above `ceiling`."""
    return share - ceiling > 3 * math.sqrt(ceiling * (1 - ceiling) / samples)
