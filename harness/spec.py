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
from typing import Any, Final, Literal, cast

from pydantic import Field

from harness.config import Config, ConfigError, Node, is_file, near_files, validate
from harness.contracts import Dataset, PluginConfig, Stream
from harness.registry import DATASETS, ENCODERS, FUSIONS, Registry, unknown

SPEC_VERSION: Final = 1
"""raised when the meaning of a spec changes, so that no old result is taken for a new one"""

Paths = Mapping[str, str]
"""`sha256:<digest>` -> absolute path of the file with that content"""


class PluginSpec(Config):
    name: str
    """registered name"""
    options: dict[str, Any] = {}
    """its options; defaults are filled in when the spec is resolved"""


class EncoderSpec(PluginSpec):
    frozen: bool = False
    """not trained; its tokens are computed once and shared by all runs that need them"""
    weights: str | None = None
    """safetensors file with the encoder's state dict; None: random, or from `needs.weights`"""


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

    method: Literal["gradient", "logistic_regression"] = "gradient"
    """`logistic_regression`: scikit-learn on the mean tokens; a reference row, not in the paper"""
    epochs: int = Field(default=100, gt=0)
    """epochs of `steps_per_epoch` steps; metrics and a checkpoint are written after each"""
    steps_per_epoch: int | None = Field(default=None, gt=0)
    """optimiser steps per epoch; None: one pass over the train split, last short batch dropped"""
    batch_size: int = Field(default=128, gt=0)
    """samples per optimiser step"""
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


class RunSpec(Config):
    """One run."""

    version: Literal[1] = SPEC_VERSION
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
        update: dict[str, Any] = {"options": filled}
        if isinstance(shell, EncoderSpec) and shell.weights is not None:
            update["weights"] = self._input(shell.weights, node.at(["weights"]), f"{key}.weights")
        return cast(PluginSpec, shell.model_copy(update=update))

    def _input(self, value: str, node: Node, key: str) -> str:
        try:
            path = self.base_dir / Path(value).expanduser()
        except RuntimeError as error:  # ~nobody
            raise ConfigError(f"{node.where}: {key}: {value}: {error}") from None
        if not is_file(path):
            raise ConfigError(f"{node.where}: {key}: no such file: {path}{near_files(path)}")
        digest = "sha256:" + file_digest(path)
        self.paths[digest] = str(path.resolve())
        return digest

    def _fingerprinted(self, spec: RunSpec, node: Node) -> RunSpec:
        data = node.at(["data"])
        try:
            key = spec.data.model_dump_json()
            if key not in self._facts:
                dataset = dataset_of(spec, self.paths)
                size = len(dataset.split("train"))
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
    if not Path(path).is_file() or "sha256:" + file_digest(Path(path)) != digest:
        raise ValueError(f"{path} is gone or has changed since the run was planned ({digest})")
    return path


def dataset_of(spec: RunSpec, paths: Paths) -> Dataset:
    """The dataset of a run; equal ones are built once per process."""
    return _dataset(
        spec.data.name, json.dumps(spec.data.options, sort_keys=True), json.dumps(paths)
    )


@lru_cache(maxsize=64)
def _dataset(name: str, options: str, paths: str) -> Dataset:
    plugin = PluginSpec(name=name, options=json.loads(options))
    return DATASETS[name](plugin_config(DATASETS, plugin, json.loads(paths)))


def file_digest(path: Path) -> str:
    """SHA-256 of a file, computed again only if its size or time of change differ."""
    stat = path.stat()
    return _file_digest(str(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _file_digest(path: str, _mtime_ns: int, _size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
