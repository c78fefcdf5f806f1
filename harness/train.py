"""The training loop: epochs, stopping and going on.

A run is a function of its spec: batch order is keyed by (seed, pass), the learning rate by the
step, and the checkpoint holds what is left (weights, optimiser, random state). Killed or stopped
at any moment and started again, it ends with the same bits on a CPU with the same number of threads
and processes. On CUDA the scan's backward is not deterministic: there a resumed run continues, it
does not repeat bit for bit.

Several processes each take a share of every batch. Which samples a batch holds does not depend on
their number, and the gradient is that of the whole batch, whatever the shares.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.contracts import BadSample, Dataset
from harness.distributed import Group
from harness.evaluate import Predictions, pairs_of, scores
from harness.feed import Feed
from harness.learner import Learner, autocast
from harness.lease import Lease
from harness.model import Model
from harness.optimise import described, in_words, set_learning_rates
from harness.resume import Keeper, Place, Stopped
from harness.spec import RunSpec
from harness.splits import Labels
from harness.store import RunFolder

EVALUATION_BATCH = 256
"""items that are scored together, where they are small"""

OnStep = Callable[[int, int, float], None]
"""called in every process with (step, steps in all, loss)"""
Stop = Callable[[], bool]
"""asked in every process after each step; True in any of them stops the run"""


def train(
    spec: RunSpec,
    model: Model,
    feeds: Mapping[str, Feed],
    folder: RunFolder,
    lease: Lease | None,
    on_step: OnStep,
    group: Group,
    stop: Stop,
) -> dict[str, Any]:
    """Train `model` in place; one line of metrics and one checkpoint per epoch, further checkpoints
    by the clock. The process that has the lease writes them. What is recorded of it: `groups` of
    parameters, and `chosen_epoch`, None where none was chosen.

    Raises Stopped, with a checkpoint written, once `stop` says so.
    """
    config = spec.train
    feed = feeds["train"]
    per_epoch = steps_per_epoch(spec, len(feed))
    learner = Learner(spec, model, feed.dataset, group, feed.device)
    keeper = Keeper(folder, lease, group, learner)
    place = keeper.load()
    groups = described(learner.groups)
    if lease is not None:
        print(in_words(groups), file=sys.stderr)
        with lease.held():
            folder.cut_metrics(place.epoch)

    total = per_epoch * config.epochs
    batches = feed.training(
        place.epoch * per_epoch + place.step, total, group.share(config.batch_size)
    )

    def step_once(step: int) -> float:
        set_learning_rates(learner.optimiser, step, total, per_epoch, config)
        return learner.step(next(batches), step)

    for epoch in range(place.epoch + 1, config.epochs + 1):
        started = time.time() - place.seconds
        model.train()
        mean_loss = _epoch(place, per_epoch, config.epochs, step_once, keeper, on_step, stop)
        if not math.isfinite(mean_loss):
            raise FloatingPointError(f"the loss is {mean_loss} in epoch {epoch}; lower the rates")
        said = predict(learner.evaluated, feeds["select"], spec, group)
        learner.judge(said, epoch)
        if lease is not None and said is not None:
            row = {
                "epoch": epoch,
                "step": epoch * per_epoch,
                "time": time.time(),
                "epoch_seconds": time.time() - started,
                "train/loss": mean_loss,
                **{f"lr/{part['part']}": part["lr"] for part in learner.optimiser.param_groups},
                **{f"select/{name}": value for name, value in scores(said).items()},
            }
            with lease.held():
                folder.append_metrics(row)
        place = Place(epoch)
        keeper.save(place)
    return {"groups": groups, "chosen_epoch": learner.settle()}


def steps_per_epoch(spec: RunSpec, samples: int) -> int:
    """Optimiser steps of an epoch with so many training samples."""
    return spec.train.steps_per_epoch or samples // spec.train.batch_size


def _epoch(
    place: Place,
    per_epoch: int,
    epochs: int,
    step_once: Callable[[int], float],
    keeper: Keeper,
    on_step: OnStep,
    stop: Stop,
) -> float:
    """The rest of the epoch that `place` is in; the mean loss of all of it."""
    started = time.time() - place.seconds
    loss_sum = place.loss_sum
    for done in range(place.step + 1, per_epoch + 1):
        step = place.epoch * per_epoch + done
        loss, asked, due = keeper.group.add(step_once(step - 1), stop(), keeper.due())
        loss_sum += loss
        on_step(step, per_epoch * epochs, loss)
        if asked or due:
            keeper.save(Place(place.epoch, done, loss_sum, time.time() - started))
        if asked:
            keeper.group.meet()  # the checkpoint is there: a launcher may end all ranks with one
            raise Stopped(f"stopped after step {step}")
    return loss_sum / max(1, per_epoch)


@torch.no_grad()
def predict(model: Model, feed: Feed, spec: RunSpec, group: Group) -> Predictions | None:
    """Logits of a whole split, in its order, at rank 0; None in the other ranks."""
    model.eval()
    labels, logits = [], []
    size = evaluation_batch(spec, feed.dataset, group.size)
    for batch in feed.batches(size, group.share(len(feed))):
        with autocast(feed.device, spec.train.precision):
            out = model(batch.inputs, batch.side)
        labels.append(batch.labels.at(np.arange(0, len(batch.labels.ids), feed.views)))
        logits.append({name: over_views(value, feed.views) for name, value in out.items()})
    parts = group.collect((labels, logits))
    if parts is None:
        return None
    said = [each for _, of_rank in parts for each in of_rank]
    if not said:
        raise BadSample(f"no sample can be read: {next(iter(feed.bad.values()), 'all are bad')}")
    joined = Labels.join([each for of_rank, _ in parts for each in of_rank])
    return Predictions(
        joined.ids,
        joined.groups,
        joined.subsets,
        joined.targets,
        {name: np.concatenate([part[name] for part in said]) for name in said[0]},
        pairs_of(feed.dataset.actions()),
    )


def evaluation_batch(spec: RunSpec, dataset: Dataset, ranks: int = 1) -> int:
    """Items that each of `ranks` processes scores together: as many as it trains on, where a sample
    is large, or where nothing else is done with the model."""
    if dataset.slow or spec.train.method == "evaluate":
        return max(1, spec.train.batch_size // ranks)
    return EVALUATION_BATCH


def over_views(logits: Tensor, views: int) -> npt.NDArray[np.float32]:
    """(B views, classes) -> (B, classes), the logarithm of the mean of the views' softmax."""
    logits = logits.float()
    if views > 1:
        said = logits.log_softmax(1).unflatten(0, (-1, views))
        logits = said.logsumexp(dim=1) - math.log(views)
    return np.asarray(logits.cpu().numpy())
