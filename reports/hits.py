"""Which samples of the test split a row has right, and how two rows differ in them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from harness.evaluate import hits_by_metric
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
    """1.0 where it is right"""


def _hits(store: Store, row: Row, metric: str) -> dict[int, Hits]:
    """Seed -> hits; empty if one has not the metric."""
    found = {}
    for seed in row.done:
        ids, groups, by_metric = scored(store, seed)
        if metric not in by_metric:
            return {}
        found[seed.seed] = Hits(ids, groups, by_metric[metric])
    return found


def scored(store: Store, seed: SeedResult) -> tuple[Any, Any, dict[str, Any]]:
    """Ids, groups, and for each metric whether a sample is right, in the order of the ids."""
    files = [store.run(run_id).predictions_file for run_id in seed.run_ids]
    return _scored(store, seed.run_ids, tuple(file.stat().st_mtime_ns for file in files))


@lru_cache(maxsize=256)
def _scored(
    store: Store, run_ids: tuple[str, ...], _written: tuple[int, ...]
) -> tuple[Any, Any, dict[str, Any]]:
    said = predictions(store, run_ids)
    order = np.argsort(said.ids, kind="stable")
    hits = {name: found[order].astype(float) for name, found in hits_by_metric(said).items()}
    return said.ids[order], said.groups[order], hits


def accuracy_by_group(store: Store, row: Row, metric: str) -> dict[str, float]:
    """Group -> share of its samples that are right, mean over seeds; empty without groups."""
    found: dict[str, list[float]] = {}
    for seed in row.done:
        _, groups, by_metric = scored(store, seed)
        if metric not in by_metric:
            return {}
        for group in sorted(set(groups.tolist()) - {""}):
            found.setdefault(group, []).append(float(by_metric[metric][groups == group].mean()))
    return {group: float(np.mean(values)) for group, values in found.items()}
