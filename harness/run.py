"""One run, top to bottom: data, encoders, fusion, training, evaluation, cost, record."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import random
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from harness.contracts import Dataset, Encoder
from harness.cost import cost
from harness.distributed import Group, World, find_world, opened
from harness.evaluate import Predictions, scores
from harness.feed import Feed
from harness.files import file_digest, remove_partial, write_atomic
from harness.lease import Lease, LeaseLost, LeaseTaken, me
from harness.loader import WorkerLost
from harness.measure import measure
from harness.model import Model, check_complete, load_weights, starts_random
from harness.predictions import signed
from harness.provenance import code_digests, environment, together
from harness.registry import IMPLEMENTATIONS, load_plugins
from harness.resume import Stopped
from harness.spec import Paths, RunSpec, dataset_of
from harness.splits import fetch
from harness.store import RunFolder, Store
from harness.train import OnStep, Stop, predict, train
from harness.weights import in_words

MAX_FIT_SAMPLES = 8192
"""samples an encoder's `fit` sees at most"""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)
ALONE = ("cost", "logistic_regression")
"""methods that one process does, however many there are"""


def run(
    store: Store,
    run_id: str,
    on_step: OnStep,
    threads: int = 1,
    stop: Stop = lambda: False,
) -> None:
    """Do the run `run_id`, whose spec is stored; if it is done already, nothing happens.

    Called in every process that a launcher started for the run; they share the work, and rank 0
    writes. `stop` is asked after each step of training. Raises Stopped when it said so in any
    process: the run is interrupted then, and goes on at that step. Raises LeaseTaken if others are
    at the run. Any other exception is a failure; its trace, of whichever rank, is stored first."""
    world = find_world()
    if world.size > 1 and store.run(run_id).method() in ALONE:
        if world.rank > 0:
            return
        world = World()
    with opened(world) as group:
        run_in(group, store, run_id, on_step, threads, stop)


def run_in(
    group: Group, store: Store, run_id: str, on_step: OnStep, threads: int, stop: Stop
) -> None:
    """`run`, by processes that are a group already."""
    folder = store.run(run_id)
    with _claimed(folder, group) as lease:
        if group.tell(folder.state() == "done"):
            return
        if group.watch is not None and lease is not None:
            group.watch.on_failure = partial(_store_failure, folder, lease)
        try:
            _run(_Job(store, folder, lease, group, on_step, stop), threads)
        except Stopped:
            raise
        except Exception as error:
            trace: str | None = traceback.format_exc()
            if not isinstance(error, FloatingPointError):  # which all ranks raise together
                trace = group.failed(error, traceback.format_exc())
            if lease is not None:
                lease.check()
                _store_failure(folder, lease, trace, lasting=not passing(error))
            elif trace is not None:
                print(trace, file=sys.stderr)
            raise


@dataclass(frozen=True)
class _Job:
    """What a run is given beside its spec."""

    store: Store
    folder: RunFolder
    lease: Lease | None
    """of rank 0, which alone writes"""
    group: Group
    on_step: OnStep
    stop: Stop


@contextlib.contextmanager
def _claimed(folder: RunFolder, group: Group) -> Iterator[Lease | None]:
    """Rank 0 has the lease, or LeaseTaken is raised in every rank."""
    with contextlib.ExitStack() as held:
        lease = taken = None
        if group.rank == 0:
            try:
                lease = held.enter_context(folder.lease())
            except LeaseTaken as error:
                taken = str(error)
        taken = group.tell(taken)
        if taken is not None:
            raise LeaseTaken(taken)
        yield lease


def _store_failure(
    folder: RunFolder, lease: Lease, trace: str | None, lasting: bool = True
) -> None:
    # a full disk must not hide what went wrong
    with contextlib.suppress(LeaseLost, OSError), lease.held():
        if trace is not None:
            folder.write_failure(trace, lasting)


def passing(error: Exception) -> bool:
    """Whether it is the fault of a disk, or of who killed a worker, and not the run's: that is an
    interruption."""
    disk = isinstance(error, OSError) and error.errno in DISK_ERRORS
    return disk or isinstance(error, WorkerLost)


def _run(job: _Job, threads: int) -> None:
    started = time.time()
    load_plugins()
    folder, lease, group = job.folder, job.lease, job.group
    stored = folder.spec()
    spec, paths = RunSpec(**stored["spec"]), stored["paths"]
    if spec.run_id != folder.run_id:
        raise ValueError(f"spec.json has the id {spec.run_id}, its folder is {folder.run_id}")
    if spec.train.method == "gradient" and spec.train.batch_size < group.size:
        raise ValueError(
            f"train.batch_size is {spec.train.batch_size}, too few for {group.size} processes: "
            f"each takes a share of every batch"
        )
    dataset = dataset_of(spec, paths)
    if dataset.fingerprint() != spec.fingerprint:
        raise ValueError(f"the data of {spec.data.name} have changed since the run was planned")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if folder.checkpoints():  # another number of threads would give other bits
        threads = folder.env().get("threads", threads)
    threads = group.tell(threads)
    env = environment(threads, torch.cuda.get_device_name() if device.type == "cuda" else "cpu")
    env["world"] = group.size
    begun = folder.env().get("code", {}) if folder.checkpoints() else {}
    env["code"] = together(begun, code_digests(spec))
    if lease is not None:
        with lease.held():
            remove_partial(folder.path)
            folder.write_env(env)
            folder.add_attempt({**me(), "time": started, "commit": env["commit"]})
    fix_randomness(spec.seed, threads)
    IMPLEMENTATIONS.clear()
    needed, told = needed_weights(job.store, spec), dict(dataset.told())
    if spec.train.method == "cost":
        counted = {**cost(spec, dataset, paths), **measure(spec, dataset, paths, device)}
        found: dict[str, Any] | None = {"metrics": {}, "cost": counted}
    else:
        found = _learn(spec, dataset, paths, needed, device, job, threads)
    if lease is None or found is None:
        return
    result = {
        **found,
        "ceilings": {name: dict(values) for name, values in dataset.ceilings().items()},
        "told": told,
        "classes": {name: list(names) for name, names in dataset.class_names().items()},
        "code": env["code"],
        "needs": {needs: file_digest(needed) for needs in spec.needs.values() if needed},
        "implementations": dict(IMPLEMENTATIONS),
        "started": started,
        "finished": time.time(),
        **{name: env[name] for name in ("commit", "dirty")},
    }
    with lease.held():
        folder.write_result(result)


def _learn(
    spec: RunSpec,
    dataset: Dataset,
    paths: Paths,
    needed: Path | None,
    device: torch.device,
    job: _Job,
    workers: int,
) -> dict[str, Any] | None:
    """Train and evaluate; rank 0 writes weights and predictions, and has the rest of the result."""
    folder, lease, group = job.folder, job.lease, job.group
    model, loaded = build(spec, dataset, paths, needed, told=group.rank == 0)
    group.align(model)
    model.to(device)
    splits = ("select", "test") if spec.train.method == "evaluate" else ("train", "select", "test")

    def feed_all() -> dict[str, Feed]:
        tokens = job.store.tokens
        return {
            split: Feed(spec, dataset, split, model, device, tokens, workers) for split in splits
        }

    # ranks that lack tokens of frozen encoders compute them together, each other shards
    feeds = feed_all()
    seen = dataset.windows("test") if group.rank == 0 else {}
    counted = cost(spec, dataset, paths) if group.rank == 0 else {}
    torch.manual_seed(group.seed(spec.seed))  # the store of tokens may have drawn numbers or not
    predictions: Mapping[str, Predictions | None]
    trained: Mapping[str, Any] = {}
    stored = {
        stream: f"{'given' if model.encoders[stream].passes_on else 'cached'} {file.precision}"
        for stream, file in feeds["test"].stored.items()
    }
    if spec.train.method == "logistic_regression":
        from harness import reference  # scikit-learn, which no other run needs

        predictions, counted["coefficients"] = reference.fit(spec, model, feeds, dataset.targets)
    else:
        if spec.train.method == "gradient":
            trained = train(spec, model, feeds, folder, lease, job.on_step, group, job.stop)
        predictions = {
            split: predict(model, feeds[split], spec, group) for split in ("select", "test")
        }
    whole = {split: said for split, said in predictions.items() if said is not None}
    bad = group.collect({split: feed.bad for split, feed in feeds.items()})
    if lease is None or bad is None:
        return None
    weights = save({k: v.cpu() for k, v in model.trained_state().items()})
    said = signed(whole["test"], spec, seen, hashlib.sha256(weights).hexdigest(), loaded)
    with lease.held():
        write_atomic(folder.weights_file, lambda out: out.write(weights))
        folder.write_predictions(said)
    return {
        "metrics": {
            f"{split}/{name}": value
            for split, said in whole.items()
            for name, value in scores(said).items()
        },
        "ceiling": ceiling_name(spec, model),
        "cost": counted,
        "loaded": loaded,
        "stored": stored,
        **trained,
        "samples": {split: len(feed) for split, feed in feeds.items()},
        "bad_samples": {
            split: {name: why for of_rank in bad for name, why in of_rank[split].items()}
            for split in feeds
        },
    }


def ceiling_name(spec: RunSpec, model: Model) -> str:
    """Which of the dataset's ceilings bounds this model."""
    if len(spec.encoders) == 1:
        return next(iter(spec.encoders))
    return "additive" if model.fusion.additive and spec.head == "linear" else "joint"


def build(
    spec: RunSpec, dataset: Dataset, paths: Paths, needed: Path | None, told: bool
) -> tuple[Model, dict[str, Any]]:
    """The model with its starting weights, and what was loaded from where.

    `told`: on stderr too. Encoders that start at random see the train split.
    """
    model = Model(spec, dataset, paths)
    for stream, encoder in model.encoders.items():
        learns = type(encoder).fit is not Encoder.fit  # type: ignore[attr-defined]
        if learns and starts_random(spec, stream):
            encoder.fit(_train_raws(dataset, stream))  # type: ignore[operator]
    loaded = load_weights(model, spec, paths, needed)
    for stream, found in loaded.items() if told else ():
        print(f"{stream}: weights {in_words(found)}", file=sys.stderr)
    if spec.train.method == "evaluate":
        check_complete(model, loaded)
    return model, loaded


def _train_raws(dataset: Dataset, stream: str) -> list[Any]:
    items = dataset.split("train")
    step = -(-len(items) // MAX_FIT_SAMPLES)
    return [sample.streams[stream] for sample in fetch(items, range(0, len(items), step))]


def needed_weights(store: Store, spec: RunSpec) -> Path | None:
    """Weights of the run that this one starts from. Raises ValueError where it is not done."""
    if "weights" not in spec.needs:
        return None
    folder = store.run(spec.needs["weights"])
    if folder.state() != "done":
        raise ValueError(f"needs the weights of run {folder.run_id}, which is {folder.state()}")
    return folder.weights_file


def fix_randomness(seed: int, threads: int) -> None:
    """Seeds, threads and deterministic algorithms of this process."""
    torch.set_num_threads(threads)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    # the same as `use_deterministic_algorithms`, which imports torch's compiler for seconds
    torch.set_deterministic_debug_mode("default" if torch.cuda.is_available() else "error")
    # no memory is read before it is written: filling it with NaN only costs time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
