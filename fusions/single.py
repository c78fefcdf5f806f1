"""One stream alone: what the others add is measured against it.

Source: none, ours: a control. The projection is that of the other heads, so that only the missing
streams make the difference.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from fusions.projection import Projections, masked_mean
from harness.contracts import Fusion, PluginConfig, Tokens
from harness.registry import FUSIONS


@FUSIONS.register("single")
class Single(Fusion):
    """mean(mlp(tokens)) of one stream."""

    additive = True

    class Config(PluginConfig):
        """Options of `single`."""

        stream: str | None = None
        """the stream to use; None takes the only one there is, and refuses several"""
        mlp_width: int | None = Field(default=None, gt=0)
        """hidden width of the projection MLP; None is four times the width"""

    def __init__(self, config: Config, widths: Mapping[str, int], width: int) -> None:
        super().__init__(config, widths, width)
        known = ", ".join(self.widths)
        if config.stream is None and len(self.widths) != 1:
            raise ValueError(f"fusion single: streams {known} are given; say which in `stream`")
        if config.stream is not None and config.stream not in self.widths:
            raise ValueError(f"fusion single: no stream {config.stream!r}. Known: {known}")
        self.stream = config.stream or next(iter(self.widths))
        chosen = {self.stream: self.widths[self.stream]}
        self.project = Projections(chosen, width, config.mlp_width)

    def forward(self, streams: Mapping[str, Tokens]) -> Tensor:
        """(B, width)."""
        return masked_mean(self.project(streams)[self.stream])
