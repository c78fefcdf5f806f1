"""Fuse streams with selective SSMs that share one state matrix A. The paper's head.

Source: MambaVL, Algorithm 1 and sec. 3.2. Every stream has its own projection, convolution, B, C
and dt (`fusions.ssm`, which says where the paper is silent and what we chose); one A (D, N) serves
all of them. The results are averaged over tokens and added.

Departs from the paper: any number of streams; see `fusions.ssm` for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fusions.ssm import SsmBranches, SsmConfig, s4d_real
from harness.contracts import Fusion, Tokens
from harness.registry import FUSIONS


@FUSIONS.register("mamba_shared")
class MambaShared(Fusion):
    """sum over streams of mean(scan with A)."""

    additive = True
    mamba = True

    class Config(SsmConfig):
        """Options of `mamba_shared`."""

    def __init__(self, config: Config, widths: Mapping[str, int], width: int) -> None:
        super().__init__(config, widths, width)
        self.A_log = nn.Parameter(s4d_real(width, config.d_state))
        self.branches = SsmBranches(config, self.widths, width)

    def forward(self, streams: Mapping[str, Tokens]) -> Tensor:
        """(B, width)."""
        A = -self.A_log.exp()
        return self.branches(streams, dict.fromkeys(self.widths, A))
