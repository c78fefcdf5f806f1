"""The scan on a CPU, by loops that numba compiles (`fusions.scan.kernels`).

Source: none, ours. The first call of a process compiles, or loads what an earlier one compiled.

Memory: forward keeps the state before every K tokens, K twice the state size, so that what is kept
is half a tensor (B, L, D) whatever N is; backward computes the states between again.

A step of an SSM has dt >= 0 and A <= 0, both finite. Numbers that are not like this, NaN among
them, take the way of `fusions.scan.chunked`, which treats them as the plain loop does.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from fusions.scan import chunked

LOG2_E = math.log2(math.e)
BLOCK_STATES = 4096
"""states (channels x N) of a block at most: 16 kB, with its past in the second-level cache"""
WIDEST, NARROWEST = 256, 32
"""channels of a block"""
JOBS = 64
"""jobs to cut a small batch into for the backward pass, if the width allows"""

_lock = threading.Lock()
"""not every threading layer of numba can be entered from two threads"""
_started = False
_broken = False
"""in a fork of a process whose threads had started: OpenMP would abort there"""


def _after_fork() -> None:
    global _broken
    _broken = _started


os.register_at_fork(after_in_child=_after_fork)


def available() -> bool:
    """Whether numba is installed."""
    return find_spec("numba") is not None


def forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, zoh: bool
) -> tuple[Tensor, Tensor]:
    """(y (B, L, D), the state before every K tokens (B, chunks, N, D))."""
    kept = x.new_empty(kept_shape(*x.shape, A.shape[1]))
    if not _usable(x, dt, A):
        return chunked.forward(x, dt, A, B, C, zoh)[0], kept.zero_()
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch("forward", *_inputs(x, dt, A, B, C), zoh, y, kept, *_cut(A))
    return y, kept


def backward(
    gy: Tensor, kept: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, zoh: bool
) -> tuple[Tensor, ...]:
    """Gradients of x, dt, A, B, C."""
    if not _usable(x, dt, A):
        kept = chunked.forward(x, dt, A, B, C, zoh)[1]
        return chunked.backward(gy, kept, x, dt, A, B, C, zoh)
    batch, length, width = x.shape
    size = A.shape[1]
    every, block = _cut(A)
    parts = min(-(-width // block), -(-JOBS // batch), max(1, width // (8 * size)))
    gx, gdt = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, dt))
    gA = x.new_empty(batch, size, width)
    gB, gC = x.new_zeros(2, parts, batch, length, size)
    inputs = _inputs(x, dt, A, B, C)
    _launch(
        "backward", *inputs, zoh, gy.contiguous(), kept, every, block, gx, gdt, gA, gB, gC
    )  # fmt: skip
    return gx, gdt, gA.sum(0).T.contiguous(), gB.sum(0), gC.sum(0)


def kept_shape(B: int, L: int, D: int, N: int) -> tuple[int, ...]:
    """One state (N, D) per sample and 2 N tokens."""
    return (B, -(-L // max(1, 2 * N)), N, D)


def _cut(A: Tensor) -> tuple[int, int]:
    """Tokens between kept states, channels of a block."""
    width, size = A.shape
    block = max(NARROWEST, min(WIDEST, BLOCK_STATES // size))
    return 2 * size, min(block, width)


def _inputs(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, ...]:
    """As the kernels take them."""
    x, dt, B, C = (t.contiguous() for t in (x, dt, B, C))
    return x, dt, (A * LOG2_E).T.contiguous(), B, C


def _usable(x: Tensor, dt: Tensor, A: Tensor) -> bool:
    """Whether the kernels can be used here, and are right for these numbers."""
    if _broken or x.numel() == 0 or A.numel() == 0:
        return False
    least, most = (float(bound) for bound in dt.aminmax())
    low, high = (float(bound) for bound in A.aminmax())
    return least >= 0 and most < math.inf and -math.inf < low and high <= 0  # False for a NaN


def _launch(name: str, *arguments: Any) -> None:
    """Run a kernel on as many threads as torch has."""
    global _started
    import numba

    from fusions.scan import kernels

    kernel: Callable[..., None] = getattr(kernels, name)
    plain = [a.detach().numpy() if isinstance(a, Tensor) else a for a in arguments]
    with _lock:
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
        _started = True
        kernel(*plain)
