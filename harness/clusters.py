"""The mean of samples that come in groups, and how sure it is.

Source: the cluster-robust variance of a mean (Liang and Zeger 1986), with a t quantile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def clustered_mean(
    values: npt.NDArray[np.float64], groups: Sequence[str], level: float = 0.95
) -> tuple[float, float]:
    """Mean of the samples, and how far its interval reaches to either side, NaN with one group.

    Samples of a group (a video, a subject) may depend on each other; without groups none do.
    """
    from scipy import stats

    mean = float(values.mean())
    names = groups if any(groups) else [str(number) for number in range(len(values))]
    _, place = np.unique(np.array(names), return_inverse=True)
    sums = np.bincount(place, weights=values - mean)
    count = len(sums)
    if count < 2:
        return mean, math.nan
    spread = math.sqrt(count / (count - 1) * float((sums**2).sum())) / len(values)
    return mean, float(stats.t.ppf(0.5 + level / 2, count - 1)) * spread
