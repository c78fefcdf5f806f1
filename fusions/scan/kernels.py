"""The scan as loops that numba compiles for the processor at hand.

Source: none for the code, ours; the recurrence is Mamba's (Gu and Dao, 2023), and so is the idea
to compute states again in the backward pass.

A job takes one sample and a block of channels through all tokens; the state of a block stays in
the cache. Lanes run over channels, so that only the gradients of B and C are sums across lanes.
Every job writes to places of its own, in an order that no number of threads changes. Any number is
allowed: NaN and infinity come out where the plain loop has them.

Most of the time goes into one exponential per state and token, a polynomial here, since LLVM cannot
vectorise libm's. What else would keep it from vectorising, and is avoided: an index that could be
negative (rows are sliced first), a loop inside the loop, a function that is not inlined.

Numba compiles by type: float32 is for work, float64 for checks of the same source. It compiles
again only when this file changes, so all that its kernels call stands here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

FAST = {"contract", "reassoc", "nsz", "arcp"}
"""liberties of the compiler; not among them: to assume that there is no NaN and no infinity"""
EXACT = {"fastmath": {"contract", "nsz"}, "forceinline": True}
"""for where the order of additions matters"""
INLINE = {"fastmath": FAST, "forceinline": True, "error_model": "numpy"}
KERNEL = {"fastmath": FAST, "error_model": "numpy", "cache": True, "nogil": True}

LN2, LOG2_E = math.log(2), math.log2(math.e)
EXP2 = (1, 0.6931472029, 0.2402264791, 5.550332e-2, 9.618437e-3, 1.339887e-3, 1.535336e-4)
"""2 to the r for |r| <= 1/2; 8e-8 off at most"""
ROUND = np.float32(1.5 * 2**23)
"""added and taken away again, it leaves the nearest whole number"""

LANES = 64
"""channels of a block in the forward pass; a constant, so that LLVM unrolls the loop whole"""

DT, INPUT, OUT = range(3)
"""rows of `lane` in the forward pass: dt, dt x, y"""
RATE, STATE = range(2)
"""rows of `state` (N, 2, LANES) in the forward pass: A log2(e), h"""
GY, TO_DT, TO_X = range(2, 5)
"""further rows of `lane` in the backward pass: gradient of y, sums for those of dt and x"""
ADJOINT, GRAD_A = range(1, 3)
"""rows of `state` (N, 3, block) in the backward pass, after RATE: gradients of h and of A"""
BEFORE, DECAY = range(2)
"""rows of `past` (tokens + 1, N, 2, block): h before the token, and exp(dt A)"""


def _polynomial(series: tuple[float, ...], f: Any) -> Callable[..., Any]:
    """Sum of series[k] z^k in the type f, without a loop: LLVM vectorises only innermost loops."""
    c = f(series[0])
    if len(series) == 1:
        return njit(**INLINE)(lambda z: c)
    rest = _polynomial(series[1:], f)
    return njit(**INLINE)(lambda z: rest(z) * z + c)


def exp2(z):
    """2 to the power z for -126 <= z <= 0."""
    raise TypeError("only for compiled code")


@overload(exp2, jit_options=EXACT)
def _exp2(z):
    f, i = np.float32, np.int32
    power = _polynomial(EXP2, f)

    def split(z):
        shifted = z + ROUND
        r = z - (shifted - ROUND)
        p = power(r)
        whole = f(shifted).view(np.int32) << i(23)  # its last bits, where an exponent has them
        return i(f(p).view(np.int32) + whole).view(np.float32)

    return split if z == types.float32 else lambda z: np.exp2(z)


def exp2_any(z):
    """2 to the power of any z; 0 below -126."""
    raise TypeError("only for compiled code")


@overload(exp2_any, jit_options=EXACT)
def _exp2_any(z):
    def clamped(z):
        e = exp2(np.float32(min(max(z, np.float32(-126)), np.float32(128))))  # 128: infinity
        return z if z != z else (np.float32(0) if z < -126 else e)

    return clamped if z == types.float32 else lambda z: np.exp2(z)


def exprel(z, e):
    """(e - 1) / (z ln 2) where e = 2 to the power z, and 1 at zero."""
    raise TypeError("only for compiled code")


@overload(exprel, jit_options=INLINE)
def _exprel(z, e):
    f, terms = (np.float32, 9) if z == types.float32 else (np.float64, 15)
    series = _polynomial(tuple(LN2**k / math.factorial(k + 1) for k in range(terms)), f)
    ln2, near = f(LN2), f(0.7)
    return lambda z, e: (e - f(1)) / (z * ln2) if abs(z) > near else series(z)


def exprel_slope(z, e, g):
    """Derivative of exprel in z ln 2, where e = 2 to the power z and g = exprel(z, e)."""
    raise TypeError("only for compiled code")


@overload(exprel_slope, jit_options=INLINE)
def _exprel_slope(z, e, g):
    f, terms = (np.float32, 11) if z == types.float32 else (np.float64, 19)
    series = _polynomial(tuple(LN2**k / math.factorial(k) / (k + 2) for k in range(terms)), f)
    ln2, near = f(LN2), f(1.4)
    return lambda z, e, g: (e - g) / (z * ln2) if abs(z) > near else series(z)


@njit(**INLINE)
def _copy(to, source, width):
    for w in range(width):
        to[w] = source[w]


@njit(**INLINE)
def _load_rates(state, A):
    """Fill the row RATE; return the dt below which `exp2` holds for all of them."""
    f = A.dtype.type
    least, fine = f(0), True
    for w in range(A.shape[0]):
        for n in range(A.shape[1]):
            a = A[w, n] * f(LOG2_E)
            state[n, RATE, w] = a
            least = min(least, a)
            fine &= a <= 0
    return f(126) / max(-least, f(1e-30)) if fine else f(0)


@njit(**INLINE)
def _load(lane, x, dt, width, far):
    """Fill the rows DT and INPUT, zeros to their end; return whether `exp2` holds here."""
    near = True
    for w in range(width):
        step = dt[w]
        near &= (step >= 0) & (step < far)
        lane[DT, w] = step
        lane[INPUT, w] = step * x[w]
    lane[: INPUT + 1, width:] = 0
    return near


def _stepper(power: Callable[..., Any], zoh: bool) -> Callable[..., Any]:
    """One state of a block through one token; the block has LANES channels."""

    @njit(**INLINE)
    def step(lane, state, n, b, c):
        for w in range(LANES):
            z = lane[DT, w] * state[n, RATE, w]
            e = power(z)
            u = lane[INPUT, w]
            if zoh:
                u = u * exprel(z, e)
            h = e * state[n, STATE, w] + u * b
            state[n, STATE, w] = h
            lane[OUT, w] += h * c

    return step


_step, _step_any = _stepper(exp2, False), _stepper(exp2_any, False)
_step_zoh = _stepper(exp2_any, True)


@njit(**KERNEL)
def forward(first, last, x, dt, A, B, C, zoh, y, kept, every, group):
    """Do the jobs `first` to `last` of groups of `group` blocks x batch.

    Fill y (B, L, D), and kept (B, chunks - 1, N, D), if it is not empty, with the state after each
    `every` tokens but the last. All are contiguous. zoh is True or None, so that numba compiles one
    rule only. The blocks of a group take each token together: what they read lies side by side, and
    the processor fetches ahead.
    """
    batch, length, channels = x.shape
    size, loaded = A.shape[1], -1
    lane = np.empty((3, LANES), x.dtype)
    states = np.zeros((group, size, 2, LANES), x.dtype)
    far = np.empty(group, x.dtype)
    for job in range(first, last):
        which, b = job // batch, job % batch
        left = which * group * LANES
        blocks = min(group, (channels - left + LANES - 1) // LANES)
        states[:, :, STATE] = 0
        for i in range(blocks):
            if which != loaded:
                d = left + i * LANES
                far[i] = _load_rates(states[i], A[d : d + LANES])
        loaded = which
        for t in range(length):
            B_t, C_t = B[b, t], C[b, t]
            for i in range(blocks):
                d, state = left + i * LANES, states[i]
                width = min(LANES, channels - d)
                if kept.size > 0 and t > 0 and t % every == 0:
                    for n in range(size):
                        _copy(kept[b, t // every - 1, n, d : d + width], state[n, STATE], width)
                x_t, dt_t = x[b, t, d : d + width], dt[b, t, d : d + width]
                near = _load(lane, x_t, dt_t, width, far[i])
                lane[OUT, :] = 0
                if zoh is not None:
                    for n in range(size):
                        _step_zoh(lane, state, n, B_t[n], C_t[n])
                elif near:
                    for n in range(size):
                        _step(lane, state, n, B_t[n], C_t[n])
                else:
                    for n in range(size):
                        _step_any(lane, state, n, B_t[n], C_t[n])
                _copy(y[b, t, d : d + width], lane[OUT], width)


def _repeater(power: Callable[..., Any], zoh: bool) -> Callable[..., Any]:
    """The decay of a state at token t, and the state after it, once more; see `_stepper`."""

    @njit(**INLINE)
    def again(lane, state, past, t, n, b, width):
        for w in range(width):
            z = lane[DT, w] * state[n, RATE, w]
            e = power(z)
            u = lane[INPUT, w]
            if zoh:
                u = u * exprel(z, e)
            past[t, n, DECAY, w] = e
            past[t + 1, n, BEFORE, w] = e * past[t, n, BEFORE, w] + u * b

    return again


_again, _again_any = _repeater(exp2, False), _repeater(exp2_any, False)
_again_zoh = _repeater(exp2_any, True)


def _reverser(zoh: bool) -> Callable[..., Any]:
    """State n of token t, backwards: return the gradients of its B and C, add to the others."""

    @njit(**INLINE)
    def back(lane, state, past, t, n, b, c, width):
        to_B = to_C = lane.dtype.type(0)
        for w in range(width):
            gy, dt, u = lane[GY, w], lane[DT, w], lane[INPUT, w]
            e, rate = past[t, n, DECAY, w], state[n, RATE, w]
            g = state[n, ADJOINT, w] + gy * c
            to_C += gy * past[t + 1, n, BEFORE, w]
            state[n, ADJOINT, w] = g * e
            to_z = g * e * past[t, n, BEFORE, w]  # gradient of dt A
            if zoh:
                gain = exprel(dt * rate, e)
                to_z += g * u * b * exprel_slope(dt * rate, e, gain)
                g = g * gain
            to_B += g * u
            lane[TO_X, w] += g * b
            lane[TO_DT, w] += to_z * rate
            state[n, GRAD_A, w] += to_z * dt
        return to_B, to_C

    return back


_back, _back_zoh = _reverser(False), _reverser(True)


@njit(**KERNEL)
def backward(first, last, x, dt, A, B, C, zoh, gy, kept, every, block, gx, gdt, gA, gB, gC):
    """Do the jobs `first` to `last` of batch x parts.

    Fill gx, gdt (B, L, D), and add to gA (B, N, D) and gB, gC (parts, B, L, N). Each part has its
    share of the blocks. The sums over samples and parts are the caller's.
    """
    _, length, channels = x.shape
    size, parts = A.shape[1], len(gB)
    blocks = (channels + block - 1) // block
    state = np.empty((size, 3, block), x.dtype)
    past = np.empty((min(every, length) + 1, size, 2, block), x.dtype)
    lane = np.empty((5, block), x.dtype)
    for job in range(first, last):
        b, part = job // parts, job % parts
        for d in range(blocks * part // parts * block, blocks * (part + 1) // parts * block, block):
            width = min(block, channels - d)
            far = _load_rates(state, A[d : d + width])
            state[:, ADJOINT:] = 0
            for chunk in range((length - 1) // every, -1, -1):
                start = chunk * every
                tokens = min(every, length - start)
                past[0, :, BEFORE] = 0
                if chunk > 0:
                    for n in range(size):
                        _copy(past[0, n, BEFORE], kept[b, chunk - 1, n, d : d + width], width)
                for t in range(tokens):
                    i = start + t
                    near = _load(lane, x[b, i, d : d + width], dt[b, i, d : d + width], width, far)
                    B_t = B[b, i]
                    if zoh is not None:
                        for n in range(size):
                            _again_zoh(lane, state, past, t, n, B_t[n], width)
                    elif near:
                        for n in range(size):
                            _again(lane, state, past, t, n, B_t[n], width)
                    else:
                        for n in range(size):
                            _again_any(lane, state, past, t, n, B_t[n], width)
                for t in range(tokens - 1, -1, -1):
                    i = start + t
                    x_t = x[b, i, d : d + width]
                    _load(lane, x_t, dt[b, i, d : d + width], width, far)
                    _copy(lane[GY], gy[b, i, d : d + width], width)
                    lane[TO_DT:] = 0
                    B_t, C_t, to_B, to_C = B[b, i], C[b, i], gB[part, b, i], gC[part, b, i]
                    for n in range(size):
                        if zoh is not None:
                            more = _back_zoh(lane, state, past, t, n, B_t[n], C_t[n], width)
                        else:
                            more = _back(lane, state, past, t, n, B_t[n], C_t[n], width)
                        to_B[n] += more[0]
                        to_C[n] += more[1]
                    to_x, to_dt = gx[b, i, d : d + width], gdt[b, i, d : d + width]
                    for w in range(width):
                        to_x[w] = lane[TO_X, w] * lane[DT, w]
                        to_dt[w] = lane[TO_DT, w] * x.dtype.type(LN2) + lane[TO_X, w] * x_t[w]
                for n in range(size):  # sums of sums lose fewer digits than one long sum
                    to_A = gA[b, n, d : d + width]
                    for w in range(width):
                        to_A[w] += state[n, GRAD_A, w]
                        state[n, GRAD_A, w] = 0
