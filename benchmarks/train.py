"""What the harness costs: a run beside a bare loop over the same model and the same tokens.

Run: python benchmarks/train.py

The bare loop is `bare` below: 40 lines of PyTorch, all in memory, no checkpoints, no metrics.
Each head trains in both, epoch by epoch in turn within one process; the median of the epochs'
ratios counts. Sizes are those of an encoder's frame tokens: 8 video and 16 text tokens of 256
numbers, batches of 128. Then a whole run, with MLflow: what is around its steps.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "5")

import numpy as np
import torch
from torch.nn import functional as F

from harness import track
from harness.contracts import Tokens
from harness.distributed import Group
from harness.feed import Feed
from harness.learner import Learner
from harness.model import Model
from harness.optimise import set_learning_rates
from harness.plan import plan
from harness.probe import probe
from harness.registry import FUSIONS, load_plugins
from harness.run import run
from harness.spec import RunSpec, dataset_of
from harness.splits import batch_indices, fetch
from harness.store import Store

SAMPLES, BATCH, WIDTH, TOKENS = 4096, 128, 256, {"text": 16, "video": 8}
TRAIN = 3072
STEPS = 24
"""of an epoch here"""
OPTIONS = {"transformer": "{layers: 2, heads: 4}"}
SWEEP = """
report: {table: train, title: Train, metrics: [label_top1]}
base:
  data: {name: features, options: {manifest: data.yaml}}
  encoders: {text: {name: precomputed}, video: {name: precomputed}}
  width: 256
  train: {recipe: paper, epochs: 5, batch_size: 128}
runs:
"""
KITCHEN = """
report: {table: kitchen, title: Kitchen, metrics: [verb_top1]}
base:
  data: {name: simkitchen, options: {train_size: 2048, select_size: 64, test_size: 64}}
  encoders:
    video: {name: video_transformer, frozen: true}
    text: {name: word_transformer, frozen: true}
  width: 64
  fusion: {name: mlp, options: {mlp_width: 128}}
  train: {epochs: 2, batch_size: 64, optimiser: adamw}
runs:
  stored: {}
  in the loop: {encoders.video.cache: none, encoders.text.cache: none}
"""


def bare(
    spec: RunSpec, model: Model, arrays: Mapping[str, np.ndarray], labels: np.ndarray
) -> Iterator[float]:
    """A training loop as anyone would write it; seconds of each epoch of STEPS steps."""
    config = spec.train
    groups: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decays = parameter.ndim > 1 and not {"A_log", "D"} & set(name.split("."))
        groups.setdefault((name.split(".")[0], decays), []).append(parameter)
    optimiser = torch.optim.SGD(
        [{"params": p, "weight_decay": 4e-5 * decays} for (_, decays), p in groups.items()],
        lr=config.start_lr,
        momentum=config.momentum,
    )
    data = {name: torch.from_numpy(array) for name, array in arrays.items()}
    targets = torch.from_numpy(labels)
    model.train()
    step = 0
    while True:
        begun = time.perf_counter()
        for _ in range(STEPS):
            indices = torch.from_numpy(batch_indices(0, step, BATCH, TRAIN))
            inputs = {
                name: Tokens(value[indices], torch.ones(BATCH, value.shape[1], dtype=torch.bool))
                for name, value in data.items()
            }
            for group in optimiser.param_groups:
                group["lr"] = 1e-5 + 1e-3 * 0.5 * (1 + math.cos(math.pi * step / 240))
            logits = model(inputs)["label"]
            loss = F.cross_entropy(logits, targets[indices], label_smoothing=0.1)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            loss.item()
            step += 1
        yield time.perf_counter() - begun


def ours(spec: RunSpec, feed: Feed, learner: Learner, batch_size: int = BATCH) -> Iterator[float]:
    """The same with the parts of the harness that make a step."""
    learner.model.train()
    batches = feed.training(0, 10**9, range(batch_size))
    step = 0
    while True:
        begun = time.perf_counter()
        for _ in range(STEPS):
            set_learning_rates(learner.optimiser, step, 240, 48, spec.train)
            learner.step(next(batches), step)
            step += 1
        yield time.perf_counter() - begun


def make(folder: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal((SAMPLES, length, WIDTH), np.float32)
        for name, length in TOKENS.items()
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    labels = rng.integers(0, 20, SAMPLES)
    sides = ["train"] * TRAIN + ["select"] * 512 + ["test"] * 512
    with open(folder / "labels.csv", "w", newline="") as text:
        rows = csv.writer(text)
        rows.writerow(["label", "split"])
        rows.writerows(zip(labels.tolist(), sides, strict=True))
    (folder / "data.yaml").write_text(
        "streams: {video: {file: video.npy}, text: {file: text.npy}}\n"
        "labels: {file: labels.csv, targets: [label], split: split}\n"
    )
    return arrays, labels


def rows() -> str:
    lines = []
    for name in FUSIONS.names():
        options = OPTIONS.get(name, "{}")
        without = ", encoders.text: null" if name == "single" else ""
        lines.append(f"  {name}: {{fusion: {{name: {name}, options: {options}}}{without}}}\n")
    return "".join(lines)


def overhead(folder: Path, rounds: int) -> None:
    arrays, labels = make(folder)
    (folder / "sweep.yaml").write_text(SWEEP + rows())
    planned = plan(folder / "sweep.yaml")
    print(f"{'head':<20} {'steps/s':>9} {'of the bare loop':>18} {'peak of tensors':>16}")
    ratios = []
    for one in planned.runs:
        spec, dataset = one.spec, dataset_of(one.spec, planned.paths)
        models = [Model(spec, dataset, planned.paths) for _ in range(2)]
        feed = Feed(spec, dataset, "train", models[1], torch.device("cpu"), folder)
        learner = Learner(spec, models[1], dataset, Group(), torch.device("cpu"))
        seen = {name: array for name, array in arrays.items() if name in spec.encoders}
        pair = bare(spec, models[0], seen, labels), ours(spec, feed, learner)
        times = [[next(side) for side in pair] for _ in range(rounds + 1)][1:]
        ratio = statistics.median(b / o for b, o in times)
        rate = STEPS / statistics.median(o for _, o in times)
        ratios.append(ratio)
        peak = 1000 * probe(spec, planned.paths, 1, 2).gb
        print(f"{one.row:<20} {rate:9.1f} {ratio:18.3f} {peak:13.0f} MB", flush=True)
    print(f"{'mean':<20} {'':>9} {statistics.mean(ratios):18.3f}")


def stored(folder: Path) -> None:
    """An epoch with the encoders in the loop, and with their tokens stored."""
    (folder / "kitchen.yaml").write_text(KITCHEN)
    planned = plan(folder / "kitchen.yaml")
    seconds = {}
    for one in planned.runs:
        dataset = dataset_of(one.spec, planned.paths)
        torch.manual_seed(0)
        model = Model(one.spec, dataset, planned.paths)
        items = fetch(dataset.split("train"), range(512))
        model.encoders["text"].fit([item.streams["text"] for item in items])
        feed = Feed(one.spec, dataset, "train", model, torch.device("cpu"), folder / "tokens")
        learner = Learner(one.spec, model, dataset, Group(), torch.device("cpu"))
        epochs = ours(one.spec, feed, learner, 64)
        seconds[one.row] = min(next(epochs) for _ in range(3))
        print(f"{STEPS} steps of mlp, encoders {one.row}: {seconds[one.row]:.3f} s", flush=True)
    print(f"stored tokens: {seconds['in the loop'] / seconds['stored']:.0f} times as fast")


def around(folder: Path) -> None:
    """Seconds of a run of 5 epochs that are not its steps."""
    planned = plan(folder / "sweep.yaml")
    one = next(run_ for run_ in planned.runs if run_.row == "mamba_shared")
    store = Store(folder / "runs")
    track.prepare(store)
    store.write_sweep(planned.record())
    store.run(one.run_id).write_spec(one.spec.model_dump(mode="json"), planned.paths)
    parts: dict[str, float] = {}

    def timed(module: object, name: str, part: str) -> None:
        whole: Callable[..., object] = getattr(module, name)

        def wrapped(*args: object, **kwargs: object) -> object:
            begun = time.perf_counter()
            try:
                return whole(*args, **kwargs)
            finally:
                parts[part] = parts.get(part, 0.0) + time.perf_counter() - begun

        setattr(module, name, wrapped)

    from harness import train as training
    from harness.folder import RunFolder
    from harness.resume import Keeper

    timed(Learner, "step", "steps")
    timed(Keeper, "save", "checkpoints")
    timed(training, "scores", "metrics")
    timed(RunFolder, "append_metrics", "metrics")
    timed(RunFolder, "write_result", "result")
    begun = time.perf_counter()
    run(store, one.run_id, lambda *_: None, torch.get_num_threads())
    whole = time.perf_counter() - begun
    begun = time.perf_counter()
    track.collect(store)
    mlflow = time.perf_counter() - begun
    epochs = one.spec.train.epochs
    epoch = statistics.median(row["epoch_seconds"] for row in store.run(one.run_id).metrics())
    each = (parts["checkpoints"] + parts["metrics"]) / epochs
    print(f"mamba_shared, {epochs} epochs in {whole:.1f} s, {epoch:.2f} s each")
    print(f"checkpoints and metrics: {1000 * each:.0f} ms an epoch, {each / epoch:.1%} of it")
    print(f"result {parts['result']:.2f} s, sent to MLflow in {mlflow:.2f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    load_plugins()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        overhead(Path(folder), given.rounds)
        stored(Path(folder))
        around(Path(folder))
