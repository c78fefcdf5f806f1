"""Self-attention over the tokens of all streams together.

Source: MambaVL, Table 3, "Transformer Fusion" with 6 layers and 4 heads, or 12 and 12; the rest is
not given. That 12 x 12 has a feed-forward four times the width, and the same projection MLPs as the
Mamba rows, follows from the parameters in Table 4. Pre-norm and the learnt vector per stream are
guesses, ours; positions are the encoders' business.

Departs from the paper: none known, but attention over 1568 video tokens costs far more than the
paper's Table 4 says, so its encoder probably saw pooled tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fusions.projection import Projections, masked_mean
from harness.contracts import Fusion, PluginConfig, Tokens
from harness.registry import FUSIONS


@FUSIONS.register("transformer")
class Transformer(Fusion):
    """mean(norm(blocks(all tokens)))."""

    class Config(PluginConfig):
        """Options of `transformer`."""

        layers: int = Field(default=6, gt=0)
        """blocks; Table 3 has 6 and 12"""
        heads: int = Field(default=4, gt=0)
        """attention heads per block; Table 3 has 4 and 12; they must divide the width"""
        ff_width: int | None = Field(default=None, gt=0)
        """hidden width of the feed-forward layers; None is four times the width"""
        mlp_width: int | None = Field(default=None, gt=0)
        """hidden width of the projection MLPs; None is four times the width"""
        pool: dict[str, Annotated[int, Field(gt=0)]] = {}
        """stream -> parts it is cut into, each averaged to one token before the blocks, e.g.
        `{video: 8}`; with all tokens of ORViT the cost of Table 4 would be 553 G, not 413"""

    def __init__(self, config: Config, widths: Mapping[str, int], width: int) -> None:
        super().__init__(config, widths, width)
        if width % config.heads:
            raise ValueError(f"fusion transformer: {config.heads} heads do not divide {width}")
        if not set(config.pool) <= set(self.widths):
            raise ValueError(
                f"fusion transformer: pool names {', '.join(sorted(config.pool))}; the streams are "
                f"{', '.join(self.widths)}"
            )
        self.project = Projections(self.widths, width, config.mlp_width)
        self.stream_vector = nn.ParameterDict(
            {name: nn.Parameter(0.02 * torch.randn(width)) for name in self.widths}
        )
        hidden = config.ff_width or 4 * width
        self.blocks = nn.ModuleList(
            Block(width, config.heads, hidden) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, streams: Mapping[str, Tokens]) -> Tensor:
        """(B, width)."""
        projected = {
            name: averaged(tokens, self.config.pool[name]) if name in self.config.pool else tokens
            for name, tokens in self.project(streams).items()
        }
        x = torch.cat([t.features + self.stream_vector[n] for n, t in projected.items()], dim=1)
        mask = torch.cat([t.mask for t in projected.values()], dim=1)
        # A sample without any token attends to its padding: softmax over nothing would be NaN.
        keys = torch.where(mask.any(dim=1, keepdim=True), mask, torch.ones_like(mask))
        for block in self.blocks:
            x = block(x, keys)
        return masked_mean(Tokens(self.norm(x), mask))


def averaged(tokens: Tokens, parts: int) -> Tokens:
    """Tokens (B, parts, D): means of the real tokens of equal, consecutive parts of the stream.

    Raises ValueError if `parts` does not divide the number of tokens; 1 always does.
    """
    length = tokens.mask.shape[1]
    if length % parts:
        raise ValueError(f"{length} tokens cannot be cut into {parts} equal parts")
    x, mask = (t.unflatten(1, (parts, -1)).flatten(0, 1) for t in tokens)
    means = masked_mean(Tokens(x, mask)).unflatten(0, (-1, parts))
    return Tokens(means, mask.any(dim=1).unflatten(0, (-1, parts)))


class Block(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """x (B, L, D); keys (B, L), True where a token may be looked at."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keys[:, None, None, :])
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.feed_forward(x)
