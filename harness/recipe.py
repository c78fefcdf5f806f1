"""How a run is trained: every setting, and the recipes that name a set of them.

`train: {recipe: avion}` in a sweep file fills in what the file does not say itself. The run's spec
holds the values, so a recipe's name is no part of a run's identity.

Sources: `paper`, MambaVL sec. 4.1, and AVION's defaults where it is silent (its schedule is theirs
to the digit); `adamw`, none, ours; `avion`, Zhao & Kraehenbuehl, "Training a Large Video Model on a
Single Machine in a Day" (2023), and `orvit`, Herzig et al., "Object-Region Video Transformers"
(CVPR 2022), both as their code for EPIC-Kitchens-100 has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from harness.config import Config

Precision = Literal["float32", "bfloat16", "float16"]
Recipe = Literal["paper", "adamw", "avion", "orvit"]


class PeakLr(Config):
    """Learning rate after warm-up, per parameter group (paper sec. 4.1: 1e-3, Mamba block 3e-3)."""

    encoder: float = Field(default=1e-3, ge=0)
    """encoders that are not frozen"""
    fresh: float | None = Field(default=None, ge=0)
    """what an encoder adds to the network it is pretrained as, e.g. ORViT's object blocks; None: as
    the rest of it"""
    fusion: float = Field(default=1e-3, ge=0)
    """the fusion head"""
    head: float = Field(default=1e-3, ge=0)
    """the classifiers"""


LATER_IN_RATES = ("fresh",)
"""as LATER_IN_TRAINING"""


class TrainSpec(Config):
    """How a run is trained. Defaults: paper sec. 4.1; what it leaves open is said per field."""

    recipe: Recipe | None = None
    """fills in what is not written beside it; `harness list recipes` shows them"""
    method: Literal["gradient", "logistic_regression", "evaluate", "cost"] = "gradient"
    """`logistic_regression`: scikit-learn on the mean tokens; a reference row, not in the paper.
    `evaluate`: nothing is trained, a fine-tuned checkpoint is scored as it is. `cost`: only the
    cost of the model is counted"""
    epochs: int = Field(default=100, gt=0)
    """epochs of `steps_per_epoch` steps; metrics and a checkpoint are written after each"""
    steps_per_epoch: int | None = Field(default=None, gt=0)
    """optimiser steps per epoch; None: one pass over the train split, last short batch dropped"""
    batch_size: int = Field(default=128, gt=0)
    """samples per optimiser step, over all processes of a run together; `evaluate`: items that are
    scored at once"""
    accumulate: int = Field(default=1, gt=0)
    """parts of a batch that go through the model one after another, to fit into memory; the
    gradient is that of the whole batch"""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """not in the paper; SGD is the default of the recipe its schedule is taken from"""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """of SGD; not in the paper"""
    weight_decay: float = Field(default=4e-5, ge=0)
    """not in the paper; never on A_log and D"""
    decay_vectors: bool = False
    """whether parameters of one dimension, biases and norms, decay too"""
    no_decay: list[str] = []
    """last parts of the names of further parameters that do not decay, e.g. `pos_embed`"""
    schedule: Literal["cosine", "cosine_open", "steps"] = "cosine"
    """`cosine`: linear warm-up, then half a cosine whose last step has `end_lr`; `cosine_open`: the
    same as AVION and LaViLa count it, where the last step of the warm-up has the peak already and
    the cosine ends one step later than training; `steps`: the peak, times `step_factor` at each
    of `step_epochs`"""
    step_epochs: list[float] = []
    """epochs, from 0, at which the rate falls in the schedule `steps`"""
    step_factor: float = Field(default=0.1, gt=0)
    """what the rate is multiplied with there"""
    start_lr: float = Field(default=1e-6, ge=0)
    """learning rate at the first step of the warm-up"""
    peak_lr: PeakLr = PeakLr()
    end_lr: float = Field(default=1e-5, ge=0)
    """learning rate at the last step of the half-cosine"""
    warmup_epochs: float = Field(default=2, ge=0)
    """length of the linear warm-up"""
    lr_batch: int | None = Field(default=None, gt=0)
    """batch size that the rates are written for: with another all of them are scaled in proportion;
    None: they are taken as they are"""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """of each cross-entropy; not in the paper, 0.1 in the recipes it builds on"""
    mixup: float = Field(default=0.0, ge=0)
    """alpha of mixup (Zhang et al. 2018), 0: none. All streams of a sample are mixed with the same
    share; tokens of text one by one, where one of the two ends earlier with nothing"""
    cutmix: float = Field(default=0.0, ge=0)
    """alpha of CutMix (Yun et al. 2019), 0: none. A box of the other clip, the same in all frames;
    other streams are mixed with the share of its area"""
    mix_probability: float = Field(default=1.0, ge=0, le=1)
    """of a batch to be mixed at all"""
    mix_switch: float = Field(default=0.5, ge=0, le=1)
    """where both are on: probability of CutMix"""
    head_dropout: float = Field(default=0.0, ge=0, lt=1)
    """on the fused vector, before the classifiers"""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """decay of an exponential moving average of the weights, which is then what is evaluated and
    kept; None: none is made"""
    clip_norm: float | None = Field(default=None, gt=0)
    """largest norm of the whole gradient; None: not clipped"""
    precision: Precision = "float32"
    """of the forward pass, by autocast: parameters stay float32. float16 scales the loss"""
    compile: bool = False
    """`torch.compile` of encoders that are trained: faster on a GPU, rounds otherwise"""
    choose: Literal["last", "best"] = "last"
    """which epoch's weights count: the last, or the best on `select`; `test` has no say"""
    choose_by: str | None = None
    """metric of `best`, e.g. `action_top1`; None: the mean top-1 over the targets"""
    logistic_c: float = Field(default=1.0, gt=0)
    """inverse strength of the L2 penalty of `logistic_regression`"""
    bad_samples: Literal["repeat", "skip", "fail"] = "fail"
    """where a training sample cannot be read: the next one that can is taken twice, or the batch is
    smaller, or the run fails; frozen encoders know no smaller batch and repeat. All are counted"""
    bad_test_samples: Literal["skip", "fail"] = "fail"
    """the same for `select` and `test`; what is skipped is not scored, and the result says how many
    were; frozen encoders fail"""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.schedule == "steps" and not self.step_epochs:
            raise ValueError("schedule is steps, and step_epochs is empty; write e.g. [19, 40]")
        if self.step_epochs != sorted(self.step_epochs):
            raise ValueError(f"step_epochs must grow, not {self.step_epochs}")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate is {self.accumulate}, batch_size {self.batch_size}")
        if self.choose_by is not None and self.choose != "best":
            raise ValueError("choose_by is only asked for by choose: best")
        return self


LATER_IN_TRAINING = (
    "accumulate", "bad_samples", "bad_test_samples", "choose", "choose_by", "compile", "cutmix",
    "decay_vectors", "ema", "head_dropout", "lr_batch", "mix_probability", "mix_switch", "mixup",
    "no_decay", "schedule", "step_epochs", "step_factor",
)  # fmt: skip
"""settings that came after the version: at their defaults they are not hashed, so that what was run
before them keeps its id"""

POSITIONS = [
    "class_embedding", "positional_embedding", "temporal_embedding",  # AVION
    "cls_token", "pos_embed", "temp_embed", "temporal_embed",  # ORViT and LaViLa
    "positions", "cls",  # the small encoders of this project
]  # fmt: skip
"""parameters that say where a token is, by the names the encoders have for them"""

RECIPES: Final[Mapping[Recipe, Mapping[str, Any]]] = {
    "paper": {
        "epochs": 100,
        "batch_size": 128,
        "optimiser": "sgd",
        "momentum": 0.9,
        "weight_decay": 4e-5,
        "no_decay": POSITIONS,
        "schedule": "cosine",
        "warmup_epochs": 2,
        "start_lr": 1e-6,
        "peak_lr": {"encoder": 1e-3, "fusion": 1e-3, "head": 1e-3},
        "end_lr": 1e-5,
        "label_smoothing": 0.1,
    },
    "adamw": {
        "epochs": 100,
        "batch_size": 128,
        "optimiser": "adamw",
        "weight_decay": 0.05,
        "no_decay": POSITIONS,
        "schedule": "cosine",
        "warmup_epochs": 2,
        "start_lr": 1e-6,
        "peak_lr": {"encoder": 1e-4, "fusion": 3e-4, "head": 3e-4},
        "end_lr": 1e-6,
        "label_smoothing": 0.1,
    },
    "avion": {
        "epochs": 100,
        "batch_size": 512,
        "optimiser": "sgd",
        "momentum": 0.9,
        "weight_decay": 4e-5,
        "no_decay": ["positional_embedding", "pos_embed"],  # the temporal one decays
        "schedule": "cosine_open",
        "warmup_epochs": 2,
        "start_lr": 1e-6,
        "peak_lr": {"encoder": 3e-3, "fusion": 3e-3, "head": 3e-3},
        "end_lr": 1e-5,
        "lr_batch": 128,
        "label_smoothing": 0.1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "head_dropout": 0.5,
        "precision": "float16",
    },
    "orvit": {
        "epochs": 50,
        "batch_size": 16,
        "optimiser": "adamw",
        "weight_decay": 0.05,
        "decay_vectors": True,
        "no_decay": ["pos_embed", "cls_token", "temp_embed"],
        "schedule": "steps",
        "step_epochs": [19, 40],
        "warmup_epochs": 0,
        "peak_lr": {"encoder": 1e-5, "fresh": 1e-4, "fusion": 1e-5, "head": 1e-5},
        "label_smoothing": 0.1,
        "precision": "float16",
    },
}

MAMBA: Final[Mapping[Recipe, Mapping[str, Any]]] = {"paper": {"peak_lr": {"fusion": 3e-3}}}
"""what a recipe has otherwise for fusion heads made of Mamba blocks (paper sec. 4.1)"""


def recipe(name: Recipe, mamba: bool) -> dict[str, Any]:
    """Settings of a recipe, nested; `mamba`: for a fusion head made of Mamba blocks."""
    found = {**RECIPES[name], "recipe": name}
    for key, value in (MAMBA.get(name, {}) if mamba else {}).items():
        found[key] = {**found[key], **value}
    return found
