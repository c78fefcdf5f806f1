"""One classifier per stream, their logits added.

Source: none, ours: the control known as late fusion. The projected averages are put side by side,
so that the one linear head that follows is one linear classifier per stream, and their sum.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from fusions.projection import Projections, masked_mean
from harness.contracts import Fusion, PluginConfig, Tokens
from harness.registry import FUSIONS


@FUSIONS.register("late_logits")
class LateLogits(Fusion):
    """[mean(mlp(tokens)) of the first stream, of the second, ...]."""

    additive = True

    class Config(PluginConfig):
        """Options of `late_logits`."""

        mlp_width: int | None = Field(default=None, gt=0)
        """hidden width of the projection MLPs; None is four times the width"""

    def __init__(self, config: Config, widths: Mapping[str, int], width: int) -> None:
        super().__init__(config, widths, width)
        self.out_width = width * len(self.widths)
        self.project = Projections(self.widths, width, config.mlp_width)

    def forward(self, streams: Mapping[str, Tokens]) -> Tensor:
        """(B, width x streams)."""
        pooled = [masked_mean(tokens) for tokens in self.project(streams).values()]
        return torch.cat(pooled, dim=-1)
