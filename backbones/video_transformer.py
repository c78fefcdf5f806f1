"""A small space-time transformer, trained from scratch: tubelets, one attention over all of them.

Source: none, ours; after ViViT's tubelet embedding with joint space-time attention (Arnab et al.
2021, sec. 3.2 and 3.3, model 1) in pre-norm blocks (Dosovitskiy et al. 2021, eq. 1-4).

    input    (B, T, H, W, 3) uint8, scaled to [-1, 1] here
    tubelet  tube_frames x patch x patch pixels, one linear map to a token
    tokens   `patch` (B, T/tube H/patch W/patch, D) in reading order, time first
             `frame` (B, T/tube, D), the mean over the places of each time
             `cls`   (B, 1, D), a learnt token that attends to all; it exists in this mode only

Departs from the paper: defaults fit SimKitchen (8 frames of 32 x 32) and a laptop; the tubelets are
embedded by a reshape and a matrix product instead of a convolution, which is the same map.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from harness.contracts import Encoder, PluginConfig, Stream, Tokens
from harness.registry import ENCODERS


@ENCODERS.register("video_transformer")
class VideoTransformer(Encoder):
    kinds = ("video",)

    class Config(PluginConfig):
        width: int = Field(default=64, gt=0)
        """D of the tokens"""
        depth: int = Field(default=2, gt=0)
        """blocks"""
        heads: int = Field(default=4, gt=0)
        """attention heads per block"""
        mlp_ratio: float = Field(default=2.0, gt=0)
        """hidden width of a block's MLP, in widths"""
        tube_frames: int = Field(default=4, gt=0)
        """frames of a tubelet"""
        patch: int = Field(default=8, gt=0)
        """height and width of a tubelet, pixels"""
        tokens: Literal["patch", "frame", "cls"] = "patch"
        """what is handed on: every tubelet, one mean per time, or one summary"""

    def __init__(self, config: Any, stream: Stream) -> None:
        super().__init__(config, stream)
        frames, height, width, _ = stream.shape
        if frames % config.tube_frames or height % config.patch or width % config.patch:
            raise ValueError(
                f"clips of {frames} x {height} x {width} cannot be cut into tubelets of "
                f"{config.tube_frames} x {config.patch} x {config.patch}"
            )
        if config.width % config.heads:
            raise ValueError(f"width {config.width} is not a multiple of {config.heads} heads")
        self.width = config.width
        self.times = frames // config.tube_frames
        self.places = (height // config.patch) * (width // config.patch)
        self.embed = nn.Linear(config.tube_frames * config.patch**2 * 3, self.width)
        self.positions = nn.Parameter(0.02 * torch.randn(self.times * self.places, self.width))
        if config.tokens == "cls":
            self.cls = nn.Parameter(0.02 * torch.randn(self.width))
        hidden = int(config.mlp_ratio * self.width)
        self.blocks = nn.ModuleList(
            Block(self.width, config.heads, hidden) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(self.width)

    def forward(self, inputs: Tensor, **side: Tensor) -> Tokens:
        """`inputs` (B, T, H, W, 3); side inputs such as boxes are not used."""
        x = self.embed(self._tubelets(inputs)) + self.positions
        if self.config.tokens == "cls":
            x = torch.cat([self.cls.expand(len(x), 1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if self.config.tokens == "cls":
            x = x[:, :1]
        elif self.config.tokens == "frame":
            x = x.unflatten(1, (self.times, self.places)).mean(dim=2)
        return Tokens(x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))

    def _tubelets(self, clips: Tensor) -> Tensor:
        """(B, T, H, W, 3) -> (B, tubelets, pixels of one)."""
        if tuple(clips.shape[1:]) != self.stream.shape:
            raise ValueError(f"clips of {tuple(clips.shape[1:])}, built for {self.stream.shape}")
        tube, patch = self.config.tube_frames, self.config.patch
        x = clips.to(self.embed.weight.dtype) / 127.5 - 1
        x = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).unflatten(1, (-1, tube))
        return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).flatten(1, 3)


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, attend: Tensor | None = None) -> Tensor:
        """x (B, L, D); attend (B, 1, 1, L), True for keys that may be looked at."""
        qkv = self.qkv(self.norm_attention(x)).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_mlp(x))
