"""Every fusion head, forward and backward: time, memory, and where the time of the Mamba head goes.

Run: python benchmarks/fusion.py

B 8, 1568 video and 64 text tokens of width 768; then other video lengths. Repetitions of all heads
are interleaved; the least of each counts. Memory: see `benchmarks/scan.py`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings

import torch
from scan import _status, least_ms
from torch.profiler import ProfilerActivity, profile

from harness.contracts import Fusion, Tokens
from harness.registry import FUSIONS, load_plugins

warnings.filterwarnings("ignore")
B, WIDTH, TEXT = 8, 768, 64
LENGTHS = (16, 197, 1568)
COUNTED = ("mm", "gelu", "silu", "softplus", "scaled_dot", "softmax", "selective_scan")
"""matrix products, activations and the scan, by what their operators are called"""


def head(name: str) -> Fusion:
    streams = ("video",) if name == "single" else ("text", "video")
    return FUSIONS[name](FUSIONS[name].Config(), dict.fromkeys(streams, WIDTH), WIDTH)


def tokens(length: int) -> dict[str, Tokens]:
    torch.manual_seed(0)
    said = torch.arange(TEXT) < torch.randint(TEXT // 2, TEXT + 1, (B, 1))
    text = Tokens(torch.randn(B, TEXT, WIDTH), said)
    video = Tokens(torch.randn(B, length, WIDTH), torch.ones(B, length, dtype=torch.bool))
    return {"text": text, "video": video}


def step(fusion: Fusion, streams: dict[str, Tokens]) -> None:
    fusion.zero_grad()
    fusion(streams).square().mean().backward()


def table() -> None:
    print(f"B {B}, {TEXT} text tokens, width {WIDTH}, {torch.get_num_threads()} threads, f + b")
    heads = {name: head(name) for name in FUSIONS.names()}
    for length in LENGTHS:
        streams = tokens(length)
        calls = {n: lambda f=f, s=streams: step(f, s) for n, f in heads.items()}
        for name, ms in least_ms(calls, 3).items():
            words = [sys.executable, "-W", "ignore", __file__, "--cell", name, str(length)]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            used = max(0.0, float(done.stdout.split()[-1]))
            print(f"video {length:<5} {name:<20} {ms:9.1f} ms {used:8.0f} MB", flush=True)


def shares() -> None:
    """Where the paper's head spends its time."""
    fusion, streams = head("mamba_shared"), tokens(1568)
    step(fusion, streams)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(3):
            step(fusion, streams)
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    inside = sum(
        event.self_cpu_time_total for event in events if any(word in event.key for word in COUNTED)
    )
    print(
        f"mamba_shared: {1 - inside / total:.0%} outside matrix products, activations and the scan"
    )


def cell(name: str, length: int) -> float:
    from pathlib import Path

    fusion = head(name)
    step(fusion, tokens(16))
    streams = tokens(length)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step(fusion, streams)
    return (_status("VmHWM") - before) / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    load_plugins()
    if given.cell:
        print(cell(given.cell[0], int(given.cell[1])))
    else:
        table()
        shares()
