"""Clips of EPIC-Kitchens-100 read as runs read them: whether they can be, and how fast.

Source: none, ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from harness.contracts import BadSample
from harness.data.ek100 import Ek100
from harness.data.ek100.annotations import Segment
from harness.data.ek100.layout import Layout
from harness.finding import Finding, Look, looked
from harness.loader import Loader, Request

POLICIES = "train.bad_samples: repeat and train.bad_test_samples: skip go on without them"
BATCH = 4


def clips(dataset: Ek100) -> Look:
    """One clip of each participant, read as in training or, of those not in it, as in the test."""
    splits = {name: dataset.split(name) for name in ("train", "test")}
    chosen: dict[str, tuple[str, int]] = {}
    for name, split in splits.items():
        for participant, own in _by_participant(split.seen, dataset.layout).items():
            chosen.setdefault(participant, (name, own[len(own) // 2] * split.views))
    bad = []
    for name, index in chosen.values():
        draw = (0, 0) if name == "train" else None
        try:
            list(Loader(splits[name], ["video"]).read([Request((index,), draw)]))
        except BadSample as error:
            bad.append(str(error))
    told = f"{len(chosen) - len(bad)} of {len(chosen)} can be read, one of each participant"
    return looked("clips", told, bad, f"get the videos again; or {POLICIES}", "fail")


def _by_participant(seen: Sequence[Segment], layout: Layout) -> dict[str, list[int]]:
    """Participant -> places of the segments whose video is there."""
    found: dict[str, list[int]] = {}
    for place, segment in enumerate(seen):
        if segment.video in layout.places and segment.stop > segment.start:
            found.setdefault(segment.participant, []).append(place)
    return found


def speed(dataset: Ek100, workers: int, seconds: float) -> Look:
    """Clips a second in random order, as in training, and what an epoch takes at that."""
    split = dataset.split("train")
    there = [place for own in _by_participant(split.seen, dataset.layout).values() for place in own]
    if not there:
        return Look("speed", Finding("skipped", "there is nothing to train on"))
    rng = np.random.default_rng(0)

    def requests() -> Iterator[Request]:
        while True:
            yield Request(tuple(rng.choice(there, BATCH).tolist()), (0, 0))

    loader = Loader(split, ["video"], "repeat", workers)
    batches = loader.read(requests())
    count = 0
    try:
        for _ in range(workers + 1):  # until all have begun
            next(batches)
        begun = time.perf_counter()
        while time.perf_counter() - begun < seconds:
            count += len(next(batches).samples)
        taken = time.perf_counter() - begun
    except BadSample as error:
        return Look("speed", Finding("fail", str(error), "see `clips`"))
    finally:
        batches.close()
    own, rate = dataset.config, count / taken
    told = (
        f"{rate:.1f} clips of {own.frames} x {own.size} x {own.size} a second with {workers} "
        f"workers: {len(split) / rate / 3600:.2g} h to read an epoch of {len(split):,}"
    )
    fix = "these could not be read, and there may be more: see `clips`"
    return looked("speed", told, loader.bad.values(), fix, "warn")
