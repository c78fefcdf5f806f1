"""One scan over the tokens of all streams, in both orders: interaction at linear cost.

Source: none, ours. The branches are those of `mamba_shared`, with one A. But the streams are
scanned as one sequence, once in name order and once in the reverse, and the state is carried from
stream to stream. So what a token adds depends on the tokens of the streams before it, which the
paper's head, a sum of one function per stream, cannot express.

Per stream and order, y is averaged over the stream's tokens; all averages are added. The first
stream of an order has met no other: its plain average is what `mamba_shared` computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fusions.projection import masked_mean
from fusions.ssm import ScanInputs, SsmBranch, SsmConfig, s4d_real
from harness.contracts import Fusion, Tokens
from harness.registry import FUSIONS


@FUSIONS.register("mamba_joint")
class MambaJoint(Fusion):
    """sum over orders and streams of mean(scan over all streams)."""

    mamba = True

    class Config(SsmConfig):
        """Options of `mamba_joint`."""

    def __init__(self, config: Config, widths: Mapping[str, int], width: int) -> None:
        super().__init__(config, widths, width)
        self.A_log = nn.Parameter(s4d_real(width, config.d_state))
        self.branches = nn.ModuleDict(
            {n: SsmBranch(config, w, width) for n, w in self.widths.items()}
        )

    def forward(self, streams: Mapping[str, Tokens]) -> Tensor:
        """(B, width)."""
        # Convolved before they are joined, so that no convolution crosses padding or a border.
        parts = {name: branch.inputs(streams[name]) for name, branch in self.branches.items()}
        names = tuple(self.widths)
        orders = dict.fromkeys((names, names[::-1]))  # one order if there is one stream
        scanned = [self._scan(parts, order) for order in orders]
        total: Tensor | float = 0.0
        for name, branch in self.branches.items():
            y = parts[name].x * branch.D
            for result in scanned:
                y = y + result[name]
            total = total + masked_mean(Tokens(y, streams[name].mask))
        return total

    def _scan(self, parts: Mapping[str, ScanInputs], order: Sequence[str]) -> dict[str, Tensor]:
        """y (B, L, width) of every stream, the streams scanned one after the other."""
        fields = zip(*(parts[n] for n in order), strict=True)
        joined = ScanInputs(*(torch.cat(same, dim=1) for same in fields))
        y = joined.scan(-self.A_log.exp(), self.config)
        lengths = [parts[n].x.shape[1] for n in order]
        return dict(zip(order, y.split(lengths, dim=1), strict=True))
