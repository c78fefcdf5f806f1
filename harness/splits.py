"""Samples of a split -> arrays and batches; the order in which training sees them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.contracts import Sample, Split

Ints = npt.NDArray[np.int64]
Strings = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Labels:
    """What is known of samples beside their streams, each (samples,)."""

    ids: Strings
    groups: Strings
    subsets: Strings
    targets: Mapping[str, Ints]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Flat, for a file."""
        named = {f"target/{name}": value for name, value in self.targets.items()}
        return {"ids": self.ids, "groups": self.groups, "subsets": self.subsets, **named}

    @staticmethod
    def of_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> Labels:
        """Back from `arrays`."""
        targets = {
            k.removeprefix("target/"): v for k, v in arrays.items() if k.startswith("target/")
        }
        return Labels(arrays["ids"], arrays["groups"], arrays["subsets"], targets)

    @staticmethod
    def join(parts: Sequence[Labels]) -> Labels:
        """One after the other."""
        joined = {
            name: np.concatenate([part.arrays()[name] for part in parts])
            for name in parts[0].arrays()
        }
        return Labels.of_arrays(joined)

    def at(self, indices: Ints) -> Labels:
        """Those of some samples."""
        return Labels.of_arrays({name: value[indices] for name, value in self.arrays().items()})


def fetch(items: Split, indices: Iterable[int]) -> list[Sample]:
    """Several samples, in one call where the split offers that."""
    wanted = [int(index) for index in indices]
    many = getattr(items, "__getitems__", None)
    return list(many(wanted)) if many else [items[index] for index in wanted]


def side_of(
    samples: Sequence[Sample], stream: str, takes: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Further inputs of a stream's encoder, stacked, of those that it `takes` (None: all);
    ValueError if some samples lack one."""
    if takes is not None and not takes:
        return {}
    sides = [sample.side.get(stream, {}) for sample in samples]
    for sample, side in zip(samples, sides, strict=True):
        if side.keys() != sides[0].keys():
            raise ValueError(
                f"sample {sample.id}: {stream} comes with {sorted(side) or 'nothing'}, "
                f"{samples[0].id} with {sorted(sides[0]) or 'nothing'}"
            )
    names = [name for name in sides[0] if takes is None or name in takes]
    return {name: torch.stack([side[name] for side in sides]) for name in names}


def labels_of(samples: Sequence[Sample], targets: Mapping[str, int]) -> Labels:
    """Labels of samples; raises ValueError for a class index out of range."""
    arrays = {}
    for name, classes in targets.items():
        values = np.array([sample.targets[name] for sample in samples], np.int64)
        if ((values < 0) | (values >= classes)).any():
            bad = samples[int(np.argmax((values < 0) | (values >= classes)))]
            raise ValueError(
                f"sample {bad.id}: target {name} is {bad.targets[name]}, not in 0..{classes - 1}"
            )
        arrays[name] = values
    return Labels(
        np.array([sample.id for sample in samples], dtype=np.str_),
        np.array([sample.group for sample in samples], dtype=np.str_),
        np.array([sample.subset for sample in samples], dtype=np.str_),
        arrays,
    )


def batch_indices(seed: int, step: int, batch_size: int, samples: int) -> Ints:
    """Samples of an optimiser step: every pass is a fresh permutation keyed by (seed, pass).

    The last, short batch of a pass is dropped. Any step can be asked for, which makes resuming
    exact. Raises ValueError if there are fewer samples than a batch needs.
    """
    per_pass = samples // batch_size
    if per_pass == 0:
        raise ValueError(f"train.batch_size is {batch_size}, but train has only {samples} samples")
    number, place = divmod(step, per_pass)
    order = _permutation(seed, number, samples)
    return order[place * batch_size : (place + 1) * batch_size]


_last: tuple[tuple[int, int, int], Ints] | None = None


def _permutation(seed: int, number: int, samples: int) -> Ints:
    """The permutation of one pass; the last one is kept, for steps ask for it in turn."""
    global _last
    key = (seed, number, samples)
    if _last is None or _last[0] != key:
        _last = (key, np.random.default_rng([seed, number]).permutation(samples))
    return _last[1]
