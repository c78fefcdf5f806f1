"""The published images of a video, and the boxes on them, by their numbers.

Source: the dataset's frames, numbered from 1 at 60 a second for videos like P01_01 and at 50 for
those like P01_101, whatever the rate of the video itself.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAME = re.compile(r"P\d\d_(\d{2,3})")


def nominal_fps(video: str) -> int:
    """Frames per second of a video's published images. Raises ValueError for other names."""
    found = NAME.fullmatch(video)
    if not found:
        raise ValueError(f"{video!r} is not a video's name like P01_01 or P01_101: rate unknown")
    return 60 if len(found[1]) == 2 else 50


def frame_numbers(video: str, seconds: NDArray[Any], first: int = 1) -> NDArray[np.int64]:
    """(T,) numbers of the images nearest to instants (T,), of two as near the earlier one; the
    image at 0 s is number `first`."""
    places = np.ceil(np.asarray(seconds, np.float64) * nominal_fps(video) - 0.5)
    return np.maximum(places, 0).astype(np.int64) + first
