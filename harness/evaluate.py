"""Scores of a split from its logits, and nothing else: no model, no data.

Metric names: `<target>_top1`, `<target>_top5`, and `<target>_recall5`, the class-mean recall@5 of
anticipation: the share of top-5 hits within each class that occurs, averaged over classes. With
targets `verb` and `noun` there are also those of actions, by rules that do not compare:

    action_*                pair: both right; of five, the pairs with the largest p(verb) p(noun)
    action_*_3806           pair_3806: the same among the pairs that exist, where those are known
    action_recall5_each     verb and noun each in their own top 5, a looser rule (InAViT's)
    action_joint_*          joint3806: a head over actions, the target `action` beside the two, or
                            alone where it is known which pairs exist
    verb_marginal_*, noun_marginal_*   that head's probabilities, summed by verb and by noun

A name with `[share]` behind it is the same over that share of the split, classes of recalls being
those that occur in it. All are shares in [0, 1]. Equal logits go to the lower class, and a sample
with a NaN is wrong.

Source: Damen et al., "Rescaling Egocentric Vision" (IJCV 2022), and its published evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from harness.actions import Floats, Ints, broken, marginals, pair_rank, rank_among

Hits = npt.NDArray[np.bool_]
Strings = npt.NDArray[np.str_]
SIDES = ("verb", "noun")
"""of an action, in the order of `Dataset.actions`"""


@dataclass(frozen=True)
class Predictions:
    """What a model said about a split, sample by sample."""

    ids: Strings
    """(samples,)"""
    groups: Strings
    """(samples,) video or subject; empty where samples are independent"""
    subsets: Strings
    """(samples,) names of shares of the split, set apart by spaces, or empty; a name `tail@verb`
    counts for metrics of that target alone"""
    targets: Mapping[str, Ints]
    """target -> (samples,)"""
    logits: Mapping[str, npt.NDArray[np.float32]]
    """target -> (samples, classes)"""
    actions: Ints | None = None
    """(A, 2) the pairs of verb and noun that exist, in the order of the target `action`; None where
    that is not known"""
    windows: npt.NDArray[np.float64] | None = None
    """(samples, 2) first and last second that was seen of each sample's recording, NaN where that
    is not known"""
    made_by: Mapping[str, Any] = field(default_factory=dict)
    """what made them: run, digest of its weights, data, encoders; empty where that is not known"""


def pairs_of(actions: Sequence[tuple[int, int]] | None) -> Ints | None:
    """`Dataset.actions` as Predictions hold them."""
    return None if actions is None else np.array(actions, np.int64).reshape(-1, 2)


class Measure(NamedTuple):
    """One metric of a split before the mean."""

    name: str
    target: str
    """whose shares it is taken over"""
    hits: Hits
    """(samples,)"""
    classes: Ints | None
    """(samples,) what the hits are averaged within first, for a recall"""

    def over(self, rows: Hits) -> float:
        """Its value over some samples."""
        if self.classes is None:
            return float(self.hits[rows].mean())
        return class_mean(self.hits[rows], self.classes[rows])


def scores(predictions: Predictions) -> dict[str, float]:
    """Every metric of a split, and of each of its shares. ValueError if `actions` does not fit."""
    measured = list(measures(predictions))
    every = np.ones(len(predictions.ids), np.bool_)
    result = {one.name: one.over(every) for one in measured if len(every)}
    for share, by_target in shares(predictions.subsets, {one.target for one in measured}).items():
        for one in measured:
            rows = by_target[one.target]
            if rows.any():
                result[f"{one.name}[{share}]"] = one.over(rows)
    return result


def shares(subsets: Strings, targets: set[str]) -> dict[str, dict[str, Hits]]:
    """Share -> target -> (samples,), whether each is in it."""
    texts, index = np.unique(subsets, return_inverse=True)
    named = [set(text.split()) for text in texts.tolist()]
    found = sorted({name.partition("@")[0] for names in named for name in names})
    return {
        share: {
            target: np.array([bool(names & {share, f"{share}@{target}"}) for names in named])[index]
            for target in sorted(targets)
        }
        for share in found
    }


def class_mean(hits: Hits, truth: Ints) -> float:
    """Mean over the classes in `truth` of the share of hits among their samples."""
    _, index, counts = np.unique(truth, return_inverse=True, return_counts=True)
    return float((np.bincount(index, weights=hits) / counts).mean())


def metric_names(
    targets: Mapping[str, int], actions: Sequence[tuple[int, int]] | None = None
) -> list[str]:
    """Names of the metrics of targets (name -> classes), without shares; `actions` are the pairs
    that exist, as `Dataset.actions` has them."""
    known = pairs_of(actions)
    pairs = {"verb", "noun"} <= set(targets)
    heads = {_head(name, targets, known): classes for name, classes in targets.items()}
    if known is not None and "action" in targets:
        heads |= {f"{side}_marginal": _classes(side, targets, known) for side in SIDES}
    named = [f"{head}_top1" for head in heads]
    large = [head for head, classes in heads.items() if classes > 5]
    each = ["action_recall5_each"] if {"verb", "noun"} <= set(large) else []
    if pairs:
        named += ["action_top1", *each]
        large.append("action")
    named += [f"{head}_{kind}" for head in large for kind in ("top5", "recall5")]
    if pairs and known is not None:
        named += [f"action_{kind}_3806" for kind in ("top1", "top5", "recall5")]
    return named


def measures(predictions: Predictions) -> Iterator[Measure]:
    """Every metric, by its samples."""
    targets, logits, known = predictions.targets, predictions.logits, predictions.actions
    for target, truth in targets.items():
        rank = rank_of(logits[target], truth)
        yield from _of(_head(target, targets, known), target, rank, truth, logits[target].shape[1])
    if {"verb", "noun"} <= set(targets):
        yield from _pairs(predictions)
        if known is not None:
            rank = rank_among(known, logits["verb"], logits["noun"], *_truths(predictions))
            yield from _of("action", "action", rank, _pair_classes(predictions), suffix="_3806")
    if "action" in targets and known is not None:
        yield from _marginals(predictions, known)


def targets_of(predictions: Predictions) -> list[str]:
    """What its metrics are of: its targets, and those that follow from them."""
    told = dict.fromkeys(predictions.targets)
    if "action" in told and predictions.actions is not None:
        told |= dict.fromkeys(SIDES)
    if set(SIDES) <= set(told):
        told["action"] = None
    return list(told)


def _pairs(predictions: Predictions) -> Iterator[Measure]:
    verb, noun = _truths(predictions)
    verbs, nouns = (predictions.logits[side] for side in SIDES)
    classes = _pair_classes(predictions)
    yield from _of("action", "action", pair_rank(verbs, nouns, verb, noun), classes)
    if min(verbs.shape[1], nouns.shape[1]) > 5:
        each = (rank_of(verbs, verb) < 5) & (rank_of(nouns, noun) < 5)
        yield Measure("action_recall5_each", "action", each, classes)


def _marginals(predictions: Predictions, actions: Ints) -> Iterator[Measure]:
    """Verb and noun by a head over `actions`; what is true of both follows from the true action."""
    _check_actions(predictions, actions)
    heads = {name: said.shape[1] for name, said in predictions.logits.items()}
    sizes = [_classes(side, heads, actions) for side in SIDES]
    summed = marginals(predictions.logits["action"], actions, *sizes)
    truths = actions[predictions.targets["action"]].T
    for side, said, truth, classes in zip(SIDES, summed, truths, sizes, strict=True):
        yield from _of(f"{side}_marginal", side, rank_of(said, truth), truth, classes)


def _classes(side: str, heads: Mapping[str, int], actions: Ints) -> int:
    """Classes of `verb` or `noun`: of its own head, else as many as the actions speak of."""
    return heads.get(side) or int(actions[:, SIDES.index(side)].max(initial=-1)) + 1


def _of(
    name: str, target: str, rank: Ints, classes: Ints, many: int | None = None, suffix: str = ""
) -> Iterator[Measure]:
    """The metrics of ranks among `many`; of five or fewer the top five say nothing."""
    yield Measure(f"{name}_top1{suffix}", target, rank < 1, None)
    if many is None or many > 5:
        yield Measure(f"{name}_top5{suffix}", target, rank < 5, None)
        yield Measure(f"{name}_recall5{suffix}", target, rank < 5, classes)


def _head(target: str, targets: Mapping[str, object], known: Ints | None) -> str:
    """A target's name in metrics: where there are verbs and nouns, `action_*` are of the pair."""
    pairs = known is not None or set(SIDES) <= set(targets)
    return "action_joint" if pairs and target == "action" else target


def _truths(predictions: Predictions) -> tuple[Ints, Ints]:
    return predictions.targets["verb"], predictions.targets["noun"]


def _pair_classes(predictions: Predictions) -> Ints:
    """(samples,) a number for each pair of verb and noun."""
    verb, noun = _truths(predictions)
    return np.asarray(verb * (noun.max(initial=0) + 1) + noun, np.int64)


def _check_actions(predictions: Predictions, actions: Ints) -> None:
    said = predictions.logits["action"].shape[1]
    if said != len(actions):
        raise ValueError(f"the head `action` has {said} classes, but {len(actions)} actions exist")
    if not set(SIDES) <= set(predictions.targets):
        return
    truth = np.stack(_truths(predictions), axis=1)
    wrong = (actions[predictions.targets["action"]] != truth).any(axis=1)
    if wrong.any():
        bad = int(wrong.argmax())
        action = int(predictions.targets["action"][bad])
        raise ValueError(
            f"sample {predictions.ids[bad]}: action {action} is verb and noun "
            f"{actions[action].tolist()}, but its own are {truth[bad].tolist()}"
        )


def rank_of(logits: Floats, truth: Ints) -> Ints:
    """(samples,) how many classes come before the true one; ties go to the lower index.

    A sample whose logits hold a NaN or +inf ranks last.
    """
    own = np.take_along_axis(logits, truth[:, None], axis=1)
    before = logits > own
    before |= (logits == own) & (np.arange(logits.shape[1]) < truth[:, None])
    return np.asarray(np.where(broken(logits), logits.shape[1], before.sum(axis=1)), np.int64)
