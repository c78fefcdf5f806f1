"""Mixup and CutMix: every sample of a batch with the one that stands opposite, and its labels.

Source: Zhang et al., "mixup" (ICLR 2018); Yun et al., "CutMix" (ICCV 2019); in the form of AVION,
one share for a whole batch and the batch turned round as partners.

Several processes mix each its own share of a batch.

Departs from both: a sample here has several streams, which are all mixed with one share, for labels
have one. Where a clip is cut, the other streams are mixed with the share of the area. Texts that
differ in length are mixed token by token, and the longer one's end with nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.batch import Batch
from harness.contracts import Stream, Tokens
from harness.recipe import TrainSpec
from harness.registry import ENCODERS
from harness.spec import RunSpec

STREAM_OF_DRAWS = 0x6D6978
"""keeps these draws apart from those of the batch order"""


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed."""

    share: float
    """of each sample's own labels, and of its own values"""
    box: tuple[float, float, float, float] | None = None
    """top, bottom, left, right in [0, 1] of the frame that are the partner's; None: mixup"""


def draw_mix(config: TrainSpec, seed: int, step: int) -> Mix | None:
    """How the batch of an optimiser step is mixed, settled by seed and step; None: it is not."""
    if not (config.mixup or config.cutmix):
        return None
    rng = np.random.default_rng([seed, step, STREAM_OF_DRAWS])
    if rng.random() >= config.mix_probability:
        return None
    cut = bool(config.cutmix) and (not config.mixup or rng.random() < config.mix_switch)
    alpha = config.cutmix if cut else config.mixup
    share = float(rng.beta(alpha, alpha))
    if not cut:
        return Mix(share)
    side = math.sqrt(1 - share)
    y, x = rng.random(2)
    top, bottom = max(0.0, y - side / 2), min(1.0, y + side / 2)
    left, right = max(0.0, x - side / 2), min(1.0, x + side / 2)
    return Mix(share, (float(top), float(bottom), float(left), float(right)))


def mixed(batch: Batch, mix: Mix, cuts: Mapping[str, bool]) -> tuple[Batch, float]:
    """The mixed batch, and the share that is left of its own labels.

    `cuts`: stream -> whether it holds clips (B, T, H, W, C), from which a box can be cut. Raises
    ValueError for what cannot be mixed.
    """
    share, pixels = mix.share, None
    for stream, value in batch.inputs.items():
        if mix.box is not None and cuts[stream]:
            pixels = _pixels(mix.box, value.shape[2], value.shape[3])
            top, bottom, left, right = pixels
            area = (bottom - top) * (right - left) / (value.shape[2] * value.shape[3])
            share = 1 - area
    if any(batch.side.get(stream) for stream in batch.inputs):
        raise ValueError("mixup and cutmix know nothing of side inputs, such as boxes")
    inputs = {
        stream: _cut(value, pixels) if pixels and cuts[stream] else _blend(stream, value, share)
        for stream, value in batch.inputs.items()
    }
    others = {name: value.flip(0) for name, value in batch.targets.items()}
    return Batch(inputs, batch.side, batch.targets, batch.known, others), share


def _pixels(
    box: tuple[float, float, float, float], height: int, width: int
) -> tuple[int, int, int, int]:
    top, bottom = (round(height * edge) for edge in box[:2])
    left, right = (round(width * edge) for edge in box[2:])
    return top, bottom, left, right


def _cut(clips: Tensor, pixels: tuple[int, int, int, int]) -> Tensor:
    top, bottom, left, right = pixels
    result = clips.clone()
    result[:, :, top:bottom, left:right] = clips.flip(0)[:, :, top:bottom, left:right]
    return result


def _blend(stream: str, value: Any, share: float) -> Any:
    if isinstance(value, Tokens):
        features = torch.where(value.mask[..., None], value.features.float(), 0.0)
        other, mask = features.flip(0), value.mask | value.mask.flip(0)
        return Tokens(share * features + (1 - share) * other, mask)
    if isinstance(value, Tensor):
        return share * value + (1 - share) * value.flip(0)
    raise ValueError(
        f"mixup: tokens of {stream} are dealt to heads, or are words, and cannot be mixed; freeze "
        f"the encoder (`frozen: true`), and have its questions in one text"
    )


def problem(spec: RunSpec, streams: Mapping[str, Stream]) -> str | None:
    """Why the streams of a run cannot be mixed as it asks, in words; None where they can."""
    if not (spec.train.mixup or spec.train.cutmix):
        return None
    for stream, encoder in spec.encoders.items():
        stored = encoder.frozen and encoder.cache != "none"
        takes = ENCODERS[encoder.name].takes
        if takes and not stored:
            return f"train.mixup and train.cutmix cannot mix the {takes[0]} that {stream} reads"
        if streams[stream].kind == "text" and not stored:
            return (
                f"train.mixup and train.cutmix mix values, and {stream} is text: freeze its "
                f"encoder (`encoders.{stream}.frozen: true`), or take the stream out"
            )
    if spec.train.cutmix and not any(cuts(spec, streams).values()):
        return (
            "train.cutmix cuts boxes out of clips, and no stream has any: clips are videos whose "
            "tokens are not stored (`cache: none` where the encoder is frozen)"
        )
    return None


def cuts(spec: RunSpec, streams: Mapping[str, Stream]) -> dict[str, bool]:
    """Stream -> whether its encoder is given clips in training."""
    return {
        name: streams[name].kind == "video" and not (encoder.frozen and encoder.cache != "none")
        for name, encoder in spec.encoders.items()
    }
