"""The selective state-space branch of one stream, from raw tokens to y, and a sum of such branches.

Source: MambaVL, Algorithm 1 and sec. 3.2; Mamba (Gu and Dao, 2023) for what the paper leaves open.
Per stream m, tokens (B, L, D_m):

    x            (B, L, D)   silu(conv(mlp(tokens)))              line 1
    B_m, C_m     (B, L, N)   linear in x                          lines 2-5
    dt_m         (B, L, D)   softplus(bias + linear(x))           lines 6-7
    y            (B, L, D)   scan of x with dt_m, A, B_m, C_m; plus D_m x

A (D, N), negative, comes from outside: whether streams share it is the fusion's choice.

Departs from the paper: dt goes through 48 numbers, as in Mamba; line 6 has a full matrix, which
`dt_rank: full` gives, but with it the parameters of Table 4 do not add up. The convolution is
depthwise, causal, of 4 taps and followed by SiLU, as in Mamba; the paper says Conv1d only. Without
Mamba's gate and outer projections, which Algorithm 1 does not have. `euler` discretises B as the
published Mamba code does; eq. 2 asks for zero-order hold, which is `zoh`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fusions.projection import masked_mean, silenced, token_mlp, without_padding
from fusions.scan import causal_conv, selective_scan
from harness.contracts import PluginConfig, Tokens


class StemConfig(PluginConfig):
    """Options of what stands before a scan."""

    mlp_width: int | None = Field(default=None, gt=0)
    """hidden width of the projection MLPs; None is four times the width"""
    conv_kernel: int = Field(default=4, gt=0)
    """taps of the causal convolution; the paper does not give them, 4 is Mamba's default"""


class SsmConfig(StemConfig):
    """Options of a selective scan and its stem."""

    d_state: int = Field(default=16, gt=0)
    """N in Algorithm 1; the paper does not give it, 16 is Mamba's default"""
    dt_rank: Annotated[int, Field(gt=0)] | Literal["full"] = 48
    """rank of the map x -> dt, a sixteenth of width 768 as in Mamba; `full` is line 6 literally"""
    discretise: Literal["euler", "zoh"] = "euler"
    """how B is discretised: by a step, as Mamba's code does, or by zero-order hold, eq. 2"""
    backend: Literal["auto", "reference", "torch", "numba", "cuda"] = "auto"
    """what computes the scan (`fusions.scan`); `auto` takes the fastest there is"""


def s4d_real(width: int, d_state: int) -> Tensor:
    """log(-A) of Mamba's first A (D, N): every channel decays at the rates 1, 2, ..., N."""
    return torch.arange(1, d_state + 1).float().log().repeat(width, 1)


class ConvStem(nn.Module):
    """Tokens -> silu(causal convolution(MLP)), (B, L, width)."""

    def __init__(self, config: StemConfig, width_in: int, width: int) -> None:
        super().__init__()
        self.project = token_mlp(width_in, width, config.mlp_width)
        bound = config.conv_kernel**-0.5  # torch's own for a depthwise convolution
        self.taps = nn.Parameter(torch.empty(config.conv_kernel, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))

    def forward(self, tokens: Tokens) -> Tensor:
        """(B, L, width); padding is silent, whatever it holds."""
        x = silenced(self.project(without_padding(tokens)), tokens.mask)
        return F.silu(causal_conv(x, self.taps, self.bias))


class ScanInputs(NamedTuple):
    """What one stream brings to a scan: x, dt (B, L, D); B, C (B, L, N); mask (B, L)."""

    x: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
    mask: Tensor

    def scan(self, A: Tensor, config: SsmConfig) -> Tensor:
        """The scan without its skip, (B, L, D)."""
        how = {"discretise": config.discretise, "backend": config.backend}
        return selective_scan(self.x, self.dt, A, self.B, self.C, mask=self.mask, **how)


class SsmBranch(nn.Module):
    """One stream's stem, its maps to dt, B and C, and its skip D."""

    def __init__(self, config: SsmConfig, width_in: int, width: int) -> None:
        super().__init__()
        self.config = config
        self.stem = ConvStem(config, width_in, width)
        self.to_BC = nn.Linear(width, 2 * config.d_state, bias=False)
        rank = width if config.dt_rank == "full" else config.dt_rank
        self.dt_down: nn.Module = nn.Identity()
        if config.dt_rank != "full":
            self.dt_down = nn.Linear(width, rank, bias=False)
        self.to_dt = nn.Linear(rank, width)
        self._first_dt(rank)
        self.D = nn.Parameter(torch.ones(width))

    def _first_dt(self, rank: int) -> None:
        """Mamba's start: dt between 0.001 and 0.1, evenly in its logarithm."""
        nn.init.uniform_(self.to_dt.weight, -(rank**-0.5), rank**-0.5)
        low, high = math.log(1e-3), math.log(1e-1)
        dt = torch.empty_like(self.to_dt.bias).uniform_(low, high).exp()
        with torch.no_grad():
            self.to_dt.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt

    def inputs(self, tokens: Tokens) -> ScanInputs:
        """What the scan needs of these tokens."""
        x = self.stem(tokens)
        B, C = self.to_BC(x).chunk(2, dim=-1)
        return ScanInputs(x, F.softplus(self.to_dt(self.dt_down(x))), B, C, tokens.mask)

    def forward(self, tokens: Tokens, A: Tensor) -> Tensor:
        """y (B, L, width)."""
        s = self.inputs(tokens)
        return torch.addcmul(s.scan(A, self.config), s.x, self.D)


class SsmBranches(nn.ModuleDict):
    """One branch per stream; the averages of their results are added."""

    def __init__(self, config: SsmConfig, widths: Mapping[str, int], width: int) -> None:
        super().__init__({name: SsmBranch(config, w, width) for name, w in widths.items()})

    def forward(self, streams: Mapping[str, Tokens], A: Mapping[str, Tensor]) -> Tensor:
        """(B, width), with the matrix A[name] for the stream `name`."""
        return sum(
            masked_mean(Tokens(branch(streams[name], A[name]), streams[name].mask))
            for name, branch in self.items()
        )
