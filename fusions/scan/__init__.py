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
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusions.scan import chunked, compiled, cuda, reference
from fusions.scan.convolution import causal_conv
from harness.registry import IMPLEMENTATIONS, OPERATOR_MACS

log = logging.getLogger(__name__)


class Backend(NamedTuple):
    """One way to compute the scan: float32 or float64, without mask and without D."""

    forward: Callable[..., tuple[Tensor, Tensor]]
    """(x, dt, A, B, C, zoh, whether there will be a backward pass) -> (y, what that wants kept)"""
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
    there. Half precision is computed in float32. The result has the type of x.

    `backend`: `numba` (CPU, any N and D), `cuda` (mamba-ssm's kernels, Euler only), `torch` (any
    device), `reference` (the plain loop). `auto` takes `cuda` or `numba` for float32 where they can
    be imported, else `torch`. Raises ValueError for shapes that do not fit, unknown names, and a
    backend that cannot work here.
    """
    if discretise not in ("euler", "zoh"):
        raise ValueError(f"unknown discretisation {discretise!r}. Known: euler, zoh")
    kind = torch.float32
    for part in (x, dt, A, B, C):
        if part.dtype != kind:
            kind = torch.promote_types(kind, part.dtype)
    name = backend
    if backend == "auto":
        name = _chosen(x.device.type, kind, discretise)
    elif problem := _problem(backend, x.device.type, discretise):
        raise ValueError(f"scan backend {backend!r}: {problem}")
    if x.device.type != "meta":
        IMPLEMENTATIONS["selective_scan"] = name
    dtype = x.dtype
    x, dt, A, B, C = (part.to(kind) for part in (x, dt, A, B, C))
    if mask is not None and mask.device.type == "cpu" and bool(mask.all()):
        mask = None  # as most video has it: two passes over memory less
    if mask is not None:
        real = mask[..., None]
        dt, C = dt * real, C * real  # a step of length zero moves no state, and C silences y
    if name == "cuda":
        y = cuda.scan(x, dt, A, B, C)
    else:
        inputs = (x, dt, A, B, C)
        keep = torch.is_grad_enabled() and any(part.requires_grad for part in inputs)
        operator = torch.ops.harness.selective_scan.default  # `_scan`, by the shorter way
        y, _ = operator(*inputs, discretise == "zoh", name, keep)
    if D is not None:
        y = torch.addcmul(y, D.to(kind), x if mask is None else x * real)
    return y.to(dtype)


@lru_cache(maxsize=8)
def _chosen(device: str, dtype: torch.dtype, discretise: str) -> str:
    """What `auto` means for these tensors; said once in the log."""
    wanted = "cuda" if device == "cuda" else "numba"
    usable = dtype == torch.float32 and _problem(wanted, device, discretise) is None
    name = wanted if usable and device != "meta" else "torch"
    log.info("selective scan (%s, %s, %s): %s", device, dtype, discretise, name)
    return name


def _problem(backend: str, device: str, discretise: str) -> str | None:
    """Why a backend cannot be used."""
    if backend not in (*BACKENDS, "cuda"):
        return f"unknown. Known: auto, {', '.join(BACKENDS)}, cuda"
    if backend == "numba" and device not in ("cpu", "meta"):
        return f"is for the CPU, the tensors are on {device}; take 'torch'"
    if backend == "numba" and not compiled.available():
        return "numba is not installed; install it or take 'torch'"
    if backend == "cuda" and device != "cuda":
        return f"is for GPUs, the tensors are on {device}; take 'auto'"
    if backend == "cuda" and discretise != "euler":
        return "its kernel knows the Euler rule only; take 'torch'"
    if backend == "cuda" and not cuda.available():
        return "its packages cannot be imported; pip install -e \".[cuda]\", or take 'torch'"
    return None


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
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, zoh: bool, backend: str, keep: bool
) -> tuple[Tensor, Tensor]:
    _check(x, dt, A, B, C)
    with _no_autocast(x):
        return BACKENDS[backend].forward(x, dt, A, B, C, zoh, keep)


@_scan.register_fake
def _(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, zoh: bool, backend: str, keep: bool
) -> tuple[Tensor, Tensor]:
    _check(x, dt, A, B, C)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    shape = BACKENDS[backend].kept_shape(*x.shape, A.shape[1])
    return y, x.new_empty(shape if keep else 0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.zoh, ctx.backend, _ = inputs
    ctx.save_for_backward(output[1], *tensors)


def _backward(ctx: Any, gy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    kept, *tensors = ctx.saved_tensors
    with _no_autocast(gy):
        grads = BACKENDS[ctx.backend].backward(gy, kept, *tensors, ctx.zoh)
    return (*grads, None, None, None)


_scan.register_autograd(_backward, setup_context=_setup)


def _no_autocast(t: Tensor) -> AbstractContextManager[Any]:
    """Nothing in it is cast. Entered only where it matters: it takes a while."""
    device = t.device.type
    on = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


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


__all__ = ["BACKENDS", "causal_conv", "scan_macs", "selective_scan"]
