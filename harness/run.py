"""One run, top to bottom: data, encoders, fusion, training, evaluation, cost, record."""

from __future__ import annotations

import contextlib
import random
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from harness.contracts import Dataset, Encoder
from harness.cost import cost
from harness.evaluate import Predictions, scores
from harness.feed import Feed
from harness.files import file_digest, remove_partial, write_atomic
from harness.lease import Lease, me
from harness.measure import measure
from harness.model import Model, check_complete, load_weights, starts_random
from harness.provenance import code_digests, environment, together
from harness.registry import IMPLEMENTATIONS, load_plugins
from harness.spec import Paths, RunSpec, dataset_of
from harness.splits import fetch
from harness.store import RunFolder, Store
from harness.train import OnStep, predict, train

MAX_FIT_SAMPLES = 8192
"""samples an encoder's `fit` sees at most"""


def run(store: Store, run_id: str, on_step: OnStep, threads: int = 1) -> None:
    """Do the run `run_id`, whose spec is stored; if it is done already, nothing happens.

    Raises LeaseTaken if another process is at it. Any other exception is a failure of the run; its
    trace is stored first.
    """
    folder = store.run(run_id)
    with folder.lease() as lease:
        if folder.state() == "done":
            return
        try:
            _run(store, folder, lease, on_step, threads)
        except Exception:
            lease.check()
            with contextlib.suppress(OSError):  # a full disk must not hide what went wrong
                folder.write_failure(traceback.format_exc())
            raise


def _run(store: Store, folder: RunFolder, lease: Lease, on_step: OnStep, threads: int) -> None:
    started = time.time()
    load_plugins()
    stored = folder.spec()
    spec, paths = RunSpec(**stored["spec"]), stored["paths"]
    if spec.run_id != folder.run_id:
        raise ValueError(f"spec.json has the id {spec.run_id}, its folder is {folder.run_id}")
    dataset = dataset_of(spec, paths)
    if dataset.fingerprint() != spec.fingerprint:
        raise ValueError(f"the data of {spec.data.name} have changed since the run was planned")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if folder.checkpoints():  # another number of threads would give other bits
        threads = folder.env().get("threads", threads)
    env = environment(threads, torch.cuda.get_device_name() if device.type == "cuda" else "cpu")
    begun = folder.env().get("code", {}) if folder.checkpoints() else {}
    env["code"] = together(begun, code_digests(spec))
    remove_partial(folder.path)
    folder.write_env(env)
    folder.add_attempt({**me(), "time": started, "commit": env["commit"]})
    _fix_randomness(spec.seed, threads)
    IMPLEMENTATIONS.clear()
    needed = _needed_weights(store, spec)
    if spec.train.method == "cost":
        counted = {**cost(spec, dataset, paths), **measure(spec, dataset, paths, device)}
        found = {"metrics": {}, "cost": counted}
    else:
        found = _learn(spec, dataset, paths, needed, device, store, folder, lease, on_step)
    lease.check()
    folder.write_result(
        {
            **found,
            "ceilings": {name: dict(values) for name, values in dataset.ceilings().items()},
            "code": env["code"],
            "needs": {needs: file_digest(needed) for needs in spec.needs.values() if needed},
            "implementations": dict(IMPLEMENTATIONS),
            "started": started,
            "finished": time.time(),
            "commit": env["commit"],
            "dirty": env["dirty"],
        }
    )


def _learn(
    spec: RunSpec,
    dataset: Dataset,
    paths: Paths,
    needed: Path | None,
    device: torch.device,
    store: Store,
    folder: RunFolder,
    lease: Lease,
    on_step: OnStep,
) -> dict[str, Any]:
    """Train and evaluate; writes weights and predictions, returns the rest of the result."""
    model, loaded = _build(spec, dataset, paths, needed)
    model.to(device)
    splits = ("select", "test") if spec.train.method == "evaluate" else ("train", "select", "test")
    feeds = {split: Feed(spec, dataset, split, model, device, store.tokens) for split in splits}
    counted = cost(spec, dataset, paths)
    torch.manual_seed(spec.seed)  # the store of tokens may or may not have drawn numbers
    predictions: Mapping[str, Predictions]
    if spec.train.method == "logistic_regression":
        from harness import reference  # scikit-learn, which no other run needs

        predictions, counted["coefficients"] = reference.fit(spec, model, feeds, dataset.targets)
    else:
        if spec.train.method == "gradient":
            train(spec, model, feeds, folder, lease, on_step)
        predictions = {split: predict(model, feeds[split], spec) for split in ("select", "test")}
    lease.check()
    weights = save({k: v.cpu() for k, v in model.trained_state().items()})
    write_atomic(folder.weights_file, lambda out: out.write(weights))
    folder.write_predictions(predictions["test"])
    return {
        "metrics": {
            f"{split}/{name}": value
            for split, said in predictions.items()
            for name, value in scores(said).items()
        },
        "ceiling": ceiling_name(spec, model),
        "cost": counted,
        "loaded": loaded,
        "samples": {split: len(feed) for split, feed in feeds.items()},
    }


def ceiling_name(spec: RunSpec, model: Model) -> str:
    """Which of the dataset's ceilings bounds this model."""
    if len(spec.encoders) == 1:
        return next(iter(spec.encoders))
    return "additive" if model.fusion.additive and spec.head == "linear" else "joint"


def _build(
    spec: RunSpec, dataset: Dataset, paths: Paths, needed: Path | None
) -> tuple[Model, dict[str, Any]]:
    """The model with its starting weights, and what was loaded from where.

    Encoders that start at random see the train split.
    """
    model = Model(spec, dataset, paths)
    for stream, encoder in model.encoders.items():
        learns = type(encoder).fit is not Encoder.fit  # type: ignore[attr-defined]
        if learns and starts_random(spec, stream):
            encoder.fit(_train_raws(dataset, stream))  # type: ignore[operator]
    loaded = load_weights(model, spec, paths, needed)
    for stream, told in loaded.items():
        print(f"{stream}: weights {_in_words(told)}", file=sys.stderr)
    if spec.train.method == "evaluate":
        check_complete(model, loaded)
    return model, loaded


def _in_words(told: Mapping[str, Any]) -> str:
    """`pretrained: 253 loaded, 24 missing (network.blocks.1.box_categories, ...)`."""
    words = [f"{told['loaded']} loaded"] if "loaded" in told else []
    for what in ("missing", "unexpected", "resized", "heads"):
        names = list(told.get(what, ()))
        if names:
            words.append(f"{len(names)} {what} ({names[0]}{', ...' if names[1:] else ''})")
    return f"{told['from']}: {', '.join(words) or 'loaded'}"


def _train_raws(dataset: Dataset, stream: str) -> list[Any]:
    items = dataset.split("train")
    step = max(1, len(items) // MAX_FIT_SAMPLES)
    samples = fetch(items, range(0, len(items), step))
    return [sample.streams[stream] for sample in samples]


def _needed_weights(store: Store, spec: RunSpec) -> Path | None:
    if "weights" not in spec.needs:
        return None
    folder = store.run(spec.needs["weights"])
    if folder.state() != "done":
        raise ValueError(f"needs the weights of run {folder.run_id}, which is {folder.state()}")
    return folder.weights_file


def _fix_randomness(seed: int, threads: int) -> None:
    torch.set_num_threads(threads)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    # the same as `use_deterministic_algorithms`, which imports torch's compiler for seconds
    torch.set_deterministic_debug_mode("default" if torch.cuda.is_available() else "error")
    # no memory is read before it is written: filling it with NaN only costs time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
