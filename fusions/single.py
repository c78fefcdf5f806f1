"""One stream alone: what the others add is measured against it.

Source: none, ours: a control. The projection is that of the other heads, so that only the missing
streams make the difference.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from fusions.projection import Projections, masked_mean, without_padding
from harness.contracts import Fusion, PluginConfig, Tokens
from harness.registry import FUSIONS


@FUSIONS.register("single")
class Single(Fusion):
    """mean(mlp(tokens)) of one stream, or the mean of its tokens."""

    additive = True

    class Config(PluginConfig):
        """Options of `single`."""

        project: bool = True
        """false: the plain mean of the tokens; the result has their width. With
        `cls` tokens and `head: pre_logits` this is ORViT without fusion"""
        mlp_width: int | None = Field(default=None, gt=0)
        """hidden width of the projection MLP; None is four times the width"""

    def __init__(self, config: Config, widths: Mapping[str, int], width: int) -> None:
        super().__init__(config, widths, width)
        if len(self.widths) != 1:
            raise ValueError(
                f"fusion single: one stream is needed, there are {', '.join(self.widths)}; take "
                f"the others out of the row, e.g. `encoders.{list(self.widths)[-1]}: null`"
            )
        self.transparent = not config.project
        self.out_width = width if config.project else next(iter(self.widths.values()))
        self.project = Projections(self.widths, width, config.mlp_width) if config.project else None

    def forward(self, streams: Mapping[str, Tokens]) -> Tensor:
        """(B, width)."""
        if self.project is not None:
            (tokens,) = self.project(streams).values()
            return masked_mean(tokens)
        (tokens,) = (streams[name] for name in self.widths)
        return masked_mean(Tokens(without_padding(tokens), tokens.mask))
