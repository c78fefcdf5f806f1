"""Which samples of the test split a row has right, and how two rows differ in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from harness.evaluate import Predictions, measures
from harness.store import Store
from reports.differences import Difference, crossed, nested
from reports.rows import Row, SeedResult, predictions

ALIKE = 0.9
"""share of the samples that two must have in common to be compared: some could not be read"""


@dataclass(frozen=True)
class Hits:
    """Of one seed: per sample of the test split, in the order of its ids."""

    ids: Any
    groups: Any
    values: Any
    """1.0 where it is right; of a class-mean recall more for a rare class, so that the mean is the
    recall"""
    truths: Mapping[str, Any]
    """target -> true classes"""

    def at(self, places: Any) -> Hits:
        truths = {name: of[places] for name, of in self.truths.items()}
        return Hits(self.ids[places], self.groups[places], self.values[places], truths)


def difference(store: Store, first: Row, second: Row, metric: str) -> Difference | None:
    """First minus second over the seeds that both have; None where they were not tested on the same
    samples, or have no such metric by sample."""
    pairs = _pairs(store, first, second, metric)
    if not pairs:
        return None
    same = _stacked(pairs)
    if same is not None:
        return crossed(same.values, same.groups)
    parts = []
    for pair in pairs:  # each seed is tested on samples of its own
        a, b = pair
        alone = (a.groups == "").all()  # a sample that seeds share is no other one then
        parts.append((a.values - b.values, a.ids if alone else a.groups))
    return nested(parts)


def difference_by_sample(store: Store, first: Row, second: Row, metric: str) -> Hits | None:
    """Of every sample first minus second, means over the seeds that both have, as `Hits`; None
    where seeds or rows were not tested on the same samples."""
    same = _stacked(_pairs(store, first, second, metric))
    return None if same is None else replace(same, values=same.values.mean(axis=0))


def shared_seeds(first: Row, second: Row) -> set[int]:
    """What differences of two rows are over."""
    return {seed.seed for seed in first.done} & {seed.seed for seed in second.done}


def runs_of_both(first: Row, second: Row) -> tuple[str, ...]:
    """Of the seeds that both have: those that a difference is of."""
    seeds = shared_seeds(first, second)
    return tuple(
        run_id
        for row in (first, second)
        for seed in row.done
        if seed.seed in seeds
        for run_id in seed.run_ids
    )


def _pairs(store: Store, first: Row, second: Row, metric: str) -> list[tuple[Hits, ...]]:
    """The hits of both on the samples that both were tested on, by seed; empty if some are not
    alike."""
    left, right = (_hits(store, row, metric) for row in (first, second))
    found = []
    for seed in sorted(set(left) & set(right)):
        pair = _common([left[seed], right[seed]])
        if pair is None:
            return []
        found.append(tuple(pair))
    return found


def _stacked(pairs: Sequence[tuple[Hits, ...]]) -> Hits | None:
    """The differences of all seeds, (seeds, samples); None where they were tested on others."""
    same = _common([hits for pair in pairs for hits in pair]) if pairs else None
    if same is None:
        return None
    values = np.stack([a.values - b.values for a, b in zip(same[::2], same[1::2], strict=True)])
    return replace(same[0], values=values)


def _common(every: Sequence[Hits]) -> list[Hits] | None:
    """All of them on the samples that they share; None if these are too few, or not the same."""
    ids = every[0].ids
    if any(not _equal(hits.ids, ids) for hits in every):
        for hits in every[1:]:
            ids = np.intersect1d(ids, hits.ids, assume_unique=True)
        if len(ids) < ALIKE * max(len(hits.ids) for hits in every):
            return None
        every = [hits.at(np.searchsorted(hits.ids, ids)) for hits in every]
    first = every[0].truths
    for hits in every[1:]:
        both = first.keys() & hits.truths.keys()
        if not both or any(not _equal(first[name], hits.truths[name]) for name in both):
            return None  # the ids are equal by chance: other data
    return list(every)


def _hits(store: Store, row: Row, metric: str) -> dict[int, Hits]:
    """Seed -> hits; empty if one has not the metric."""
    found = {}
    for seed in row.done:
        known = _known(store, seed, [metric])
        if metric not in known.scored:
            return {}
        found[seed.seed] = Hits(known.ids, known.groups, known.values(metric), known.truths)
    return found


def prepare(store: Store, rows: Sequence[Row], metrics: Sequence[str]) -> None:
    """Score the rows by all of the metrics at once: predictions are read only once then."""
    done = [row for row in rows if row.done]
    if len(done) < 2:  # one alone is compared with nothing
        return
    with ThreadPoolExecutor() as pool:  # unpacking and sorting leave the interpreter free
        list(pool.map(lambda seed: _known(store, seed, metrics), (s for r in done for s in r.done)))


def scored(
    store: Store, seed: SeedResult, wanted: Sequence[str] | None = None
) -> tuple[Any, Any, dict[str, Any]]:
    """Ids, groups, and for each metric (of those that are `wanted`; None: all) what a sample counts
    (`Hits.values`), in the order of the ids; without metrics where there are no predictions. For a
    recall the classes are taken as given."""
    known = _known(store, seed, wanted)
    names = known.scored if wanted is None else [name for name in wanted if name in known.scored]
    return known.ids, known.groups, {name: known.values(name) for name in names}


@dataclass
class _Known:
    """What was read of the predictions of a seed; logits are not kept."""

    ids: Any = None
    groups: Any = None
    truths: Mapping[str, Any] = field(default_factory=dict)
    scored: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """metric -> (hits, classes that they are averaged within or None)"""
    whole: bool = False
    """whether that is every metric it has"""

    def read(self, said: Predictions, wanted: Sequence[str] | None) -> None:
        order = np.argsort(said.ids, kind="stable")
        self.ids, self.groups = _shared(said.ids[order]), _shared(said.groups[order])
        self.truths = {name: _shared(of[order]) for name, of in said.targets.items()}
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
    if not all(file.is_file() for file in files):
        return _Known()
    known = _of_files(seed.run_ids, tuple((str(f), f.stat().st_mtime_ns) for f in files))
    if not known.whole and (wanted is None or not set(wanted) <= set(known.scored)):
        known.read(predictions(store, seed.run_ids), wanted)
    return known


@lru_cache(maxsize=4096)
def _of_files(run_ids: tuple[str, ...], files: tuple[tuple[str, int], ...]) -> _Known:
    return _Known()


_arrays: dict[tuple[str, int], Any] = {}


def _shared(array: Any) -> Any:
    """One array for all runs that were tested on the same samples."""
    known = _arrays.setdefault((array.dtype.str, hash(array.tobytes())), array)
    return known if np.array_equal(known, array) else array


def _equal(first: Any, second: Any) -> bool:
    return first is second or np.array_equal(first, second)


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
