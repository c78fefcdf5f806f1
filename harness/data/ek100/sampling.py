"""The instants at which a clip's frames are taken.

Sources: recognition over the `segment`, AVION (Zhao and Krähenbühl 2023); recognition in a
`window`, ORViT (Herzig et al. 2022) after SlowFast; anticipation, Damen et al. 2022: what is seen
ends one second before the action begins.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from harness.data.ek100.annotations import Segment

Instants = npt.NDArray[np.float64]
Sampling = Literal["segment", "window", "inavit_release"]
RATE = 30.0
"""frames a second that a window counts in"""
STRIDE = 4
"""of them from one frame of a clip to the next"""


def window_seconds(frames: int) -> float:
    """Length of a window: 64 frames at 30 a second for 16, 2.133 s."""
    return frames * STRIDE / RATE


def recognition(
    segment: Segment,
    frames: int,
    sampling: Sampling,
    rng: np.random.Generator | None,
    clip: int = 0,
    clips: int = 1,
) -> Instants:
    """(frames,) seconds, none outside the segment.

    `segment`: the middles of equal parts of it; in training (`rng`) anywhere within the parts.
    `window`: 2.133 s of it for 16 frames, from a random place in training, in a test the clip
    number `clip` of `clips` spread over the segment, the middle one if there is only one.
    """
    duration = segment.stop - segment.start
    if sampling == "segment":
        jitter = rng.uniform(-0.5, 0.5, frames) if rng is not None else 0.0
        return segment.start + (np.arange(frames) + 0.5 + jitter) * duration / frames
    span = (frames * STRIDE - 1) / RATE
    begin = _begin(max(0.0, duration - window_seconds(frames)), rng, clip, clips)
    inside = begin + np.linspace(0, span, frames)
    if sampling == "inavit_release":
        # the clip ends a frame before `begin`, and is then pushed back into the segment
        inside = begin - 1 / RATE - span + np.linspace(0, span, frames)
    return segment.start + np.clip(inside, 0.0, duration)


def _begin(room: float, rng: np.random.Generator | None, clip: int, clips: int) -> float:
    if rng is not None:
        return float(rng.uniform(0, room))
    return room * (0.5 if clips == 1 else clip / clips)


def anticipation(segment: Segment, frames: int, ahead: float) -> Instants | None:
    """(frames,) seconds, all before `start - ahead`; None where the video begins later than that.

    The middles of equal parts of the window that ends there; what would lie before the video is its
    first frame.
    """
    end = segment.start - ahead
    if end <= 0:
        return None
    length = window_seconds(frames)
    middles = end - length + (np.arange(frames) + 0.5) * length / frames
    return np.asarray(np.maximum(middles, 0.0))
