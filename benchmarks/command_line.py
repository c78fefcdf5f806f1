"""How long `harness --help` takes beside a bare Python start, and planning 10,000 runs.

Run: python benchmarks/command_line.py. The machine's noise cancels in the ratios: both commands of
a pair run in turn in one go.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.plan import plan
from harness.registry import load_plugins

REPEATS = 15
SWEEP = """
report: {table: many, title: Many, metrics: [verb_top1]}
base:
  data: {name: simkitchen}
  encoders: {video: {name: video_transformer}, text: {name: word_transformer}}
  width: 64
  fusion: {name: mamba_shared}
axes:
  fusion: [{name: mlp}, {name: mamba_shared}, {name: mamba_joint}, {name: mean}]
  train.peak_lr.fusion: [%s]
seeds: [%s]
"""


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def help_time() -> None:
    bare, ours = [], []
    for _ in range(REPEATS):
        bare.append(seconds([sys.executable, "-c", "pass"]))
        ours.append(seconds([sys.executable, "-m", "harness.cli", "--help"]))
    middle = statistics.median(ours)
    ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    print(f"harness --help: median {middle:.3f} s, {ratio:.1f} times a bare Python start")


def plan_time() -> None:
    load_plugins()
    rates = ", ".join(f"{1e-4 * (1 + i):.4g}" for i in range(250))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "many.yaml"
        file.write_text(SWEEP % (rates, ", ".join(map(str, range(10)))))
        times = []
        for _ in range(5):
            start = time.perf_counter()
            runs = len(plan(file).runs)
            times.append(time.perf_counter() - start)
    print(f"planning {runs} runs: first {times[0]:.2f} s, median {statistics.median(times):.2f} s")


if __name__ == "__main__":
    help_time()
    plan_time()
