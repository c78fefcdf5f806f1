"""Where the numbered images of a tar lie, so that they are read in place.

Source: POSIX.1-1988 (ustar): headers of 512 bytes; contents padded to 512; two zero blocks end it.

Reading the headers of one video takes a fraction of a second. An index is kept in memory, and in a
cache folder if there is one, where every process finds it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.ek100.footage import Unreadable
from harness.files import write_atomic

BLOCK = 512
IMAGE = re.compile(rb"(\d+)\.jpe?g$", re.IGNORECASE)
HIGHEST = 10_000_000
"""number of an image; two days at 60 per second"""
KEPT = 1024
"""indices in memory; that of a video of ten minutes takes 600 kB"""


@dataclass(frozen=True)
class TarIndex:
    """Of image n: spans[n], its place and length in bytes; length 0 where there is none."""

    path: Path
    spans: np.ndarray[Any, np.dtype[np.int64]]
    """(numbers, 2)"""

    @property
    def first(self) -> int:
        """The lowest number."""
        return int(np.flatnonzero(self.spans[:2, 1])[0]) if self.spans[:2, 1].any() else 1

    def has(self, number: int) -> bool:
        return 0 <= number < len(self.spans) and bool(self.spans[number, 1])

    def read(self, number: int) -> bytes:
        """The bytes of one image. Raises OSError."""
        offset, length = self.spans[number].tolist() if self.has(number) else (0, 0)
        if not length:
            raise FileNotFoundError(f"no image {number} in {self.path}")
        file = os.open(self.path, os.O_RDONLY)
        try:
            data = os.pread(file, length, offset)
        finally:
            os.close(file)
        if len(data) < length:
            raise OSError(f"the tar was cut after its index was made: {len(data)} of {length} B")
        return data


def tar_index(path: Path, cache: Path | None) -> TarIndex:
    """The index of a tar as it is now. Raises OSError, and Unreadable if it is damaged."""
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise Unreadable("it is not a file")
    return _index(path, facts.st_size, facts.st_mtime_ns, cache)


@lru_cache(maxsize=KEPT)
def _index(path: Path, size: int, mtime_ns: int, cache: Path | None) -> TarIndex:
    kept = None
    if cache is not None:
        key = f"{path.resolve()} {size} {mtime_ns}"
        kept = cache / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
        with contextlib.suppress(OSError, ValueError, EOFError):  # absent or damaged: made anew
            return TarIndex(path, np.load(kept, mmap_mode="r"))
    spans = scan(path, size)
    if kept is not None:
        with contextlib.suppress(OSError):  # a folder that cannot be written: memory has it
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(kept, lambda out: np.save(out, spans))
    return TarIndex(path, spans)


def scan(path: Path, size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Spans (numbers, 2) from the headers. Raises Unreadable where the tar is damaged or cut."""
    found: dict[int, tuple[int, int]] = {}
    place = 0
    with open(path, "rb", buffering=0) as file:
        while True:
            header = os.pread(file.fileno(), BLOCK, place)
            if len(header) < BLOCK:
                raise Unreadable(f"the tar is truncated: it has no end, {size} bytes are there")
            if not header.strip(b"\0"):
                break
            length = _length(header, place)
            if place + BLOCK + length > size:
                raise Unreadable(f"the tar is truncated: {size} of at least {place + length} bytes")
            name = IMAGE.search(header[:100].rstrip(b"\0"))
            if name and header[156:157] in (b"0", b"\0"):
                found[int(name[1])] = (place + BLOCK, length)
            place += BLOCK + -(-length // BLOCK) * BLOCK
    if not found:
        raise Unreadable("there is no numbered image (frame_0000000001.jpg) in the tar")
    if max(found) > HIGHEST:
        raise Unreadable(f"an image is numbered {max(found)}: these are no frames of a video")
    spans = np.zeros((max(found) + 1, 2), np.int64)
    spans[list(found)] = list(found.values())
    return spans


def _length(header: bytes, place: int) -> int:
    """Bytes of a member. Raises Unreadable if the header is none."""
    try:
        said = int(header[148:156].split(b"\0")[0] or b"x", 8)
        length = int(header[124:136].strip(b"\0 ") or b"0", 8)
    except ValueError:
        said, length = -1, 0
    if said != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise Unreadable(f"not a tar, or damaged at byte {place}")
    return length
