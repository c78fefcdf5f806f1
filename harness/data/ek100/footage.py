"""What every layout of footage promises: the frames of a clip by their instants, or a clear error.

Source: none, ours.

One rule of time for all layouts: instants are seconds from the first frame, and an instant's frame
is the one whose time stamp is nearest. So a copy of a video at another rate gives the same instants
within half a frame of its own rate. Annotations may run a little over the end of a video: instants
up to a second beyond the last frame, or before the first, get that frame; others are an error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from harness.data.ek100.crop import Crop

OVERRUN_SECONDS = 1.0
"""how far beyond the last frame an instant may lie"""
RATE_TOLERANCE = 0.05
"""share by which a video's rate may differ from the annotated one"""

Floats = np.ndarray[Any, np.dtype[np.float64]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class BadFootage(ValueError):
    """Footage that cannot be had: the message says of which video, where, when, and why."""

    @classmethod
    def at(cls, video: str, path: Path, seconds: float | None, why: str) -> BadFootage:
        """`why`, of a video at a path at an instant (None: at all of them)."""
        when = "" if seconds is None else f" at {seconds:.3f} s"
        return cls(f"{video}: {path}{when}: {why}")


class Unreadable(Exception):
    """Why a file cannot be read, said by who does not know what it is for."""


class Footage(ABC):
    """One video. It holds no open file, so that it can be sent to another process."""

    video: str
    """e.g. `P01_01`"""
    path: Path
    """the file, or the folder of the files"""
    resampled: ClassVar[bool] = False
    """whether its rate was chosen by who made the copy, and says nothing about the camera's"""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(width, height) of a frame, pixels."""

    @property
    @abstractmethod
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""

    @property
    @abstractmethod
    def fps(self) -> float:
        """Frames per second, on average."""

    @abstractmethod
    def _read(self, moments: Floats, crop: Crop | None, out: Pixels) -> None:
        """Fill out (T, height, width, 3) with the frames of `moments` (T,), which ascend from 0 and
        differ."""

    def clip(self, seconds: Floats, crop: Crop | None, size: tuple[int, int]) -> Pixels:
        """Frames nearest to the instants `seconds` (T,), in their order: (T, height, width, 3) RGB.

        `crop`, in pixels of the source, is cut out (None: the whole frame) and resized to `size`
        (height, width), bilinear with antialiasing. Raises BadFootage where a frame cannot be had,
        and ValueError if the request makes no sense.
        """
        wanted = np.asarray(seconds, np.float64)
        if wanted.ndim != 1 or not len(wanted) or not np.isfinite(wanted).all():
            raise ValueError(f"{self.video}: instants must be finite numbers (T,), got {seconds}")
        if wanted.min() < -OVERRUN_SECONDS:
            raise self.bad(float(wanted.min()), "the instant lies before the first frame")
        moments, place = np.unique(np.maximum(wanted, 0.0), return_inverse=True)
        frames = np.empty((len(moments), *size, 3), np.uint8)
        self._read(moments, crop, frames)
        if len(moments) == len(wanted) and (np.diff(place) > 0).all():
            return frames
        return frames[place]

    def bad(self, seconds: float | None, why: str) -> BadFootage:
        """The error about this video."""
        return BadFootage.at(self.video, self.path, seconds, why)


def check(footage: Footage, expected_fps: float) -> str:
    """What is wrong with the rate of a whole video whose annotation says `expected_fps`, else "".

    Chunks and images have the rate that their maker chose: nothing is said of them.
    """
    if footage.resampled or abs(footage.fps / expected_fps - 1) <= RATE_TOLERANCE:
        return ""
    return (
        f"{footage.video}: {footage.path}: {footage.fps:.2f} frames per second, "
        f"annotated are {expected_fps:.2f}"
    )
