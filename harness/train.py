"""The training loop: schedule, parameter groups, exact resume.

A run is a function of its spec: batch order is keyed by (seed, pass), the learning rate by the
step, and the checkpoint holds what is left (weights, optimiser, random state). Killed at any moment
and started again, it ends with the same bits on a CPU with the same number of threads. On CUDA the
scan's backward is not deterministic: there a resumed run continues, it does not repeat bit for bit.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.evaluate import Predictions, scores
from harness.feed import Feed
from harness.lease import Lease
from harness.model import Model
from harness.spec import RunSpec, TrainSpec
from harness.splits import Labels, batch_indices
from harness.store import RunFolder

NO_DECAY_NAMES = {"A_log", "D"}
"""parameters so called, or inside a dictionary so called, e.g. one A_log per stream"""
EVALUATION_BATCH = 256

OnStep = Callable[[int, int, float], None]
"""called with (step, steps in all, loss)"""


def train(
    spec: RunSpec,
    model: Model,
    feeds: Mapping[str, Feed],
    folder: RunFolder,
    lease: Lease,
    on_step: OnStep,
) -> None:
    """Train `model` in place; one line of metrics and one checkpoint per epoch."""
    config = spec.train
    per_epoch = config.steps_per_epoch or len(feeds["train"]) // config.batch_size
    total = per_epoch * config.epochs
    groups = parameter_groups(model, config)
    optimiser = make_optimiser(groups, config)
    first = _resume(folder, model, optimiser)
    folder.cut_metrics(first)
    for epoch in range(first + 1, config.epochs + 1):
        started = time.time()
        model.train()
        loss_sum = torch.zeros((), dtype=torch.float64)
        for step in range((epoch - 1) * per_epoch, epoch * per_epoch):
            set_learning_rates(optimiser, step, total, per_epoch, config)
            loss = train_step(spec, model, feeds["train"], optimiser, step)
            loss_sum += loss
            on_step(step + 1, total, loss)
        mean_loss = float(loss_sum) / max(1, per_epoch)
        if not math.isfinite(mean_loss):
            raise FloatingPointError(f"the loss is {mean_loss} in epoch {epoch}; lower the rates")
        row = {f"select/{k}": v for k, v in scores(predict(model, feeds["select"], spec)).items()}
        lease.check()
        folder.append_metrics(
            {
                "epoch": epoch,
                "step": epoch * per_epoch,
                "time": time.time(),
                "epoch_seconds": time.time() - started,
                "train/loss": mean_loss,
                **{f"lr/{group['part']}": group["lr"] for group in optimiser.param_groups},
                **row,
            }
        )
        _save(folder, model, optimiser, epoch)


def train_step(
    spec: RunSpec, model: Model, feed: Feed, optimiser: torch.optim.Optimizer, step: int
) -> float:
    """One optimiser step; the loss (sum of the targets' cross-entropies) before it."""
    config = spec.train
    batch = feed.batch(batch_indices(spec.seed, step, config.batch_size, len(feed)))
    with torch.autocast(feed.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        logits = model(batch.inputs, batch.side)
        loss = total_loss(logits, batch.targets, config.label_smoothing)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if config.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimiser.step()
    return float(loss.detach())


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
def predict(model: Model, feed: Feed, spec: RunSpec) -> Predictions:
    """Logits of a whole split, in its order."""
    model.eval()
    labels, logits = [], []
    for batch in feed.batches(EVALUATION_BATCH):
        with torch.autocast(
            feed.device.type, torch.bfloat16, enabled=spec.train.precision == "bfloat16"
        ):
            out = model(batch.inputs, batch.side)
        labels.append(batch.labels)
        logits.append({name: value.float().cpu().numpy() for name, value in out.items()})
    joined = Labels.join(labels)
    return Predictions(
        joined.ids,
        joined.groups,
        joined.subsets,
        joined.targets,
        {name: np.concatenate([part[name] for part in logits]) for name in logits[0]},
    )


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


def _save(folder: RunFolder, model: Model, optimiser: torch.optim.Optimizer, epoch: int) -> None:
    state = {
        "epoch": epoch,
        "model": model.trained_state(),
        "optimiser": optimiser.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    whole = io.BytesIO()  # torch would hide why writing failed, e.g. a full disk
    torch.save(state, whole)
    folder.save_checkpoint(lambda out: out.write(whole.getbuffer()))


def _resume(folder: RunFolder, model: Model, optimiser: torch.optim.Optimizer) -> int:
    """Load the newest readable checkpoint; the number of epochs it has behind it."""
    for file in folder.checkpoints():
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # whatever bytes torch or pickle trip over: the one before it is whole
            continue
        missing = model.load_state_dict(state["model"], strict=False).missing_keys
        frozen = tuple(f"encoders.{stream}." for stream in model.frozen)
        if any(not name.startswith(frozen) for name in missing):
            raise ValueError(f"{file}: lacks {missing}")
        optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["rng"])
        if torch.cuda.is_available() and state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        return int(state["epoch"])
    return 0
