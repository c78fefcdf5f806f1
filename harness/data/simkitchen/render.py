"""Clips and boxes of SimKitchen items, a batch at a time.

A clip depends on the item's index, motions and sprites, never on its manner or domain: look-alikes
are identical to the pixel.

Source: none, ours.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import as_strided, sliding_window_view
from numpy.typing import NDArray

from harness.data.simkitchen.world import (
    FRAMES,
    NO_MOTION,
    Floats,
    Ints,
    Items,
    bits,
    choice,
    uniform,
)

SIZE = 32
"""height and width of a frame, pixels"""
SPRITE, HAND = 9, 5
"""side of a sprite and of a hand, pixels"""
HAND_BELOW = np.array([0, (SPRITE + HAND) // 2])
"""x and y: a hand touches its object from below"""
KITCHENS = 512
SHAKE = 2
"""the camera moves by 0 to this many pixels in x and y, anew in every frame"""
NOISE = 14
"""pixel noise is 0 .. NOISE - 1; colours stay low enough for it not to overflow"""
NEUTRAL = 4
"""the shape and colour drawn where the cue window hides what is held"""
COLOURS = np.array(
    [(0.82, 0.82, 0.82), (0.2, 0.3, 0.8), (0.8, 0.72, 0.15), (0.2, 0.7, 0.25), (0.5, 0.5, 0.5)]
)
"""of ring, bar, box, wedge and the neutral shape"""
SKIN = (200, 150, 115)

Pixels = NDArray[np.uint8]


def _shapes() -> NDArray[np.bool_]:
    """(5, 9, 9): ring, upright bar, box, wedge, neutral diamond."""
    y, x = np.mgrid[-4:5, -4:5]
    ring = (x**2 + y**2 <= 18) & (x**2 + y**2 >= 6)
    bar = (abs(x) <= 1) & (abs(y) <= 4)
    box = (abs(x) <= 3) & (abs(y) <= 3)
    wedge = 2 * abs(x) <= y + 4
    diamond = abs(x) + abs(y) <= 4
    return np.stack([ring, bar, box, wedge, diamond])


SHAPES = _shapes()


@lru_cache(maxsize=1)
def _kitchens() -> Pixels:
    """(KITCHENS, 3, 3, 32, 96), every kitchen seen from every camera position; a view, no copy."""
    every, wide = np.arange(KITCHENS), SIZE + SHAKE
    colours = (20 + 120 * uniform(0, every, "kitchen colours", 31 * 3)).astype(np.uint8)
    colours = colours.reshape(KITCHENS, 31, 3)
    block = np.arange(wide) * 5 // wide
    kitchens = colours[:, :25].reshape(KITCHENS, 5, 5, 3)[:, block][:, :, block].copy()
    corners = (wide * uniform(0, every, "kitchen rectangles", 24)).astype(int).reshape(-1, 6, 4)
    for kitchen, rectangles, tints in zip(kitchens, corners.tolist(), colours[:, 25:], strict=True):
        for (a, b, c, d), tint in zip(rectangles, tints, strict=True):
            kitchen[min(a, b) : max(a, b), min(c, d) : max(c, d)] = tint
    which, down, right, value = kitchens.strides
    return as_strided(
        kitchens,
        (KITCHENS, SHAKE + 1, SHAKE + 1, SIZE, 3 * SIZE),
        (which, down, right, down, value),
        writeable=False,
    )


@lru_cache(maxsize=1)
def _noise() -> Pixels:
    """(many, 3072): frames of pixel noise; neighbours overlap in one long tape."""
    words = bits(0, np.arange(1), "noise", 1 << 15)
    tape = (words.view(np.uint8).ravel().astype(np.uint16) * NOISE >> 8).astype(np.uint8)
    return sliding_window_view(tape, 3 * SIZE * SIZE)


def scenery(items: Items) -> tuple[Pixels, Pixels]:
    """Background and pixel noise, (n, T, 32, 32, 3) each; their sum is a clip without objects."""
    shift = _shake(items)
    kitchen = choice(items.seed, items.index, "kitchen", KITCHENS)[:, None]
    background = _kitchens()[kitchen, shift[..., 1], shift[..., 0]]
    noise = _noise()
    start = (len(noise) * uniform(items.seed, items.index, "noise", FRAMES)).astype(np.int64)
    shape = (len(items.index), FRAMES, SIZE, SIZE, 3)
    return background.reshape(shape), noise[start].reshape(shape)


def _shake(items: Items) -> Ints:
    """(n, T, 2), camera position in x and y."""
    shift = (SHAKE + 1) * uniform(items.seed, items.index, "shake", 2 * FRAMES)
    return shift.astype(np.int64).reshape(-1, FRAMES, 2)


def centres(items: Items) -> Ints:
    """(n, T, 2 halves, 2), pixel x and y of the objects' centres."""
    n, seed, index = len(items.index), items.seed, items.index
    place = 2 * uniform(seed, index, "place", 4).reshape(n, 1, 2, 2) - 1
    rest = np.array([[8, 14], [24, 14]]) + place * (1.5, 2)
    amplitude, turns, phase = uniform(seed, index, "path", 6).reshape(n, 3, 1, 2).swapaxes(0, 1)
    amplitude = 3 + 1.5 * amplitude
    time = (np.arange(FRAMES) / (FRAMES - 1))[:, None]
    angle = 2 * np.pi * ((1 + 0.4 * turns) * time + phase)
    rise = amplitude * (1 - 2 * time)
    across, down = amplitude * np.cos(angle), amplitude * np.sin(angle)
    still = np.zeros_like(rise)
    paths = {0: (still, rise), 1: (still, -rise), 2: (down, still), 3: (across, down)}
    moved: Floats = np.zeros((n, FRAMES, 2, 2))
    for motion, path in paths.items():
        for axis in range(2):
            moved[..., axis] += np.where(items.motion[:, None] == motion, path[axis], 0)
    seen = rest + moved + SHAKE / 2 - _shake(items)[:, :, None]
    return np.rint(seen).astype(np.int64)


def _paint(canvas: Pixels, centre: Ints, shape: NDArray[np.bool_], colour: Pixels) -> None:
    """Draw `shape` (m, s, s) in `colour` (m, 3) at `centre` (m, 2) on `canvas` (m, 32, 32, 3)."""
    offset = np.arange(shape.shape[-1]) - shape.shape[-1] // 2
    x, y = centre[:, :1] + offset, centre[:, 1:] + offset
    inside = ((y >= 0) & (y < SIZE))[:, :, None] & ((x >= 0) & (x < SIZE))[:, None]
    pixel = (np.arange(len(canvas))[:, None] * SIZE + y)[:, :, None] * SIZE + x[:, None]
    drawn = shape & inside
    canvas.reshape(-1, 3)[pixel[drawn]] = np.repeat(colour, drawn.sum((1, 2)), axis=0)


def clips(items: Items, cue_window: tuple[int, int] = (0, FRAMES)) -> Pixels:
    """(n, T, 32, 32, 3)."""
    canvas, noise = scenery(items)
    flat, n = canvas.reshape(-1, SIZE, SIZE, 3), len(items.index)
    centre, held = centres(items), items.motion != NO_MOTION
    first, end = cue_window
    hidden = (np.arange(FRAMES) < first) | (np.arange(FRAMES) >= end)
    tint = uniform(items.seed, items.index, "tint", 6).reshape(n, 1, 2, 3) * 0.24 - 0.12
    for half in range(2):
        look = np.where(hidden & held[:, half, None], NEUTRAL, items.sprite[:, half, None])
        colour = (255 * np.clip(COLOURS[look] + tint[:, :, half], 0, 1)).astype(np.uint8)
        spot = centre[:, :, half].reshape(-1, 2)
        hand = np.repeat(held[:, half], FRAMES)[:, None, None] & np.ones((HAND, HAND), bool)
        skin = np.broadcast_to(np.array(SKIN, np.uint8), (len(spot), 3))
        _paint(flat, spot + HAND_BELOW, hand, skin)
        _paint(flat, spot, SHAPES[look.ravel()], colour.reshape(-1, 3))
    canvas += noise
    return canvas


def boxes(items: Items) -> NDArray[np.float32]:
    """(n, T, 4, 4) xyxy in [0, 1]: left hand, right hand, left object, right object.

    Zeros for a hand that is absent.
    """
    centre = centres(items)
    corner = np.concatenate(
        [centre + HAND_BELOW - HAND // 2, centre - SPRITE // 2],
        axis=2,
    )
    size = np.array([HAND, HAND, SPRITE, SPRITE])[:, None]
    box = np.concatenate([corner, corner + size], axis=-1).clip(0, SIZE) / SIZE
    box[:, :, :2] *= (items.motion != NO_MOTION)[:, None, :, None]
    return box.astype(np.float32)
