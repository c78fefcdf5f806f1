"""What the video models of LaViLa and AVION have in common: sizes, pixels, how their files look.

Source: "Learning Video Representations from Large Language Models" (LaViLa, Zhao et al. 2023),
"Training a Large Video Model on a Single Machine in a Day" (AVION, Zhao & Krähenbühl 2023), and
their published models.

    clips    (B, 3, T, H, W)
    patches  (B, T P, 3 patch patch), P of each frame in reading order; times outermost

Departs from the paper: nothing; the patches are embedded by a reshape and a matrix product instead
of a convolution, which is the same map. In training both took off a mean of red of 108.3 where
CLIP's is 122.8, a slip of the pen that stayed in the weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.contracts import Stream

RED_MEAN = {"avion": 108.3272985, "clip": 122.7709383}
GREEN_BLUE_MEAN = (116.7460125, 104.09373615)
PIXEL_STD = (68.5005327, 66.6321579, 70.32316305)
UNUSED = r"textual\..*|logit_scale|(visual\.)?image_projection"
"""names in pre-training files of what belongs to the text"""
TARGETS = ("verb", "noun", "action")
"""what the classifiers `fc_cls.0`, `fc_cls.1`, `fc_cls.2` of a file tell apart"""


@dataclass(frozen=True)
class Size:
    """What the sizes of a model differ in."""

    image: int
    """height and width of a frame, pixels"""
    patch: int
    """height and width of a patch, pixels"""
    width: int
    """D"""
    depth: int
    """blocks"""
    heads: int
    """attention heads per block"""
    frames: int = 16
    """T"""
    drop_path: float = 0.1
    """rate of stochastic depth in training"""
    head_dropout: float = 0.5
    """rate of dropout before each classifier in training"""
    blank_time: bool = True
    """whether attention over time, where it is a layer of its own, starts as published"""

    @property
    def places(self) -> int:
        """P, the patches of a frame."""
        if self.image % self.patch:
            raise ValueError(f"frames of {self.image} are not whole patches of {self.patch} pixels")
        return (self.image // self.patch) ** 2


def named(sizes: Mapping[str, Size], name: str) -> Size:
    """The size `name`; ValueError if there is none."""
    if name not in sizes:
        raise ValueError(f"no size is called {name!r}; known: {', '.join(sizes)}")
    return sizes[name]


def check_image(stream: Stream, name: str, sizes: Mapping[str, Size]) -> None:
    """ValueError if the stream's frames are not as large as the size `name` takes them."""
    _, height, width, _ = stream.shape
    image = sizes[name].image
    if (height, width) == (image, image):
        return
    known = ", ".join(f"{other} {size.image} x {size.image}" for other, size in sizes.items())
    raise ValueError(
        f"frames of {height} x {width}, but size {name!r} takes {image} x {image}; "
        f"known are {known}"
    )


def check_clips(clips: Tensor, size: Size, fewest_frames: int) -> None:
    """ValueError if clips are not (B, 3, T, H, W) of this size, or have fewer frames than that."""
    channels, frames, height, width = clips.shape[1:]
    fits = fewest_frames <= frames <= size.frames
    if not fits or (channels, height, width) != (3, size.image, size.image):
        raise ValueError(
            f"clips of {tuple(clips.shape[1:])}, built for "
            f"{(3, size.frames, size.image, size.image)}, at least {fewest_frames} frames"
        )


def cut(clips: Tensor, patch: int) -> Tensor:
    """(B, 3, T, H, W) -> (B, T P, 3 patch patch): the patches, each by channel, row and column."""
    x = clips.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))
    return x.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)


def classifier(width: int, classes: int) -> nn.Linear:
    """A linear classifier, started as in the published code."""
    layer = nn.Linear(width, classes)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def split_classifiers(
    state: Mapping[str, Tensor], places: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A file's tensors with each classifier where `places` (target -> name) has it; and the other
    classifiers, named as in a run."""
    kept, heads = {}, {}
    for name, value in state.items():
        found = re.fullmatch(r"fc_cls\.(?:([0-2])\.)?(weight|bias)", name)
        if not found:
            kept[name] = value
            continue
        index, kind = found.groups()
        alone = next(iter(places)) if len(places) == 1 else "action"
        target = TARGETS[int(index)] if index else alone
        if target in places:
            kept[f"{places[target]}.{kind}"] = value
        else:
            heads[f"heads.{target}.{kind}"] = value
    return kept, heads


def fit_times(state: dict[str, Tensor], own: Mapping[str, Tensor], name: str) -> list[str]:
    """Give the embedding `name` of times (..., T, D) the frames it has in `own`; what was done.

    More are interpolated linearly between the middles of those there are; of too many the first
    are kept.
    """
    if name not in state or name not in own or state[name].shape == own[name].shape:
        return []
    value, frames = state[name], own[name].shape[-2]
    if frames <= value.shape[-2]:
        fitted = value[..., :frames, :]
    else:
        rows = value.flatten(0, -2).T[None].float()
        grown = F.interpolate(rows, size=frames, mode="linear", align_corners=False)[0].T
        fitted = grown.to(value.dtype).reshape(*value.shape[:-2], frames, value.shape[-1])
    state[name] = fitted.clone(memory_format=torch.contiguous_format)
    return [f"{name} {tuple(value.shape)} -> {tuple(fitted.shape)}"]


def recognised(
    state: Mapping[str, Tensor],
    sizes: Mapping[str, Size],
    names: tuple[str, str, str],
    frames: int,
) -> dict[str, Any] | None:
    """The size and facts of a file, or None if there is no such size.

    `names` are those of the patches' weight, of the positions and of a norm that each block has.
    """
    weight, positions = state[names[0]], state[names[1]]
    width = len(weight)
    patch = math.isqrt(weight.numel() // (3 * width))
    image = patch * math.isqrt(positions.shape[-2] - 1)
    depth = sum(re.fullmatch(names[2], name) is not None for name in state)
    classes = {
        ("action" if name == "fc_cls.weight" else TARGETS[int(name.split(".")[1])]): len(value)
        for name, value in state.items()
        if re.fullmatch(r"fc_cls\.([0-2]\.)?weight", name)
    }
    layout = "fine-tuned" if classes else "pre-training"
    facts = {"image": image, "frames": frames, "classes": classes, "layout": layout}
    for name, size in sizes.items():
        if (size.image, size.patch, size.width, size.depth) == (image, patch, width, depth):
            return {"size": name, **facts}
    return None
