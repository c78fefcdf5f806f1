"""`mamba_shared` with an A for each stream: what sharing A buys.

Source: none, ours: the row that MambaVL's Table 3 lacks.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fusions.ssm import SsmBranches, SsmConfig, s4d_real
from harness.contracts import Fusion, Tokens
from harness.registry import FUSIONS


@FUSIONS.register("mamba_per_modality")
class MambaPerModality(Fusion):
    """sum over streams of mean(scan with the stream's own A)."""

    additive = True
    mamba = True

    class Config(SsmConfig):
        """Options of `mamba_per_modality`."""

    def __init__(self, config: Config, widths: Mapping[str, int], width: int) -> None:
        super().__init__(config, widths, width)
        self.A_log = nn.ParameterDict(
            {name: nn.Parameter(s4d_real(width, config.d_state)) for name in self.widths}
        )
        self.branches = SsmBranches(config, self.widths, width)

    def forward(self, streams: Mapping[str, Tokens]) -> Tensor:
        """(B, width)."""
        return self.branches(streams, {n: -self.A_log[n].exp() for n in self.widths})
