"""Verbs and nouns together: the best pairs without a table of all of them, and heads over actions.

Source: Damen et al., "Rescaling Egocentric Vision" (IJCV 2022), and the published evaluation of its
challenges: a pair is as good as p(verb) p(noun), which orders pairs as the sum of the two logits
does. Rules that count only pairs that exist, and sums over a head of actions: Furnari & Farinella,
"What Would You Expect?" (ICCV 2019).

Departs from them: ties go to the lower class, where theirs are left to the sorting; a noun that no
action has is given probability 0, not that of action 0.

Logits are (samples, classes); those of float32 are added in float64, so that equal sums are true
ties.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CHUNK = 512
"""samples at a time: what is held of them stays small"""


def best_pairs(first: Floats, second: Floats, k: int) -> tuple[Ints, Ints, Array]:
    """The k best pairs of each sample, best first: class of each side and sum, (samples, k).

    Before the pair at places i and j (from 1) of its sides come at least i j - 1 others, so only
    those with i j <= k are looked at. Where fewer than k pairs exist, it is all of them.
    """
    samples, (many, width) = len(first), (first.shape[1], second.shape[1])
    k = min(k, many * width)
    places = np.array(
        [(i, j) for i in range(min(k, many)) for j in range(min(k // (i + 1), width))], np.int64
    )
    a, b = np.empty((2, samples, k), np.int64)
    best = np.empty((samples, k))
    for rows in _chunks(samples):
        left, right = (
            np.argsort(-side[rows], axis=1, kind="stable")[:, places[:, place]]
            for place, side in enumerate((first, second))
        )
        sums = np.take_along_axis(first[rows], left, axis=1).astype(np.float64)
        sums += np.take_along_axis(second[rows], right, axis=1)
        chosen = np.lexsort((left * width + right, -sums), axis=-1)[:, :k]
        for out, of in ((a, left), (b, right), (best, sums)):
            out[rows] = np.take_along_axis(of, chosen, axis=1)
    return a, b, best


def pair_rank(
    first: Floats, second: Floats, first_truth: Ints, second_truth: Ints, k: int = 5
) -> Ints:
    """(samples,) how many pairs come before the true one, or k if k or more do.

    Ties go to the pair with the lower first class, then second. A sample whose logits hold a NaN or
    +inf has k.
    """
    a, b, _ = best_pairs(first, second, k)
    hit = (a == first_truth[:, None]) & (b == second_truth[:, None])
    found = hit.any(axis=1) & ~broken(first) & ~broken(second)
    return np.asarray(np.where(found, hit.argmax(axis=1), k), np.int64)


def rank_among(
    actions: Ints, first: Floats, second: Floats, first_truth: Ints, second_truth: Ints
) -> Ints:
    """(samples,) how many of the pairs `actions` (A, 2) come before the true one.

    Ties as in `pair_rank`. A if the true pair is none of them, or the logits hold a NaN or +inf.
    """
    order = np.lexsort((actions[:, 1], actions[:, 0]))
    left, right = actions[order].T
    width = second.shape[1]
    pairs, own_pair = left * width + right, first_truth * width + second_truth
    place = np.searchsorted(pairs, own_pair)
    known = pairs[np.minimum(place, len(pairs) - 1)] == own_pair
    rank = np.empty(len(first), np.int64)
    for rows in _chunks(len(first)):
        a, b = (side[rows].T.astype(np.float64, order="C") for side in (first, second))
        here = np.arange(a.shape[1])
        own = a[first_truth[rows], here] + b[second_truth[rows], here]
        sums = a[left] + b[right]
        before = sums > own
        before |= (sums == own) & (np.arange(len(pairs))[:, None] < place[rows])
        rank[rows] = before.sum(axis=0)
    wrong = ~known | broken(first) | broken(second)
    return np.asarray(np.where(wrong, len(actions), rank), np.int64)


def marginals(logits: Floats, actions: Ints, verbs: int, nouns: int) -> tuple[Array, Array]:
    """(samples, verbs) and (samples, nouns): log of softmax(logits), a head over `actions` (A, 2),
    summed over the actions of each verb and each noun. One that no action has is given -inf."""
    from scipy.sparse import csr_array  # only those who have such a head wait for its import

    place, ones = np.arange(len(actions)), np.ones(len(actions))
    found = np.empty((len(logits), verbs)), np.empty((len(logits), nouns))
    members = [
        csr_array((ones, (place, actions[:, side])), shape=(len(actions), out.shape[1]))
        for side, out in enumerate(found)
    ]
    for rows in _chunks(len(logits)):
        said = logits[rows].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):  # log of 0; +inf, whose row is NaN
            said -= said.max(axis=1, keepdims=True)
            np.exp(said, out=said)
            said /= said.sum(axis=1, keepdims=True)
            for out, member in zip(found, members, strict=True):
                out[rows] = np.log(said @ member)
    return found


def broken(logits: Floats) -> npt.NDArray[np.bool_]:
    """(samples,) whether there is a NaN or +inf, of which no probability can be made."""
    return np.asarray(~(logits.max(axis=1) < np.inf))


def _chunks(samples: int) -> Iterator[slice]:
    for start in range(0, samples, CHUNK):
        yield slice(start, min(start + CHUNK, samples))
