"""How two rows differ, and how sure that is: other seeds and samples would give another value.

The difference of two rows is a table of seeds by samples, and both are draws: a run with another
seed ends elsewhere, and another test set would hold other videos. Its variance is that of a crossed
design, the part of the seeds plus that of the groups less what both contain, with Satterthwaite's
degrees of freedom. Samples that come in groups (a video, a subject) count as one draw per group.

Sources: Satterthwaite 1946; the two-way layout of Owen, "The pigeonhole bootstrap" (2007), sec. 3;
McNemar 1947; Cohen 1988 for the effect size h.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from reports.statistics import ALPHA, MIN_SEEDS, NO_SPREAD

POWER = 0.8
"""with which the smallest difference is said to be found"""
FAR = 3.0
"""standard deviations over seeds"""
Floats = npt.NDArray[np.float64]
Mark = Literal["best", "tied", ""]


class Parts(NamedTuple):
    """Variance of a mean difference, as `crossed` estimates it."""

    seeds: float
    clusters: float
    both: float
    """contained in either"""

    def combined(self, seeds: int, clusters: int) -> tuple[float, float]:
        """(variance, degrees of freedom) of a table of so many."""
        variance = max(self.seeds + self.clusters - self.both, self.seeds, self.clusters)
        squares = (
            self.seeds**2 / (seeds - 1)
            + self.clusters**2 / (clusters - 1)
            + self.both**2 / ((seeds - 1) * (clusters - 1))
        )
        least = min(seeds, clusters) - 1.0
        return variance, max(least, variance**2 / squares) if squares > 0 else least

    def scaled(self, by: float) -> Parts:
        """As if there were 1 / `by` times as many seeds."""
        alone = max(0.0, self.clusters - self.both)
        return Parts(self.seeds * by, alone + self.both * by, self.both * by)


@dataclass(frozen=True)
class Difference:
    """First minus second, as shares."""

    mean: float
    error: float
    """standard error"""
    freedom: float
    """degrees of freedom of the t distribution"""
    seeds: int
    clusters: int
    """groups, or samples where they come alone"""
    spread: float
    """standard deviation of the difference over seeds, 0 for one seed"""
    parts: Parts | None = None
    """what its variance consists of; None for one seed"""
    folds: bool = False
    """whether each seed was tested on samples of its own"""

    @property
    def interval(self) -> tuple[float, float]:
        """95 %."""
        reach = self._quantile(1 - ALPHA / 2) * self.error
        return self.mean - reach, self.mean + reach

    @property
    def p(self) -> float:
        """Two-sided, of no difference."""
        if self.error == 0:
            return 0.0 if self.mean else 1.0
        from scipy import stats

        return 2 * float(stats.t.sf(abs(self.mean) / self.error, self.freedom))

    def p_equal(self, margin: float) -> float:
        """Of a true difference of `margin` or more, either way: two one-sided tests."""
        if self.error == 0:
            return 0.0 if abs(self.mean) < margin else 1.0
        from scipy import stats

        return float(stats.t.sf((margin - abs(self.mean)) / self.error, self.freedom))

    @property
    def detectable(self) -> float:
        """The smallest true difference that would be found four times in five."""
        return self.reach(ALPHA / 2)

    def reach(self, alpha: float, power: float = POWER) -> float:
        """How far a truth must be from what a one-sided test at `alpha` refutes, to be told from it
        four times in five."""
        return (self._quantile(1 - alpha) + self._quantile(power)) * self.error

    def with_seeds(self, seeds: int) -> Difference | None:
        """What `seeds` seeds would leave of its error, if it is what it seems; None if unknown."""
        if self.parts is None:
            return None
        parts = self.parts.scaled(self.seeds / seeds)
        variance, freedom = parts.combined(seeds, self.clusters)
        return replace(self, error=math.sqrt(variance), freedom=freedom, seeds=seeds, parts=parts)

    @property
    def enough(self) -> bool:
        """Whether there are runs enough, and they differ, to decide anything."""
        return self.seeds >= MIN_SEEDS and self.spread > NO_SPREAD

    @property
    def decided(self) -> bool:
        """Whether it is significant, by runs enough to say so."""
        return self.enough and self.p < ALPHA

    def _quantile(self, level: float) -> float:
        from scipy import stats  # takes half a second to import

        return float(stats.t.ppf(level, self.freedom))


def crossed(values: Floats, groups: npt.NDArray[np.str_]) -> Difference | None:
    """Of (seeds, samples) differences on the same samples; None where one cluster says nothing."""
    seeds, samples = values.shape
    named = groups if (groups != "").any() else np.arange(samples)
    _, place = np.unique(named, return_inverse=True)
    sizes = np.bincount(place)
    clusters = len(sizes)
    if clusters < 2:
        return None
    means = np.stack([np.bincount(place, weights=row) for row in values]) / sizes
    weights, mean = sizes / samples, float(values.mean())
    by_seed, by_cluster = means @ weights, means.mean(axis=0)
    fair = clusters / (clusters - 1)
    of_clusters = fair * float(np.sum(weights**2 * (by_cluster - mean) ** 2))
    if seeds == 1:
        return Difference(mean, math.sqrt(of_clusters), clusters - 1, 1, clusters, 0.0)
    of_seeds = float(np.var(by_seed, ddof=1)) / seeds
    rest = means - by_seed[:, None] - by_cluster[None] + mean
    of_both = fair * float(np.sum(weights**2 * rest**2)) / (seeds * (seeds - 1))
    parts = Parts(of_seeds, of_clusters, of_both)
    variance, freedom = parts.combined(seeds, clusters)
    spread = float(np.std(by_seed, ddof=1))
    return Difference(mean, math.sqrt(variance), freedom, seeds, clusters, spread, parts)


def nested(parts: Sequence[tuple[Floats, npt.NDArray[np.str_]]]) -> Difference | None:
    """Of seeds that are tested each on samples of its own (folds): (differences, groups) of each.

    The seeds alone, or the groups alone, are asked, whichever is less sure.
    """
    if len(parts) < 2:
        return None
    by_seed = np.array([values.mean() for values, _ in parts])
    spread = float(np.std(by_seed, ddof=1))
    seeds = len(parts)
    of_seeds = spread**2 / seeds
    alone = Parts(of_seeds, 0.0, 0.0)  # a further seed brings further samples
    one = Difference(
        float(by_seed.mean()), math.sqrt(of_seeds), seeds - 1, seeds, seeds, spread, alone
    )
    found = crossed(
        np.concatenate([values for values, _ in parts])[None],
        np.concatenate([groups for _, groups in parts]),
    )
    if found is None:
        return None
    alone = Parts(found.error**2, 0.0, 0.0)
    other = Difference(one.mean, found.error, found.freedom, seeds, found.clusters, spread, alone)
    least = max(one, other, key=lambda each: each.interval[1] - each.interval[0])
    return replace(least, clusters=found.clusters, folds=True)


def marks(
    rows: Sequence[Mapping[int, float]], compared: Callable[[int, int], Difference | None]
) -> list[Mark]:
    """What is printed at each row's value of a metric: `best` is significantly better than all
    others; else those that are not set apart from the one that leads are `tied` with it.

    `rows` map seeds to values, `compared` gives the difference of two. A row with fewer than
    `MIN_SEEDS` seeds is neither, and where it leads nobody is the best. It counts as passed if its
    samples say so and it lies further behind than seeds move the leader, `FAR` times over.
    """
    found: list[Mark] = ["" for _ in rows]
    means = {i: float(np.mean(list(values.values()))) for i, values in enumerate(rows) if values}
    if len(means) < 2:
        return found
    leader = max(means, key=lambda i: means[i])
    if len(rows[leader]) < MIN_SEEDS:
        return found
    far = FAR * float(np.std(list(rows[leader].values()), ddof=1))
    close = []
    for i in means:
        told = compared(leader, i) if i != leader else None
        if told is not None and len(rows[i]) < MIN_SEEDS:  # of its seeds nothing is known
            passed = told.p < ALPHA and told.mean > 0 and means[leader] - means[i] > far > 0
        else:
            passed = told is not None and told.decided and told.mean > 0
        if i != leader and not passed:
            close.append(i)
    if not close:
        found[leader] = "best"
        return found
    for i in [leader, *close]:
        if len(rows[i]) >= MIN_SEEDS:
            found[i] = "tied"
    return found if found.count("tied") > 1 else ["" for _ in rows]


def mcnemar(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> tuple[int, int, float]:
    """(right in the first alone, in the second alone, exact p) of two runs on the same samples."""
    from scipy import stats

    only, other = int((first & ~second).sum()), int((~first & second).sum())
    if only + other == 0:
        return only, other, 1.0
    return only, other, float(stats.binomtest(only, only + other).pvalue)


def cohens_h(first: float, second: float) -> float:
    """Effect size of two shares: 0.2 small, 0.5 medium, 0.8 large."""
    return 2 * (math.asin(math.sqrt(first)) - math.asin(math.sqrt(second)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted so that of all tests at most one in twenty families has a false one (Holm 1979)."""
    order = np.argsort(p_values)
    adjusted, before = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        before = max(before, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = before
    return adjusted
