"""Loops of the short convolution that numba compiles; see `fusions.scan.convolution`.

Source: none, ours. A job takes one sample; lanes run over channels; memory is read once.
"""

from __future__ import annotations

from numba import njit

from fusions.scan.kernels import FAST


@njit(fastmath=FAST)
def _add_product(out, a, b):
    for w in range(len(out)):
        out[w] += a[w] * b[w]


@njit(fastmath=FAST, cache=True, nogil=True)
def convolve(first, last, x, taps, bias, y):
    """Fill y of the samples from `first` to `last`; x, y (B, L, D), taps (K, D), bias (D,)."""
    length = x.shape[1]
    for b in range(first, last):
        for t in range(length):
            y[b, t, :] = bias
            for i in range(len(taps)):
                source = t - len(taps) + 1 + i
                if source >= 0:
                    _add_product(y[b, t], x[b, source], taps[i])


@njit(fastmath=FAST, cache=True, nogil=True)
def convolve_back(first, last, x, taps, gy, gx, gtaps):
    """Of the samples from `first` to `last`, add to gx (B, L, D) and gtaps (B, K, D)."""
    length = x.shape[1]
    for b in range(first, last):
        for t in range(length):
            for i in range(len(taps)):
                source = t - len(taps) + 1 + i
                if source >= 0:
                    _add_product(gx[b, source], gy[b, t], taps[i])
                    _add_product(gtaps[b, i], gy[b, t], x[b, source])
