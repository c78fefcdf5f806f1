"""The training loop: schedule, parameter groups, stopping and going on.

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
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.contracts import BadSample, Dataset
from harness.distributed import Group
from harness.evaluate import Predictions, pairs_of, scores
from harness.feed import Batch, Feed
from harness.lease import Lease
from harness.model import Model
from harness.resume import Keeper, Place, Stopped
from harness.spec import RunSpec, TrainSpec
from harness.splits import Labels
from harness.store import RunFolder

NO_DECAY_NAMES = {"A_log", "D"}
"""parameters so called, or inside a dictionary so called, e.g. one A_log per stream"""
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
) -> None:
    """Train `model` in place; one line of metrics and one checkpoint per epoch, further checkpoints
    by the clock. The process that has the lease writes them.

    Raises Stopped, with a checkpoint written, once `stop` says so.
    """
    config = spec.train
    per_epoch = config.steps_per_epoch or len(feeds["train"]) // config.batch_size
    optimiser = make_optimiser(parameter_groups(model, config), config)
    keeper = Keeper(folder, lease, group, model, optimiser)
    place = keeper.load()
    if lease is not None:
        with lease.held():
            folder.cut_metrics(place.epoch)
    trained = group.wrap(model)

    total = per_epoch * config.epochs
    share = group.share(config.batch_size)
    batches = feeds["train"].training(place.epoch * per_epoch + place.step, total, share)

    def step_once(step: int) -> float:
        set_learning_rates(optimiser, step, total, per_epoch, config)
        return train_step(spec, trained, next(batches), optimiser, group)

    for epoch in range(place.epoch + 1, config.epochs + 1):
        started = time.time() - place.seconds
        model.train()
        mean_loss = _epoch(place, per_epoch, config.epochs, step_once, keeper, on_step, stop)
        if not math.isfinite(mean_loss):
            raise FloatingPointError(f"the loss is {mean_loss} in epoch {epoch}; lower the rates")
        said = predict(model, feeds["select"], spec, group)
        if lease is not None and said is not None:
            row = {
                "epoch": epoch,
                "step": epoch * per_epoch,
                "time": time.time(),
                "epoch_seconds": time.time() - started,
                "train/loss": mean_loss,
                **{f"lr/{part['part']}": part["lr"] for part in optimiser.param_groups},
                **{f"select/{name}": value for name, value in scores(said).items()},
            }
            with lease.held():
                folder.append_metrics(row)
        place = Place(epoch)
        keeper.save(place)


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


def train_step(
    spec: RunSpec,
    model: nn.Module,
    batch: Batch,
    optimiser: torch.optim.Optimizer,
    group: Group,
) -> float:
    """One optimiser step with this rank's part of a batch; its part of the loss (sum of the
    targets' cross-entropies, mean over the whole batch) before it."""
    config = spec.train
    share = len(group.share(config.batch_size)) / config.batch_size
    device = next(iter(batch.targets.values())).device
    with group.exchanging():
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            logits = model(batch.inputs, batch.side)
            loss = total_loss(logits, batch.targets, config.label_smoothing)
        optimiser.zero_grad(set_to_none=True)
        # gradients are means over the ranks, whose shares may be unequal
        (loss * (share * group.size)).backward()
    if config.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimiser.step()
    return float(loss.detach()) * share


def total_loss(
    logits: Mapping[str, Tensor], targets: Mapping[str, Tensor], smoothing: float
) -> Tensor:
    """Sum over targets of the mean cross-entropy, in float32."""
    losses = [
        F.cross_entropy(logits[name].float(), targets[name], label_smoothing=smoothing)
        for name in sorted(logits)
    ]
    return torch.stack(losses).sum()


@torch.no_grad()
def predict(model: Model, feed: Feed, spec: RunSpec, group: Group) -> Predictions | None:
    """Logits of a whole split, in its order, at rank 0; None in the other ranks."""
    model.eval()
    labels, logits = [], []
    size = evaluation_batch(spec, feed.dataset, group.size)
    for batch in feed.batches(size, group.share(len(feed))):
        with torch.autocast(
            feed.device.type, torch.bfloat16, enabled=spec.train.precision == "bfloat16"
        ):
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


def parameter_groups(model: Model, config: TrainSpec) -> list[dict[str, Any]]:
    """Encoder, fusion and head parameters, each with and without weight decay.

    No decay on parameters of one dimension (biases, norms), and on A_log and D of a scan.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = {"encoders": "encoder", "fusion": "fusion"}.get(name.split(".")[0], "head")
            decays = parameter.ndim > 1 and NO_DECAY_NAMES.isdisjoint(name.split("."))
            groups.setdefault((part, decays), []).append(parameter)
    return [
        {
            "name": part if decays else f"{part}, no decay",
            "part": part,
            "params": parameters,
            "peak_lr": getattr(config.peak_lr, part),
            "lr": config.start_lr,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in groups.items()
    ]


def make_optimiser(groups: list[dict[str, Any]], config: TrainSpec) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW, over the groups."""
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=config.start_lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.start_lr)


def set_learning_rates(
    optimiser: torch.optim.Optimizer, step: int, total: int, per_epoch: int, config: TrainSpec
) -> None:
    """Give every group its own rate for `step`."""
    warmup = round(config.warmup_epochs * per_epoch)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(
            step, total, warmup, config.start_lr, group["peak_lr"], config.end_lr
        )


def learning_rate(
    step: int, total: int, warmup: int, start: float, peak: float, end: float
) -> float:
    """Linear from `start` at step 0 to `peak` at step `warmup`, then half a cosine to `end`.

    Source: paper sec. 4.1. The last step, `total - 1`, has `end`. A peak of 0 stays 0: that group
    is not trained.
    """
    if peak == 0:
        return 0.0
    if step < warmup:
        return start + (peak - start) * step / warmup
    progress = (step - warmup) / max(1, total - 1 - warmup)
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
