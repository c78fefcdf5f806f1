"""Average each stream, put the averages side by side, and let an MLP mix them.

Source: MambaVL, Table 3, "MLP Fusion"; the paper gives neither its depth nor its input. Two linear
layers on the concatenated averages are a guess, ours. The averages are of the tokens as they come:
`project: true` puts the token MLPs of the other heads before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn

from fusions.projection import Projections, masked_mean, without_padding
from harness.contracts import Fusion, PluginConfig, Tokens
from harness.registry import FUSIONS


@FUSIONS.register("mlp")
class Mlp(Fusion):
    """mlp([mean of the first stream, mean of the second, ...])."""

    class Config(PluginConfig):
        """Options of `mlp`."""

        layers: int = Field(default=2, ge=2)
        """linear layers, a GELU between each two; one alone could only add the streams"""
        hidden_width: int | None = Field(default=None, gt=0)
        """width between the layers; None is the width of the result"""
        project: bool = False
        """project each stream by a token MLP before it is averaged"""
        mlp_width: int | None = Field(default=None, gt=0)
        """hidden width of these projections; None is four times the width"""

    def __init__(self, config: Config, widths: Mapping[str, int], width: int) -> None:
        super().__init__(config, widths, width)
        self.project = Projections(self.widths, width, config.mlp_width) if config.project else None
        pooled = width * len(self.widths) if config.project else sum(self.widths.values())
        hidden = config.hidden_width or width
        sizes = [pooled] + [hidden] * (config.layers - 1) + [width]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.mix = nn.Sequential(*layers[:-1])

    def forward(self, streams: Mapping[str, Tokens]) -> Tensor:
        """(B, width)."""
        if self.project:
            streams = self.project(streams)
        else:
            streams = {n: Tokens(without_padding(streams[n]), streams[n].mask) for n in self.widths}
        pooled = [masked_mean(tokens) for tokens in streams.values()]
        return self.mix(torch.cat(pooled, dim=-1))
