"""TimeSformer as LaViLa trains it: each block attends over time, then over space.

Source: "Learning Video Representations from Large Language Models" (LaViLa, Zhao et al. 2023) and
its published models. Attention over time and over space by turns is that of TimeSformer (Bertasius
et al. 2021); where the residuals start is that of "Frozen in Time" (Bain et al. 2021).

    clips    (B, 3, T, H, W)     RGB, normalised; T may be less than the model's, see below
    patches  (B, T P, D)         one linear map of each patch of each frame; times outermost
    tokens   (B, 1 + T P, D)     one class token for the clip, with the first position; a patch has
                                 that of its place plus that of its time
    block    y = x + time(norm3(x));  z = x + space(norm1(y)), from x and not from y;
             z + mlp(norm2(z))
    time     a patch attends to the patches at its place and to the class token
    space    a patch attends to the patches of its frame and to the class token; in both the class
             token attends to every token
    features (B, D)              the class token after the last norm

Clips of fewer frames use the first times. Stochastic depth drops the space and the MLP branch, at a
rate that grows evenly from 0 in the first block; the time branch is always kept.

Departs from the paper: nothing in what a trained model computes; the activation is CLIP's quick
GELU, the first norm has an epsilon of 1e-5 and the others of 1e-6, and the mean of red is a slip of
the pen (`red_mean` chooses). As published, attention over time starts with its first map 0 and all
weights of its second 1. The same number is then added to all channels of a token, the next norm
takes it off again, and no gradient but that of rounding errors reaches either map; so the demo's
sizes, which start without weights, start it at random like all the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.lavila import (
    GREEN_BLUE_MEAN,
    PIXEL_STD,
    RED_MEAN,
    TARGETS,
    UNUSED,
    Size,
    check_clips,
    check_image,
    classifier,
    cut,
    fit_times,
    named,
    recognised,
    split_classifiers,
)
from backbones.video import (
    DropPath,
    Mlp,
    Output,
    VideoConfig,
    VideoEncoder,
    matched,
    merge_heads,
    run_block,
    split_heads,
)
from harness.contracts import Converted, Stream
from harness.registry import ENCODERS

EPSILON = 1e-6
SIZES = {
    "base": Size(224, 16, 768, 12, 12),
    "large": Size(224, 14, 1024, 24, 16),
    "large_336": Size(336, 14, 1024, 24, 16),
    "demo": Size(32, 8, 64, 2, 4, frames=8, drop_path=0, blank_time=False),
    "demo_large": Size(32, 8, 64, 3, 4, frames=8, drop_path=0, blank_time=False),
}


@ENCODERS.register("timesformer")
class TimeSformer(VideoEncoder):
    """TimeSformer, whose blocks attend over time and then over space."""

    pixel_std = PIXEL_STD
    may_be_left_out = UNUSED

    class Config(VideoConfig):
        size: Literal["base", "large", "large_336", "demo", "demo_large"] = "base"
        """frames of 224 pixels and patches of 16 or 14, 336 and 14; the demo's, of 32 and 8"""
        red_mean: Literal["avion", "clip"] = "avion"
        """mean of red that is taken off: what the published models were trained with, or CLIP's"""

    def __init__(self, config: Any, stream: Stream) -> None:
        super().__init__(config, stream)
        check_image(stream, config.size, SIZES)
        size = replace(SIZES[config.size], frames=stream.shape[0])
        if config.drop_path is not None:
            size = replace(size, drop_path=config.drop_path)
        self.network = TimeSformerNetwork(size, checkpointing=config.checkpointing)
        self.width = size.width

    @property
    def pixel_mean(self) -> tuple[float, float, float]:
        return (RED_MEAN[self.config.red_mean], *GREEN_BLUE_MEAN)

    @classmethod
    def published(
        cls,
        size: str,
        *,
        frames: int | None = None,
        image: int | None = None,
        classes: Mapping[str, int] | None = None,
        **changes: Any,
    ) -> nn.Module:
        """The network of a size in SIZES, with other `frames`, `image` or fields where given."""
        given = {"frames": frames, "image": image}
        changes |= {name: value for name, value in given.items() if value is not None}
        return TimeSformerNetwork(replace(named(SIZES, size), **changes), classes)

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """`size`, and the file's `image`, `frames`, `classes` and `layout`."""
        weight, positions = "visual.patch_embed.proj.weight", "visual.pos_embed"
        if not {weight, positions, "visual.temporal_embed"} <= state.keys():
            return None
        frames = state["visual.temporal_embed"].shape[-2]
        blocks = r"visual\.blocks\.\d+\.timeattn\.qkv\.weight"
        return recognised(state, SIZES, (weight, positions, blocks), frames)


class TimeSformerNetwork(nn.Module):
    """The published model under its published names.

    `classes`: one target and its classes, or those of verb, noun and action, in this order.
    """

    def __init__(
        self,
        size: Size,
        classes: Mapping[str, int] | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.classes = dict(classes or {})
        several = len(self.classes) > 1
        if several and tuple(self.classes) != TARGETS[: len(self.classes)]:
            raise ValueError(f"classifiers of {list(self.classes)}, the order is {list(TARGETS)}")
        self.size = size
        self.times, self.places, self.width = size.frames, size.places, size.width
        self.checkpointing = checkpointing
        self.visual = Visual(size)
        self.head_dropout = nn.Dropout(size.head_dropout)
        heads = [classifier(size.width, number) for number in self.classes.values()]
        if heads:
            self.fc_cls = nn.ModuleList(heads) if several else heads[0]
        names = [f"fc_cls.{index}" for index in range(len(heads))] if several else ["fc_cls"]
        self.classifiers = dict(zip(self.classes, names, strict=False))

    def forward(self, clips: Tensor, boxes: Tensor | None = None) -> Output:
        """`clips` (B, 3, T, H, W), T at most that of the size; there is no use for boxes."""
        check_clips(clips, self.size, fewest_frames=1)
        x = self.visual.embedded(clips)
        for block in self.visual.blocks:
            x = run_block(block, x, clips.shape[2], recompute=self.checkpointing)
        x = self.visual.norm(x)
        features = x[:, 0]
        logits = {
            target: self.get_submodule(name)(self.head_dropout(features))
            for target, name in self.classifiers.items()
        }
        return Output(x, features, logits)

    def convert(self, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Converted:
        """One classifier or three; more or fewer frames."""
        kept, heads = split_classifiers(state, self.classifiers)
        resized = fit_times(kept, own, "visual.temporal_embed")
        return matched(kept, own, heads, resized)


class Visual(nn.Module):
    """Everything below the classifiers."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, size.width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + size.places, size.width))
        self.temporal_embed = nn.Parameter(torch.zeros(1, size.frames, size.width))
        self.patch_embed = Patches(size)
        self.ln_pre = nn.LayerNorm(size.width, eps=1e-5)
        last = max(size.depth - 1, 1)
        rates = [size.drop_path * index / last for index in range(size.depth)]
        self.blocks = nn.ModuleList(Block(size, rate) for rate in rates)
        self.norm = nn.LayerNorm(size.width, eps=EPSILON)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def embedded(self, clips: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> what enters the first block, (B, 1 + T P, D)."""
        frames = clips.shape[2]
        x = self.patch_embed(clips).unflatten(1, (frames, -1))
        x = x + self.pos_embed[:, None, 1:] + self.temporal_embed[:, :frames, None]
        first = self.cls_token + self.pos_embed[:, :1]
        return self.ln_pre(torch.cat([first.expand(len(x), -1, -1), x.flatten(1, 2)], dim=1))


class Patches(nn.Module):
    """One linear map of each patch; its weight has the shape of a convolution's, (D, 3, h, w)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, size.width, size.patch, size.patch, bias=False)

    def forward(self, clips: Tensor) -> Tensor:
        weight = self.proj.weight
        return F.linear(cut(clips, weight.shape[-1]), weight.flatten(1))


class Block(nn.Module):
    """Attention over time, over space, and an MLP; x (B, 1 + T P, D)."""

    def __init__(self, size: Size, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size.width, eps=EPSILON)
        self.attn = Attention(size.width, size.heads, over_time=False)
        self.timeattn = Attention(size.width, size.heads, over_time=True)
        self.norm2 = nn.LayerNorm(size.width, eps=EPSILON)
        self.mlp = Mlp(size.width, 4 * size.width, QuickGelu())
        self.norm3 = nn.LayerNorm(size.width, eps=EPSILON)
        self.drop_path = DropPath(drop_path)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        if size.blank_time:
            nn.init.zeros_(self.timeattn.qkv.weight)
            nn.init.ones_(self.timeattn.proj.weight)

    def forward(self, x: Tensor, times: int) -> Tensor:
        y = x + self.timeattn(self.norm3(x), times)
        x = x + self.drop_path(self.attn(self.norm1(y), times))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Patches attend to their group and to the class token, which attends to every token."""

    def __init__(self, width: int, heads: int, over_time: bool) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.over_time = over_time
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, times: int) -> Tensor:
        """x (B, 1 + T P, D), of T `times`."""
        x = self.qkv(x)
        summary = self.attend(x[:, :1], x)
        groups = self.grouped(x[:, 1:], times)
        shared = x[:, None, :1].expand(-1, groups.shape[1], -1, -1)
        keys = torch.cat([shared, groups], dim=2)
        mixed = self.attend(groups.flatten(0, 1), keys.flatten(0, 1))
        mixed = mixed.unflatten(0, groups.shape[:2])
        mixed = mixed.transpose(1, 2) if self.over_time else mixed
        return self.proj(torch.cat([summary, mixed.flatten(1, 2)], dim=1))

    def grouped(self, x: Tensor, times: int) -> Tensor:
        """(B, T P, 3 D) -> (B, P, T, 3 D) over time, (B, T, P, 3 D) over space."""
        x = x.unflatten(1, (times, -1))
        return x.transpose(1, 2) if self.over_time else x

    def attend(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(B, L, 3 D) and (B, K, 3 D), query, key and value of each token -> (B, L, D)."""
        q = queries.chunk(3, dim=-1)[0]
        _, k, v = keys.chunk(3, dim=-1)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        return merge_heads(F.scaled_dot_product_attention(q, k, v))


class QuickGelu(nn.Module):
    """x sigmoid(1.702 x), CLIP's stand-in for GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)
