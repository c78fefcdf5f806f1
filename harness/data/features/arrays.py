"""Arrays of tokens on disk, read in place: .npy, .safetensors, and HDF5.

An array holds (N, D), a token for each sample; (N, L, D), as many for each; or (total, D) with
offsets (N + 1,), where sample n has the rows offsets[n] .. offsets[n + 1].
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from harness.files import file_digest, read_json, write_json
from harness.splits import Ints

SUFFIXES = (".npy", ".safetensors", ".h5", ".hdf5")
EXPONENTS = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FF << 52}
"""bits that are all set in a number that is infinite or none"""
AT_ONCE = 64 * 2**20
"""bytes that are looked at at once"""


class Wrong(ValueError):
    """What is wrong with an array, without the name of its file."""


@dataclass(frozen=True)
class Opened:
    """An array as it lies in its file."""

    file: Path
    key: str | None
    values: Any
    """numpy array, memory-mapped where that is possible, or what gives one when it is sliced"""
    kind: str
    """float16, bfloat16 (uint16 to numpy), float32, float64, or another type's name"""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * int(self.values.dtype.itemsize)


@dataclass(frozen=True)
class Ragged:
    """The tokens of a stream."""

    opened: Opened
    rows: Any
    """(total, D)"""
    begins: Ints
    lengths: Ints

    @property
    def name(self) -> str:
        return str(self.opened.file)

    @property
    def width(self) -> int:
        return int(self.rows.shape[1])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file, and of where each sample's tokens are."""
        places = hashlib.sha256(self.begins.tobytes() + self.lengths.tobytes()).hexdigest()
        return f"{seen(self.opened)['digest']} {self.opened.key or ''} {places}"


def open_array(file: Path, key: str | None) -> Opened:
    """The array in a file. Raises Wrong, or OSError."""
    if file.suffix == ".npy":
        if key is not None:
            raise Wrong("a .npy file holds one array; leave `key` out")
        return _npy(file)
    if file.suffix == ".safetensors":
        return _safetensors(file, key)
    if file.suffix in SUFFIXES:
        return _hdf5(file, key)
    raise Wrong(
        f"files {', '.join(SUFFIXES)} are read, not {file.suffix or 'one without a suffix'}"
    )


def _npy(file: Path) -> Opened:
    try:
        values = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise Wrong(f"not a plain .npy array: {error}") from None
    if not isinstance(values, np.ndarray):
        raise Wrong("not a plain .npy array")
    if values.ndim > 1 and not values.flags.c_contiguous:
        raise Wrong("is stored column by column; save `np.ascontiguousarray(array)`")
    return Opened(file, None, values, str(values.dtype))


def _safetensors(file: Path, key: str | None) -> Opened:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            tensor = opened.get_tensor(_key(key, list(opened.keys())))  # memory-mapped
    except SafetensorError as error:
        raise Wrong(f"not a safetensors file: {error}") from None
    import torch

    half = tensor.dtype == torch.bfloat16
    values = tensor.view(torch.uint16).numpy() if half else tensor.numpy()
    return Opened(file, key, values, str(tensor.dtype).removeprefix("torch."))


def _hdf5(file: Path, key: str | None) -> Opened:
    import h5py

    try:
        opened = h5py.File(file, "r")
    except OSError as error:
        raise Wrong(f"not an HDF5 file: {error}") from None
    names: list[str] = []
    opened.visititems(
        lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
    )
    values = opened[_key(key, names)]
    offset = values.id.get_offset()  # None where it is in chunks or compressed
    if offset is not None and values.dtype.isnative:
        mapped = np.memmap(file, values.dtype, "r", offset, values.shape)
        return Opened(file, key, mapped, str(values.dtype))
    return Opened(file, key, values, str(values.dtype))


def _key(key: str | None, known: list[str]) -> str:
    if key in known:
        return str(key)
    if key is None and len(known) == 1:
        return known[0]
    what = "`key` is missing" if key is None else f"there is no {key!r}"
    raise Wrong(f"{what}; the file has {', '.join(sorted(known)[:8]) or 'no array'}")


def ragged(opened: Opened, offsets: Opened | None, samples: int) -> Ragged:
    """The tokens of `samples` samples. Raises Wrong."""
    shape = opened.shape
    if opened.kind not in EXPONENTS:
        raise Wrong(f"is of {opened.kind}; {', '.join(EXPONENTS)} are read")
    if offsets is not None:
        if len(shape) != 2:
            raise Wrong(f"has the shape {shape}; with offsets it is (total, D)")
        begins, lengths = _spans(offsets, shape[0], samples)
    else:
        if len(shape) not in (2, 3):
            raise Wrong(f"has the shape {shape}; (N, D), or (N, L, D), or (total, D) with offsets")
        if shape[0] != samples:
            more = "; (total, D) needs `offsets`" if len(shape) == 2 else ""
            raise Wrong(f"has {shape[0]} samples, the CSV file {samples} rows{more}")
        each = shape[1] if len(shape) == 3 else 1
        begins = np.arange(samples, dtype=np.int64) * each
        lengths = np.full(samples, each, np.int64)
    if not shape[-1] or not lengths.all():
        what = "a token has no numbers" if not shape[-1] else "has no token"
        raise Wrong(what if not shape[-1] else f"sample {int(np.argmin(lengths))} {what}")
    return Ragged(opened, _flat(opened.values), begins, lengths)


def _spans(offsets: Opened, total: int, samples: int) -> tuple[Ints, Ints]:
    if not np.issubdtype(offsets.values.dtype, np.integer) or len(offsets.shape) != 1:
        raise Wrong(f"offsets: {offsets.kind} of shape {offsets.shape}; integers (N + 1,) are read")
    values = np.asarray(offsets.values[:]).astype(np.int64)
    if len(values) != samples + 1:
        raise Wrong(f"offsets: {len(values)} numbers for {samples} rows; {samples + 1} are needed")
    lengths = np.diff(values)
    if (lengths < 0).any():
        row = int(np.argmax(lengths < 0))
        raise Wrong(f"offsets: fall from {values[row]} to {values[row + 1]} at sample {row}")
    if values[0] != 0 or values[-1] != total:
        raise Wrong(f"offsets: {values[0]} to {values[-1]}, the array has the rows 0 to {total}")
    return values[:-1], lengths


def _flat(values: Any) -> Any:
    """(N, L, D) as (N L, D)."""
    if len(values.shape) == 2:
        return values
    if isinstance(values, np.ndarray):
        return values.reshape(-1, values.shape[-1])
    return _Chunked(values)


@dataclass(frozen=True)
class _Chunked:
    """An HDF5 array (N, L, D) that cannot be mapped, as (N L, D)."""

    values: Any

    @property
    def shape(self) -> tuple[int, int]:
        count, each, width = self.values.shape
        return count * each, width

    @property
    def dtype(self) -> np.dtype[Any]:
        return cast("np.dtype[Any]", self.values.dtype)

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        each = self.values.shape[1]
        first, last = rows.start // each, -(-rows.stop // each)
        found = np.asarray(self.values[first:last]).reshape(-1, self.values.shape[-1])
        return found[rows.start - first * each : rows.stop - first * each]


def seen(opened: Opened) -> dict[str, Any]:
    """`digest` of a file, and `bad`: the first row of the array with a number that is none, or -1.

    Large files are looked at once: what was found is kept in the user's cache folder for as long as
    the file's size and time of change stay.
    """
    stat = opened.file.stat()
    key = f"{opened.file.resolve()} {opened.key} {stat.st_size} {stat.st_mtime_ns}"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache"))
    with contextlib.suppress(RuntimeError):  # there may be no home
        home = home.expanduser()
    file = home / "harness" / "arrays" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(Exception):  # whatever is wrong with it, it is only a note
        known = read_json(file)
        if isinstance(known, dict) and {"digest", "bad"} <= known.keys():
            return known
    found = {"digest": file_digest(opened.file), "bad": _first_bad(opened)}
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, found)
    return found


def _first_bad(opened: Opened) -> int:
    if opened.kind not in EXPONENTS:
        return -1
    bits, width = np.dtype(f"u{opened.values.dtype.itemsize}"), EXPONENTS[opened.kind]
    for begin, part in _pieces(opened.values):
        raw = np.ascontiguousarray(part).view(bits)
        bad = (raw & bits.type(width)) == bits.type(width)
        if bad.any():
            return begin + int(np.argmax(bad.reshape(len(part), -1).any(axis=1)))
    return -1


def _pieces(values: Any) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    count = values.shape[0] if len(values.shape) else 0
    each = max(1, int(np.prod(values.shape[1:])) * values.dtype.itemsize)
    rows = max(1, AT_ONCE // each)
    for begin in range(0, count, rows):
        yield begin, np.asarray(values[begin : begin + rows])


__all__ = ["Opened", "Ragged", "Wrong", "open_array", "ragged", "seen"]
