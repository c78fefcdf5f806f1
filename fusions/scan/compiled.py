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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
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

_pools: dict[int, ThreadPoolExecutor] = {}
"""threads that help the calling one, by their number"""
os.register_at_fork(after_in_child=_pools.clear)


@lru_cache(maxsize=1)
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
    every, block = _cut(A)
    jobs = x.shape[0] * -(-x.shape[2] // block)
    launch("forward", jobs, *_inputs(x, dt, A, B, C), zoh, y, kept, every, block)
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
    grads = (gx, gdt, gA, gB, gC)
    launch("backward", batch * parts, *inputs, zoh, gy.contiguous(), kept, every, block, *grads)
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
    if not works_on(x) or A.numel() == 0:
        return False
    least, most = (float(bound) for bound in dt.aminmax())
    low, high = (float(bound) for bound in A.aminmax())
    return least >= 0 and most < math.inf and -math.inf < low and high <= 0  # False for a NaN


def works_on(x: Tensor) -> bool:
    """Whether kernels can be used for a tensor like this."""
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return fits and x.numel() > 0 and available()


def launch(name: str, jobs: int, *arguments: Any) -> None:
    """Run all jobs of the kernel called `name`."""
    from fusions.scan import conv_kernels, kernels

    run(getattr(kernels, name, None) or getattr(conv_kernels, name), jobs, *arguments)


def run(kernel: Callable[..., None], jobs: int, *arguments: Any) -> None:
    """kernel(first, last, *arguments) for parts of 0 .. jobs, on as many threads as torch has.

    The threads are Python's, which kernels let run freely. Numba's own, OpenMP's, wait for each
    other by spinning: where runs share the cores that costs them most of their time.
    """
    plain = [a.detach().numpy() if isinstance(a, Tensor) else a for a in arguments]
    threads = max(1, min(torch.get_num_threads(), jobs))
    ends = [jobs * i // threads for i in range(threads + 1)]
    helped = [
        _pool(threads).submit(kernel, ends[i], ends[i + 1], *plain) for i in range(1, threads)
    ]
    kernel(0, ends[1], *plain)
    for part in helped:
        part.result()


def _pool(threads: int) -> ThreadPoolExecutor:
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads - 1, "scan")
    return _pools[threads]
