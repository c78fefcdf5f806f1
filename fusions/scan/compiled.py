"""The scan on a CPU, by loops that numba compiles (`fusions.scan.kernels`).

Source: none, ours. The first call of a process compiles, or loads what an earlier one compiled.

Memory: forward keeps the state after every K tokens, K twice the state size, so that what is kept
is half a tensor (B, L, D) whatever N is; backward computes the states between again.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from fusions.scan import chunked, pages, threads

BLOCK_STATES = 4096
"""states (channels x N) of a block of the backward pass at most: with their past 1 MB for N 16"""
WIDEST, NARROWEST = 256, 32
"""channels of such a block"""
JOBS = 64
"""jobs to cut a small batch into for the backward pass, if the width allows"""
JOBS_PER_THREAD = 2
"""the same for the forward pass, where wide jobs are faster"""
GROUP_STATES = 1 << 15
"""states of a job of the forward pass: 256 kB with their rates, in the second-level cache"""


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether numba is installed."""
    return find_spec("numba") is not None


def forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, zoh: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    """(y (B, L, D), the state after every K tokens but the last (B, chunks - 1, N, D), if to
    keep)."""
    size = A.shape[1]
    if not works_on(x) or size == 0:
        y, _ = chunked.forward(x, dt, A, B, C, zoh, False)
        return y, x.new_empty(kept_shape(*x.shape, size) if keep else 0)
    from fusions.scan import kernels

    y = pages.empty_like(x)
    chunks = kept_shape(*x.shape, size)
    kept = x.new_empty(chunks if keep else (0, *chunks[1:]))
    blocks = -(-x.shape[2] // kernels.LANES)
    groups = -(-JOBS_PER_THREAD * torch.get_num_threads() // x.shape[0])
    group = min(-(-blocks // groups), max(1, GROUP_STATES // (size * kernels.LANES)))
    jobs = x.shape[0] * -(-blocks // group)
    inputs = (*_inputs(x, dt, A, B, C), zoh or None, y, kept, 2 * size, group)
    threads.run(kernels.forward, jobs, *inputs, work=x.numel() * size)
    return y, kept


def backward(
    gy: Tensor, kept: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, zoh: bool
) -> tuple[Tensor, ...]:
    """Gradients of x, dt, A, B, C."""
    batch, length, width = x.shape
    size = A.shape[1]
    if not works_on(x) or size == 0:
        kept = chunked.forward(x, dt, A, B, C, zoh, True)[1]
        return chunked.backward(gy, kept, x, dt, A, B, C, zoh)
    from fusions.scan import kernels

    block = min(width, max(NARROWEST, min(WIDEST, BLOCK_STATES // size)))
    parts = min(-(-width // block), -(-JOBS // batch), max(1, width // (8 * size)))
    gx, gdt = pages.empty_like(x), pages.empty_like(dt)
    gA = x.new_zeros(batch, size, width)
    gB, gC = x.new_zeros(2, parts, batch, length, size)
    inputs = (*_inputs(x, dt, A, B, C), zoh or None, gy.contiguous(), kept, 2 * size, block)
    grads = (gx, gdt, gA, gB, gC)
    threads.run(kernels.backward, batch * parts, *inputs, *grads, work=3 * x.numel() * size)
    return gx, gdt, gA.sum(0).T.contiguous(), gB.sum(0), gC.sum(0)


def kept_shape(B: int, L: int, D: int, N: int) -> tuple[int, ...]:
    """One state (N, D) per sample and 2 N tokens; the first is zero and not kept."""
    return (B, max(0, -(-L // max(1, 2 * N)) - 1), N, D)


def _inputs(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, ...]:
    """As the kernels take them."""
    return tuple(t.contiguous() for t in (x, dt, A, B, C))


def works_on(x: Tensor) -> bool:
    """Whether kernels can be used for a tensor like this."""
    fits = x.is_cpu and x.dtype in (torch.float32, torch.float64)
    return fits and x.numel() > 0 and available()
