"""CLIP's vision transformer over all patches of all frames, as AVION trains it on video.

Source: "Training a Large Video Model on a Single Machine in a Day" (AVION, Zhao & Krähenbühl 2023)
and its published models; the transformer is that of CLIP (Radford et al. 2021).

    clips    (B, 3, T, H, W)     RGB, normalised
    patches  (B, T P, D)         one linear map of each patch of each frame; times outermost
    tokens   (B, 1 + T P, D)     one class token for the clip, with the first position; a patch has
                                 that of its place, plus that of its time if T > 1
    block    x + attention(ln_1(x)), then x + mlp(ln_2(x)); every token attends to every other
    features (B, D)              the class token after `ln_post`

Departs from the paper: nothing in what a trained model computes, and three habits of the published
code are part of it: the activation is the exact GELU although CLIP was trained with its quick
approximation, every norm has an epsilon of 1e-6 where CLIP's is 1e-5, and the mean of red is a slip
of the pen (108.3 where CLIP's is 122.8; `red_mean` chooses). The start without weights is CLIP's,
because the published code would also draw the gains of the norms near 0. The dropping of patches in
training, which is off in the published models, is left out.
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
OTHER_NAMES = ((".in_proj_", ".Wqkv."), (".c_fc.", ".fc1."), (".c_proj.", ".fc2."))
"""names that the published code uses without its fast attention -> those with it, and here"""
SIZES = {
    "base_16": Size(224, 16, 768, 12, 12),
    "large_14": Size(224, 14, 1024, 24, 16),
    "large_14_336": Size(336, 14, 1024, 24, 16),
    "demo": Size(32, 8, 64, 2, 4, frames=8, drop_path=0),
    "demo_large": Size(32, 8, 64, 3, 4, frames=8, drop_path=0),
}


@ENCODERS.register("clip_vit")
class ClipVit(VideoEncoder):
    """CLIP's vision transformer, with one attention over all patches of all frames."""

    pixel_std = PIXEL_STD
    may_start_fresh = r"network\.visual\.temporal_embedding"
    may_be_left_out = UNUSED

    class Config(VideoConfig):
        size: Literal["base_16", "large_14", "large_14_336", "demo", "demo_large"] = "base_16"
        """frames of 224 pixels and patches of 16 or 14, 336 and 14; the demo's, of 32 and 8"""
        red_mean: Literal["avion", "clip"] = "avion"
        """mean of red that is taken off: what the published models were trained with, or CLIP's"""

    def __init__(self, config: Any, stream: Stream) -> None:
        super().__init__(config, stream)
        check_image(stream, config.size, SIZES)
        size = replace(SIZES[config.size], frames=stream.shape[0])
        if config.drop_path is not None:
            size = replace(size, drop_path=config.drop_path)
        self.network = ClipVitNetwork(size, checkpointing=config.checkpointing)
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
        return ClipVitNetwork(replace(named(SIZES, size), **changes), classes)

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """`size`, and the file's `image`, `frames`, `classes` and `layout`."""
        weight, positions = "visual.conv1.weight", "visual.positional_embedding"
        if not {weight, positions, "visual.class_embedding"} <= state.keys():
            return None
        blocks = r"visual\.transformer\.resblocks\.\d+\.ln_1\.weight"
        times = state.get("visual.temporal_embedding")
        frames = 1 if times is None else len(times)
        return recognised(state, SIZES, (weight, positions, blocks), frames)


class ClipVitNetwork(nn.Module):
    """The published model under its published names; with `classes`, one target and its classes."""

    def __init__(
        self,
        size: Size,
        classes: Mapping[str, int] | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.classes = dict(classes or {})
        if len(self.classes) > 1:
            raise ValueError(f"one classifier is there, asked for are {sorted(self.classes)}")
        self.size = size
        self.times, self.places, self.width = size.frames, size.places, size.width
        self.checkpointing = checkpointing
        self.visual = Visual(size)
        self.head_dropout = nn.Dropout(size.head_dropout)
        for number in self.classes.values():
            self.fc_cls = classifier(size.width, number)

    def forward(self, clips: Tensor, boxes: Tensor | None = None) -> Output:
        """`clips` (B, 3, T, H, W); there is no use for boxes."""
        check_clips(clips, self.size, self.size.frames)
        x = self.visual.embedded(clips)
        for block in self.visual.transformer["resblocks"]:
            x = run_block(block, x, recompute=self.checkpointing)
        x = self.visual.ln_post(x)
        features = x[:, 0]
        logits = {target: self.fc_cls(self.head_dropout(features)) for target in self.classes}
        return Output(x, features, logits)

    def convert(self, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Converted:
        """Both ways of naming and both shapes of the patches' weight; more or fewer frames."""
        renamed = {}
        for name, value in state.items():
            if name.startswith("visual."):
                for other, ours in OTHER_NAMES:
                    name = name.replace(other, ours)
            renamed[name] = value.flatten(1) if name == "visual.conv1.weight" else value
        kept, heads = split_classifiers(renamed, dict.fromkeys(self.classes, "fc_cls"))
        resized = fit_times(kept, own, "visual.temporal_embedding")
        return matched(kept, own, heads, resized)


class Visual(nn.Module):
    """Everything below the classifier."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        scale = size.width**-0.5
        self.patch = size.patch
        self.conv1 = nn.Linear(3 * size.patch**2, size.width, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(size.width))
        self.positional_embedding = nn.Parameter(
            scale * torch.randn(1 + size.places, size.width),
        )
        self.temporal_embedding = (
            nn.Parameter(torch.zeros(size.frames, size.width)) if size.frames > 1 else None
        )
        self.ln_pre = nn.LayerNorm(size.width, eps=EPSILON)
        blocks = nn.ModuleList(Block(size) for _ in range(size.depth))
        self.transformer = nn.ModuleDict({"resblocks": blocks})
        self.ln_post = nn.LayerNorm(size.width, eps=EPSILON)

    def embedded(self, clips: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> what enters the first block, (B, 1 + T P, D)."""
        frames = clips.shape[2]
        x = self.conv1(cut(clips, self.patch)).unflatten(1, (frames, -1))
        x = x + self.positional_embedding[1:]
        if self.temporal_embedding is not None:
            x = x + self.temporal_embedding[:, None]
        first = self.class_embedding + self.positional_embedding[0]
        x = torch.cat([first.expand(len(x), 1, -1), x.flatten(1, 2)], dim=1)
        return self.ln_pre(x)


class Block(nn.Module):
    """Pre-norm transformer block; x (B, L, D)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(size.width, eps=EPSILON)
        self.attn = Attention(size.width, size.heads)
        self.ln_2 = nn.LayerNorm(size.width, eps=EPSILON)
        self.mlp = Mlp(size.width, 4 * size.width, nn.GELU())
        self.drop_path = DropPath(size.drop_path)
        branch = (2 * size.depth * size.width) ** -0.5
        nn.init.normal_(self.attn.Wqkv.weight, std=size.width**-0.5)
        nn.init.normal_(self.attn.out_proj.weight, std=branch)
        nn.init.normal_(self.mlp.fc1.weight, std=(2 * size.width) ** -0.5)
        nn.init.normal_(self.mlp.fc2.weight, std=branch)
        for layer in (self.attn.Wqkv, self.attn.out_proj, self.mlp.fc1, self.mlp.fc2):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.ln_1(x)))
        return x + self.drop_path(self.mlp(self.ln_2(x)))


class Attention(nn.Module):
    """Softmax attention of all tokens to all; queries, keys and values by one map."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.Wqkv = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.Wqkv(x).chunk(3, dim=-1))
        return self.out_proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))
