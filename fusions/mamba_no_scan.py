"""`mamba_shared` without its scan: the same projections, convolution, averages and sum.

Source: none, ours: a control that shows what the state-space model itself buys.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fusions.projection import masked_mean
from fusions.ssm import ConvStem, StemConfig
from harness.contracts import Fusion, Tokens
from harness.registry import FUSIONS


@FUSIONS.register("mamba_no_scan")
class MambaNoScan(Fusion):
    """sum over streams of mean(silu(convolution(mlp)))."""

    additive = True
    mamba = True

    class Config(StemConfig):
        """Options of `mamba_no_scan`."""

    def __init__(self, config: Config, widths: Mapping[str, int], width: int) -> None:
        super().__init__(config, widths, width)
        self.stems = nn.ModuleDict({n: ConvStem(config, w, width) for n, w in self.widths.items()})

    def forward(self, streams: Mapping[str, Tokens]) -> Tensor:
        """(B, width)."""
        return sum(
            masked_mean(Tokens(stem(streams[name]), streams[name].mask))
            for name, stem in self.stems.items()
        )
