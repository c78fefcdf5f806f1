"""SimKitchen's ceilings: against closed forms, against drawn items, against what they mean."""

import math
import zlib
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import nn

from harness.data.simkitchen import ceilings as module
from harness.data.simkitchen.ceilings import bag_of_words, ceilings_of, shares, table
from harness.data.simkitchen.questions import wording, write
from harness.data.simkitchen.world import WorldConfig, draw, next_action, split_seed, targets

SOURCES = ("ground_truth", "shuffled", "constant", "none", "predicted", "category")
ITEMS = 200_000
SIGMAS = 4.5
"""over the 648 comparisons of the oracle test together as unlikely as 3 sigma is for one"""


def config(**options) -> WorldConfig:
    return WorldConfig.model_validate(options)


def top1(result: dict[str, float], suffix: str = "") -> tuple[float, float, float]:
    return tuple(result[f"{target}_top1{suffix}"] for target in ("verb", "noun", "action"))


def expected(rho: float, one: float, two: float) -> float:
    return (1 - rho) * one + rho * two


@pytest.mark.parametrize("rho", [0, 0.25, 0.5, 1])
@pytest.mark.parametrize("u", [0, 0.1, 0.6])
def test_enumerated_ceilings_equal_the_closed_forms(rho, u):
    result = ceilings_of(config(rho=rho, cue_dropped=u))
    known = {target: (1 - u) + u / h for target, h in (("verb", 2), ("noun", 3))}
    for target, h in (("verb", 2), ("noun", 3)):
        j, name = known[target], f"{target}_top1"
        assert result["video"][name] == pytest.approx(expected(rho, 1 / h, 1 / (2 * h)))
        assert result["text"][name] == pytest.approx(j / 4)
        assert result["joint"][name] == pytest.approx(j)
        assert result["additive"][name] == pytest.approx(expected(rho, j, j / 2), abs=1e-6)
    j = known["verb"] * known["noun"]
    assert result["joint"]["action_top1"] == pytest.approx(j)
    assert result["text"]["action_top1"] == pytest.approx(j / 16)
    assert result["video"]["action_top1"] == pytest.approx(expected(rho, 1 / 6, 1 / 24))
    assert result["video"]["action_top1_pair"] == pytest.approx(expected(rho, 1 / 6, 1 / 12))
    assert result["additive"]["action_top1"] == pytest.approx(expected(rho, j, j / 4), abs=1e-6)


def test_an_additive_head_gets_half_of_the_two_handed_clips_right():
    result = ceilings_of(config())["additive"]
    assert top1(result, "[one_handed]") == pytest.approx((0.95, 14 / 15, 0.95 * 14 / 15))
    assert top1(result, "[two_handed]") == pytest.approx((0.475, 7 / 15, 0.95 * 14 / 15 / 4))


def test_subsets_average_to_the_whole():
    for result in ceilings_of(config(rho=0.3, label_noise=0.1)).values():
        for name in [name for name in result if not name.endswith("]")]:
            parts = (result[f"{name}[one_handed]"], result[f"{name}[two_handed]"])
            assert result[name] == pytest.approx(expected(0.3, *parts))


def test_the_additive_optimum_has_the_known_cross_entropy():
    p = table(config())
    for target, additive, bayes in ((p.sum(3), 0.416, 0.069), (p.sum(2), 0.457, 0.110)):
        chances = module.additive_optimum(target)
        conditional = target / target.sum(-1, keepdims=True).clip(1e-300)
        assert cross_entropy(target, chances) == pytest.approx(additive, abs=1e-3)
        assert cross_entropy(target, conditional) == pytest.approx(bayes, abs=1e-3)


def cross_entropy(p: np.ndarray, chances: np.ndarray) -> float:
    some = p > 0
    return float(-(p[some] * np.log(chances[some])).sum())


def test_no_other_additive_model_near_the_optimum_has_less_cross_entropy():
    random = np.random.default_rng(0)
    p = random.random((5, 4, 3)) * random.random((5, 1, 1))
    p /= p.sum()
    best = module.additive_optimum(p)
    least = cross_entropy(p, best)
    for size in (1e-3, 1e-2, 1e-1, 1):
        for _ in range(50):
            f, g = random.normal(size=(5, 1, 3)), random.normal(size=(1, 4, 3))
            moved = best * np.exp(size * (f + g))
            assert cross_entropy(p, moved / moved.sum(-1, keepdims=True)) > least


def test_the_additive_optimum_is_exact_where_the_evidence_is_additive():
    random = np.random.default_rng(1)
    p = np.einsum("vy,ty,y->vty", random.random((6, 3)), random.random((4, 3)), random.random(3))
    p /= p.sum()
    exact = p / p.sum(-1, keepdims=True)
    np.testing.assert_allclose(module.additive_optimum(p), exact, atol=1e-5)


@pytest.mark.parametrize(
    ("rho", "percent"), [(0, (72.5, 70.8)), (0.25, (70.2, 68.6)), (1, (63.4, 62.0))]
)
def test_a_bag_of_words_is_capped_where_the_contrasts_cap_it(rho, percent):
    result = bag_of_words(config(rho=rho))
    assert 100 * np.array(top1(result)[:2]) == pytest.approx(percent, abs=0.051)


def test_a_bag_of_words_is_enough_without_contrasts():
    assert top1(bag_of_words(config(contrast=0))) == pytest.approx(
        top1(ceilings_of(config())["joint"])
    )


@pytest.mark.parametrize("q", [0.5, 0.8, 0.9])
def test_predicted_questions_lower_the_joint_ceiling(q):
    percent = {0.5: (50.0, 48.3, 24.2), 0.8: (77.0, 75.3, 58.0), 0.9: (86.0, 84.3, 72.5)}[q]
    result = ceilings_of(config(questions="predicted", q_v=q, q_n=q))
    assert 100 * np.array(top1(result["joint"])) == pytest.approx(percent, abs=0.051)


def test_questions_of_a_recogniser_that_sees_only_the_clip_add_nothing():
    result = ceilings_of(config(questions="predicted", q_v=1 / 2, q_n=1 / 3, q_p=1 / 2))
    for name, value in result["video"].items():
        assert result["joint"][name] == pytest.approx(value), name


@pytest.mark.parametrize("questions", ["shuffled", "constant", "none"])
@pytest.mark.parametrize("mask", [True, False])
def test_questions_about_something_else_add_nothing(questions, mask):
    result = ceilings_of(config(questions=questions, mask=mask))
    for name, value in result["video"].items():
        assert result["joint"][name] == pytest.approx(value), name
        assert result["additive"].get(name, value) == pytest.approx(value, abs=1e-6), name
    assert top1(result["text"]) == pytest.approx((1 / 8, 1 / 12, 1 / 96))


def test_without_masks_the_text_gives_the_action_away():
    assert top1(ceilings_of(config(mask=False))["text"]) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("eps", [0.1, 0.5])
def test_label_noise_lowers_every_ceiling_towards_chance(eps):
    clean, noisy = ceilings_of(config()), ceilings_of(config(label_noise=eps))
    for name in ("video", "text", "joint"):
        for target, classes in (("verb", 8), ("noun", 12)):
            metric = f"{target}_top1"
            lowered = (1 - eps) * clean[name][metric] + eps / classes
            assert noisy[name][metric] == pytest.approx(lowered)


@pytest.mark.parametrize(
    ("questions", "name", "first", "fifth"),
    [
        ("ground_truth", "video", (28.9, 23.0, 8.5), (87.1, 81.6, 36.1)),
        ("ground_truth", "text", (19.9, 17.2, 3.4), (84.7, 74.8, 17.1)),
        ("ground_truth", "joint", (66.7, 57.0, 38.1), (87.1, 93.0, 69.8)),
        ("predicted", "text", (16.9, 14.5, 2.5), (75.8, 64.9, 12.3)),
        ("predicted", "joint", (54.9, 47.3, 26.0), (87.1, 93.0, 59.5)),
    ],
)
def test_anticipation_has_the_known_ceilings(questions, name, first, fifth):
    result = ceilings_of(config(task="anticipation", questions=questions))[name]
    for k, percent in ((1, first), (5, fifth)):
        metrics = [f"verb_top{k}", f"noun_top{k}", f"action_top{k}_pair"]
        assert [100 * result[metric] for metric in metrics] == pytest.approx(percent, abs=0.06)


@pytest.mark.parametrize("task", ["recognition", "anticipation"])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("questions", SOURCES)
def test_an_oracle_on_drawn_items_scores_the_ceilings(questions, mask, task):
    rules = config(questions=questions, mask=mask, task=task, q_p=0.7, label_noise=0.05, rho=0.4)
    items = draw(rules, split_seed(rules, "test"), np.arange(ITEMS))
    truth = targets(rules, items)
    said = wording(rules, items, ITEMS)
    v = percept(items)
    t = np.zeros(ITEMS, int)
    if questions not in ("constant", "none"):
        t = (said.side * 3 + said.manner) * 4 + said.domain if mask else said.verb * 12 + said.noun
    p = table(rules)
    seen_by = {"video": (p.sum(1), (v,)), "text": (p.sum(0), (t,)), "joint": (p, (v, t))}
    for name, (seen, state) in seen_by.items():
        pairs = seen.reshape(*seen.shape[:-2], -1)
        hits = {
            "verb_top1": seen.sum(-1).argmax(-1)[state] == truth["verb"],
            "noun_top1": seen.sum(-2).argmax(-1)[state] == truth["noun"],
            "action_top1_pair": pairs.argmax(-1)[state] == truth["verb"] * 12 + truth["noun"],
        }
        parts = {"": items.index >= 0, "[one_handed]": ~items.two, "[two_handed]": items.two}
        for (metric, hit), (suffix, part) in product(hits.items(), parts.items()):
            ceiling = ceilings_of(rules)[name][metric + suffix]
            sigma = math.sqrt(max(0, ceiling * (1 - ceiling)) / part.sum()) + 1e-9
            assert abs(hit[part].mean() - ceiling) < SIGMAS * sigma, (name, metric, suffix)


def percept(items) -> np.ndarray:
    """Row of the table for each item, worked out from what its clip shows."""
    rows = np.arange(len(items.index))
    held = 4 * items.motion[rows, items.side] + items.sprite[rows, items.side]
    pairs = {pair: number for number, pair in enumerate(module.PAIRS)}
    motions = [pairs.get(tuple(pair), 0) for pair in items.motion.tolist()]
    sprites = [pairs[tuple(pair)] for pair in items.sprite.tolist()]
    return np.where(items.two, 16 + 12 * np.array(motions) + np.array(sprites), held)


def test_ties_share_the_places_that_are_left():
    values = np.array([[0.5, 0.2, 0.2, 0.1], [1, 1, 1, 1]])
    np.testing.assert_allclose(shares(values, 1), [[1, 0, 0, 0], [0.25] * 4])
    np.testing.assert_allclose(shares(values, 2), [[1, 0.5, 0.5, 0], [0.5] * 4])


def test_ceilings_can_be_changed_without_changing_the_next_ones():
    ceilings_of(config())["joint"]["verb_top1"] = 0
    assert ceilings_of(config(seed=5))["joint"]["verb_top1"] == pytest.approx(0.95)


@pytest.mark.parametrize("questions", ["ground_truth", "shuffled"])
def test_shuffled_questions_do_not_lift_a_trained_model_over_the_video_ceiling(questions):
    """Perfect perception of the clip and all words of the text, into an MLP that can fuse."""
    ceiling = ceilings_of(config(questions=questions))["video"]["verb_top1"]
    (x, y), (test_x, test_y) = (seen_and_said(name, questions) for name in ("train", "test"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, 8))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    for step in range(400):
        rows = torch.arange(128 * step, 128 * step + 128) % len(x)
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    hits = (model(test_x).argmax(1) == test_y).float()
    if questions == "shuffled":
        assert 0.25 < hits.mean() < ceiling + 3 * hits.std() / len(hits) ** 0.5
    else:  # the same model does rise over it when the questions are the item's own
        assert hits.mean() > ceiling + 0.1


def seen_and_said(split: str, questions: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One-hot percepts beside a bag of pairs of neighbouring words, and the verbs."""
    options = config(questions=questions)
    items = draw(options, split_seed(options, split), np.arange(20_000))
    seen = np.concatenate([np.eye(5)[items.motion], np.eye(5)[items.sprite]], axis=1)
    texts = write(options, items.seed, wording(options, items, 20_000))
    said = np.zeros((20_000, 512))
    for row, text in enumerate(texts):
        words = text.split()
        for first, second in pairwise(words):
            said[row, zlib.crc32(f"{first} {second}".encode()) % 512] = 1
    x = np.concatenate([seen.reshape(20_000, -1), said], axis=1)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(targets(options, items)["verb"])


def test_next_actions_are_permutations_without_fixed_points_that_part_look_alikes():
    verb, noun = next_action()
    for matrix in (verb, noun):
        np.testing.assert_allclose(matrix.sum(0), 1)
        np.testing.assert_allclose(matrix.sum(1), 1)
    follow_verb = verb.argmax(1)
    follow_noun = np.where(np.eye(12, dtype=bool), 0, noun).argmax(1)
    for follow, size in ((follow_verb, 2), (follow_noun, 3)):
        assert sorted(follow) == list(range(len(follow)))
        assert (follow != np.arange(len(follow))).all()
        assert all(len(set(group)) == size for group in (follow // size).reshape(-1, size))
