"""Means, spreads and tests; small functions of plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def exceeds(share: float, ceiling: float, samples: int) -> bool:
    """Whether `share` of `samples` lies more than 3 binomial standard errors above `ceiling`."""
    return share - ceiling > 3 * math.sqrt(ceiling * (1 - ceiling) / samples)
