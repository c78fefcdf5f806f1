"""RandAugment on a clip: the operations, how strong they are, and what they do to boxes.

Source: Cubuk et al. 2020, "RandAugment", in the variant of timm that is written
`rand-m7-n4-mstd0.5-inc1`: of 15 operations 4 are drawn, with replacement, and each is done with
probability 0.5, at a magnitude of N(7, 0.5), between 0 and 10. `inc1` are the operations that grow
with it. All frames of a clip get the same operations, equally strong.

Departs from the released code: rotations, shears and shifts are resampled bilinearly, where that
takes the cubic kernel of its settings. What an operation takes from the picture (`auto_contrast`,
`equalize`, `contrast`) is of each frame, as there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DRAWN = 4
PROBABILITY = 0.5
MAGNITUDE, MAGNITUDE_STD, LARGEST_MAGNITUDE = 7.0, 0.5, 10.0
FILL = [128.0, 128.0, 128.0]
"""what a shifted picture leaves bare"""


class Operation(NamedTuple):
    """One operation, as it is done to every frame."""

    name: str
    value: float
    """degrees of `rotate`, bits kept by `posterize`, threshold of `solarize`, what `solarize_add`
    adds to dark values; factor of `color`, `contrast`, `brightness`, `sharpness`, 1 changes
    nothing; slope of a shear; share of the frame of a shift; 0 where there is nothing to say"""


def _nothing(share: float, sign: int) -> float:
    return 0.0


def _factor(share: float, sign: int) -> float:
    return max(0.1, 1 + sign * 0.9 * share)


def _slope(share: float, sign: int) -> float:
    return sign * 0.3 * share


def _shift(share: float, sign: int) -> float:
    return sign * 0.45 * share


VALUES: dict[str, Callable[[float, int], float]] = {
    "auto_contrast": _nothing,
    "equalize": _nothing,
    "invert": _nothing,
    "rotate": lambda share, sign: sign * 30 * share,
    "posterize": lambda share, sign: 4 - int(share * 4),
    "solarize": lambda share, sign: 256 - int(share * 256),
    "solarize_add": lambda share, sign: int(share * 110),
    "color": _factor,
    "contrast": _factor,
    "brightness": _factor,
    "sharpness": _factor,
    "shear_x": _slope,
    "shear_y": _slope,
    "translate_x": _shift,
    "translate_y": _shift,
}
"""operation -> its value at a share of the largest magnitude, and a sign"""
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def draw_operations(rng: np.random.Generator) -> tuple[Operation, ...]:
    """What is to be done, in this order."""
    names = rng.choice(list(VALUES), DRAWN)
    done = rng.random(DRAWN) < PROBABILITY
    magnitudes = rng.normal(MAGNITUDE, MAGNITUDE_STD, DRAWN).clip(0, LARGEST_MAGNITUDE)
    signs = rng.choice([-1, 1], DRAWN)
    shares = (magnitudes / LARGEST_MAGNITUDE).tolist()
    drawn = zip(names.tolist(), shares, signs.tolist(), done.tolist(), strict=True)
    return tuple(
        Operation(name, float(VALUES[name](share, sign))) for name, share, sign, yes in drawn if yes
    )


def apply(operation: Operation, frames: Tensor) -> Tensor:
    """uint8 (T, 3, H, W) -> the same shape."""
    from torchvision.transforms.v2 import functional as pixels

    name, value = operation
    if name in GEOMETRIC:
        height, width = frames.shape[-2:]
        coefficients = [*matrix(operation, width, height).flatten().tolist(), 0.0, 0.0]
        return _tensor(pixels.perspective(frames, None, None, fill=FILL, coefficients=coefficients))
    if name == "solarize_add":
        return torch.where(frames < 128, frames + int(value), frames)
    if name == "solarize":  # 256 is beyond every value
        return frames if value > 255 else _tensor(pixels.solarize(frames, value))
    if name == "posterize":
        return _tensor(pixels.posterize(frames, int(value)))
    plain = {
        "auto_contrast": pixels.autocontrast,
        "equalize": pixels.equalize,
        "invert": pixels.invert,
    }
    if name in plain:
        return _tensor(plain[name](frames))
    enhance = {
        "color": pixels.adjust_saturation,
        "contrast": pixels.adjust_contrast,
        "brightness": pixels.adjust_brightness,
        "sharpness": pixels.adjust_sharpness,
    }
    return _tensor(enhance[name](frames, value))


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value


def matrix(operation: Operation, width: int, height: int) -> NDArray[np.float64]:
    """(2, 3): where in a frame, in pixels, a place of the result is taken from.

    A shear keeps the upper left corner, a rotation the centre.
    """
    name, value = operation
    if name == "shear_x":
        return np.array([[1, value, 0], [0, 1, 0]], np.float64)
    if name == "shear_y":
        return np.array([[1, 0, 0], [value, 1, 0]], np.float64)
    if name == "translate_x":
        return np.array([[1, 0, value * width], [0, 1, 0]], np.float64)
    if name == "translate_y":
        return np.array([[1, 0, 0], [0, 1, value * height]], np.float64)
    turn = math.radians(value)
    around = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    centre = np.array([width / 2, height / 2])
    return np.column_stack([around, centre - around @ centre])


def move(
    operation: Operation, boxes: NDArray[np.float64], width: int, height: int
) -> NDArray[np.float64]:
    """Boxes (..., 4) in pixels -> upright boxes around what an operation makes of them."""
    if operation.name not in GEOMETRIC:
        return boxes
    taken_from = matrix(operation, width, height)
    back = np.linalg.inv(taken_from[:, :2])
    corners = boxes[..., [[0, 1], [2, 1], [0, 3], [2, 3]]]
    corners = (corners - taken_from[:, 2]) @ back.T
    return np.concatenate([corners.min(axis=-2), corners.max(axis=-2)], axis=-1)
