"""The selective scan beside its peers: time, as ratios, and extra memory; on a CPU, float32.

Run: pip install -e ".[bench]" && python benchmarks/scan.py [--figure docs/scan.png]

Peers: `mambapy`, and the slow path of Hugging Face's Mamba (`hf`), both called by the function of
`transformers` that chooses between them; `reference` is the plain loop of `fusions.scan`, and
`attention` torch's own over the same tokens, 12 heads. Repetitions are interleaved in one process,
the least of each counts, so that the noise of a shared machine cancels in the ratios; a repetition
is as many calls in a row as fill 0.2 s, and their mean, as `timeit` has it. Memory is
the peak of a process of its own, over what it held before the call.

The bound is that of the arithmetic of `fusions.scan.kernels`, measured without its memory: of every
state and token an exponential and the four multiply-adds around it; also the exponential alone.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fusions.scan import selective_scan, threads

warnings.filterwarnings("ignore")
Call = Callable[..., Tensor]
LENGTHS = (8, 32, 197, 1568)
SCALING = (8, 32, 197, 1568, 16384)
B, D, N = 8, 768, 16
HEADS = 12
REPEATS, SECONDS = 5, 10.0
"""rounds at least, and how long to go on: short calls need many to meet a quiet moment"""
BLOCK_MS = 200.0
"""how long a repetition lasts, in calls one after another, or one call that takes longer"""
QUADRATIC = ("hf",)
"""their backward pass takes time in the square of L: run up to L = 197 only"""


def inputs(batch: int, length: int) -> list[Tensor]:
    """x, dt, A, B, C as a Mamba block makes them."""
    torch.manual_seed(0)
    A = -torch.arange(1.0, N + 1).repeat(D, 1)
    x, dt = torch.randn(batch, length, D), torch.rand(batch, length, D) * 0.1
    return [x, dt, A, torch.randn(batch, length, N), torch.randn(batch, length, N)]


def _transformers(mambapy: bool) -> Call:
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        x, dt, B, C = (t.transpose(1, 2) for t in (x, dt, B, C))
        return mamba_selective_scan(x, dt, A, B, C, use_mambapy=mambapy).transpose(1, 2)

    return scan


def attention(x: Tensor, dt: Tensor, *_: Tensor) -> Tensor:
    q, k = (t.unflatten(2, (HEADS, -1)).transpose(1, 2) for t in (x, dt))
    return F.scaled_dot_product_attention(q, k, q).transpose(1, 2).flatten(2)


def variants() -> dict[str, Call]:
    ours: dict[str, Call] = {
        name: lambda *parts, name=name: selective_scan(*parts, backend=name)
        for name in ("numba", "torch", "reference")
    }
    return {**ours, "mambapy": _transformers(True), "hf": _transformers(False)}


def forward(call: Call, parts: list[Tensor]) -> None:
    with torch.no_grad():
        call(*parts)


def both(call: Call, parts: list[Tensor]) -> None:
    leaves = [part.detach().requires_grad_() for part in parts]
    call(*leaves).sum().backward()


def least_ms(calls: dict[str, Callable[[], None]], repeats: int = REPEATS) -> dict[str, float]:
    """Least time of each, taken in turn, after a call to compile and two that tell how long."""
    for call in calls.values():
        call()
    counts = {name: max(1, round(BLOCK_MS / _ms(call, 2))) for name, call in calls.items()}
    found = dict.fromkeys(calls, math.inf)
    begun, rounds = time.perf_counter(), 0
    while rounds < repeats or time.perf_counter() - begun < SECONDS:
        for name, call in calls.items():
            found[name] = min(found[name], _ms(call, counts[name]))
        rounds += 1
    return found


def _ms(call: Callable[[], None], count: int) -> float:
    """Mean time of `count` calls."""
    started = time.perf_counter()
    for _ in range(count):
        call()
    return 1e3 * (time.perf_counter() - started) / count


PROBED = 1 << 24
"""states of a probe"""


def probes() -> dict[str, Callable[[], None]]:
    """What bounds the compiled scan, PROBED times, on as many threads, with next to no memory: the
    arithmetic of a state and token (an exponential, four multiply-adds), the exponential alone."""
    from numba import njit

    from fusions.scan import kernels

    f = np.float32

    @njit(fastmath=kernels.FAST, nogil=True)
    def arithmetic(first, last, dt, u, c, sums, rounds):
        for job in range(first, last):
            total = f(0)
            for turn in range(rounds):
                rate, h, b = f(turn % 100), f(turn % 7), f(turn % 3)
                for w in range(len(dt)):
                    total += (kernels.exp2(dt[w] * rate) * h + u[w] * b) * c[w]
            sums[job] = total

    @njit(fastmath=kernels.FAST, nogil=True)
    def exponentials(first, last, dt, u, c, sums, rounds):
        for job in range(first, last):
            total = f(0)
            for turn in range(rounds):
                for w in range(len(dt)):
                    total += kernels.exp2(dt[w] - f(turn % 100))
            sums[job] = total

    width, jobs = 2048, 64
    rows, rounds = [-torch.rand(width) for _ in range(3)], PROBED // (jobs * width)
    return {
        probe.__name__: lambda probe=probe: threads.run(
            probe, jobs, *rows, torch.zeros(jobs), rounds, work=PROBED
        )
        for probe in (arithmetic, exponentials)
    }


def extra_mb(name: str, batch: int, length: int) -> float:
    """Peak memory of forward and backward over what the process held before, in MB."""
    words = [sys.executable, "-W", "ignore", __file__, "--cell", name, str(batch), str(length)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def cell(name: str, batch: int, length: int) -> float:
    call = attention if name == "attention" else variants()[name]
    both(call, inputs(1, 8))  # imports, compilation
    parts = inputs(batch, length)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    both(call, parts)
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(field)).split()[1])


def table() -> None:
    count = torch.get_num_threads()
    print(f"B {B}, D {D}, N {N}, float32, {count} threads, torch {torch.__version__}")
    print(f"multiples of `numba`'s time, least of {REPEATS} interleaved repetitions or more")
    for what, step in (("forward", forward), ("forward + backward", both)):
        for length in LENGTHS:
            parts = inputs(B, length)
            calls = {
                name: lambda call=call, parts=parts, step=step: step(call, parts)
                for name, call in variants().items()
                if step is forward or name not in QUADRATIC or length <= 197
            }
            if step is forward:
                calls |= probes()
            ms = least_ms(calls)
            bounds = {name: ms.pop(name) for name in list(ms) if name not in variants()}
            told = "  ".join(f"{name} {t / ms['numba']:.1f}" for name, t in ms.items())
            print(f"{what:<19} L {length:<5} numba {ms['numba']:8.2f} ms   {told}", flush=True)
            for name, time_of in bounds.items():
                reached = time_of * B * length * D * N / PROBED / ms["numba"]
                print(f"{'':<19} numba at {reached:.0%} of the bound by its {name}")
    tensor = B * 1568 * D * 4 / 2**20
    for name in variants():
        if name not in QUADRATIC:
            used = extra_mb(name, B, 1568)
            times = used / tensor
            print(f"memory, f + b  L 1568  {name:<10} {used:7.0f} MB = {times:.1f} x (B L D)")


def figure(file: Path) -> None:
    """Time and memory of forward and backward against L, one sample."""
    import matplotlib.pyplot as plt

    calls = {**variants(), "attention": attention}
    times: dict[str, dict[int, float]] = {name: {} for name in calls}
    memory: dict[str, dict[int, float]] = {name: {} for name in calls}
    for length in SCALING:
        parts = inputs(1, length)
        chosen = {
            name: lambda call=call, parts=parts: both(call, parts)
            for name, call in calls.items()
            if name not in QUADRATIC or length <= 197
        }
        for name, ms in least_ms(chosen, 3).items():
            times[name][length] = ms
            memory[name][length] = extra_mb(name, 1, length)
            used = memory[name][length]
            print(f"B 1  L {length:<6} {name:<10} {ms:10.2f} ms {used:8.1f} MB", flush=True)
    plt.style.use(Path(__file__).parents[1] / "reports" / "style.mplstyle")
    shown, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    titles = ("time, ms", "extra memory, MB")
    for axis, values, title in zip(axes, (times, memory), titles, strict=True):
        for name, series in values.items():
            axis.plot(list(series), [max(v, 0.1) for v in series.values()], marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel="tokens L")
        axis.set_title(f"{title} (forward + backward)")
    axes[0].legend(frameon=False)
    shown.tight_layout()
    shown.savefig(file, dpi=150)
    print(f"written: {file}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path, help="also draw time and memory against L")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        print(cell(given.cell[0], int(given.cell[1]), int(given.cell[2])))
    else:
        table()
        if given.figure:
            figure(given.figure)
