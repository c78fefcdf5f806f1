"""The short causal convolution before a scan: every channel for itself, a few taps.

Source: Mamba (Gu and Dao, 2023), figure 3, its `conv1d`; MambaVL, Algorithm 1, line 1.

    y_t = bias + sum over i of taps_i x_{t - K + 1 + i}      x, y (B, L, D), taps (K, D), bias (D,)

It is bound by memory: as a sum of shifted copies it costs more than the scan. So on a CPU it is one
compiled pass. It stands behind one torch operator, `harness::causal_conv`; on GPUs that have the
package `causal_conv1d`, that is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from fusions.scan import compiled, cuda, threads
from harness.registry import OPERATOR_MACS


def causal_conv(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    """y (B, L, D), in float32 at least; before the first token there are zeros."""
    kind = torch.promote_types(x.dtype, taps.dtype)
    if x.is_cuda and cuda.convolution() is not None:
        return cuda.causal_conv(x.to(kind), taps.to(kind), bias.to(kind))
    y: Tensor = _conv(x.to(kind), taps.to(kind), bias.to(kind))
    return y


def _operator_macs(shapes: list[list[int]]) -> int:
    """B L D K, as any counter has it for a depthwise convolution."""
    (batch, length, width), (taps, _) = shapes[:2]
    return batch * length * width * taps


OPERATOR_MACS["harness::causal_conv"] = _operator_macs


@torch.library.custom_op("harness::causal_conv", mutates_args=())
def _conv(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    if x.ndim != 3 or taps.shape[1:] != x.shape[2:] or bias.shape != x.shape[2:]:
        raise ValueError(
            f"x is {tuple(x.shape)}, taps {tuple(taps.shape)}, bias {tuple(bias.shape)}; "
            f"(B, L, D), (K, D) and (D,) needed"
        )
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if compiled.works_on(x):
        kernels = import_module("fusions.scan.conv_kernels")
        inputs = (x.contiguous(), taps.contiguous(), bias, y)
        threads.run(kernels.convolve, len(x), *inputs, work=x.numel())
        return y
    y.copy_(bias)
    for shift, tap in _shifted(taps, x.shape[1]):
        y[:, shift:].addcmul_(x[:, : x.shape[1] - shift], tap)
    return y


@_conv.register_fake
def _(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, gy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, taps = ctx.saved_tensors
    gx = torch.zeros_like(x, memory_format=torch.contiguous_format)
    if compiled.works_on(x):
        gtaps = x.new_zeros(x.shape[0], *taps.shape)
        inputs = (x.contiguous(), taps.contiguous(), gy.contiguous())
        kernels = import_module("fusions.scan.conv_kernels")
        threads.run(kernels.convolve_back, len(x), *inputs, gx, gtaps, work=x.numel())
        return gx, gtaps.sum(0), gy.sum((0, 1))
    gtaps = torch.zeros_like(taps)
    length = x.shape[1]
    for i, (shift, tap) in enumerate(_shifted(taps, length)):
        gx[:, : length - shift].addcmul_(gy[:, shift:], tap)
        gtaps[len(taps) - 1 - i] = (gy[:, shift:] * x[:, : length - shift]).sum((0, 1))
    return gx, gtaps, gy.sum((0, 1))


_conv.register_autograd(_backward, setup_context=_setup)


def _shifted(taps: Tensor, length: int) -> list[tuple[int, Tensor]]:
    """(tokens back, its tap), the nearest first, as far as the sequence reaches."""
    return list(enumerate(taps.flip(0).unbind(0)))[: max(1, length)]
