"""Batches of one split for one model: live streams collated, frozen ones from the token store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.contracts import Dataset
from harness.model import Model
from harness.spec import RunSpec
from harness.splits import Ints, Labels, fetch, labels_of, side_of
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
    """Random access to the batches of a split."""

    def __init__(
        self,
        spec: RunSpec,
        dataset: Dataset,
        split: str,
        model: Model,
        device: torch.device,
        tokens: Path,
    ) -> None:
        self.spec, self.model, self.device, self.dataset = spec, model, device, dataset
        self.items = dataset.split(split)
        if len(self.items) == 0:
            raise ValueError(f"the split {split!r} of {spec.data.name} is empty")
        self.live = [stream for stream in sorted(spec.encoders) if stream not in model.frozen]
        self.frozen: dict[str, TokenFile] = {}
        for stream in model.frozen:
            encoder = model.encoders[stream].eval()
            key = token_key(spec, stream, split, encoder)
            self.frozen[stream] = frozen_tokens(tokens, key, encoder, dataset, stream, split)

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, indices: Ints) -> Batch:
        """The samples at `indices`, on the device."""
        inputs: dict[str, Any] = {s: file.batch(indices) for s, file in self.frozen.items()}
        side: dict[str, dict[str, Tensor]] = {}
        if self.live:
            samples = fetch(self.items, indices)
            labels = labels_of(samples, self.dataset.targets)
            for stream in self.live:
                encoder = self.model.encoders[stream]
                inputs[stream] = encoder.collate([s.streams[stream] for s in samples])  # type: ignore[operator]
                side[stream] = side_of(samples, stream)
        else:
            labels = next(iter(self.frozen.values())).labels.at(indices)
        targets = {name: torch.from_numpy(value) for name, value in labels.targets.items()}
        return Batch(
            to_device(inputs, self.device),
            to_device(side, self.device),
            to_device(targets, self.device),
            labels,
        )

    def batches(self, size: int, part: range | None = None) -> Iterator[Batch]:
        """All samples in order, or a part of them, the last batch short."""
        part = range(len(self)) if part is None else part
        for start in range(part.start, part.stop, size):
            yield self.batch(np.arange(start, min(start + size, part.stop)))
