"""What is right and wrong with someone's own features."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from harness.config import ConfigError
from harness.data.features.labels import SPLITS, Labelled
from harness.finding import Finding, Look, some
from harness.splits import batch_indices, fetch, labels_of
from harness.tokens import of_dataset

if TYPE_CHECKING:
    from harness.data.features import Features

BATCH = 128
FEW_GROUPS = 5
"""groups of the test split below which an interval over them says little"""


def examine(dataset: Features, seconds: float) -> Iterator[Look]:
    """All looks; one only where the manifest is wrong."""
    try:
        content = dataset.content
    except ConfigError as error:
        lines = error.messages
        yield Look("manifest", Finding("fail", some(lines), "see docs/your-data.md"), lines)
        return
    yield Look("manifest", Finding("ok", f"{content.file}: {len(content.labels.ids):,} samples"))
    for name, array in content.streams.items():
        opened = array.opened
        low, high = int(array.lengths.min()), int(array.lengths.max())
        tokens = str(low) if low == high else f"{low} to {high}"
        told = (
            f"{tokens} tokens of {array.width} numbers, {opened.kind}, {opened.bytes / 1e9:.3g} GB"
        )
        yield Look(f"stream {name}", Finding("ok", told))
    yield _splits(content.labels)
    for target in content.labels.targets:
        yield _target(content.labels, target)
    yield _memory(dataset)
    yield _speed(dataset, seconds)


def _splits(labels: Labelled) -> Look:
    sizes = {name: len(labels.rows_of(name)) for name in SPLITS}
    told = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    if not labels.groups:
        return Look("splits", Finding("ok", f"{told}; samples count as independent"))
    groups = {name: {labels.groups[row] for row in labels.rows_of(name)} for name in SPLITS}
    told += "; groups " + ", ".join(f"{name} {len(found):,}" for name, found in groups.items())
    if len(groups["test"]) < FEW_GROUPS:
        fix = "intervals over groups will be wide; put more groups into test"
        return Look("splits", Finding("warn", told, fix))
    return Look("splits", Finding("ok", told))


def _target(labels: Labelled, target: str) -> Look:
    """Classes that the test asks for and training has not seen, and how even they are."""
    names, values = labels.classes[target], labels.targets[target]
    seen = Counter(values[labels.rows_of("train")].tolist())
    unseen = sorted(set(values[labels.rows_of("test")].tolist()) - seen.keys())
    share = max(seen.values()) / max(1, sum(seen.values()))
    told = f"{len(names)} classes, the most frequent is {100 * share:.1f} % of train"
    if unseen:
        every = tuple(names[number] for number in unseen)
        fix = "no model can get these right; move samples to train, or leave the classes out"
        what = f"{told}; in test and not in train: {some(every)}"
        return Look(f"target {target}", Finding("warn", what, fix), every)
    return Look(f"target {target}", Finding("ok", told))


def _memory(dataset: Features) -> Look:
    """Arrays that fit into memory are read from disk once."""
    size = sum(array.opened.bytes for array in dataset.content.streams.values())
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return Look("memory", Finding("skipped", "how much there is cannot be found out"))
    told = f"{size / 1e9:.3g} GB of arrays, {there / 1e9:.3g} GB of memory"
    if size > 0.8 * there:
        fix = "every epoch will read from disk; float16 takes half, means over frames less"
        return Look("memory", Finding("warn", told, fix))
    return Look("memory", Finding("ok", told))


def _speed(dataset: Features, seconds: float) -> Look:
    items = dataset.split("train")
    if len(items) < 2:
        return Look("speed", Finding("skipped", "train has less than two samples"))
    size = min(BATCH, len(items))
    labels = labels_of(fetch(items, range(len(items))), dataset.targets)
    stored = [dataset.stored("train", name) for name in dataset.streams]
    files = [of_dataset(one, labels) for one in stored if one is not None]
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds and count < 20 * len(items):
        indices = batch_indices(0, count // size, size, len(items))
        for file in files:
            file.batch(np.asarray(indices))
        count += size
    rate = count / (time.perf_counter() - begun)
    return Look("speed", Finding("ok", f"{rate:,.0f} samples a second, shuffled, one process"))
