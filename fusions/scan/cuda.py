"""The scan and its convolution on NVIDIA GPUs, by the kernels of Mamba's authors.

Source: the packages `mamba-ssm` and `causal-conv1d` (Gu and Dao; `pip install -e ".[cuda]"`), used
where they can be imported: `selective_scan_fn`, or the extension `selective_scan_cuda` alone, whose
kernels that function calls. Looked for when first needed; nothing here needs them to be there.

The kernels take channels before tokens, x (B, D, L), and discretise by Euler's rule only. Their
backward pass adds in no fixed order, so bits differ from run to run.

These lines were written from the packages' source and have not been run by us: `pytest -m gpu`
compares them with the plain loop on a machine that has a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def available() -> bool:
    """Whether there is a GPU and a kernel for it."""
    return torch.cuda.is_available() and (_function() is not None or _extension() is not None)


def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y (B, L, D) by Euler's rule, differentiable; float32."""
    function = _function() or _Extension.apply
    x, dt, B, C = (t.transpose(1, 2).contiguous() for t in (x, dt, B, C))
    y: Tensor = function(x, dt, A.contiguous(), B, C)
    return y.transpose(1, 2)


def convolution() -> Callable[..., Tensor] | None:
    """`causal_conv1d_fn`, if it can be imported."""
    return _attribute("causal_conv1d", "causal_conv1d_fn")


def causal_conv(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    """`fusions.scan.convolution.causal_conv` by `causal_conv1d_fn`."""
    function = convolution()
    assert function is not None
    return function(x.transpose(1, 2), taps.T.contiguous(), bias).transpose(1, 2)


class _Extension(torch.autograd.Function):
    """What `selective_scan_fn` does, without importing the package around it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        B, C = B[:, None], C[:, None]  # one group of channels
        y, states, *_ = _extension().fwd(x, dt, A, B, C, None, None, None, False)
        ctx.save_for_backward(x, dt, A, B, C, states)
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, ...]:
        x, dt, A, B, C, states = ctx.saved_tensors
        rest = (None, None, None, gy.contiguous(), states, None, None, False, False)
        gx, gdt, gA, gB, gC, *_ = _extension().bwd(x, dt, A, B, C, *rest)
        return gx, gdt, gA, gB[:, 0], gC[:, 0]


def _function() -> Callable[..., Tensor] | None:
    return _attribute("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")


def _extension() -> ModuleType | None:
    return _module("selective_scan_cuda")


def _attribute(module: str, name: str) -> Any:
    return getattr(_module(module), name, None)


@lru_cache(maxsize=8)
def _module(name: str) -> ModuleType | None:
    """None if it, or something it imports, is not there or not built for this torch."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        return None
