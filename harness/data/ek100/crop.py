"""The part of a video's frame that becomes the frame of a clip.

Source: none, ours.
"""

from __future__ import annotations

from typing import NamedTuple


class Crop(NamedTuple):
    """A rectangle of the source frame, in its pixels; the same for every frame of a clip."""

    x: int
    """of its left edge"""
    y: int
    """of its upper edge"""
    width: int
    height: int
