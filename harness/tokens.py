"""Tokens that are at hand already: a frozen encoder's, computed once, or a dataset's own.

What is read is one copy in memory at most, that of the operating system: files are memory-mapped,
and a batch is gathered from them. Each sample is checked against its checksum when a process first
reads it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from harness.contracts import PartedTokens, StoredTokens, Tokens
from harness.splits import Ints, Labels

AHEAD, THREADS = 3, 2
"""batches that are gathered before they are asked for, and by how many threads"""
HALF_AS = np.dtype(np.uint16)
"""what bfloat16 is to numpy, which has none"""

LARGE = 4 * 2**20
"""bytes of a batch from which on threads gather it"""

R = TypeVar("R")
T = TypeVar("T")


class Rows(Protocol):
    """An array (total, D) of which rows can be read: in memory, memory-mapped, or in HDF5."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]: ...


class Damaged(ValueError):
    """Stored tokens are not what was stored."""


@dataclass(frozen=True)
class TokenFile:
    """Tokens of one stream over one split."""

    arrays: Sequence[Rows]
    """each (total, D)"""
    names: Sequence[str]
    """of the files they are in, for messages"""
    array: npt.NDArray[np.int32]
    """(items,) which of the arrays holds it"""
    begins: Ints
    """(items,) its first row there"""
    lengths: Ints
    """(items,) how many tokens it has"""
    labels: Labels
    """of the samples"""
    parts: npt.NDArray[np.uint8] | None = None
    """of all tokens in the order of items: the head that each is for, if they are dealt to heads"""
    checksums: npt.NDArray[np.uint32] | None = None
    """(items,) CRC-32; None: they are not known"""
    sums: npt.NDArray[np.uint64] | None = None
    """(items,) what `sums_of` gives: a weaker check, and many times faster"""
    rows: Ints | None = None
    """(samples,) the item of each sample, where samples share items; None: each has its own"""
    views: int = 1
    """items are all samples of one augmented view, then of the next"""
    places: Ints | None = None
    """(samples,) of which sample each one's tokens and labels are: of another one's where it could
    not be read; None: each of its own"""
    bad: Mapping[str, str] = field(default_factory=dict)
    """id -> why, of the samples that could not be read"""

    @property
    def precision(self) -> str:
        """fp16, bf16, fp32 or fp64: of the numbers that are stored."""
        kind = self.arrays[0].dtype
        return "bf16" if kind == HALF_AS else f"fp{8 * kind.itemsize}"

    @cached_property
    def _good(self) -> npt.NDArray[np.bool_]:
        """Items that were checked."""
        return np.full(len(self.begins), self.checksums is None)

    @cached_property
    def _uniform(self) -> tuple[npt.NDArray[Any], Ints] | None:
        """An array (n, L, D) and the place of each item in it, where all are equally long and in
        one array, whose rows can be dealt out like that."""
        rows, each = self.arrays[0], int(self.lengths[0]) if len(self.lengths) else 0
        alike = len(self.arrays) == 1 and isinstance(rows, np.ndarray) and self.parts is None
        if not alike or not each or rows.shape[0] % each:
            return None
        if (self.lengths != each).any() or (self.begins % each).any():
            return None
        return np.asarray(rows).reshape(-1, each, rows.shape[1]), self.begins // each

    @cached_property
    def _part_begins(self) -> Ints:
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    def items_of(self, indices: Ints, turn: int = 0) -> Ints:
        """Items of samples; `turn`: the number of the pass, by which views take turns."""
        if self.rows is not None:
            return self.rows[indices]
        samples = len(self.begins) // self.views
        return indices + samples * (turn % self.views)

    def batch(self, indices: Ints, turn: int = 0) -> Tokens | PartedTokens:
        """Tokens (B, longest, D) of the samples at `indices`, zero where padded, in the precision
        that they are stored in. Raises Damaged."""
        items = self.items_of(indices, turn)
        if self._uniform is not None:
            whole, places = self._uniform
            features = whole[places[items]]
            self._check(items, features, self.lengths[items])
            mask = torch.ones(features.shape[:2], dtype=torch.bool)
            return Tokens(_tensor(features), mask)
        lengths = self.lengths[items]
        longest = max(1, int(lengths.max(initial=0)))
        short = bool((lengths < longest).any())
        first = self.arrays[0]
        make = np.zeros if short else np.empty
        features = make((len(items), longest, first.shape[1]), first.dtype)
        begins, whose = self.begins[items].tolist(), self.array[items].tolist()
        for row, (begin, length, array) in enumerate(
            zip(begins, lengths.tolist(), whose, strict=True)
        ):
            features[row, :length] = self.arrays[array][begin : begin + length]
        self._check(items, features, lengths)
        tokens = _tensor(features)
        mask = torch.from_numpy(np.arange(longest)[None, :] < lengths[:, None])
        if self.parts is None:
            return Tokens(tokens, mask)
        part = np.zeros(mask.shape, np.uint8)
        for row, item in enumerate(items.tolist()):
            begin = self._part_begins[item]
            part[row, : lengths[row]] = self.parts[begin : begin + lengths[row]]
        return PartedTokens(tokens, mask, torch.from_numpy(part))

    def _check(self, items: Ints, features: npt.NDArray[Any], lengths: Ints) -> None:
        """Raise Damaged if an item that is read for the first time is not what was stored."""
        if self.checksums is None or self._good[items].all():
            return
        if self.sums is not None:
            differ = sums_of(features) != self.sums[items]
        else:
            found = [
                zlib.crc32(features[row, :length].data)
                for row, length in enumerate(lengths.tolist())
            ]
            differ = np.array(found, np.uint32) != self.checksums[items]
        if differ.any():
            item = int(items[int(np.argmax(differ))])
            raise Damaged(
                f"{self.names[self.array[item]]}: item {item} is not what was stored, the file is "
                f"damaged; `harness cache verify` looks at all, `harness cache rm` removes it, and "
                f"it is computed again"
            )
        self._good[items] = True


def _tensor(features: npt.NDArray[Any]) -> torch.Tensor:
    found = torch.from_numpy(features)
    return found.view(torch.bfloat16) if features.dtype == HALF_AS else found


def can_be_summed(width: int, number: np.dtype[Any]) -> bool:
    """Whether `sums_of` takes tokens of so many numbers."""
    return width * number.itemsize % 8 == 0


def sums_of(features: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """(B, L, D) -> (B,): the bytes of each item as numbers of 64 bits, added up. Zeros behind an
    item change nothing."""
    words = features.reshape(len(features), -1).view(np.uint64)
    return np.asarray(np.add.reduce(words, axis=1, dtype=np.uint64))


def of_dataset(stored: StoredTokens, labels: Labels) -> TokenFile:
    """A dataset's own tokens."""
    return TokenFile(
        [stored.features],
        [stored.name],
        np.zeros(len(stored.begins), np.int32),
        stored.begins,
        stored.lengths,
        labels,
    )


def ahead(work: Iterator[R], make: Callable[[R], T], size: Callable[[T], int]) -> Iterator[T]:
    """`make(one)` for each of `work`, in order; made by threads before it is asked for where one is
    LARGE (bytes). What is small is made at once: threads of one interpreter hold each other up."""
    for one in work:
        first = make(one)
        yield first
        if size(first) >= LARGE:
            break
    with ThreadPoolExecutor(THREADS, thread_name_prefix="tokens") as pool:
        waiting: list[Future[T]] = []
        try:
            for one in work:
                waiting.append(pool.submit(make, one))
                if len(waiting) > AHEAD:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


__all__ = ["Damaged", "Rows", "TokenFile", "ahead", "of_dataset"]
