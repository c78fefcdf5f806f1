"""Batches of one split for one model: live streams collated, frozen ones from the token store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.contracts import BadSample, Dataset
from harness.loader import NEIGHBOURS, Loader, Policy, Request
from harness.model import Model
from harness.spec import RunSpec
from harness.splits import Ints, Labels, batch_indices, labels_of, side_of
from harness.tokens import TokenFile, frozen_tokens, to_device, token_key


@dataclass(frozen=True)
class Batch:
    inputs: Mapping[str, Any]
    """stream -> Tokens, or what its encoder's `forward` takes"""
    side: Mapping[str, Mapping[str, Tensor]]
    targets: Mapping[str, Tensor]
    """target -> (B,)"""
    labels: Labels


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
        self.live = [stream for stream in sorted(spec.encoders) if stream not in model.frozen]
        policy: Policy = spec.train.bad_samples if split == "train" else spec.train.bad_test_samples
        for_all: Policy = "fail" if split != "train" or policy == "fail" else "repeat"
        workers = workers if dataset.slow else 0
        self.loader = Loader(self.items, self.live, policy, workers)
        self.bad = self.loader.bad
        """id -> why, of the samples that could not be read"""
        self.frozen: dict[str, TokenFile] = {}
        for stream in model.frozen:
            encoder = model.encoders[stream].eval()
            key = token_key(spec, stream, split, encoder)
            reader = Loader(self.items, [stream], for_all, workers)
            file = frozen_tokens(tokens, key, encoder, dataset, stream, reader)
            if file.bad and for_all == "fail":  # another run stored them, by another policy
                raise BadSample(next(iter(file.bad.values())))
            self.frozen[stream] = file
            self.bad |= file.bad

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

    def _readable(self, request: Request) -> Request:
        """The samples that the stored tokens are of, for every stream alike."""
        taken = [file.places for file in self.frozen.values() if file.places is not None]
        indices = np.array(request.indices, np.int64)
        for places in taken * (NEIGHBOURS if len(taken) > 1 else 1):  # until all agree
            indices = places[indices]
        return replace(request, indices=tuple(indices.tolist()))

    def _batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        requests = map(self._readable, requests)
        if not self.live:
            for request in requests:
                indices = np.array(request.indices, np.int64)
                labels = next(iter(self.frozen.values())).labels.at(indices)
                yield self._batch(indices, {}, {}, labels)
            return
        for found in self.loader.read(requests):
            samples = found.samples
            inputs, side = {}, {}
            for stream in self.live:
                encoder = self.model.encoders[stream]
                inputs[stream] = encoder.collate([s.streams[stream] for s in samples])  # type: ignore[operator]
                side[stream] = side_of(samples, stream)
            labels = labels_of(samples, self.dataset.targets)
            yield self._batch(found.indices, inputs, side, labels)

    def _batch(
        self,
        indices: Ints,
        live: Mapping[str, Any],
        side: Mapping[str, Mapping[str, Tensor]],
        labels: Labels,
    ) -> Batch:
        stored = {stream: file.batch(indices) for stream, file in self.frozen.items()}
        targets = {name: torch.from_numpy(value) for name, value in labels.targets.items()}
        return Batch(
            to_device({**stored, **live}, self.device),
            to_device(side, self.device),
            to_device(targets, self.device),
            labels,
        )
