"""The selective scan: a linear state-space model whose parameters depend on the token.

Source: Mamba (Gu and Dao, 2023), sec. 3.2 and algorithm 2; MambaVL eq. 2 for `zoh`. For every
sample and channel d, with a state of N numbers that starts at zero:

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t        y_t = C_t h_t + D x_t        `euler`
    h_t = exp(dt_t A) h_{t-1} + (exp(dt_t A) - 1) / A  B_t x_t                   `zoh`

    x, dt, y (B, L, D)     A (D, N)     B, C (B, L, N)     D (D,)

`selective_scan` is the one entrance. Whatever computes it stands behind one torch operator,
`harness::selective_scan`, so that profilers see one operator and not its thousand small steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusions.scan import chunked, compiled, reference
from harness.registry import IMPLEMENTATIONS, OPERATOR_MACS

log = logging.getLogger(__name__)


class Backend(NamedTuple):
    """One way to compute the scan: float32 or float64, without mask and without D."""

    forward: Callable[..., tuple[Tensor, Tensor]]
    """(x, dt, A, B, C, zoh) -> (y, what backward wants kept)"""
    backward: Callable[..., tuple[Tensor, ...]]
    """(gradient of y, what was kept, x, dt, A, B, C, zoh) -> gradients of x, dt, A, B, C"""
    kept_shape: Callable[[int, int, int, int], tuple[int, ...]]
    """(B, L, D, N) -> shape of what is kept"""


BACKENDS = {
    "reference": Backend(reference.forward, reference.backward, reference.kept_shape),
    "torch": Backend(chunked.forward, chunked.backward, chunked.kept_shape),
    "numba": Backend(compiled.forward, compiled.backward, compiled.kept_shape),
}


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    discretise: str = "euler",
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """y (B, L, D) of x, dt (B, L, D), A (D, N), B and C (B, L, N), D (D,), mask (B, L).

    Where `mask` is False the state passes untouched and y is zero, whatever finite values stand
    there. Half precision is computed in float32. The result has the type of x. `auto` is `numba`
    for float32 on a CPU where numba can be imported, `torch` elsewhere. Raises ValueError for
    shapes that do not fit, unknown names, and `numba` where it cannot work.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"unknown scan backend {backend!r}. Known: auto, {', '.join(BACKENDS)}")
    if discretise not in ("euler", "zoh"):
        raise ValueError(f"unknown discretisation {discretise!r}. Known: euler, zoh")
    kind = torch.float32
    for part in (x, dt, A, B, C):
        kind = torch.promote_types(kind, part.dtype)
    name = _chosen(x.device.type, kind) if backend == "auto" else backend
    if name == "numba" and x.device.type not in ("cpu", "meta"):
        raise ValueError(f"scan backend 'numba' is for the CPU, x is on {x.device}; take 'torch'")
    if name == "numba" and not compiled.available():
        raise ValueError("scan backend 'numba': numba is not installed; install it or take 'torch'")
    if x.device.type != "meta":
        IMPLEMENTATIONS["selective_scan"] = name
    dtype = x.dtype
    x, dt, A, B, C = (part.to(kind) for part in (x, dt, A, B, C))
    if mask is not None:
        real = mask[..., None]
        dt, C = dt * real, C * real  # a step of length zero moves no state, and C silences y
    y, _ = _scan(x, dt, A, B, C, discretise == "zoh", name)
    if D is not None:
        y = torch.addcmul(y, D.to(kind), x if mask is None else x * real)
    return y.to(dtype)


@lru_cache(maxsize=8)
def _chosen(device: str, dtype: torch.dtype) -> str:
    """What `auto` means for these tensors; said once in the log."""
    fits = device == "cpu" and dtype == torch.float32
    name = "numba" if fits and compiled.available() else "torch"
    log.info("selective scan of %s on %s: %s", dtype, device, name)
    return name


def scan_macs(B: int, L: int, D: int, N: int) -> int:
    """What one scan counts in the cost table: 9 B L D N + B L D.

    The factor 9 is the Mamba authors' count (state-spaces/mamba, issue 110): an associative scan
    makes about 2 L combinations of 3 operations per state, and discretisation and the product with
    C add 3 more. B L D is the skip D x. The 9 are single operations while the table counts a
    multiply-add as one, so this is up to twice the work of the scan; it is kept because the paper's
    Table 4 is compared with the count other papers use. It is 0.2 of the table's 413 G.
    """
    return 9 * B * L * D * N + B * L * D


def _operator_macs(shapes: list[list[int]]) -> int:
    """The same from the shapes of x, dt, A, B, C, for the cost table."""
    return scan_macs(*shapes[0], shapes[2][1])


OPERATOR_MACS["harness::selective_scan"] = _operator_macs


@torch.library.custom_op("harness::selective_scan", mutates_args=())
def _scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, zoh: bool, backend: str
) -> tuple[Tensor, Tensor]:
    _check(x, dt, A, B, C)
    with torch.autocast(x.device.type, enabled=False):
        return BACKENDS[backend].forward(x, dt, A, B, C, zoh)


@_scan.register_fake
def _(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, zoh: bool, backend: str
) -> tuple[Tensor, Tensor]:
    _check(x, dt, A, B, C)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty(BACKENDS[backend].kept_shape(*x.shape, A.shape[1]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.zoh, ctx.backend = inputs
    ctx.save_for_backward(output[1], *tensors)


def _backward(ctx: Any, gy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    kept, *tensors = ctx.saved_tensors
    with torch.autocast(gy.device.type, enabled=False):
        grads = BACKENDS[ctx.backend].backward(gy, kept, *tensors, ctx.zoh)
    return (*grads, None, None)


_scan.register_autograd(_backward, setup_context=_setup)


def _check(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
    """Raise ValueError unless the shapes fit together."""
    if x.ndim != 3 or A.ndim != 2:
        raise ValueError(f"x is {tuple(x.shape)}, A {tuple(A.shape)}; (B, L, D) and (D, N) needed")
    tokens, width, size = tuple(x.shape[:2]), x.shape[2], A.shape[1]
    wanted = {
        "dt": (dt, (*tokens, width)),
        "A": (A, (width, size)),
        "B": (B, (*tokens, size)),
        "C": (C, (*tokens, size)),
    }
    for name, (part, shape) in wanted.items():
        if tuple(part.shape) != shape:
            raise ValueError(f"{name} is {tuple(part.shape)}; with x and A as given, {shape}")


__all__ = ["BACKENDS", "scan_macs", "selective_scan"]
