"""A batch, and what is done with all tensors of one: move it, cut it into parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.contracts import PartedTokens, Tokens
from harness.splits import Labels


@dataclass(frozen=True)
class Batch:
    """Samples on their way through a model."""

    inputs: Mapping[str, Any]
    """stream -> Tokens, or what its encoder's `forward` takes"""
    side: Mapping[str, Mapping[str, Tensor]]
    targets: Mapping[str, Tensor]
    """target -> (B,)"""
    known: Callable[[], Labels]
    """gives `labels`, which training does not look at"""
    others: Mapping[str, Tensor] | None = None
    """of a mixed batch: target -> (B,), the labels of what each sample was mixed with"""

    @property
    def labels(self) -> Labels:
        """All that is known of the samples."""
        return self.known()

    def __len__(self) -> int:
        return len(next(iter(self.targets.values())))

    def parts(self, count: int) -> Iterator[Batch]:
        """The batch in `count` parts, one after the other, as equal as they can be."""
        bounds = [len(self) * place // count for place in range(count + 1)]
        for begin, end in pairwise(bounds):
            if end == begin:
                continue
            whole = (self.inputs, self.side, self.targets, self.others)
            inputs, side, targets, others = each_tensor(whole, itemgetter(slice(begin, end)))
            yield Batch(inputs, side, targets, partial(self._labels, begin, end), others)

    def _labels(self, begin: int, end: int) -> Labels:
        return self.labels.at(np.arange(begin, end))


def each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value`, a tensor or tuples and mappings of them, with each one changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Tokens | PartedTokens):
        return type(value)(*(change(part) for part in value))
    if isinstance(value, tuple):
        return tuple(each_tensor(part, change) for part in value)
    if isinstance(value, Mapping):
        return {name: each_tensor(part, change) for name, part in value.items()}
    return value


def to_device(value: Any, device: torch.device) -> Any:
    """`value` with its tensors moved."""
    return each_tensor(value, lambda x: x.to(device, non_blocking=True))
