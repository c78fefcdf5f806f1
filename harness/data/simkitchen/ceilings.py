"""Best reachable scores on SimKitchen under perfect perception, by enumerating its world.

One table p(v, t, y) holds the probability of every percept v (motions and sprites of both halves),
wording t (what the question says) and target y = (verb, noun). A model that sees s = v, t or both
can do no better than rank classes by p(y | s); ties are shared evenly.

The `additive` ceiling belongs to models whose logits are f_y(v) + g_y(t). Their cross-entropy is
convex in f and g; its minimum over the tables of f and g is found numerically.

Actions are scored as two independent heads are: pairs are ranked by p(verb | s) p(noun | s), ties
broken without regard to the other head. Metrics named `..._pair` rank by p(verb, noun | s): what
one head over pairs can reach, or two heads that break their ties alike.

Source: none, ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import permutations, product

import numpy as np
import torch

from harness.data.simkitchen.world import (
    LEFT,
    NO_SIDE,
    RIGHT,
    Floats,
    Ints,
    WorldConfig,
    target_given_action,
)

PAIRS = tuple(permutations(range(4), 2))
"""(left, right) motions, or sprites, of a two-handed clip"""
ONE_HANDED = 16
"""percepts 0 .. 15 are 4 * motion + sprite of a one-handed clip, the others are two-handed"""
PERCEPTS = ONE_HANDED + len(PAIRS) ** 2
TOP = (1, 5)
TIE = 1e-3
"""classes this close, relative to the best, are tied: more than the error of the numerical
optimum, and too little to change a ceiling by as much as 0.1 %"""
RULES = (
    *("task", "rho", "cue_dropped", "label_noise", "questions", "q_v", "q_n", "q_p", "mask"),
    "contrast",
)
"""options that change a ceiling; `contrast` matters to a bag of words alone"""


def ceilings_of(config: WorldConfig) -> dict[str, dict[str, float]]:
    """`video`, `text`, `additive`, `joint` -> metric -> share."""
    rules = WorldConfig.model_validate({name: getattr(config, name) for name in RULES})
    return {name: dict(metrics) for name, metrics in _ceilings(rules).items()}


@lru_cache(maxsize=64)
def _ceilings(rules: WorldConfig) -> Mapping[str, Mapping[str, float]]:
    p = table(rules)
    video, text = p.sum(axis=1, keepdims=True), p.sum(axis=0, keepdims=True)
    verb, noun = p.sum(axis=3), p.sum(axis=2)
    return {
        "video": scores(p, *_heads(video)) | pair_scores(p, video),
        "text": scores(p, *_heads(text)) | pair_scores(p, text),
        "additive": scores(p, additive_optimum(verb), additive_optimum(noun)),
        "joint": scores(p, verb, noun) | pair_scores(p, p),
    }


def bag_of_words(rules: WorldConfig) -> dict[str, float]:
    """Both modalities, if the order of words is lost, so that contrasts cannot be resolved."""
    if rules.questions not in ("ground_truth", "predicted") or not rules.mask:
        raise ValueError("a bag of words is enumerated for masked questions about the own action")
    p = table(rules)
    seen = p.reshape(PERCEPTS, 3, 3, 4, -1)
    manner = _blur(2, rules.contrast)
    domain = _blur(3, rules.contrast)
    side = _blur(2, rules.contrast**2)  # lost only if both questions contrast sides
    seen = np.einsum("vpmdy,pP,mM,dD->vPMDy", seen, side, manner, domain, optimize=True)
    seen = seen.reshape(PERCEPTS, -1, 8, 12)
    return scores(seen, seen.sum(axis=3), seen.sum(axis=2))


def _blur(classes: int, contrast: float) -> Floats:
    """(said, seen) probabilities; said: a class or nothing, seen: that, or a pair of classes."""
    pairs = [{a, b} for a in range(classes) for b in range(a)]
    seen = np.zeros((classes + 1, classes + 1 + len(pairs)))
    for said in range(classes):
        seen[said, said] = 1 - contrast
        for column, pair in enumerate(pairs, classes + 1):
            seen[said, column] = contrast / (classes - 1) * (said in pair)
    seen[classes, classes] = 1
    return seen


def table(rules: WorldConfig) -> Floats:
    """p(v, t, verb, noun) of the targets, (160, wordings, 8, 12).

    Wordings are (side, manner, domain) said, 3 x 3 x 4; with `mask: false` the (verb, noun) said,
    which then tells all the rest; a single one if all questions are the same.
    """
    p = _actions(rules)
    if rules.questions in ("constant", "none"):
        p = p.sum(axis=1, keepdims=True)
    elif rules.questions == "shuffled":
        p = np.einsum("vyz,t->vtyz", p.sum(axis=1), p.sum(axis=(0, 2, 3)))
    verb, noun = target_given_action(rules)
    return np.asarray(np.einsum("vtaz,ab->vtbz", p, verb) @ noun)


def _actions(rules: WorldConfig) -> Floats:
    """p(v, t, verb, noun) of the action asked about, its own question being put."""
    predicted = rules.questions == "predicted"
    right = (rules.q_v, rules.q_n, rules.q_p) if predicted else (1.0, 1.0, 1.0)
    manner, domain = _confused(2, right[0]) / 2, _confused(3, right[1]) / 3
    side = np.eye(3)
    side[:2, :2] = _confused(2, right[2])
    if rules.questions == "category":
        side = np.tile(side[NO_SIDE], (3, 1))
    u = rules.cue_dropped
    cue = np.einsum(
        "ac,bd->cdab",
        np.hstack([(1 - u) * manner, np.full((2, 1), u / 2)]),
        np.hstack([(1 - u) * domain, np.full((3, 1), u / 3)]),
    )
    words = np.einsum("ac,bd->cdab", manner, domain)
    shape = (3, 3, 4, 8, 12) if rules.mask else (8, 12, 8, 12)
    p = np.zeros((PERCEPTS, *shape))
    for v, hand, motion, sprite, share in _percepts(rules.rho):
        verbs, nouns = slice(2 * motion, 2 * motion + 2), slice(3 * sprite, 3 * sprite + 3)
        if rules.mask:
            p[v, :, :, :, verbs, nouns] += share * side[hand][:, None, None, None, None] * cue
        else:
            p[v, verbs, nouns, verbs, nouns] += share * words
    return p.reshape(PERCEPTS, -1, 8, 12)


def _percepts(rho: float) -> list[tuple[int, int, int, int, float]]:
    """(percept, side asked about, its motion, its sprite, probability)."""
    one = [
        (v, NO_SIDE, motion, sprite, (1 - rho) / ONE_HANDED)
        for v, (motion, sprite) in enumerate(product(range(4), repeat=2))
    ]
    two = [
        (v, side, motions[side], sprites[side], rho / 2 / len(PAIRS) ** 2)
        for v, (motions, sprites) in enumerate(product(PAIRS, repeat=2), ONE_HANDED)
        for side in (LEFT, RIGHT)
    ]
    return one + two


def _confused(classes: int, right: float) -> Floats:
    """(classes, classes): `right` on the diagonal, the rest shared by the others."""
    wrong = (1 - right) / (classes - 1)
    return wrong + (right - wrong) * np.eye(classes)


def _heads(p: Floats) -> tuple[Floats, Floats]:
    """Tables (v, t, y) of the verb and of the noun."""
    return p.sum(axis=3), p.sum(axis=2)


def scores(p: Floats, verb: Floats, noun: Floats) -> dict[str, float]:
    """Metrics of two heads that rank verbs (v, t, 8) and nouns (v, t, 12) by these values."""
    result: dict[str, float] = {}
    pairs = (verb[..., None] * noun[..., None, :]).reshape(*verb.shape[:2], -1)
    for k in TOP:
        result |= _by_subset(f"verb_top{k}", p.sum(axis=3), shares(verb, k))
        result |= _by_subset(f"noun_top{k}", p.sum(axis=2), shares(noun, k))
        result |= _by_subset(f"action_top{k}", p.reshape(*p.shape[:2], -1), shares(pairs, k))
    return result


def pair_scores(p: Floats, seen: Floats) -> dict[str, float]:
    """Metrics of one head over pairs that knows p(v, t, verb, noun) of what is `seen`."""
    result: dict[str, float] = {}
    p, seen = p.reshape(*p.shape[:2], -1), seen.reshape(*seen.shape[:2], -1)
    for k in TOP:
        result |= _by_subset(f"action_top{k}_pair", p, shares(seen, k))
    return result


def _by_subset(name: str, p: Floats, win: Floats) -> dict[str, float]:
    """Share of the probability p (v, t, y) won: of all, and within each kind of clip."""
    won = (p * win).sum(axis=(1, 2))
    mass = p.sum(axis=(1, 2))
    subsets = {
        "": slice(None),
        "[one_handed]": slice(ONE_HANDED),
        "[two_handed]": slice(ONE_HANDED, None),
    }
    return {
        name + suffix: float(won[part].sum() / mass[part].sum())
        for suffix, part in subsets.items()
        if mass[part].sum() > 0
    }


def shares(values: Floats, k: int) -> Floats:
    """Chance of each class (last axis) to be among the k with the largest values."""
    best = values.max(axis=-1, keepdims=True)
    last = np.partition(values, -k, axis=-1)[..., [-k]]
    above, tied = values > last + TIE * best, abs(values - last) <= TIE * best
    left = k - above.sum(axis=-1, keepdims=True)
    return np.asarray(above + tied * (left / tied.sum(axis=-1, keepdims=True)))


def additive_optimum(p: Floats) -> Floats:
    """p(y | v, t), (v, t, y), of the additive model with the least cross-entropy on p (v, t, y)."""
    rows, percept = _merged(p)
    columns, wording = _merged(rows.swapaxes(0, 1))
    logits = _fit_additive(torch.from_numpy(columns.swapaxes(0, 1).copy()))
    chances: Floats = torch.softmax(logits, dim=-1).numpy()
    return chances[percept][:, wording]


def _merged(p: Floats) -> tuple[Floats, Ints]:
    """Rows of p (first axis) that are multiples of each other added up; where each row went.

    Such rows have the same best f, so nothing is lost, and the optimisation becomes small.
    """
    mass = p.sum(axis=(1, 2))
    profile = p.reshape(len(p), -1) / np.where(mass > 0, mass, 1)[:, None]
    _, where = np.unique(profile.round(10), axis=0, return_inverse=True)
    merged = np.zeros((where.max() + 1, *p.shape[1:]))
    np.add.at(merged, where, p)
    return merged, where


def _fit_additive(p: torch.Tensor) -> torch.Tensor:
    """Logits f_y(v) + g_y(t), (v, t, y), with the least cross-entropy on p."""
    f = torch.zeros(p.shape[0], 1, p.shape[2], dtype=p.dtype)
    g = torch.zeros(1, *p.shape[1:], dtype=p.dtype)
    search = torch.optim.LBFGS(
        [f, g],
        max_iter=400,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )
    mass = p.sum(dim=-1, keepdim=True)

    def loss() -> torch.Tensor:
        log_chances = torch.log_softmax(f + g, dim=-1)
        excess = mass * log_chances.exp() - p
        f.grad, g.grad = excess.sum(dim=1, keepdim=True), excess.sum(dim=0, keepdim=True)
        return -(p * log_chances).sum()

    search.step(loss)
    return f + g
