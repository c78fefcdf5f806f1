"""Frames of JPEG folders and tars, as EPIC-Kitchens-100 publishes them.

Source: the annotation repository's README: frames are at 60 per second where a video's number has
two digits (P01_01), at 50 where it has three (P01_101), whatever the camera's rate was; the first
is `frame_0000000001.jpg`.

Frame i is the one of (i - 1) / fps seconds, so an instant's frame is round(seconds * fps) + 1.
"""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import av
from av.error import FFmpegError

from harness.data.ek100.crop import Crop
from harness.data.ek100.footage import OVERRUN_SECONDS, Floats, Footage, Pixels, Unreadable
from harness.data.ek100.numbers import frame_numbers, nominal_fps
from harness.data.ek100.resize import Resizer
from harness.data.ek100.tars import TarIndex, tar_index

END = b"\xff\xd9"
"""the marker at the end of a JPEG; what the decoder makes of a cut one has grey below"""


class Images(Footage):
    """A video as numbered images."""

    resampled: ClassVar[bool] = True

    @property
    @abstractmethod
    def first(self) -> int:
        """Number of the first image."""

    @abstractmethod
    def has(self, number: int) -> bool:
        """Whether there is an image of that number."""

    @abstractmethod
    def _bytes(self, number: int) -> bytes:
        """The image file. Raises OSError."""

    @property
    def fps(self) -> float:
        return float(nominal_fps(self.video))

    @property
    def count(self) -> int:
        """Images there are, numbered without a gap."""
        return count_while(lambda n: self.has(self.first + n))

    @property
    def duration(self) -> float:
        return self.count / self.fps

    @property
    def size(self) -> tuple[int, int]:
        try:
            frame = decode(self._bytes(self.first))
        except (FFmpegError, OSError, Unreadable) as error:
            raise self.bad(0.0, f"image {self.first}: {_cause(error)}") from None
        return frame.width, frame.height

    def _read(self, moments: Floats, crop: Crop | None, out: Pixels) -> None:
        resize = Resizer(self.video, crop, (out.shape[1], out.shape[2]))
        before = None
        numbers = frame_numbers(self.video, moments, self.first).tolist()
        for row, (moment, wanted) in enumerate(zip(moments.tolist(), numbers, strict=True)):
            number = self._number(moment, wanted)
            if number == before:
                out[row] = out[row - 1]
                continue
            try:
                out[row] = resize(decode(self._bytes(number)))
            except (FFmpegError, OSError, Unreadable) as error:
                raise self.bad(moment, f"image {number}: {_cause(error)}") from None
            before = number

    def _number(self, moment: float, number: int) -> int:
        """That of the image of an instant; of the last one if that is a little over the end."""
        second = math.ceil(OVERRUN_SECONDS * self.fps)
        if self.has(number):
            return number
        if any(self.has(later) for later in range(number + 1, number + 1 + second)):
            raise self.bad(moment, f"there is no image {number}, but later ones are there")
        for earlier in range(number - 1, max(self.first - 1, number - second - 1), -1):
            if self.has(earlier):
                return earlier
        raise self.bad(moment, f"there is no image {number}, nor one in the second before it")


def decode(data: bytes) -> av.VideoFrame:
    """The frame of a JPEG. Raises Unreadable if it is none, damaged or cut."""
    if END not in data[-64:]:
        raise Unreadable("the file is empty" if not data else "not a JPEG, or a truncated one")
    decoder = av.CodecContext.create("mjpeg", "r")
    decoder.thread_count = 1
    decoder.options = {"err_detect": "explode"}
    frames = decoder.decode(av.Packet(data))
    if not frames:
        raise Unreadable("no image could be decoded")
    frames[0].time_base = Fraction(1, 60)  # filters ask for one
    return frames[0]


def count_while(there: Callable[[int], bool]) -> int:
    """The n for which there(0) .. there(n - 1), found in about 2 log2(n) questions."""
    high = 1
    while there(high - 1):
        high *= 2
    low = high // 2  # there(low - 1), if low > 0; not there(high - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if there(middle - 1) else (low, middle)
    return low


@dataclass(frozen=True)
class Frames(Images):
    """Images in a folder."""

    video: str
    path: Path
    name: str
    """of a file, e.g. `frame_{frame:010d}.jpg`"""
    first: int = 1

    def file(self, number: int) -> Path:
        """Where an image lies."""
        return self.path / self.name.format(frame=number)

    def has(self, number: int) -> bool:
        return number >= self.first and os.path.exists(self.file(number))

    def _bytes(self, number: int) -> bytes:
        return self.file(number).read_bytes()


@dataclass(frozen=True)
class TarFrames(Images):
    """Images in a tar, read in place."""

    video: str
    path: Path
    cache: Path | None = None
    """folder that keeps indices of tars; None: each process makes its own"""

    @property
    def index(self) -> TarIndex:
        """Where the images lie in the tar."""
        try:
            return tar_index(self.path, self.cache)
        except (OSError, Unreadable) as error:
            raise self.bad(None, _cause(error)) from None

    @property
    def first(self) -> int:
        return self.index.first

    def has(self, number: int) -> bool:
        return self.index.has(number)

    def _bytes(self, number: int) -> bytes:
        return self.index.read(number)


def _cause(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, av.error.InvalidDataError):
        return "not a JPEG, or a damaged one"
    return getattr(error, "strerror", None) or str(error)
