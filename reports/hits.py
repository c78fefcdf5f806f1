"""Which samples of the test split a row has right, and how two rows differ in them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from harness.evaluate import Predictions, measures
from harness.store import Store
from reports.differences import Difference, crossed, nested
from reports.rows import Row, SeedResult, predictions


def difference(store: Store, first: Row, second: Row, metric: str) -> Difference | None:
    """First minus second over the seeds that both have; None where they were not tested on the same
    samples, or have no such metric by sample."""
    left, right = (_hits(store, row, metric) for row in (first, second))
    seeds = sorted(set(left) & set(right))
    pairs = [(left[seed], right[seed]) for seed in seeds]
    if not pairs or any(not np.array_equal(a.ids, b.ids) for a, b in pairs):
        return None
    values = [a.values - b.values for a, b in pairs]
    ids, groups = pairs[0][0].ids, pairs[0][0].groups
    if all(np.array_equal(a.ids, ids) for a, _ in pairs):
        return crossed(np.stack(values), groups)
    told = [(one, a.groups) for one, (a, _) in zip(values, pairs, strict=True)]
    return nested(told)  # each seed is tested on samples of its own


def difference_by_sample(store: Store, first: Row, second: Row, metric: str) -> Any:
    """(samples,) first minus second, means over the seeds that both have, in the order of the ids;
    None where they were not tested on the same samples."""
    left, right = (_hits(store, row, metric) for row in (first, second))
    pairs = [(left[seed], right[seed]) for seed in sorted(set(left) & set(right))]
    every = [hits for pair in pairs for hits in pair]
    if not pairs or any(not np.array_equal(hits.ids, every[0].ids) for hits in every):
        return None
    return np.mean([a.values - b.values for a, b in pairs], axis=0)


def sample_differences(store: Store, first: Row, second: Row, metric: str) -> Any:
    """(samples,) differences, means over seeds, and the groups of the samples; None where the rows
    were not tested on the same samples, or have no such metric."""
    left, right = (list(_hits(store, row, metric).values()) for row in (first, second))
    every = [*left, *right]
    if not (left and right) or any(not np.array_equal(h.ids, left[0].ids) for h in every):
        return None
    means = [np.mean([hits.values for hits in side], axis=0) for side in (left, right)]
    return means[0] - means[1], left[0].groups


@dataclass(frozen=True)
class Hits:
    """Of one seed: per sample of the test split, in the order of its ids."""

    ids: Any
    groups: Any
    values: Any
    """1.0 where it is right; of a class-mean recall more for a rare class, so that the mean is the
    recall"""


def _hits(store: Store, row: Row, metric: str) -> dict[int, Hits]:
    """Seed -> hits; empty if one has not the metric."""
    found = {}
    for seed in row.done:
        ids, groups, by_metric = scored(store, seed, [metric])
        if metric not in by_metric:
            return {}
        found[seed.seed] = Hits(ids, groups, by_metric[metric])
    return found


def prepare(store: Store, rows: Sequence[Row], metrics: Sequence[str]) -> None:
    """Score the rows by all of the metrics at once: predictions are read only once then."""
    done = [row for row in rows if row.done]
    for row in done if len(done) > 1 else ():  # one alone is compared with nothing
        for seed in row.done:
            _known(store, seed, metrics)


def scored(
    store: Store, seed: SeedResult, wanted: Sequence[str] | None = None
) -> tuple[Any, Any, dict[str, Any]]:
    """Ids, groups, and for each metric (of those that are `wanted`; None: all) what a sample counts
    (`Hits.values`), in the order of the ids. For a recall the classes are taken as given."""
    known = _known(store, seed, wanted)
    names = known.scored if wanted is None else [name for name in wanted if name in known.scored]
    return known.ids, known.groups, {name: known.values(name) for name in names}


@dataclass
class _Known:
    """What was read of the predictions of a seed; logits are not kept."""

    ids: Any = None
    groups: Any = None
    scored: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """metric -> (hits, classes that they are averaged within or None)"""
    whole: bool = False
    """whether that is every metric it has"""

    def read(self, said: Predictions, wanted: Sequence[str] | None) -> None:
        order = np.argsort(said.ids, kind="stable")
        self.ids, self.groups = _shared(said.ids[order]), _shared(said.groups[order])
        left = None if wanted is None else set(wanted)
        for one in measures(said):
            classes = None if one.classes is None else _shared(one.classes[order])
            self.scored[one.name] = (one.hits[order], classes)
            if left is not None and not (left := left - {one.name}):
                return
        self.whole = True

    def values(self, metric: str) -> Any:
        hits, classes = self.scored[metric]
        if classes is None:
            return hits.astype(float)
        _, place, sizes = np.unique(classes, return_inverse=True, return_counts=True)
        return hits * (len(hits) / len(sizes)) / sizes[place]


def _known(store: Store, seed: SeedResult, wanted: Sequence[str] | None) -> _Known:
    files = [store.run(run_id).predictions_file for run_id in seed.run_ids]
    known = _of_files(seed.run_ids, tuple((str(f), f.stat().st_mtime_ns) for f in files))
    if not known.whole and (wanted is None or not set(wanted) <= set(known.scored)):
        known.read(predictions(store, seed.run_ids), wanted)
    return known


@lru_cache(maxsize=4096)
def _of_files(run_ids: tuple[str, ...], files: tuple[tuple[str, int], ...]) -> _Known:
    return _Known()


_arrays: dict[bytes, Any] = {}


def _shared(array: Any) -> Any:
    """One array for all runs that were tested on the same samples."""
    digest = hashlib.sha256(array.tobytes()).digest() + str(array.dtype).encode()
    return _arrays.setdefault(digest, array)


def accuracy_by_group(store: Store, row: Row, metric: str) -> dict[str, float]:
    """Group -> share of its samples that are right, mean over seeds; empty without groups, and for
    recalls, whose classes run across groups."""
    if "_recall" in metric:
        return {}
    found: dict[str, list[float]] = {}
    for seed in row.done:
        _, groups, by_metric = scored(store, seed, [metric])
        if metric not in by_metric:
            return {}
        for group in sorted(set(groups.tolist()) - {""}):
            found.setdefault(group, []).append(float(by_metric[metric][groups == group].mean()))
    return {group: float(np.mean(values)) for group, values in found.items()}
