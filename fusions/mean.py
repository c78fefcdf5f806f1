"""Project each stream, average its tokens, add the averages: what fusion costs nothing.

Source: none, ours: a control. It is MambaVL's fusion with everything but the projections taken out.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from fusions.projection import Projections, masked_mean
from harness.contracts import Fusion, PluginConfig, Tokens
from harness.registry import FUSIONS


@FUSIONS.register("mean")
class Mean(Fusion):
    """sum over streams of mean(mlp(tokens))."""

    additive = True

    class Config(PluginConfig):
        """Options of `mean`."""

        mlp_width: int | None = Field(default=None, gt=0)
        """hidden width of the projection MLPs; None is four times the width"""

    def __init__(self, config: Config, widths: Mapping[str, int], width: int) -> None:
        super().__init__(config, widths, width)
        self.project = Projections(self.widths, width, config.mlp_width)

    def forward(self, streams: Mapping[str, Tokens]) -> Tensor:
        """(B, width)."""
        return sum(masked_mean(tokens) for tokens in self.project(streams).values())
