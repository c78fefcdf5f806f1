"""RunSpec: everything that determines one result, plugin defaults written in, hashed into its id.

Paths are not part of it: an option that names an input file holds `sha256:<digest>` of the content
instead, and `Paths` tells a machine where that content lies. Launcher, device and number of workers
are not part of it either.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, cast

from pydantic import Field

from harness.config import Config, ConfigError, Node, is_file, near_files, validate
from harness.contracts import Dataset, Encoder, PluginConfig, Stream
from harness.files import content_digest
from harness.registry import DATASETS, ENCODERS, FUSIONS, Registry, unknown
from harness.site import places

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
    """samples per optimiser step, over all processes of a run together"""
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
        """The JSON that is hashed: sorted keys, no spaces."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @property
    def run_id(self) -> str:
        """First 12 hex digits of the SHA-256 of `canonical()`."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:12]


class Resolver:
    """Nodes -> RunSpecs. Equal parts of a sweep are resolved once, which makes planning fast."""

    def __init__(self, base_dir: Path) -> None:
        self.base_dir = base_dir
        self.paths: dict[str, str] = {}
        self._facts: dict[str, tuple[Mapping[str, Stream], str, int]] = {}
        self._done: dict[tuple[str, int], tuple[Any, list[str], Node]] = {}

    def run(self, node: Node, needs: dict[str, str]) -> RunSpec:
        """The spec written in `node`; raises ConfigError with every mistake in it."""
        messages: list[str] = []
        parts: dict[str, Any] = {"needs": needs}
        rest = {key: child for key, child in node.value.items() if key != "needs"}
        for key, registry in (("data", DATASETS), ("fusion", FUSIONS)):
            if key in rest:
                parts[key] = self._once(key, rest.pop(key), messages, registry)
        if "encoders" in rest and isinstance(rest["encoders"].value, dict):
            parts["encoders"] = {
                stream: self._once(f"encoders.{stream}", child, messages, ENCODERS)
                for stream, child in rest.pop("encoders").value.items()
                if child.value is not None  # `encoders.text: null` takes a stream out of a row
            }
        if "train" in rest:
            parts["train"] = self._once("train", rest.pop("train"), messages, None)
        plain = {key: child.plain() for key, child in rest.items()}
        if messages:
            raise ConfigError(*messages)
        spec, found = validate(RunSpec, node, value=plain | parts)
        if found:
            raise ConfigError(*found)
        return self._fingerprinted(spec, node)

    def _once(
        self, key: str, node: Node, messages: list[str], registry: Registry[Any] | None
    ) -> Any:
        memo = self._done.get((key, id(node)))
        if memo is None:
            try:
                value = self._plugin(key, node, registry) if registry else _train(node)
                memo = (value, [], node)
            except ConfigError as error:
                memo = (None, list(error.messages), node)
            self._done[key, id(node)] = memo
        messages += memo[1]
        return memo[0]

    def _plugin(self, key: str, node: Node, registry: Registry[Any]) -> PluginSpec:
        model = EncoderSpec if registry is ENCODERS else PluginSpec
        shell, messages = validate(model, node, f"{key}.")
        if messages:
            raise ConfigError(*messages)
        if shell.name not in registry:
            what = unknown(shell.name, registry.names(), registry.kind)
            raise ConfigError(f"{node.at(['name']).where}: {key}.name: {what}")
        options = node.get("options") or Node({}, node.where)
        config, messages = validate(registry[shell.name].Config, options, f"{key}.options.")
        if messages:
            raise ConfigError(*messages)
        filled = config.model_dump(mode="json")
        for name in input_files(type(config)):
            if filled[name] is not None:
                filled[name] = self._input(
                    filled[name], options.at([name]), f"{key}.options.{name}"
                )
        if registry is DATASETS:
            found = places(shell.name, registry[shell.name].Places)
            self.paths |= {f"data.{shell.name}.{place}": value for place, value in found.items()}
        update: dict[str, Any] = {"options": filled}
        if isinstance(shell, EncoderSpec):
            update["init"] = self._init(shell, node.at(["init"]), f"{key}.init")
        return cast(PluginSpec, shell.model_copy(update=update))

    def _init(self, encoder: EncoderSpec, node: Node, key: str) -> str:
        """`random`, or `pretrained:` or `finetuned:` with the digest of what was named."""
        cls = ENCODERS[encoder.name]
        kind, colon, text = (encoder.init or cls.default_init).partition(":")
        if kind == "random" and not colon:
            return "random"
        if kind not in ("pretrained", "finetuned") or not text:
            raise ConfigError(
                f"{node.where}: {key}: {encoder.init!r} is none of random, pretrained:<file>, "
                f"finetuned:<file>"
            )
        return f"{kind}:{self._input(text, node, key, cls)}"

    def _input(self, value: str, node: Node, key: str, encoder: type[Encoder] = Encoder) -> str:
        """The digest of a file; of a folder, if the encoder says itself what it starts from."""
        try:
            path = encoder.locate(value, self.base_dir)
        except (RuntimeError, ConfigError) as error:  # ~nobody; a name that no hub knows
            raise ConfigError(f"{node.where}: {key}: {value}: {error}") from None
        folders = encoder.load is not Encoder.load
        if not is_file(path) and not (folders and path.is_dir()):
            raise ConfigError(f"{node.where}: {key}: no such file: {path}{near_files(path)}")
        digest = "sha256:" + content_digest(path)
        self.paths[digest] = str(path.resolve())
        return digest

    def _fingerprinted(self, spec: RunSpec, node: Node) -> RunSpec:
        data = node.at(["data"])
        try:
            untrained = spec.train.method in ("cost", "evaluate")
            key = f"{spec.data.model_dump_json()} {untrained} {sorted(spec.encoders)}"
            if key not in self._facts:
                dataset = dataset_of(spec, self.paths)
                known = spec.train.method == "cost" or len(dataset.split("train"))
                size = sys.maxsize if untrained else known
                self._facts[key] = (dataset.streams, dataset.fingerprint(), size)
            streams, digest, size = self._facts[key]
        except (ValueError, OSError) as error:
            raise ConfigError(f"{data.where}: data: {error}") from error
        messages = []
        if spec.train.batch_size > size:
            where = node.at(["train", "batch_size"]).where
            batch = f"train.batch_size: {spec.train.batch_size}"
            messages.append(f"{where}: {batch} is more than the {size} samples of train")
        for stream, encoder in spec.encoders.items():
            where = node.at(["encoders", stream]).where
            if stream not in streams:
                what = unknown(stream, sorted(streams), f"stream of {spec.data.name}")
                messages.append(f"{where}: encoders.{stream}: {what}")
            elif streams[stream].kind not in ENCODERS[encoder.name].kinds:
                kinds = "/".join(ENCODERS[encoder.name].kinds)
                messages.append(
                    f"{where}: encoders.{stream}.name: {encoder.name!r} reads {kinds}, "
                    f"but {stream!r} is {streams[stream].kind}"
                )
        if messages:
            raise ConfigError(*messages)
        return spec.model_copy(update={"fingerprint": digest})


def _train(node: Node) -> TrainSpec:
    value, messages = validate(TrainSpec, node, "train.")
    if messages:
        raise ConfigError(*messages)
    return cast(TrainSpec, value)


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
