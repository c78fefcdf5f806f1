"""One classifier per stream, their logits added.

Source: none, ours: the control known as late fusion. The projected averages are put side by side,
so that the one linear head that follows is one linear classifier per stream, and their sum.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from fusions.projection import Projections, masked_mean, without_padding
from harness.contracts import Fusion, PluginConfig, Tokens
from harness.registry import FUSIONS


@FUSIONS.register("late_logits")
class LateLogits(Fusion):
    """[mean(mlp(tokens)) of the first stream, of the second, ...]."""

    additive = True

    class Config(PluginConfig):
        """Options of `late_logits`."""

        mlp_width: int | None = Field(default=None, ge=0)
        """hidden width of the projection MLPs; None is four times the width, 0 is no MLP: the
        encoders' tokens are averaged as they are"""

    def __init__(self, config: Config, widths: Mapping[str, int], width: int) -> None:
        super().__init__(config, widths, width)
        if config.mlp_width == 0:
            self.out_width = sum(self.widths.values())
            self.project = None
        else:
            self.out_width = width * len(self.widths)
            self.project = Projections(self.widths, width, config.mlp_width)

    def forward(self, streams: Mapping[str, Tokens]) -> Tensor:
        """(B, out_width): the streams side by side, in their sorted order."""
        if self.project is None:
            known = {name: streams[name] for name in self.widths}
            tokens = {n: Tokens(without_padding(t), t.mask) for n, t in known.items()}
        else:
            tokens = self.project(streams)
        return torch.cat([masked_mean(stream) for stream in tokens.values()], dim=-1)
