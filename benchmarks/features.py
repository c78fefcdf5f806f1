"""Reading stored tokens at the size of EPIC-Kitchens-100: alone, and in training.

Run: python benchmarks/features.py --folder DIR (7.5 GB there; made once, and kept)

67,217 samples: 8 video tokens and 64 text tokens of 768 numbers in float16. Alone: batches of 128
in a shuffled order, against `array[indices]` of the same memory-mapped rows; blocks of both take
turns, all of the arrays in the system's cache. In training: seconds a step waits for its batch.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from harness.distributed import Group
from harness.feed import Feed
from harness.learner import Learner
from harness.model import Model
from harness.plan import plan
from harness.registry import load_plugins
from harness.spec import dataset_of
from harness.splits import batch_indices
from harness.tokens import sums_of

SAMPLES, SELECT, BATCH, WIDTH = 67_217, 4_000, 128, 768
TOKENS = {"text": 64, "video": 8}
BLOCK, ROUNDS = 25, 10
HEADS = {
    "mean": "{name: mean}",
    "mlp": "{name: mlp}",
    "mamba_shared": "{name: mamba_shared}",
    "transformer 6x4": "{name: transformer, options: {layers: 6, heads: 4}}",
}
SWEEP = """
report: {{table: features, title: Features, metrics: [verb_top1]}}
base:
  data: {{name: features, options: {{manifest: {folder}/data.yaml}}}}
  encoders: {{text: {{name: precomputed}}, video: {{name: precomputed}}}}
  width: 768
  train: {{recipe: paper, epochs: 1}}
runs:
"""


def make(folder: Path) -> None:
    """The arrays, labels and the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, length in TOKENS.items():
        file = folder / f"{name}.npy"
        if file.exists():
            continue
        shape = (SAMPLES, length, WIDTH)
        out = np.lib.format.open_memmap(file, "w+", np.float16, shape)
        block = rng.standard_normal((256, length, WIDTH), np.float32).astype(np.float16)
        for begin in range(0, SAMPLES, 256):
            out[begin : begin + 256] = block[: SAMPLES - begin]
        out.flush()
    splits = ["train"] * (SAMPLES - SELECT) + ["select", "test"] * (SELECT // 2)
    with open(folder / "labels.csv", "w", newline="") as text:
        rows = csv.writer(text)
        rows.writerow(["verb", "noun", "split"])
        rows.writerows((n % 97, n % 300, split) for n, split in enumerate(splits))
    (folder / "data.yaml").write_text(
        "streams: {video: {file: video.npy}, text: {file: text.npy}}\n"
        "labels: {file: labels.csv, targets: [verb, noun], split: split}\n"
    )


def feed_of(folder: Path, head: str) -> tuple[Feed, Learner]:
    file = folder / "sweep.yaml"
    file.write_text(SWEEP.format(folder=folder) + f"  a: {{fusion: {head}}}\n")
    planned = plan(file)
    spec = planned.runs[0].spec
    dataset = dataset_of(spec, planned.paths)
    model = Model(spec, dataset, planned.paths)
    feed = Feed(spec, dataset, "train", model, torch.device("cpu"), folder)
    return feed, Learner(spec, model, dataset, Group(), torch.device("cpu"))


def bare(folder: Path) -> Iterator[float]:
    """Seconds of a block of batches, each time."""
    arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in TOKENS]
    step = 0
    while True:
        begun = time.perf_counter()
        for _ in range(BLOCK):
            indices = batch_indices(1, step, BATCH, SAMPLES - SELECT)
            for array in arrays:
                array[indices]
            step += 1
        yield time.perf_counter() - begun


def ours(feed: Feed) -> Iterator[float]:
    batches = feed.training(0, 10**9, range(BATCH))
    while True:
        begun = time.perf_counter()
        for _ in range(BLOCK):
            next(batches)
        yield time.perf_counter() - begun


def alone(folder: Path) -> None:
    feed, _ = feed_of(folder, HEADS["mean"])
    for file in feed.stored.values():  # into the system's cache
        np.asarray(file.arrays[0]).sum(dtype=np.float32)
    checked, _ = feed_of(folder, HEADS["mean"])
    for name, file in checked.stored.items():
        rows = np.asarray(file.arrays[0])
        items = rows.reshape(SAMPLES, -1, WIDTH)[: len(file.begins)]
        sums = np.concatenate([sums_of(items[n : n + 999]) for n in range(0, len(items), 999)])
        checked.stored[name] = replace(file, checksums=np.zeros(0, np.uint32), sums=sums)
    readers = {
        "bare": bare(folder),
        "ours": ours(feed),
        "ours, first epoch: checksums compared": ours(checked),
    }
    times: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(ROUNDS + 1):
        for name, reader in readers.items():
            seconds = next(reader)
            if number:
                times[name].append(seconds)
    for name, seconds_ in times.items():
        rate = BLOCK * BATCH / statistics.median(seconds_)
        share = statistics.median(b / s for b, s in zip(times["bare"], seconds_, strict=True))
        print(f"{name:<40} {rate:9,.0f} samples/s   {share:5.2f} of the bare read", flush=True)


def training(folder: Path, steps: Callable[[str], int]) -> None:
    for name, head in HEADS.items():
        feed, learner = feed_of(folder, head)
        learner.model.train()
        batches = feed.training(0, 10**9, range(BATCH))
        waits, whole = [], []
        for number in range(steps(name)):
            begun = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - begun
            learner.step(batch, number)
            if number >= 3:
                waits.append(waited)
                whole.append(time.perf_counter() - begun)
        batches.close()
        wait, step = 1000 * statistics.mean(waits), 1000 * statistics.mean(whole)
        print(
            f"{name:<20} step {step:8.1f} ms, waiting {wait:6.2f} ms, {wait / step:6.1%}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    load_plugins()
    torch.set_num_threads(2)
    make(given.folder)
    alone(given.folder.resolve())
    training(given.folder.resolve(), lambda name: 100 if name in ("mean", "mlp") else 13)
