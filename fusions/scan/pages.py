"""Large results in large pages of memory.

Source: none, ours. The system gives fresh memory out in pages of 4 kB, each on its first touch: for
a result of 40 MB that is 10,000 interruptions, and takes as long as half the scan. Linux gives
2 MB at a time to whom it is told that they will be used (`madvise`). It is a hint: where it is not
understood, nothing changes.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

PAGE = 2 << 20
WORTH = 2 * PAGE
"""bytes; of less, too little lies in whole large pages"""


def empty_like(t: Tensor) -> Tensor:
    """A contiguous tensor of the shape and type of `t`, its numbers undefined."""
    fresh = torch.empty_like(t, memory_format=torch.contiguous_format)
    advise = _madvise()
    if fresh.nbytes >= WORTH and advise is not None:
        first = -(-fresh.data_ptr() // PAGE) * PAGE
        last = (fresh.data_ptr() + fresh.nbytes) // PAGE * PAGE
        advise(first, last - first, mmap.MADV_HUGEPAGE)
    return fresh


@lru_cache(maxsize=1)
def _madvise() -> Callable[..., int] | None:
    """madvise(address, bytes, advice) of the C library, on Linux."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        found = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found
