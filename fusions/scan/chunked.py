"""The scan in plain torch operations, fast on a CPU and with little memory.

Source: none for the code, ours; the recurrence is Mamba's (Gu and Dao, 2023), and so is the idea
to compute states again in the backward pass instead of keeping all of them.

The loop over tokens cannot be avoided, but all that is not the recurrence can leave it. So tokens
are taken in chunks: decays and inputs of a whole chunk at once, then one fused multiply-add per
token, then all read-outs at once. Within a chunk time is the first axis, so that each token is one
contiguous block, and D the last, so that every operation runs along it: (L, B, N, D).

Forward keeps the state after each chunk but the last. Backward walks the chunks from the last to
the first, computes their states again, and runs the adjoint recurrence

    g_t = C_t dy_t + exp(dt_{t+1} A) g_{t+1}

downwards. Memory beyond the results: the kept states, at most N / FEWEST tensors (B, L, D), and
three blocks of CHUNK numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 1 << 19
"""numbers in a chunk (tokens x B x N x D): blocks of 2 MB, measured best of 2^17 to 2^21"""
FEWEST = 16
"""tokens of a chunk at least"""

LOG2_E = math.log2(math.e)


class _Sequence(NamedTuple):
    """The inputs of a chunk with time first: x, dt (l, B, D); B, C (l, B, N); A (N, D)."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor


def forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, zoh: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    """(y (B, L, D), states after each chunk but the last (chunks - 1, B, N, D), if to keep)."""
    batch, length, width, size = *x.shape, A.shape[1]
    step, A = _chunk_tokens(batch, length, width, size), A.T.contiguous()
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    kept = x.new_empty(kept_shape(batch, length, width, size) if keep else 0)
    h = x.new_zeros(batch, size, width)
    decay, states = _blocks(2, step, h)
    read = x.new_empty(step, batch, width)
    for i, start in enumerate(range(0, length, step)):
        if keep and i:
            kept[i - 1] = h
        part, now = _part(start, step, x, dt, A, B, C), slice(start, start + step)
        n = len(part.x)
        h.copy_(_run(decay[:n], states[:n], part, h, zoh))
        _over_states(part.C, states[:n], out=read[:n])
        y[:, now] = read[:n].transpose(0, 1)
    return y, kept


def backward(
    gy: Tensor, kept: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, zoh: bool
) -> tuple[Tensor, ...]:
    """Gradients of x, dt, A, B, C."""
    batch, length, width, size = *x.shape, A.shape[1]
    step, A = _chunk_tokens(batch, length, width, size), A.T.contiguous()
    whole = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, dt, B, C)]
    gA = torch.zeros_like(A)
    carry = x.new_zeros(batch, size, width)
    decay, states, adjoint = _blocks(3, step + 1, carry)
    for start in reversed(range(0, length, step)):
        part, now = _part(start, step, x, dt, A, B, C), slice(start, start + step)
        gy_part = gy[:, now].transpose(0, 1).contiguous()
        out = _Sequence(*(torch.empty_like(t) for t in part))._replace(A=gA)
        n = len(part.x)
        a, h, g = decay[:n], states[: n + 1], adjoint[:n]
        h[0] = kept[start // step - 1] if start else 0
        _run(a, h[1:], part, h[0], zoh)
        _over_width(gy_part, h[1:], out=out.C)
        _run_back(a, g, part.C, gy_part, carry)
        (_input_zoh if zoh else _input_euler)(g, a, part, out)
        _decay(a.mul_(g).mul_(h[:-1]), part, out, spare=g)
        for to, found in zip(whole, (out.x, out.dt, out.B, out.C), strict=True):
            to[:, now] = found.transpose(0, 1)
    gx, gdt, gB, gC = whole
    return gx, gdt, gA.T.contiguous(), gB, gC


def kept_shape(B: int, L: int, D: int, N: int) -> tuple[int, ...]:
    """One state (B, N, D) per chunk but the last."""
    return (max(0, -(-L // _chunk_tokens(B, L, D, N)) - 1), B, N, D)


def _chunk_tokens(B: int, L: int, D: int, N: int) -> int:
    """Tokens of a chunk: as many as CHUNK holds, at least FEWEST, at most all."""
    return max(1, min(L, max(FEWEST, CHUNK // max(1, B * D * N))))


def _blocks(count: int, tokens: int, state: Tensor) -> list[Tensor]:
    """`count` blocks (tokens, B, N, D) to compute in; made once, reused by every chunk."""
    return [state.new_empty(tokens, *state.shape) for _ in range(count)]


def _part(
    start: int, step: int, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> _Sequence:
    """The tokens from `start` on, `step` at most; A is (N, D)."""
    x, dt, B, C = (t[:, start : start + step].transpose(0, 1).contiguous() for t in (x, dt, B, C))
    return _Sequence(x, dt, A, B, C)


def _over_states(weights: Tensor, block: Tensor, out: Tensor) -> None:
    """out (l, B, D) = sum over n of weights (l, B, N) times block (l, B, N, D)."""
    weights, block, out = (t.flatten(0, 1) for t in (weights, block, out))
    torch.bmm(weights[:, None], block, out=out[:, None])


def _over_width(weights: Tensor, block: Tensor, out: Tensor) -> None:
    """out (l, B, N) = sum over d of weights (l, B, D) times block (l, B, N, D)."""
    weights, block, out = (t.flatten(0, 1) for t in (weights, block, out))
    torch.bmm(weights[:, None], block.mT, out=out[:, None])


def _run(decay: Tensor, states: Tensor, part: _Sequence, start: Tensor, zoh: bool) -> Tensor:
    """Fill `decay` with exp(dt A) and `states` with h_1 .. h_l, all (l, B, N, D); return h_l."""
    # exp2 is twice as fast as exp, and the factor goes into A for free
    torch.mul(part.dt[:, :, None], part.A * LOG2_E, out=decay).exp2_()
    if zoh:
        torch.mul(part.x[:, :, None], part.B[..., None], out=states)
        states.mul_(_gain(part))
    else:
        torch.mul((part.dt * part.x)[:, :, None], part.B[..., None], out=states)
    h = start
    for a, state in zip(decay.unbind(0), states.unbind(0), strict=True):
        h = state.addcmul_(a, h)
    return h


def _run_back(decay: Tensor, adjoint: Tensor, C: Tensor, gy: Tensor, carry: Tensor) -> None:
    """Fill `adjoint` with the gradients of h_1 .. h_l.

    `carry` holds what later chunks add to the gradient of h_l, and then what this one adds to that
    of the state before h_1.
    """
    torch.mul(C[..., None], gy[:, :, None], out=adjoint)
    a, g = decay.unbind(0), adjoint.unbind(0)
    g[-1].add_(carry)
    for t in range(len(g) - 1, 0, -1):
        g[t - 1].addcmul_(a[t], g[t])
    torch.mul(a[0], g[0], out=carry)


def _input_euler(g: Tensor, a: Tensor, part: _Sequence, out: _Sequence) -> None:
    """Gradients through the input dt x B of the recurrence, whose own gradient is g."""
    _over_width(part.dt * part.x, g, out=out.B)
    _over_states(part.B, g, out=out.x)
    torch.mul(out.x, part.x, out=out.dt)
    out.x.mul_(part.dt)


def _input_zoh(g: Tensor, a: Tensor, part: _Sequence, out: _Sequence) -> None:
    """The same for the input gain x B, where gain = dt exprel(dt A), its slope in dt exp(dt A)."""
    _over_states(part.B, g * a, out=out.dt)
    out.dt.mul_(part.x)
    gained = _gain(part).mul_(g)
    _over_states(part.B, gained, out=out.x)
    _over_width(part.x, gained, out=out.B)
    slope = _exprel_slope(part.dt[:, :, None] * part.A)
    slope.mul_(g).mul_((part.dt.square() * part.x)[:, :, None]).mul_(part.B[..., None])
    out.A.add_(slope.sum((0, 1)))


def _decay(gz: Tensor, part: _Sequence, out: _Sequence, spare: Tensor) -> None:
    """Add the gradients through z = dt A in exp(z); gz (l, B, N, D) is used up,
    and so is `spare`, of the same shape.
    """
    torch.mul(gz, part.A, out=spare)
    out.dt.add_(spare.sum(2))
    out.A.add_(gz.mul_(part.dt[:, :, None]).sum((0, 1)))


def _gain(part: _Sequence) -> Tensor:
    """(exp(dt A) - 1) / A, (l, B, N, D); dt where A is zero."""
    dt = part.dt[:, :, None]
    z = dt * part.A
    return torch.where(z == 0, 1.0, torch.expm1(z).div_(z)).mul_(dt)


def _exprel_slope(z: Tensor) -> Tensor:
    """Derivative of (exp(z) - 1) / z: 1/2 at zero, where the closed form would cancel."""
    exact = (torch.exp(z) - torch.expm1(z) / z) / z
    series = torch.zeros_like(z)
    for k in range(10, -1, -1):  # sum of z^k / (k! (k + 2)), 1e-17 at the border
        series.mul_(z).add_(1 / (math.factorial(k) * (k + 2)))
    return torch.where(z.abs() < 0.1, series, exact)
