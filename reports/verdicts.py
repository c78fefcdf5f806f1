"""What differences say of claims that were made before: a verdict for each.

    supported    the row is better than the other
    against      it is worse
    equivalent   the two differ by less than the margin, either way
    undecided    none of these can be said yet; that is not the same as equal

Each is a test over all claims of a sweep together (Holm), of other seeds and other samples at once,
at `LEVEL`. What is equivalent may still be above zero: it is then too small to matter.

Sources: Schuirmann 1987 for the two one-sided tests; Holm 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reports.differences import POWER, Difference, holm
from reports.statistics import MIN_SEEDS

LEVEL = 0.04
"""so that of 100 verdicts at most 5 are wrong, though variances are estimated of few seeds"""
MOST_SEEDS = 100
"""more are not asked for"""
Verdict = Literal["supported", "equivalent", "against", "undecided"]


@dataclass(frozen=True)
class Judged:
    """A claim's difference and what follows from it."""

    difference: Difference | None
    """None where the rows cannot be compared yet"""
    margin: float
    """as a share"""
    verdict: Verdict
    p: float = 1.0
    """of no difference, adjusted for all claims"""
    p_equal: float = 1.0
    """of a difference of the margin or more, adjusted likewise"""
    claims: int = 1
    """how many are judged together"""

    @property
    def needed(self) -> int | None:
        """Seeds that would settle it, four times in five, if the difference is what it seems; None
        if so many are not enough, or nothing is known of how seeds differ."""
        if self.difference is None or self.difference.parts is None or not self.difference.enough:
            return None
        for seeds in range(max(MIN_SEEDS, self.difference.seeds + 1), MOST_SEEDS + 1):
            then = self.difference.with_seeds(seeds)
            assert then is not None
            if settled(then, abs(then.mean), self.margin, self.claims):
                return seeds
        return None

    @property
    def floor(self) -> float:
        """How far from zero, or within the margin, a difference must be to be settled by any number
        of seeds: what is left are the samples of the test split."""
        assert self.difference is not None
        most = self.difference.with_seeds(MOST_SEEDS)
        return (most or self.difference).reach(LEVEL / 2 / self.claims)


def settled(then: Difference, true: float, margin: float, claims: int = 1) -> bool:
    """Whether a true difference of that size would be found, or found to be below the margin, four
    times in five."""
    found = true >= then.reach(LEVEL / 2 / claims)
    return found or margin - true >= below(then, claims)


def below(then: Difference, claims: int) -> float:
    """How far within the margin a truth must be to be found there four times in five: in both
    one-sided tests, whose misses add up."""
    return then.reach(LEVEL / claims, (1 + POWER) / 2)


def verdicts(found: Sequence[tuple[Difference | None, float]]) -> list[Judged]:
    """Of the (difference, margin as a share) of each claim of a sweep, judged together."""
    known = [(each, margin) for each, margin in found if each is not None]
    differ = iter(holm([each.p for each, _ in known]))
    equal = iter(holm([each.p_equal(margin) for each, margin in known]))
    judged = []
    for each, margin in found:
        if each is None:
            judged.append(Judged(None, margin, "undecided"))
            continue
        p, p_equal = next(differ), next(equal)
        verdict: Verdict = "undecided"
        if each.enough and p_equal < LEVEL:
            verdict = "equivalent"
        elif each.enough and p < LEVEL:
            verdict = "supported" if each.mean > 0 else "against"
        judged.append(Judged(each, margin, verdict, p, p_equal, len(known)))
    return judged


__all__ = ["LEVEL", "Judged", "Verdict", "below", "settled", "verdicts"]
