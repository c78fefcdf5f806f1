"""How a clip is cropped, resized and augmented, together with its boxes.

Source: the published recipes. Sides are of a clip of `size` x `size` pixels.

    orvit   ORViT, Motionformer, InAViT: the short side is scaled to between 8/7 and 10/7 of `size`
            ([256, 320] for 224, [384, 480] for 336), a square cut out anywhere; RandAugment; flip
    clip    AVION: a random part of 1/2 to all of the area, 3/4 to 4/3 as wide as high, stretched
    lavila  LaViLa: the same, and flip
    none    what is tested

What is tested is the square of the short side: in the middle, or of several views the one at
`index` of the places from the left (the top) to the right (the bottom).

A `View` says all of it: the decoder cuts out `crop` and scales it, `pixels` does the rest, and
`boxes` follows. The same generator gives the same view.

Departs from the released ORViT, which augments whole frames and then cuts: here only what is cut
out is decoded, so RandAugment turns and shifts the square, and what it leaves bare is grey where
the frame may have had more. A crop has whole pixels of the source, hence its scale is rounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from harness.data.ek100.augment import Operation, apply, draw_operations, move
from harness.data.ek100.crop import Crop

Recipe = Literal["orvit", "clip", "lavila", "none"]
BoxRule = Literal["correct", "orvit_release"]
Floats = NDArray[np.float64]

SMALLEST_SIDE = 0.05
"""boxes no wider or no higher than this share of the clip's frame are taken as absent"""
TRIES = 10
"""random parts that may not fit before the middle is taken"""
RELEASED_FRAME = (456, 256)
"""pixels of the frames that the released ORViT was trained on"""


@dataclass(frozen=True)
class Training:
    """What a recipe draws at random."""

    short_side: tuple[float, float] | None = None
    """of the scaled frame, in clip sides"""
    area: tuple[float, float] | None = None
    """of the part that is cut out, in frames"""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """its width / height"""
    augment: bool = False
    flip: float = 0.0
    """probability"""


RECIPES: dict[Recipe, Training] = {
    "orvit": Training(short_side=(8 / 7, 10 / 7), augment=True, flip=0.5),
    "clip": Training(area=(0.5, 1.0)),
    "lavila": Training(area=(0.5, 1.0), flip=0.5),
    "none": Training(),
}


@dataclass(frozen=True)
class View:
    """One way to see a video: the same for all frames of a clip."""

    source: tuple[int, int]
    """width and height of the video's frame, pixels"""
    size: int
    """side of the clip's frame, pixels"""
    crop: Crop
    operations: tuple[Operation, ...] = ()
    flip: bool = False
    """left and right exchanged, after the operations"""

    def pixels(self, clip: Tensor) -> Tensor:
        """uint8 (T, size, size, 3), cut out and scaled already -> the clip to train on."""
        if tuple(clip.shape[1:]) != (self.size, self.size, 3):
            raise ValueError(f"frames of {tuple(clip.shape[1:])}, the view has {self.size} pixels")
        if not self.operations:
            return clip.flip(2) if self.flip else clip
        frames = clip.permute(0, 3, 1, 2)
        for operation in self.operations:
            frames = apply(operation, frames)
        clip = frames.permute(0, 2, 3, 1)
        return (clip.flip(2) if self.flip else clip).contiguous()

    def boxes(self, boxes: NDArray[np.floating], rule: BoxRule = "correct") -> NDArray[np.float32]:
        """Boxes (T, O, 4) as shares of the whole frame -> as shares of the clip's frame.

        x0 y0 x1 y1, cut at the frame, all zero where nothing or next to nothing is left. Where the
        picture is turned or sheared they are the upright boxes around the turned ones.

        `orvit_release` is what the released ORViT does on EPIC-Kitchens: it takes shares for
        pixels. Scaling enlarges a box by what the frame of 456 x 256 is scaled by, and any shift
        or flip moves it off, as it is one pixel large at most. In training practically every box is
        absent; in tests only the first (left) of several views has any, 336 / 256 as large as they
        are and cut at the frame (for 336 pixels), and one view in the middle has none.
        """
        given = np.asarray(boxes, np.float64)
        if rule == "correct":
            return self._correct(given).astype(np.float32)
        if rule == "orvit_release":
            return self._released(given).astype(np.float32)
        raise ValueError(f"no box rule {rule!r}; known are {', '.join(get_args(BoxRule))}")

    def _correct(self, boxes: Floats) -> Floats:
        x, y, width, height = self.crop
        near, sides = np.array([x, y, x, y]), np.array([width, height, width, height])
        boxes = kept((boxes * (self.source * 2) - near) / sides)
        for operation in self.operations:
            boxes = kept(move(operation, boxes * self.size, self.size, self.size) / self.size)
        return kept(mirrored(boxes, 1.0)) if self.flip else boxes

    def _released(self, boxes: Floats) -> Floats:
        for operation in self.operations:
            boxes = move(operation, boxes, *RELEASED_FRAME)
        x, y, width, height = self.crop
        sides = np.array([width, height, width, height])
        pixel = min(self.source) / min(RELEASED_FRAME)
        boxes = (boxes * pixel - [x, y, x, y]) * self.size / sides
        if self.flip:
            boxes = mirrored(boxes, self.size - 1.0)
        return kept(boxes)


def mirrored(boxes: Floats, width: float) -> Floats:
    """Boxes (..., 4) of a frame of that width with left and right exchanged."""
    x0, y0, x1, y1 = np.moveaxis(boxes, -1, 0)
    return np.stack([width - x1, y0, width - x0, y1], axis=-1)


def kept(boxes: Floats) -> Floats:
    """Boxes (..., 4) cut at the frame; zeros where too little is left."""
    boxes = boxes.clip(0, 1)
    large = (boxes[..., 2:] - boxes[..., :2] > SMALLEST_SIDE).all(axis=-1, keepdims=True)
    return np.where(large, boxes, 0.0)


def draw(
    recipe: Recipe,
    source: tuple[int, int],
    size: int,
    rng: np.random.Generator | None = None,
    view: tuple[int, int] = (0, 1),
) -> View:
    """A view of a video whose frames are `source` = (width, height) pixels, for a clip of `size`.

    `rng` draws one to train on; without it the tested one is given, number `view[0]`, from 0, of
    `view[1]`.
    """
    if recipe not in RECIPES:
        raise ValueError(f"no recipe {recipe!r}; known are {', '.join(RECIPES)}")
    if min(*source, size) < 1:
        raise ValueError(f"a frame of {source[0]} x {source[1]} pixels for a clip of {size}")
    index, of = view
    if not 0 <= index < of:
        raise ValueError(f"view {index} of {of}; views are numbered from 0")
    training = RECIPES[recipe]
    if rng is None:
        return View(source, size, square(source, index, of))
    if training.short_side:
        crop = scaled_square(source, size, training.short_side, rng)
    elif training.area:
        crop = random_part(source, training.area, training.ratio, rng)
    else:
        crop = square(source, 0, 1)
    operations = draw_operations(rng) if training.augment else ()
    return View(source, size, crop, operations, bool(rng.random() < training.flip))


def square(source: tuple[int, int], index: int, of: int) -> Crop:
    """The square of the short side, in the middle or at one of several places."""
    width, height = source
    side = min(source)
    share = 0.5 if of == 1 else index / (of - 1)
    return Crop(math.ceil((width - side) * share), math.ceil((height - side) * share), side, side)


def scaled_square(
    source: tuple[int, int], size: int, short_side: tuple[float, float], rng: np.random.Generator
) -> Crop:
    """The square of `size` pixels, anywhere, in a frame scaled to a short side of that many."""
    low, high = short_side
    scaled = round(rng.uniform(low * size, high * size))
    side = max(1, round(min(source) * size / scaled))
    x, y = (int(rng.integers(0, whole - side, endpoint=True)) for whole in source)
    return Crop(x, y, side, side)


def random_part(
    source: tuple[int, int],
    area: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Crop:
    """A part of the frame's area and of a ratio of width to height that are drawn."""
    width, height = source
    for _ in range(TRIES):
        pixels = width * height * rng.uniform(*area)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < w <= width and 0 < h <= height:
            x = int(rng.integers(0, width - w, endpoint=True))
            y = int(rng.integers(0, height - h, endpoint=True))
            return Crop(x, y, w, h)
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return Crop((width - w) // 2, (height - h) // 2, w, h)
