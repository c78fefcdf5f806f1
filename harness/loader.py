"""Samples of a split read batch by batch; by worker processes, ahead of use, where that takes long.

Which samples, and what is drawn at random in them, is settled by the request alone: the number of
workers changes nothing. A sample that cannot be read is named on stderr, once, and counted.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from harness.contracts import BadSample, Sample, Split
from harness.splits import Ints, fetch

Policy = Literal["skip", "repeat", "fail"]
NEIGHBOURS = 20
"""samples that are tried, one after another, in the place of one that cannot be read"""
AHEAD = 2
"""batches that each worker reads ahead"""
LOOK = 5.0
"""seconds after which to see whether the workers are alive, while no batch comes"""
SILENCE = 1800.0
"""seconds to wait for a batch: a worker that reads from a mount that is gone waits for ever"""


@dataclass(frozen=True)
class Request:
    """One batch to read."""

    indices: tuple[int, ...]
    draw: tuple[int, int] | None = None
    """(seed, pass) of the random choices of training; None: none are made"""


@dataclass
class Fetched:
    """One batch that was read."""

    indices: Ints
    """of the samples that were"""
    samples: list[Sample]
    bad: dict[str, str] = field(default_factory=dict)
    """id -> why it could not be read"""
    failed: str | None = None
    """why there is no batch"""
    turn: int = 0
    """number of the pass over the data that it belongs to"""


class WorkerLost(RuntimeError):
    """A worker process ended before its work was done, or fell silent."""


class Loader:
    """Reads batches of `items`, of each sample the `streams` named."""

    def __init__(
        self, items: Split, streams: Sequence[str], policy: Policy = "fail", workers: int = 0
    ) -> None:
        self.batches = _Batches(items, tuple(streams), policy)
        self.workers = workers
        self.bad: dict[str, str] = {}
        """id -> why, of every sample so far that could not be read"""

    def __len__(self) -> int:
        """Items of the split."""
        return len(self.batches.items)

    def read(self, requests: Iterable[Request]) -> Generator[Fetched]:
        """The batches, in order, but for those outside training of which nothing can be read.

        Raises BadSample where the policy does not allow to go on, and WorkerLost if a worker was
        killed or hangs.
        """
        for found in self._fetched(requests):
            for name, why in found.bad.items():
                if name not in self.bad:
                    print(f"cannot be read: {why}", file=sys.stderr)
            self.bad |= found.bad
            if found.failed is not None:
                raise BadSample(found.failed)
            if found.samples:
                yield found

    def _fetched(self, requests: Iterable[Request]) -> Iterator[Fetched]:
        if self.workers == 0:
            yield from map(self.batches.__getitem__, requests)
            return
        loader = DataLoader(
            self.batches,
            batch_size=None,
            sampler=_Requests(requests),
            num_workers=self.workers,
            collate_fn=_as_it_is,
            prefetch_factor=AHEAD,
            timeout=LOOK,
            multiprocessing_context=_context(),
            generator=torch.Generator(),  # the run's own random numbers are not touched
        )
        batches = iter(loader)
        asked = time.monotonic()
        while True:
            try:
                found = next(batches)
            except StopIteration:
                return
            except (RuntimeError, EOFError, OSError) as error:
                if str(error).startswith("DataLoader timed out"):
                    if time.monotonic() - asked < SILENCE:
                        continue
                    raise WorkerLost(
                        f"no batch came from the processes that read samples for {SILENCE:g} s: "
                        "does the disk or the mount with the data still answer?"
                    ) from error
                if not _of_the_dead(error):
                    raise
                how = str(error) or "it fell silent"
                raise WorkerLost(
                    f"a process that reads samples was killed ({how}). If memory or /dev/shm is "
                    f"short, fewer `--threads` start fewer of them than {self.workers}"
                ) from error
            yield _unpacked(found)
            asked = time.monotonic()


def _of_the_dead(error: Exception) -> bool:
    """Whether a worker is gone, or went while it handed something over; what a worker raises while
    it lives is told of as caught there."""
    if isinstance(error, RuntimeError):
        return "exited unexpectedly" in str(error)
    return not str(error).startswith("Caught ")


class _Requests(Sampler[Request]):
    def __init__(self, requests: Iterable[Request]) -> None:
        self.requests = requests

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)


class _Batches(Dataset[Fetched]):
    """Request -> what was read; sent to the workers."""

    def __init__(self, items: Split, streams: tuple[str, ...], policy: Policy) -> None:
        self.items, self.streams, self.policy = items, streams, policy

    def __getitem__(self, request: Request) -> Fetched:
        found = replace(self._read(request), turn=request.draw[1] if request.draw else 0)
        return found if torch.utils.data.get_worker_info() is None else _packed(found)

    def _read(self, request: Request) -> Fetched:
        try:
            samples = drawn(self.items, request.indices, request.draw)
            wanted = [self._wanted(sample) for sample in samples]
            return Fetched(np.array(request.indices, np.int64), wanted)
        except BadSample:  # one of them: which one is found out one by one
            pass
        kept: list[int] = []
        readable: list[Sample] = []
        bad: dict[str, str] = {}
        for index in request.indices:
            try:
                place, sample = self._one(index, request.draw, bad)
            except BadSample as error:
                if self.policy != "skip":
                    return Fetched(np.array(kept, np.int64), readable, bad, str(error))
                continue
            kept.append(place)
            readable.append(sample)
        if self.policy == "skip":  # with one view of a sample the others go
            whole = [sample.id not in bad for sample in readable]
            kept, readable = list(compress(kept, whole)), list(compress(readable, whole))
        none = None
        if not readable and request.draw is not None:  # training has a step for every batch
            none = f"no sample of a batch can be read: {next(iter(bad.values()))}"
        return Fetched(np.array(kept, np.int64), readable, bad, none)

    def _one(
        self, index: int, draw: tuple[int, int] | None, bad: dict[str, str]
    ) -> tuple[int, Sample]:
        """The sample at `index`, or by policy the next one behind it that can be read."""
        tries = NEIGHBOURS if self.policy == "repeat" else 1
        for place in range(index, index + tries):
            try:
                (sample,) = drawn(self.items, [place % len(self.items)], draw)
                return place % len(self.items), self._wanted(sample)
            except BadSample as error:
                bad[str(error).split(":", 1)[0]] = str(error)
                last = error
        raise last

    def _wanted(self, sample: Sample) -> Sample:
        """The sample with the values of its streams made; what else it has is left behind."""
        return replace(
            sample,
            streams={name: sample.streams[name] for name in self.streams},
            side={name: sample.side[name] for name in self.streams if name in sample.side},
        )


def drawn(items: Split, indices: Sequence[int], draw: tuple[int, int] | None) -> list[Sample]:
    """Samples, with random choices made where the split makes any."""
    chosen = getattr(items, "drawn", None)
    if draw is None or chosen is None:
        return fetch(items, indices)
    return list(chosen(list(indices), *draw))


def _packed(found: Fetched) -> Fetched:
    """One tensor in place of many that are alike: each one sent costs an open file."""
    samples = found.samples
    streams = {
        name: torch.stack([sample.streams[name] for sample in samples])
        for name in (samples[0].streams if samples else ())
        if _alike([sample.streams[name] for sample in samples])
    }
    sides = {
        (stream, name): torch.stack([sample.side[stream][name] for sample in samples])
        for stream in (samples[0].side if samples else ())
        for name in samples[0].side[stream]
    }
    bare = [
        replace(
            sample,
            streams={k: v for k, v in sample.streams.items() if k not in streams},
            side={},
        )
        for sample in samples
    ]
    return replace(found, samples=(bare, streams, sides))  # type: ignore[arg-type]


def _unpacked(found: Fetched) -> Fetched:
    bare: list[Sample]
    streams: Mapping[str, Tensor]
    sides: Mapping[tuple[str, str], Tensor]
    bare, streams, sides = found.samples  # type: ignore[assignment]
    samples = []
    for row, sample in enumerate(bare):
        side: dict[str, dict[str, Tensor]] = {}
        for (stream, name), values in sides.items():
            side.setdefault(stream, {})[name] = values[row]
        own = {name: values[row] for name, values in streams.items()}
        samples.append(replace(sample, streams={**sample.streams, **own}, side=side))
    return replace(found, samples=samples)


def _alike(values: Sequence[Any]) -> bool:
    return all(isinstance(value, Tensor) and value.shape == values[0].shape for value in values)


def _as_it_is(found: Any) -> Any:
    return found


def _context() -> Any:
    """Workers come from a server that has no threads: a fork of this process could hang."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harness.loader"])
    return context
