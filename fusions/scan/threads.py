"""Compiled loops on the threads of torch.

Source: none, ours.

Torch's CPU operations run on OpenMP's threads, and these wait for the next operation by spinning,
for some milliseconds. A loop on threads of its own shares its cores with that: a short scan took
twice as long. So, where torch was built with GNU's OpenMP, its threads are asked to run the loop
too, by the function that its own loops call, `GOMP_parallel`. Elsewhere the threads are Python's.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

ALONE = 1 << 19
"""less work is not worth a second thread"""

_SHARE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_forked: list[bool] = []
"""not empty in a process that was forked: the threads stayed behind"""
os.register_at_fork(after_in_child=lambda: _forked.append(True))


def run(kernel: Callable[..., None], jobs: int, *arguments: Any, work: int) -> None:
    """kernel(first, last, *arguments) for parts of 0 .. jobs, on as many threads as torch has.

    Tensors are given to the kernel as arrays of numpy. `work` is how many numbers there are to
    compute in all, in exponentials. What a kernel raises is raised here.
    """
    plain = [a.detach().numpy() if isinstance(a, Tensor) else a for a in arguments]
    threads = min(torch.get_num_threads(), jobs)
    if threads < 2 or work < ALONE or _forked:
        kernel(0, jobs, *plain)
        return
    parts = iter([(jobs * i // threads, jobs * (i + 1) // threads) for i in range(threads)])
    raised: list[BaseException] = []

    def share(_: Any) -> None:
        try:
            for first, last in parts:
                kernel(first, last, *plain)
        except BaseException as error:  # there is nobody above: a thread of OpenMP called this
            raised.append(error)

    if _parallel() is not None:
        _parallel()(_SHARE(share), None, threads, 0)
    else:
        helped = [_pool(threads - 1).submit(share, None) for _ in range(threads - 1)]
        share(None)
        wait(helped)
    if raised:
        raise raised[0]


@lru_cache(maxsize=1)
def _parallel() -> Callable[..., None] | None:
    """GOMP_parallel(function, its argument, threads, flags) of the library that torch uses."""
    try:
        found = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (OSError, AttributeError):
        return None
    found.argtypes = [_SHARE, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    found.restype = None
    return found


@lru_cache(maxsize=8)
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "scan")
