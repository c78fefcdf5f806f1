"""A model in training: one optimiser step, and all that must be kept to take the next one."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from harness.batch import Batch
from harness.contracts import Dataset
from harness.distributed import Group
from harness.evaluate import Predictions, scores
from harness.mix import cuts, draw_mix, mixed
from harness.model import Model
from harness.optimise import make_optimiser, parameter_groups
from harness.recipe import Precision
from harness.spec import RunSpec

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Learner:
    """The model of a run, its optimiser, the scale of a float16 loss, the average of its weights,
    and the best weights so far where these are asked for."""

    def __init__(
        self, spec: RunSpec, model: Model, dataset: Dataset, group: Group, device: torch.device
    ) -> None:
        self.spec, self.config, self.group, self.model = spec, spec.train, group, model
        self.device = device
        self.cuts = cuts(spec, dataset.streams)
        self.groups = parameter_groups(model, self.config)
        self.optimiser = make_optimiser(self.groups, self.config)
        scaled = self.config.precision == "float16"
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)  # type: ignore[attr-defined]
        self.average = _copied(model) if self.config.ema is not None else None
        """the model with averaged weights"""
        self.averaged = 0
        """steps that are in the average"""
        self.best: dict[str, Any] | None = None
        """`epoch`, `value`, `model`"""
        if self.config.compile:
            for stream in model.encoders:
                if stream not in model.frozen:
                    model.encoders[stream].compile()
        self.trained = group.wrap(model)

    @property
    def evaluated(self) -> Model:
        """The model that is scored: with averaged weights, where there are any."""
        return self.average or self.model

    def step(self, batch: Batch, number: int) -> float:
        """One optimiser step, with this rank's part of a batch; its part of the loss (sum of the
        targets' cross-entropies, mean over the whole batch) before it. `number` counts from 0."""
        config = self.config
        share = len(self.group.share(config.batch_size)) / config.batch_size
        mix = draw_mix(config, self.spec.seed, number)
        self.optimiser.zero_grad(set_to_none=True)
        own = 1.0
        if mix is not None:
            batch, own = mixed(batch, mix, self.cuts)
        parts = [batch] if config.accumulate == 1 else list(batch.parts(config.accumulate))
        total = 0.0
        for part in parts:
            last = part is parts[-1]
            weight = share * (len(part) / len(batch))
            with self.group.exchanging(), contextlib.nullcontext() if last else self._alone():
                with autocast(self.device, config.precision):
                    logits = self.trained(part.inputs, part.side)
                    loss = total_loss(logits, part.targets, config.label_smoothing)
                    if part.others is not None:
                        other = total_loss(logits, part.others, config.label_smoothing)
                        loss = own * loss + (1 - own) * other
                # gradients are means over the ranks, whose shares may be unequal
                self.scaler.scale(loss * (weight * self.group.size)).backward()
            total += float(loss.detach()) * weight
        if config.clip_norm is not None:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.average is not None:
            self._take_into(self.average)
        return total

    @torch.no_grad()
    def _take_into(self, average: Model) -> None:
        """The step's weights into their average; frozen encoders are the model's own."""
        from torch.optim.swa_utils import get_ema_multi_avg_fn

        assert self.config.ema is not None
        ours = average.trained_parameters()
        new = self.model.trained_parameters()
        if self.averaged:
            get_ema_multi_avg_fn(self.config.ema)(ours, new, self.averaged)
        else:
            torch._foreach_copy_(ours, new)
        self.averaged += 1

    def _alone(self) -> AbstractContextManager[None]:
        """Gradients are kept and not exchanged yet."""
        if isinstance(self.trained, DistributedDataParallel):
            return cast(AbstractContextManager[None], self.trained.no_sync())
        return contextlib.nullcontext()

    def judge(self, said: Predictions | None, epoch: int) -> None:
        """Keep the weights if they are the best so far; rank 0 has what they say of `select`."""
        if self.config.choose != "best":
            return
        value = None if said is None else choice(scores(said), list(said.logits), self.config)
        value = self.group.tell(value)
        if self.best is None or value > self.best["value"]:
            weights = self.evaluated.trained_state()
            self.best = {"epoch": epoch, "value": value, "model": weights}

    def settle(self) -> int | None:
        """Give the model the weights that count; the epoch they are of, where one was chosen."""
        if self.best is not None:
            self.model.load_state_dict(self.best["model"], strict=False)
            return int(self.best["epoch"])
        if self.average is not None:
            self.model.load_state_dict(self.evaluated.trained_state(), strict=False)
        return None

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        state: dict[str, Any] = {
            "model": self.model.trained_state(),
            "optimiser": self.optimiser.state_dict(),
        }
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        if self.average is not None:
            state["average"] = self.evaluated.trained_state()
            state["averaged"] = self.averaged
        if self.best is not None:
            state["best"] = self.best
        return state

    def load_state(self, state: Mapping[str, Any], file: str) -> None:
        """Back from `state`, which `file` holds. Raises ValueError if something is missing."""
        self._load(self.model, state["model"], file)
        self.optimiser.load_state_dict(state["optimiser"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self._load(self.evaluated, state["average"], file)
            self.averaged = int(state["averaged"])
        self.best = state.get("best")

    def _load(self, model: Model, state: Mapping[str, Tensor], file: str) -> None:
        missing = model.load_state_dict(state, strict=False).missing_keys
        frozen = tuple(f"encoders.{stream}." for stream in model.frozen)
        if any(not name.startswith(frozen) for name in missing):
            raise ValueError(f"{file}: lacks {missing}")


def _copied(model: Model) -> Model:
    """A copy of the model; frozen encoders are the model's own."""
    kept = {stream: model.encoders[stream] for stream in model.frozen}
    for stream in kept:
        model.encoders[stream] = nn.Identity()  # it is not copied
    try:
        made = copy.deepcopy(model)
    finally:
        for stream, encoder in kept.items():
            model.encoders[stream] = encoder
    for stream, encoder in kept.items():
        made.encoders[stream] = encoder
    return made


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The forward pass in some precision."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


def total_loss(
    logits: Mapping[str, Tensor], targets: Mapping[str, Tensor], smoothing: float
) -> Tensor:
    """Sum over targets of the mean cross-entropy, in float32."""
    losses = [
        F.cross_entropy(logits[name].float(), targets[name], label_smoothing=smoothing)
        for name in sorted(logits)
    ]
    return torch.stack(losses).sum()


def choice(found: Mapping[str, float], targets: list[str], config: Any) -> float:
    """What epochs are chosen by, of the scores of `select`."""
    if config.choose_by is not None:
        return found[config.choose_by]
    pairs = "action_joint_top1" in found  # the head over actions has a name of its own
    names = ["action_joint" if pairs and name == "action" else name for name in targets]
    return sum(found[f"{name}_top1"] for name in names) / len(names)
