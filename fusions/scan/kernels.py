"""The scan as loops that numba compiles for the processor at hand.

Source: none for the code, ours; the recurrence is Mamba's (Gu and Dao, 2023), and so is the idea
to compute states again in the backward pass.

A job takes one sample and a block of channels through all tokens; the state of a block stays in
the cache. Lanes run over channels, so that only the gradients of B and C are sums across lanes.
Per state and token the forward pass costs one exponential and three multiply-adds, and most of it
is the exponential: `exp2` is a polynomial that LLVM vectorises, which it cannot do with libm's.

Every job writes to places of its own, in an order that no number of threads changes.

Numba compiles by the type of the arguments: float32 is for work, float64 for checks of the same
source. `fusions.scan.compiled` sees to it that dt >= 0 and A <= 0 are finite.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, types
from numba.extending import overload

FAST = {"contract", "reassoc", "nsz", "arcp"}
"""liberties of the compiler; not among them: to assume that there is no NaN and no infinity"""

RATE, ADJOINT, GRAD_A = range(3)
"""rows of `state` (N, 3, block): A log2(e), gradient of h, and of A"""
BEFORE, DECAY = range(2)
"""rows of `past` (chunk + 1, N, 2, block): h before the token, and exp(dt A)"""
X, DT, INPUT, GY, TO_DT, TO_X = range(6)
"""rows of `lane` (6, block): x, dt, dt x, gradient of y, and sums for the gradients of dt and x"""


def exp2(z):
    """2 to the power z, z <= 0; below -126 as at -126, which is 1e-38."""
    raise TypeError("only for compiled code")


@overload(exp2, jit_options={"fastmath": FAST})
def _exp2(z):
    if z == types.float64:
        return lambda z: np.exp2(z)
    f, i = np.float32, np.int32

    def polynomial(z):
        z = f(max(z, f(-126)))
        whole = np.floor(z + f(0.5))
        r = z - whole
        p = f(1.535336188319500e-4)
        p = p * r + f(1.339887440266574e-3)
        p = p * r + f(9.618437357674640e-3)
        p = p * r + f(5.550332471162809e-2)
        p = p * r + f(2.402264791363012e-1)
        p = p * r + f(6.931472028550421e-1)
        p = p * r + f(1)
        return i(f(p).view(np.int32) + (i(whole) << i(23))).view(np.float32)

    return polynomial


def exprel(z, e):
    """(e - 1) / z where e = exp(z), and 1 at zero."""
    raise TypeError("only for compiled code")


@overload(exprel, jit_options={"fastmath": FAST})
def _exprel(z, e):
    f, terms = (np.float32, 9) if z == types.float32 else (np.float64, 15)
    series = tuple(f(1 / math.factorial(k + 1)) for k in reversed(range(terms)))
    return lambda z, e: (e - f(1)) / z if abs(z) > f(0.5) else _horner(series, z)


def exprel_slope(z, e, g):
    """Derivative of exprel where e = exp(z) and g = exprel(z), and 1/2 at zero."""
    raise TypeError("only for compiled code")


@overload(exprel_slope, jit_options={"fastmath": FAST})
def _exprel_slope(z, e, g):
    f, terms = (np.float32, 11) if z == types.float32 else (np.float64, 19)
    series = tuple(f(1 / (math.factorial(k) * (k + 2))) for k in reversed(range(terms)))
    return lambda z, e, g: (e - g) / z if abs(z) > f(1) else _horner(series, z)


@njit(fastmath=FAST)
def _horner(series, z):
    p = z * 0 + series[0]
    for k in range(1, len(series)):
        p = p * z + series[k]
    return p


@njit(fastmath=FAST)
def _four_states(h, rate, dt, u, y, B, C, n, width):
    """States n to n + 3 through one token; u is dt x. Four at a time write y once."""
    b0, b1, b2, b3 = B[n], B[n + 1], B[n + 2], B[n + 3]
    c0, c1, c2, c3 = C[n], C[n + 1], C[n + 2], C[n + 3]
    for w in range(width):
        h0 = exp2(dt[w] * rate[n, w]) * h[n, w] + u[w] * b0
        h1 = exp2(dt[w] * rate[n + 1, w]) * h[n + 1, w] + u[w] * b1
        h2 = exp2(dt[w] * rate[n + 2, w]) * h[n + 2, w] + u[w] * b2
        h3 = exp2(dt[w] * rate[n + 3, w]) * h[n + 3, w] + u[w] * b3
        h[n, w], h[n + 1, w], h[n + 2, w], h[n + 3, w] = h0, h1, h2, h3
        y[w] += (h0 * c0 + h1 * c1) + (h2 * c2 + h3 * c3)


@njit(fastmath=FAST)
def _one_state(h, rate, dt, u, y, b, c, width):
    for w in range(width):
        v = exp2(dt[w] * rate[w]) * h[w] + u[w] * b
        h[w] = v
        y[w] += v * c


@njit(fastmath=FAST)
def _one_state_zoh(h, rate, dt, x, y, b, c, ln2, width):
    for w in range(width):
        z = dt[w] * rate[w]
        e = exp2(z)
        v = e * h[w] + dt[w] * exprel(z * ln2, e) * x[w] * b
        h[w] = v
        y[w] += v * c


@njit(fastmath=FAST, cache=True, nogil=True)
def forward(first, last, x, dt, rate, B, C, zoh, y, kept, every, block):
    """Do the jobs `first` to `last` of batch x blocks.

    Fill y (B, L, D), and kept (B, chunks, N, D) with the state before each `every` tokens. rate is
    A log2(e), (N, D); x, dt (B, L, D); B, C (B, L, N); all contiguous.
    """
    _, length, channels = x.shape
    size = rate.shape[0]
    blocks = (channels + block - 1) // block
    fours = 0 if zoh else size - size % 4
    ln2 = x.dtype.type(np.log(2.0))
    for job in range(first, last):
        b, d = job // blocks, job % blocks * block
        width = min(block, channels - d)
        h = np.zeros((size, block), x.dtype)
        a = np.empty((size, block), x.dtype)
        u = np.empty(block, x.dtype)
        out = np.empty(block, x.dtype)
        for n in range(size):
            for w in range(width):
                a[n, w] = rate[n, d + w]
        for t in range(length):
            if t % every == 0:
                for n in range(size):
                    for w in range(width):
                        kept[b, t // every, n, d + w] = h[n, w]
            x_t, dt_t = x[b, t, d : d + width], dt[b, t, d : d + width]
            for w in range(width):
                u[w] = x_t[w] if zoh else dt_t[w] * x_t[w]
                out[w] = 0
            for n in range(0, fours, 4):
                _four_states(h, a, dt_t, u, out, B[b, t], C[b, t], n, width)
            for n in range(fours, size):
                if zoh:
                    _one_state_zoh(h[n], a[n], dt_t, u, out, B[b, t, n], C[b, t, n], ln2, width)
                else:
                    _one_state(h[n], a[n], dt_t, u, out, B[b, t, n], C[b, t, n], width)
            for w in range(width):
                y[b, t, d + w] = out[w]


# In what follows scratch lies in three arrays only, its rows at fixed places: LLVM vectorises a
# loop only if it needs few checks of whether the rows it is given overlap.


@njit(fastmath=FAST)
def _again(state, past, lane, t, n, b, zoh, ln2, width):
    """Compute the decay of state n at token t, and the state after it."""
    if zoh:
        for w in range(width):
            z = lane[DT, w] * state[n, RATE, w]
            e = exp2(z)
            gain = lane[DT, w] * exprel(z * ln2, e)
            past[t, n, DECAY, w] = e
            past[t + 1, n, BEFORE, w] = e * past[t, n, BEFORE, w] + gain * lane[X, w] * b
    else:
        for w in range(width):
            e = exp2(lane[DT, w] * state[n, RATE, w])
            past[t, n, DECAY, w] = e
            past[t + 1, n, BEFORE, w] = e * past[t, n, BEFORE, w] + lane[INPUT, w] * b


@njit(fastmath=FAST)
def _back(state, past, lane, t, n, b, c, zero, width):
    """State n of token t, backwards: the gradients of its B and C; adds to the others."""
    to_B, to_C = zero, zero
    for w in range(width):
        gy = lane[GY, w]
        g = state[n, ADJOINT, w] + gy * c
        to_C += gy * past[t + 1, n, BEFORE, w]
        to_B += g * lane[INPUT, w]
        lane[TO_X, w] += g * b
        g = g * past[t, n, DECAY, w]
        state[n, ADJOINT, w] = g
        g = g * past[t, n, BEFORE, w]
        lane[TO_DT, w] += g * state[n, RATE, w]
        state[n, GRAD_A, w] += g * lane[DT, w]
    return to_B, to_C


@njit(fastmath=FAST)
def _back_zoh(state, past, lane, t, n, b, c, zero, ln2, width):
    """The same with the gain dt exprel(dt A), whose slope in dt is exp(dt A)."""
    to_B, to_C = zero, zero
    for w in range(width):
        gy, dt, x, e = lane[GY, w], lane[DT, w], lane[X, w], past[t, n, DECAY, w]
        z = dt * state[n, RATE, w] * ln2
        relative = exprel(z, e)
        g = state[n, ADJOINT, w] + gy * c
        to_C += gy * past[t + 1, n, BEFORE, w]
        to_B += g * dt * relative * x
        lane[TO_X, w] += g * dt * relative * b
        state[n, ADJOINT, w] = g * e
        lane[TO_DT, w] += g * e * (past[t, n, BEFORE, w] * state[n, RATE, w] * ln2 + x * b)
        slope = dt * dt * exprel_slope(z, e, relative)
        state[n, GRAD_A, w] += g * (e * past[t, n, BEFORE, w] * dt + x * b * slope)
    return to_B, to_C


@njit(fastmath=FAST)
def _load(lane, x, dt, gy, b, t, d, width):
    for w in range(width):
        lane[X, w] = x[b, t, d + w]
        lane[DT, w] = dt[b, t, d + w]
        lane[INPUT, w] = x[b, t, d + w] * dt[b, t, d + w]
        lane[GY, w] = gy[b, t, d + w]
        lane[TO_DT, w] = 0
        lane[TO_X, w] = 0


@njit(fastmath=FAST, cache=True, nogil=True)
def backward(first, last, x, dt, rate, B, C, zoh, gy, kept, every, block, gx, gdt, gA, gB, gC):
    """Do the jobs `first` to `last` of batch x parts.

    Fill gx, gdt (B, L, D), gA (B, N, D), and add to gB, gC (parts, B, L, N). Each part has its
    share of the blocks. The sums over samples and parts are the caller's.
    """
    _, length, channels = x.shape
    size, chunks, parts = rate.shape[0], kept.shape[1], gB.shape[0]
    blocks = (channels + block - 1) // block
    zero = x.dtype.type(0)
    ln2 = x.dtype.type(np.log(2.0))
    for job in range(first, last):
        b, part = job // parts, job % parts
        state = np.empty((size, 3, block), x.dtype)
        past = np.empty((min(every, length) + 1, size, 2, block), x.dtype)
        lane = np.empty((6, block), x.dtype)
        for d in range(blocks * part // parts * block, blocks * (part + 1) // parts * block, block):
            width = min(block, channels - d)
            for n in range(size):
                for w in range(width):
                    state[n, RATE, w] = rate[n, d + w]
                    state[n, ADJOINT, w] = 0
                    state[n, GRAD_A, w] = 0
            for chunk in range(chunks - 1, -1, -1):
                start = chunk * every
                tokens = min(every, length - start)
                for n in range(size):
                    for w in range(width):
                        past[0, n, BEFORE, w] = kept[b, chunk, n, d + w]
                for t in range(tokens):
                    _load(lane, x, dt, gy, b, start + t, d, width)
                    for n in range(size):
                        _again(state, past, lane, t, n, B[b, start + t, n], zoh, ln2, width)
                for t in range(tokens - 1, -1, -1):
                    i = start + t
                    _load(lane, x, dt, gy, b, i, d, width)
                    for n in range(size):
                        bn, cn = B[b, i, n], C[b, i, n]
                        if zoh:
                            to_B, to_C = _back_zoh(
                                state, past, lane, t, n, bn, cn, zero, ln2, width
                            )
                        else:
                            to_B, to_C = _back(state, past, lane, t, n, bn, cn, zero, width)
                        gB[part, b, i, n] += to_B
                        gC[part, b, i, n] += to_C
                    for w in range(width):
                        if zoh:
                            gx[b, i, d + w] = lane[TO_X, w]
                            gdt[b, i, d + w] = lane[TO_DT, w]
                        else:
                            gx[b, i, d + w] = lane[TO_X, w] * lane[DT, w]
                            gdt[b, i, d + w] = lane[TO_DT, w] * ln2 + lane[TO_X, w] * lane[X, w]
            for n in range(size):
                for w in range(width):
                    gA[b, n, d + w] = state[n, GRAD_A, w]
