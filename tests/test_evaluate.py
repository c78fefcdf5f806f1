"""Metrics against numbers worked out by hand."""

import numpy as np
import pytest

from harness.actions import pair_rank
from harness.evaluate import Predictions, measures, metric_names, rank_of, scores


def predictions(verb, noun, verb_truth, noun_truth, subsets=None) -> Predictions:
    n = len(verb_truth)
    return Predictions(
        ids=np.array([str(i) for i in range(n)]),
        groups=np.array([""] * n),
        subsets=np.array(subsets or [""] * n),
        targets={"verb": np.array(verb_truth), "noun": np.array(noun_truth)},
        logits={"verb": np.array(verb, np.float32), "noun": np.array(noun, np.float32)},
    )


def test_top1_counts_the_samples_whose_largest_logit_is_the_target():
    said = predictions([[2, 1], [0, 1], [3, 0]], [[1, 0], [1, 0], [0, 1]], [0, 0, 0], [0, 0, 0])
    assert scores(said)["verb_top1"] == pytest.approx(2 / 3)
    assert scores(said)["noun_top1"] == pytest.approx(2 / 3)


def test_an_action_is_right_when_verb_and_noun_both_are():
    said = predictions([[2, 1], [0, 1], [3, 0]], [[1, 0], [1, 0], [0, 1]], [0, 0, 0], [0, 0, 0])
    assert scores(said)["action_top1"] == pytest.approx(1 / 3)


def test_ties_go_to_the_lower_class():
    logits = np.array([[1, 1, 0], [1, 1, 0]], np.float32)
    assert rank_of(logits, np.array([0, 1])).tolist() == [0, 1]


def test_a_nan_is_never_a_hit():
    logits = np.array([[np.nan, 0], [5, np.nan]], np.float32)
    assert (rank_of(logits, np.array([0, 0])) == 2).all()


def test_each_subset_is_scored_by_itself():
    said = predictions([[1, 0]] * 4, [[1, 0]] * 4, [0, 1, 0, 0], [0] * 4, ["a", "a", "b", "b"])
    found = scores(said)
    assert found["verb_top1[a]"] == 0.5
    assert found["verb_top1[b]"] == 1.0


def test_the_five_best_pairs_equal_those_of_the_full_table():
    rng = np.random.default_rng(0)
    verb, noun = rng.normal(size=(200, 8)), rng.normal(size=(200, 12))
    truth_v, truth_n = rng.integers(8, size=200), rng.integers(12, size=200)
    table = (verb[:, :, None] + noun[:, None, :]).reshape(200, -1)
    own = table[np.arange(200), truth_v * 12 + truth_n]
    expected = (table > own[:, None]).sum(axis=1) < 5
    rank = pair_rank(verb.astype(np.float32), noun.astype(np.float32), truth_v, truth_n)
    assert ((rank < 5) == expected).all()


@pytest.mark.parametrize("classes", [{"label": 4}, {"verb": 8, "noun": 12}, {"verb": 3, "side": 9}])
def test_the_names_of_metrics_are_known_without_predictions(classes):
    none = np.zeros(3, dtype=np.str_)
    said = Predictions(
        none, none, none,
        {name: np.zeros(3, np.int64) for name in classes},
        {name: np.zeros((3, size), np.float32) for name, size in classes.items()},
    )  # fmt: skip
    assert sorted(metric_names(classes)) == sorted(scores(said))
    assert {one.name for one in measures(said)} == set(scores(said))


def test_recall_is_the_mean_over_the_classes_that_occur():
    rng = np.random.default_rng(1)
    verb, noun = rng.normal(size=(60, 8)), rng.normal(size=(60, 12))
    truth_v, truth_n = rng.integers(8, size=60), rng.integers(0, 3, size=60)
    found = scores(predictions(verb, noun, truth_v, truth_n))
    top5 = {
        "verb": [t in np.argsort(-row)[:5] for row, t in zip(verb, truth_v, strict=True)],
        "noun": [t in np.argsort(-row)[:5] for row, t in zip(noun, truth_n, strict=True)],
    }
    for target, truth in (("verb", truth_v), ("noun", truth_n)):
        by_class = [np.mean(np.array(top5[target])[truth == c]) for c in sorted(set(truth))]
        assert found[f"{target}_recall5"] == pytest.approx(np.mean(by_class))
    both = np.array(top5["verb"]) & np.array(top5["noun"])
    pairs = sorted(set(zip(truth_v, truth_n, strict=True)))
    by_pair = [both[(truth_v == v) & (truth_n == n)].mean() for v, n in pairs]
    assert found["action_recall5_each"] == pytest.approx(np.mean(by_pair))
    assert found["action_recall5"] < found["action_recall5_each"]


def test_recall_counts_a_rare_class_as_much_as_a_common_one():
    hit, miss = [9, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1]
    said = predictions([hit] * 9 + [miss], [hit] * 10, [0] * 9 + [0], [0] * 10)
    assert scores(said)["verb_recall5"] == pytest.approx(0.9)
    said = predictions([hit] * 9 + [[9, 8, 7, 6, 5, 0]], [hit] * 10, [0] * 9 + [5], [0] * 10)
    assert scores(said)["verb_recall5"] == pytest.approx(0.5)


def test_top5_is_left_out_where_five_classes_are_all_there_are():
    said = predictions([[1, 0]], [[1, 0]], [0], [0])
    assert "verb_top5" not in {one.name for one in measures(said)}
