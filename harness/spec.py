"""RunSpec: everything that determines one result, plugin defaults written in, hashed into its id.

Paths are not part of it: an option that names an input file holds `sha256:<digest>` of the content
instead, and `Paths` tells a machine where that content lies. Launcher, device and number of workers
are not part of it either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from harness.config import Config
from harness.contracts import Dataset, PluginConfig
from harness.files import content_digest
from harness.registry import DATASETS, Registry

SPEC_VERSION: Final = 2
"""raised when the meaning of a spec changes, so that no old result is taken for a new one"""

Paths = Mapping[str, str]
"""`sha256:<digest>` -> absolute path of the file with that content; `data.<dataset>.<place>` ->
what the site file says of it"""


class PluginSpec(Config):
    name: str
    """registered name"""
    options: dict[str, Any] = {}
    """its options; defaults are filled in when the spec is resolved"""


class EncoderSpec(PluginSpec):
    frozen: bool = False
    """not trained; its tokens are computed once and shared by all runs that need them"""
    init: str | None = None
    """`random`, `pretrained:<file>` or `finetuned:<file>`: a state dict of the encoder or a
    published checkpoint; of the latter a `finetuned` one must be complete, and its classifiers are
    loaded too where they fit. `random` gives way to `needs.weights`. None: the encoder's default"""


class PeakLr(Config):
    """Learning rate after warm-up, per parameter group (paper sec. 4.1: 1e-3, Mamba block 3e-3)."""

    encoder: float = Field(default=1e-3, ge=0)
    """encoders that are not frozen"""
    fusion: float = Field(default=1e-3, ge=0)
    """the fusion head"""
    head: float = Field(default=1e-3, ge=0)
    """the classifiers"""


class TrainSpec(Config):
    """How a run is trained. Defaults: paper sec. 4.1; what it leaves open is said per field."""

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
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """not in the paper; SGD is the default of the recipe its schedule is taken from"""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """of SGD; not in the paper"""
    weight_decay: float = Field(default=4e-5, ge=0)
    """not in the paper; never on 1-D parameters, A_log and D"""
    start_lr: float = Field(default=1e-6, ge=0)
    """learning rate at the first step of the warm-up"""
    peak_lr: PeakLr = PeakLr()
    end_lr: float = Field(default=1e-5, ge=0)
    """learning rate at the last step of the half-cosine"""
    warmup_epochs: float = Field(default=2, ge=0)
    """length of the linear warm-up"""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """of each cross-entropy; not in the paper, 0.1 in the recipes it builds on"""
    clip_norm: float | None = Field(default=None, gt=0)
    """largest norm of the whole gradient; None: not clipped"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast, parameters stay float32"""
    logistic_c: float = Field(default=1.0, gt=0)
    """inverse strength of the L2 penalty of `logistic_regression`"""
    bad_samples: Literal["repeat", "skip", "fail"] = "fail"
    """where a training sample cannot be read: the next one that can is taken twice, or the batch is
    smaller, or the run fails; frozen encoders know no smaller batch and repeat. All are counted"""
    bad_test_samples: Literal["skip", "fail"] = "fail"
    """the same for `select` and `test`; what is skipped is not scored, and the result says how many
    were; frozen encoders fail"""


LATER = ("bad_samples", "bad_test_samples")
"""settings of training that came after the version: at their defaults they are not hashed, so that
what was run before them keeps its id"""


class RunSpec(Config):
    """One run."""

    version: Literal[2] = SPEC_VERSION
    data: PluginSpec
    """dataset"""
    encoders: dict[str, EncoderSpec] = Field(min_length=1)
    """stream name -> encoder; the streams named here are the ones the run sees"""
    fusion: PluginSpec
    head: Literal["linear", "pre_logits"] = "linear"
    """`pre_logits`: linear and tanh, as ORViT, before the linear classifiers"""
    width: int = Field(default=768, gt=0)
    """D of the fused vector"""
    train: TrainSpec = TrainSpec()
    needs: dict[Literal["weights"], str] = {}
    """`weights`: the run (row name in a sweep, run id here) whose encoders this one starts with"""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """of initialisation, batch order and augmentation; the data have their own"""
    fingerprint: str = ""
    """of the dataset's content; filled in when the spec is resolved"""

    def canonical(self) -> str:
        """The JSON that is hashed: sorted keys, no spaces, without what is LATER and as ever."""
        plain = self.model_dump(mode="json")
        for name in LATER:
            if plain["train"][name] == TrainSpec.model_fields[name].default:
                del plain["train"][name]
        return json.dumps(plain, sort_keys=True, separators=(",", ":"))

    @property
    def run_id(self) -> str:
        """First 12 hex digits of the SHA-256 of `canonical()`."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:12]


def input_files(config: type[PluginConfig]) -> Iterator[str]:
    """Names of the options that hold the path of an input file."""
    for name, info in config.model_fields.items():
        if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("input_file"):
            yield name


def plugin_config(registry: Registry[Any], plugin: PluginSpec, paths: Paths) -> Any:
    """The typed config of a resolved plugin, input files turned back into paths of this machine."""
    cls = registry[plugin.name]
    options = dict(plugin.options)
    for name in input_files(cls.Config):
        if options[name] is not None:
            options[name] = path_of(options[name], paths)
    return cls.Config(**options)


def path_of(digest: str, paths: Paths) -> str:
    """Where the content `digest` lies. Raises ValueError if it is not there or was changed."""
    path = paths.get(digest)
    if path is None:
        raise ValueError(f"no path is known for {digest}; plan the sweep again on this machine")
    if not Path(path).exists() or "sha256:" + content_digest(Path(path)) != digest:
        raise ValueError(f"{path} is gone or has changed since the run was planned ({digest})")
    return path


def init_of(encoder: EncoderSpec, paths: Paths) -> tuple[str, Path | None]:
    """(`random` | `pretrained` | `finetuned`, the file or folder on this machine)."""
    kind, _, digest = (encoder.init or "random").partition(":")
    return kind, Path(path_of(digest, paths)) if digest else None


def dataset_of(spec: RunSpec, paths: Paths) -> Dataset:
    """The dataset of a run; equal ones are built once per process."""
    options, known = json.dumps(spec.data.options, sort_keys=True), json.dumps(dict(paths))
    return _dataset(spec.data.name, options, known, tuple(sorted(spec.encoders)))


@lru_cache(maxsize=64)
def _dataset(name: str, options: str, paths: str, used: tuple[str, ...]) -> Dataset:
    plugin = PluginSpec(name=name, options=json.loads(options))
    known = json.loads(paths)
    dataset: Dataset = DATASETS[name](plugin_config(DATASETS, plugin, known))
    prefix = f"data.{name}."
    own = {key.removeprefix(prefix): v for key, v in known.items() if key.startswith(prefix)}
    dataset.places = DATASETS[name].Places(**own)
    dataset.used = frozenset(used)
    return dataset
