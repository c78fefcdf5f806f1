"""Which parameters are trained, at which rates and with which decay; and how the rates change."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from harness.recipe import TrainSpec

NO_DECAY_NAMES = {"A_log", "D"}
"""parameters so called, or inside a dictionary so called, e.g. one A_log per stream"""
NAMES = 2
"""parameters of a group that are named in its description"""

Groups = list[dict[str, Any]]


def parameter_groups(model: nn.Module, config: TrainSpec) -> Groups:
    """Encoder (and what it has fresh), fusion and head parameters, with and without weight decay.

    Without: A_log and D of a scan, what `no_decay` names, and parameters of one dimension (biases,
    norms) unless `decay_vectors`.
    """
    groups: dict[tuple[str, bool], dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            long = parameter.ndim > 1 or config.decay_vectors
            part, names = _part(model, name, config), name.split(".")
            kept = part == "fusion" and not NO_DECAY_NAMES.isdisjoint(names[-2:])
            kept = kept or (part != "head" and names[-1] in config.no_decay)
            groups.setdefault((part, long and not kept), {})[name] = parameter
    scale = _scale(config)
    return [
        {
            "name": part if decays else f"{part}, no decay",
            "part": part,
            "params": list(named.values()),
            "first": list(named)[:NAMES],
            "peak_lr": scale * getattr(config.peak_lr, part),
            "lr": scale * config.start_lr,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (part, decays), named in groups.items()
    ]


def _scale(config: TrainSpec) -> float:
    """What all rates are multiplied with."""
    return 1.0 if config.lr_batch is None else config.batch_size / config.lr_batch


def _part(model: nn.Module, name: str, config: TrainSpec) -> str:
    """`encoder`, `fresh`, `fusion` or `head`."""
    first, _, rest = name.partition(".")
    if first != "encoders":
        return "fusion" if first == "fusion" else "head"
    stream, _, inside = rest.partition(".")
    encoder = model.get_submodule(f"encoders.{stream}")
    fresh = getattr(encoder, "may_start_fresh", "")
    added = config.peak_lr.fresh is not None and re.fullmatch(fresh, inside)
    return "fresh" if added else "encoder"


def described(groups: Groups) -> list[dict[str, Any]]:
    """What is recorded of the groups."""
    return [
        {
            "name": group["name"],
            "parameters": sum(p.numel() for p in group["params"]),
            "tensors": len(group["params"]),
            "peak_lr": group["peak_lr"],
            "weight_decay": group["weight_decay"],
            "first": group["first"],
        }
        for group in groups
    ]


def in_words(groups: Sequence[Mapping[str, Any]]) -> str:
    """A table of what `described` says, for people."""
    lines = [
        f"{'trained':20} {'parameters':>12} {'tensors':>8} {'peak rate':>10} {'decay':>8}  first"
    ]
    for group in groups:
        more = ", ..." if group["tensors"] > len(group["first"]) else ""
        lines.append(
            f"{group['name']:20} {group['parameters']:12,} {group['tensors']:8} "
            f"{group['peak_lr']:10.4g} {group['weight_decay']:8.4g}  "
            f"{', '.join(group['first'])}{more}"
        )
    return "\n".join(lines if groups else ["nothing is trained"])


def make_optimiser(groups: Groups, config: TrainSpec) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW, over the groups."""
    given = [{k: v for k, v in group.items() if k != "first"} for group in groups]
    if config.optimiser == "sgd":
        return torch.optim.SGD(given, lr=config.start_lr, momentum=config.momentum)
    return torch.optim.AdamW(given, lr=config.start_lr)


def set_learning_rates(
    optimiser: torch.optim.Optimizer, step: int, total: int, per_epoch: int, config: TrainSpec
) -> None:
    """Give every group its own rate for `step`, counted from 0."""
    warmup = round(config.warmup_epochs * per_epoch)
    start, end = _scale(config) * config.start_lr, _scale(config) * config.end_lr
    for group in optimiser.param_groups:
        peak = group["peak_lr"]
        if config.schedule == "steps":
            passed = sum(step / per_epoch >= epoch for epoch in config.step_epochs)
            reached = peak * config.step_factor**passed
            rate = reached if step >= warmup else start + (peak - start) * step / warmup
        else:
            open_end = config.schedule == "cosine_open"
            rate = learning_rate(step, total, warmup, start, peak, end, open_end)
        group["lr"] = rate if peak else 0.0


def learning_rate(
    step: int,
    total: int,
    warmup: int,
    start: float,
    peak: float,
    end: float,
    open_end: bool = False,
) -> float:
    """Linear from `start` at step 0 to `peak` at step `warmup`, then half a cosine to `end`.

    Source: paper sec. 4.1. The last step, `total - 1`, has `end`. With `open_end` as AVION and
    LaViLa count: the step before `warmup` has the peak too, and a step `total` would have `end`. A
    peak of 0 stays 0: that group is not trained.
    """
    if peak == 0:
        return 0.0
    last = 1 if open_end else 0
    if step < warmup:
        return start + (peak - start) * min(1.0, step / max(1, warmup - last))
    progress = (step - warmup) / max(1, total - 1 + last - warmup)
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
