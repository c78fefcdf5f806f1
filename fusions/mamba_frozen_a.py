"""`mamba_shared` with the A it starts with: what learning A buys.

Source: none, ours: a control of MambaVL's claim that the shared A carries the fusion.
"""

from __future__ import annotations

from collections.abc import Mapping

from fusions.mamba_shared import MambaShared
from harness.registry import FUSIONS


@FUSIONS.register("mamba_frozen_a")
class MambaFrozenA(MambaShared):
    """sum over streams of mean(scan with a constant A)."""

    class Config(MambaShared.Config):
        """Options of `mamba_frozen_a`."""

    def __init__(self, config: Config, widths: Mapping[str, int], width: int) -> None:
        super().__init__(config, widths, width)
        self.A_log.requires_grad_(False)
