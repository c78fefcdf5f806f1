"""RunSpec: everything that determines one result, plugin defaults written in, hashed into its id.

Paths are not part of it: an option that names an input file holds `sha256:<digest>` of the content
instead, and `Paths` tells a machine where that content lies. Launcher, device and number of workers
are not part of it either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from harness.config import Config
from harness.contracts import Dataset, PluginConfig
from harness.files import content_digest
from harness.recipe import LATER_IN_RATES, LATER_IN_TRAINING, PeakLr, TrainSpec
from harness.registry import DATASETS, Registry

SPEC_VERSION: Final = 2
"""raised when the meaning of a spec changes, so that no old result is taken for a new one"""

MANIFEST: Final = "manifest:"
"""before the fingerprint that stands for a file which leads to the data of a run"""

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
    cache: Literal["float32", "float16", "bfloat16", "none"] = "float32"
    """of a frozen encoder: how its tokens are stored; `none`: they are computed in every epoch"""
    views: int = Field(default=0, ge=0)
    """of a frozen encoder: augmented views of each training sample that are stored, taken in turn
    by the passes over the data; 0: the sample as it is"""
    init: str | None = None
    """`random`, `pretrained:<file>` or `finetuned:<file>`: a state dict of the encoder or a
    published checkpoint; of the latter a `finetuned` one must be complete, and its classifiers are
    loaded too where they fit. `random` gives way to `needs.weights`. None: the encoder's default"""


LATER_IN_ENCODERS = ("cache", "views")
"""as LATER_IN_TRAINING"""


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
        without_defaults(plain["train"], TrainSpec, LATER_IN_TRAINING)
        without_defaults(plain["train"]["peak_lr"], PeakLr, LATER_IN_RATES)
        for encoder in plain["encoders"].values():
            without_defaults(encoder, EncoderSpec, LATER_IN_ENCODERS)
        del plain["train"]["recipe"]  # its settings are there, whatever they were called
        return json.dumps(plain, sort_keys=True, separators=(",", ":"))

    @property
    def run_id(self) -> str:
        """First 12 hex digits of the SHA-256 of `canonical()`."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:12]


def without_defaults(plain: dict[str, Any], model: type[Config], names: Sequence[str]) -> None:
    """Take out of `plain`, the JSON of a `model`, what has its default among `names`."""
    for name in names:
        if plain[name] == model.model_fields[name].default:
            del plain[name]


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
    if digest.startswith(MANIFEST) and Path(path).exists():
        return path  # what it leads to is compared with the run's fingerprint
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
