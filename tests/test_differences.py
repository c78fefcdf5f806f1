"""Differences of rows: against scipy where they overlap, and against data whose truth is known."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar as known_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_effectsize
from statsmodels.stats.weightstats import DescrStatsW

from reports.differences import (
    Difference,
    cohens_h,
    crossed,
    holm,
    marks,
    mcnemar,
    nested,
)

ALONE = np.array([""] * 40)


def test_one_run_against_another_is_the_t_test_of_its_samples():
    values = np.random.default_rng(0).normal(0.1, 1, (1, 40))
    found, known = crossed(values, ALONE), stats.ttest_1samp(values[0], 0)
    assert (found.p, found.freedom) == pytest.approx((known.pvalue, 39))
    assert found.interval == pytest.approx(tuple(known.confidence_interval()))


def test_seeds_that_alone_vary_give_the_t_test_of_the_seeds():
    by_seed = np.array([0.01, 0.03, 0.02])
    found = crossed(np.repeat(by_seed[:, None], 40, axis=1), ALONE)
    known = stats.ttest_1samp(by_seed, 0)
    assert (found.p, found.freedom) == pytest.approx((known.pvalue, 2))


def test_groups_of_equal_size_give_the_t_test_of_their_means():
    rng = np.random.default_rng(1)
    groups = np.repeat([f"video {n}" for n in range(10)], 4)
    values = rng.normal(0, 1, 10)[np.newaxis].repeat(4, 0).T.reshape(1, 40)
    found = crossed(values, groups)
    known = stats.ttest_1samp(values.reshape(10, 4).mean(axis=1), 0)
    assert (found.p, found.clusters) == pytest.approx((known.pvalue, 10))


def test_one_group_says_nothing_of_others():
    assert crossed(np.ones((3, 4)), np.array(["a"] * 4)) is None


def test_folds_are_as_sure_as_the_less_sure_of_seeds_and_groups():
    rng = np.random.default_rng(2)
    parts = [(rng.normal(0.1, 1, 20), np.repeat(["a", "b"], 10)) for _ in range(5)]
    parts = [(v, np.char.add(f"{n} ", g)) for n, (v, g) in enumerate(parts)]
    found = nested(parts)
    known = stats.ttest_1samp([v.mean() for v, _ in parts], 0).confidence_interval()
    low, high = found.interval
    assert high - low >= known.high - known.low - 1e-12
    assert nested(parts[:1]) is None


def drawn(rng, seeds, videos, of_seeds, of_videos, true=0.0):
    """Differences of two models, as known: seeds and videos have parts of their own, segments the
    rest. About 20 segments of a video, as in EPIC-Kitchens-100."""
    sizes = np.maximum(1, rng.poisson(20, videos))
    place = np.repeat(np.arange(videos), sizes)
    values = (
        true
        + rng.normal(0, of_seeds, seeds)[:, None]
        + rng.normal(0, of_videos, videos)[place][None]
        + rng.normal(0, 0.5, (seeds, len(place)))
    )
    return values, place.astype(str)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("of_seeds", "of_videos"), [(0.01, 0.05), (0.01, 0.1), (0.02, 0.2)])
def test_an_interval_of_95_percent_holds_the_truth_in_93_to_97_of_100(seeds, of_seeds, of_videos):
    rng = np.random.default_rng(seeds)
    held = 0
    for _ in range(2000):  # as many runs against others
        low, high = crossed(*drawn(rng, seeds, 138, of_seeds, of_videos, true=0.03)).interval
        held += low <= 0.03 <= high
    assert 0.93 <= held / 2000 <= 0.97


@pytest.mark.parametrize(("seeds", "videos"), [(3, 2), (10, 2), (5, 3), (10, 4), (3, 6)])
def test_of_few_groups_many_seeds_make_nothing_sure(seeds, videos):
    rng, held = np.random.default_rng(seeds), 0
    for _ in range(1000):
        low, high = crossed(*drawn(rng, seeds, videos, 0.01, 0.1)).interval
        held += low <= 0 <= high
    assert held / 1000 >= 0.93


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("rows", [2, 4])
def test_of_equal_rows_one_is_called_the_best_in_at_most_6_of_100(seeds, rows):
    rng, false = np.random.default_rng(rows), 0
    for _ in range(2000):
        videos = rng.normal(0, 0.1, 138)  # what is hard is hard for all
        place = np.repeat(np.arange(138), 10)
        hits = [
            0.5 + videos[place] + rng.normal(0, 0.01, seeds)[:, None]
            + rng.normal(0, 0.05, 138)[place] + rng.normal(0, 0.5, (seeds, len(place)))
            for _ in range(rows)
        ]  # fmt: skip
        values = [dict(enumerate(row.mean(axis=1))) for row in hits]
        names = place.astype(str)
        told = marks(values, lambda i, j, h=hits, n=names: crossed(h[i] - h[j], n))
        false += "best" in told
    assert false / 2000 <= 0.06


def sure(mean, seeds=3):
    return Difference(mean, 1e-4, 2, seeds, 50, 1e-4)


def unsure(mean):
    return Difference(mean, 1.0, 2, 3, 50, 0.1)


THREE = [{0: 0.9, 1: 0.91, 2: 0.92}, {0: 0.5, 1: 0.5, 2: 0.51}, {0: 0.4, 1: 0.4, 2: 0.41}]


def test_the_best_is_better_than_all_others_and_else_those_close_to_it_are_tied():
    assert marks(THREE, lambda i, j: sure(0.4)) == ["best", "", ""]
    one_close = marks(THREE, lambda i, j: unsure(0.4) if j == 1 else sure(0.5))
    assert one_close == ["tied", "tied", ""]
    assert marks(THREE, lambda i, j: None) == ["tied", "tied", "tied"]


def test_a_row_with_few_seeds_is_never_marked_and_keeps_others_from_winning():
    near = [*THREE[:2], {0: 0.89}]  # less than three standard deviations of 0.01 behind
    assert marks(near, lambda i, j: sure(0.4, seeds=1 if j == 2 else 3)) == ["", "", ""]
    behind = [*THREE[:2], {0: 0.3}]
    assert marks(behind, lambda i, j: sure(0.4, seeds=1 if j == 2 else 3)) == ["best", "", ""]
    leads = [*THREE[:2], {0: 0.99}]
    assert marks(leads, lambda i, j: sure(0.4)) == ["", "", ""]
    assert marks([THREE[0], {}], lambda i, j: sure(0.4)) == ["", ""]


def test_a_difference_that_no_seed_changes_is_not_decided():
    values = np.tile(np.random.default_rng(0).normal(0.5, 0.1, 40), (3, 1))
    found = crossed(values, ALONE)
    assert found.p < 0.001
    assert not found.decided


def test_mcnemar_is_the_binomial_test_of_the_samples_that_flipped():
    first = np.array([1, 1, 1, 1, 0, 0, 1, 1], bool)
    second = np.array([0, 0, 0, 0, 1, 0, 1, 1], bool)
    only, other, p = mcnemar(first, second)
    assert (only, other) == (4, 1)
    assert p == pytest.approx(stats.binomtest(4, 5).pvalue)
    table = [[int((first & second).sum()), only], [other, int((~first & ~second).sum())]]
    assert p == pytest.approx(known_mcnemar(table, exact=True).pvalue)
    assert mcnemar(first, first) == (0, 0, 1.0)


def test_holm_is_that_of_the_textbook_and_of_statsmodels():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    values = np.random.default_rng(3).uniform(0, 0.2, 9)
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1])


def test_the_effect_size_is_cohens_h():
    assert cohens_h(0.5, 0.5) == 0
    assert cohens_h(1.0, 0.0) == pytest.approx(math.pi)
    assert cohens_h(0.7, 0.55) == pytest.approx(proportion_effectsize(0.7, 0.55))


@pytest.mark.parametrize("margin", [0.1, 0.3, 1.0])
def test_equivalence_is_that_of_two_one_sided_t_tests(margin):
    values = np.random.default_rng(4).normal(0.1, 1, (1, 40))
    known = DescrStatsW(values[0]).ttost_mean(-margin, margin)[0]
    assert crossed(values, ALONE).p_equal(margin) == pytest.approx(known)


def test_groups_of_other_sizes_are_the_clustered_standard_error_of_a_regression():
    """Of a mean, by the sandwich of statsmodels."""
    rng = np.random.default_rng(6)
    place = np.repeat(np.arange(30), rng.integers(5, 40, 30))
    values = rng.normal(0, 0.1, 30)[place] + rng.normal(0, 0.5, len(place))
    fit = OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": place})
    found = crossed(values[None], place.astype(str))
    assert found.mean == pytest.approx(fit.params[0])
    assert found.error == pytest.approx(fit.bse[0])


def test_power_of_seeds_alone_is_that_of_a_t_test():
    by_seed = np.random.default_rng(8).normal(0, 0.01, 6)
    found = crossed(np.repeat(by_seed[:, None], 40, axis=1), ALONE)
    size = found.detectable / found.spread
    known = TTestPower().power(size, 6, 0.05)
    assert known == pytest.approx(0.8, abs=0.04)  # ours takes the central t for the shifted one


def test_the_smallest_difference_found_is_found_four_times_in_five():
    rng, found = np.random.default_rng(5), 0
    true = np.mean([crossed(*drawn(rng, 5, 138, 0.01, 0.05)).detectable for _ in range(200)])
    for _ in range(1000):
        found += crossed(*drawn(rng, 5, 138, 0.01, 0.05, true=true)).p < 0.05
    assert 0.72 <= found / 1000 <= 0.92
