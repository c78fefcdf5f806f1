"""Scores of a split from its logits, and nothing else: no model, no data.

Metric names: `<target>_top1`, `<target>_top5`; with targets `verb` and `noun` also `action_top1`
(both right) and `action_top5` (the pair among the five with the largest p(verb) p(noun)).
`<target>_recall5` is the class-mean recall@5 of anticipation: the share of top-5 hits within each
class that occurs, averaged over classes; classes of `action_recall5` are pairs.
`action_recall5_each` counts an action where verb and noun are each in their own top 5, a looser
rule (InAViT's). A name with `[share]` behind it is the same over that share of the split. All are
shares in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Hits = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Predictions:
    """What a model said about a split, sample by sample."""

    ids: npt.NDArray[np.str_]
    """(samples,)"""
    groups: npt.NDArray[np.str_]
    """(samples,) video or subject; empty where samples are independent"""
    subsets: npt.NDArray[np.str_]
    """(samples,) name of a share of the split, or empty"""
    targets: Mapping[str, npt.NDArray[np.int64]]
    """target -> (samples,)"""
    logits: Mapping[str, npt.NDArray[np.float32]]
    """target -> (samples, classes)"""


def scores(predictions: Predictions) -> dict[str, float]:
    """Every metric of a split, and of each of its subsets."""
    hits = hits_by_metric(predictions)
    every = np.ones(len(predictions.ids), np.bool_)
    result = _means(hits, predictions.targets, every) if len(every) else {}
    for subset in sorted(set(predictions.subsets.tolist()) - {""}):
        found = _means(hits, predictions.targets, predictions.subsets == subset)
        result |= {f"{name}[{subset}]": value for name, value in found.items()}
    return result


def _means(
    hits: Mapping[str, Hits], targets: Mapping[str, npt.NDArray[np.int64]], rows: Hits
) -> dict[str, float]:
    """Every metric over some rows."""
    result = {name: float(hit[rows].mean()) for name, hit in hits.items()}
    classes = {name: truth[rows] for name, truth in targets.items()}
    if "action_top5" in hits:
        classes["action"] = classes["verb"] * (classes["noun"].max(initial=0) + 1) + classes["noun"]
    if "action_top5" in hits and {"verb_top5", "noun_top5"} <= set(hits):
        each = (hits["verb_top5"] & hits["noun_top5"])[rows]
        result["action_recall5_each"] = class_mean(each, classes["action"])
    for target, truth in classes.items():
        if f"{target}_top5" in hits:
            result[f"{target}_recall5"] = class_mean(hits[f"{target}_top5"][rows], truth)
    return result


def class_mean(hits: Hits, truth: npt.NDArray[np.int64]) -> float:
    """Mean over the classes in `truth` of the share of hits among their samples."""
    _, index, counts = np.unique(truth, return_inverse=True, return_counts=True)
    return float((np.bincount(index, weights=hits) / counts).mean())


def metric_names(targets: Mapping[str, int]) -> list[str]:
    """Names of the metrics of targets (name -> classes), without shares."""
    named = [f"{target}_top1" for target in targets]
    large = [target for target, classes in targets.items() if classes > 5]
    if {"verb", "noun"} <= set(targets):
        named += [
            "action_top1",
            *(["action_recall5_each"] if {"verb", "noun"} <= set(large) else []),
        ]
        large.append("action")
    return named + [f"{target}_{kind}" for target in large for kind in ("top5", "recall5")]


def hits_by_metric(predictions: Predictions) -> dict[str, Hits]:
    """Metric name -> (samples,), whether that sample counts as right; the means are the scores.

    Recalls are not such means and are left out.
    """
    hits: dict[str, Hits] = {}
    for target, truth in predictions.targets.items():
        rank = rank_of(predictions.logits[target], truth)
        hits[f"{target}_top1"] = rank < 1
        if predictions.logits[target].shape[1] > 5:
            hits[f"{target}_top5"] = rank < 5
    if {"verb", "noun"} <= set(predictions.targets):
        hits["action_top1"] = hits["verb_top1"] & hits["noun_top1"]
        hits["action_top5"] = pair_in_top(
            predictions.logits["verb"],
            predictions.logits["noun"],
            predictions.targets["verb"],
            predictions.targets["noun"],
        )
    return hits


def rank_of(logits: npt.NDArray[np.float32], truth: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(samples,) how many classes come before the true one; ties go to the lower index.

    A sample whose logits hold a NaN ranks last.
    """
    own = np.take_along_axis(logits, truth[:, None], axis=1)
    lower = np.arange(logits.shape[1])[None, :] < truth[:, None]
    before = (logits > own) | ((logits == own) & lower)
    broken = np.isnan(logits).any(axis=1)
    return np.asarray(np.where(broken, logits.shape[1], before.sum(axis=1)), np.int64)


def pair_in_top(
    first: npt.NDArray[np.float32],
    second: npt.NDArray[np.float32],
    first_truth: npt.NDArray[np.int64],
    second_truth: npt.NDArray[np.int64],
    k: int = 5,
) -> npt.NDArray[np.bool_]:
    """(samples,) whether the true pair is among the k with the largest sum of log-probabilities.

    The k best pairs lie among the k best of each side, so only k x k are compared.
    """
    best = [np.argsort(-logits, axis=1, kind="stable")[:, :k] for logits in (first, second)]
    a = np.take_along_axis(log_softmax(first), best[0], axis=1)
    b = np.take_along_axis(log_softmax(second), best[1], axis=1)
    pairs = (a[:, :, None] + b[:, None, :]).reshape(len(first), -1)
    chosen = np.argsort(-pairs, axis=1, kind="stable")[:, :k]
    width = best[1].shape[1]
    said_first = np.take_along_axis(best[0], chosen // width, axis=1)
    said_second = np.take_along_axis(best[1], chosen % width, axis=1)
    hit = (said_first == first_truth[:, None]) & (said_second == second_truth[:, None])
    broken = np.isnan(first).any(axis=1) | np.isnan(second).any(axis=1)
    return np.asarray(hit.any(axis=1) & ~broken)


def log_softmax(logits: npt.NDArray[np.float32]) -> Array:
    """Over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
