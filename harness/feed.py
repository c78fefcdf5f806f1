"""Batches of one split for one model: live streams collated, others from stored tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.batch import Batch, each_tensor, to_device
from harness.cache import frozen_tokens, wanted
from harness.contracts import BadSample, Dataset
from harness.loader import NEIGHBOURS, Loader, Policy, Request
from harness.model import Model
from harness.spec import RunSpec
from harness.splits import Ints, Labels, batch_indices, fetch, labels_of, side_of
from harness.texts import text_tokens
from harness.tokens import TokenFile, ahead, of_dataset


class Feed:
    """The batches of a split."""

    def __init__(
        self,
        spec: RunSpec,
        dataset: Dataset,
        split: str,
        model: Model,
        device: torch.device,
        tokens: Path,
        workers: int = 0,
    ) -> None:
        self.spec, self.model, self.device, self.dataset = spec, model, device, dataset
        self.items = dataset.split(split)
        if len(self.items) == 0:
            raise ValueError(f"the split {split!r} of {spec.data.name} is empty")
        self.views = dataset.views if split == "test" else 1
        policy: Policy = spec.train.bad_samples if split == "train" else spec.train.bad_test_samples
        for_all: Policy = "fail" if split != "train" or policy == "fail" else "repeat"
        workers = workers if dataset.slow else 0
        self.stored: dict[str, TokenFile] = {}
        """streams whose tokens are at hand"""
        bad: dict[str, str] = {}
        for stream, encoder in sorted(spec.encoders.items()):
            module = model.encoders[stream]
            own = dataset.stored(split, stream) if module.passes_on else None
            if own is not None:
                self.stored[stream] = of_dataset(own, self._labels)
            elif encoder.frozen and encoder.cache != "none":
                want = wanted(spec, dataset, stream, split, module.eval())
                reader = Loader(self.items, [stream], for_all, workers)
                stored = text_tokens if want.texts else frozen_tokens
                file = stored(tokens, want, module, dataset, reader)
                if file.bad and for_all == "fail":  # another run stored them, by another policy
                    raise BadSample(next(iter(file.bad.values())))
                self.stored[stream] = file
                bad |= file.bad
        self.live = [stream for stream in sorted(spec.encoders) if stream not in self.stored]
        self.loader = Loader(self.items, self.live, policy, workers)
        self.bad = self.loader.bad
        """id -> why, of the samples that could not be read"""
        self.bad |= bad

    def __len__(self) -> int:
        """Samples, however many views there are of each."""
        return len(self.items) // self.views

    def training(self, first: int, last: int, share: range) -> Iterator[Batch]:
        """The batches of the optimiser steps `first` .. `last` - 1; of each the part `share`."""
        size, passes = self.spec.train.batch_size, len(self) // self.spec.train.batch_size

        def requests() -> Iterator[Request]:
            for step in range(first, last):
                indices = batch_indices(self.spec.seed, step, size, len(self))
                own = indices[share.start : share.stop]
                yield Request(tuple(own.tolist()), (self.spec.seed, step // passes))

        return self._batches(requests())

    def batches(self, size: int, part: range | None = None) -> Iterator[Batch]:
        """All samples in order, or a part of them, the last batch short. Of a sample with several
        views all are in one batch, side by side."""
        part = range(len(self)) if part is None else part
        size = max(1, size // self.views)

        def requests() -> Iterator[Request]:
            for start in range(part.start, part.stop, size):
                stop = min(start + size, part.stop)
                yield Request(tuple(range(start * self.views, stop * self.views)))

        return self._batches(requests())

    @cached_property
    def _labels(self) -> Labels:
        """Of all samples; their streams are not looked at."""
        return labels_of(fetch(self.items, range(len(self.items))), self.dataset.targets)

    def _readable(self, request: Request) -> Request:
        """The samples that the stored tokens are of, for every stream alike."""
        taken = [file for file in self.stored.values() if file.places is not None]
        if not taken:
            return request
        indices = np.array(request.indices, np.int64)
        for file in taken * (NEIGHBOURS if len(taken) > 1 else 1):  # until all agree
            assert file.places is not None
            indices = file.places[indices]
        return replace(request, indices=tuple(indices.tolist()))

    def _batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        requests = map(self._readable, requests)
        if not self.live:
            for batch in ahead(requests, self._gathered, _size):
                yield self._moved(batch)
            return
        for found in self.loader.read(requests):
            samples = found.samples
            inputs, side = {}, {}
            for stream in self.live:
                encoder = self.model.encoders[stream]
                inputs[stream] = encoder.collate([s.streams[stream] for s in samples])  # type: ignore[operator]
                side[stream] = side_of(samples, stream, encoder.takes)  # type: ignore[arg-type]
            labels = labels_of(samples, self.dataset.targets)
            stored = self._stored(found.indices, found.turn)
            targets = {name: torch.from_numpy(value) for name, value in labels.targets.items()}
            yield self._moved(Batch({**stored, **inputs}, side, targets, partial(_same, labels)))

    def _gathered(self, request: Request) -> Batch:
        """A batch of stored tokens, not moved yet."""
        indices = np.array(request.indices, np.int64)
        labels = next(iter(self.stored.values())).labels
        stored = self._stored(indices, _turn(request))
        if self.device.type == "cuda":
            stored = each_tensor(stored, lambda x: x.pin_memory())
        targets = {n: torch.from_numpy(values[indices]) for n, values in labels.targets.items()}
        return Batch(stored, {}, targets, partial(labels.at, indices))

    def _stored(self, indices: Ints, turn: int) -> dict[str, Any]:
        return {stream: file.batch(indices, turn) for stream, file in self.stored.items()}

    def _moved(self, batch: Batch) -> Batch:
        if self.device.type == "cpu":
            return batch
        inputs, side, targets = to_device((batch.inputs, batch.side, batch.targets), self.device)
        return Batch(inputs, side, targets, batch.known)


def _size(batch: Batch) -> int:
    """Bytes of its tokens."""
    return sum(tokens.features.nbytes for tokens in batch.inputs.values())


def _same(labels: Labels) -> Labels:
    return labels


def _turn(request: Request) -> int:
    """The number of the pass over the data."""
    return request.draw[1] if request.draw else 0
