"""Settings as written -> RunSpecs: defaults filled in, input files replaced by their digests."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from harness.config import ConfigError, Node, node_of, overlay, validate
from harness.contracts import Dataset, Encoder, Stream
from harness.files import content_digest
from harness.inputs import find_input
from harness.mix import problem
from harness.recipe import RECIPES, TrainSpec, recipe
from harness.registry import DATASETS, ENCODERS, FUSIONS, Registry, unknown
from harness.site import places
from harness.spec import (
    MANIFEST,
    EncoderSpec,
    PluginSpec,
    RunSpec,
    dataset_of,
    input_files,
)


class Resolver:
    """Nodes -> RunSpecs. Equal parts of a sweep are resolved once, which makes planning fast."""

    def __init__(self, base_dir: Path) -> None:
        self.base_dir = base_dir
        self.paths: dict[str, str] = {}
        self._facts: dict[str, tuple[Mapping[str, Stream], str, int]] = {}
        self._done: dict[tuple[str, int], tuple[Any, list[str], Node]] = {}
        self._recipes: dict[tuple[int, bool], tuple[Node, Node]] = {}
        self._told: set[str] = set()
        """what was said to be wrong with a dataset"""

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
            fusion = parts.get("fusion")
            mamba = fusion is not None and FUSIONS[fusion.name].mamba
            train = self._with_recipe(rest.pop("train"), mamba)
            parts["train"] = self._once("train", train, messages, None)
        plain = {key: child.plain() for key, child in rest.items()}
        if messages:
            raise ConfigError(*messages, *self._lacking(parts, node))
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

    def _with_recipe(self, node: Node, mamba: bool) -> Node:
        """The settings of training over those of the recipe they name; one node for equal ones."""
        named = node.get("recipe")
        if named is None or named.value not in RECIPES:
            return node
        if (id(node), mamba) not in self._recipes:
            below = node_of(recipe(named.value, mamba), named.where)
            self._recipes[id(node), mamba] = (overlay(below, node), node)
        return self._recipes[id(node), mamba][0]

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
            if filled[name] is not None and name in getattr(registry[shell.name], "manifests", ()):
                where, cls = options.at([name]), registry[shell.name]
                filled[name] = self._manifest(cls, config, name, where, f"{key}.options.{name}")
            elif filled[name] is not None:
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
            path = find_input(value, self.base_dir, encoder)
        except ConfigError as error:
            raise ConfigError(f"{node.where}: {key}: {error}") from None
        digest = "sha256:" + content_digest(path)
        self.paths[digest] = str(path.resolve())
        return digest

    def _manifest(
        self, dataset: type[Dataset], config: Any, name: str, node: Node, key: str
    ) -> str:
        """The fingerprint of the data that a manifest leads to: two files with the same words, each
        beside arrays of its own, are two."""
        try:
            path = find_input(str(getattr(config, name)), self.base_dir).resolve()
        except ConfigError as error:
            raise ConfigError(f"{node.where}: {key}: {error}") from None
        found = dataset(config.model_copy(update={name: path})).fingerprint()
        self.paths[f"{MANIFEST}{found}"] = str(path)
        return f"{MANIFEST}{found}"

    def _lacking(self, parts: Mapping[str, Any], node: Node) -> tuple[str, ...]:
        """What is wrong with the data beside other mistakes: what is to be got is said at once."""
        if not (parts.get("data") and parts.get("encoders")):
            return ()
        streams = {stream: EncoderSpec(name="any") for stream in parts["encoders"]}
        spec = RunSpec(data=parts["data"], encoders=streams, fusion=PluginSpec(name="any"))
        try:
            self._facts_of(spec, node)
        except ConfigError as error:
            return error.messages
        return ()

    def _facts_of(self, spec: RunSpec, node: Node) -> tuple[Mapping[str, Stream], str, int]:
        """Streams, fingerprint and train samples of the data; unlimited where none is trained."""
        data = node.at(["data"])
        try:
            untrained = spec.train.method in ("cost", "evaluate")
            key = f"{spec.data.model_dump_json()} {untrained} {sorted(spec.encoders)}"
            if key not in self._facts:
                dataset = dataset_of(spec, self.paths)
                known = spec.train.method == "cost" or len(dataset.split("train"))
                for split in () if spec.train.method == "cost" else ("select", "test"):
                    dataset.split(split)  # what it lacks is said now
                size = sys.maxsize if untrained else known
                self._facts[key] = (dataset.streams, dataset.fingerprint(), size)
            return self._facts[key]
        except (ValueError, OSError) as error:
            first = str(error) not in self._told  # rows of one dataset lack the same
            self._told.add(str(error))
            raise ConfigError(*[f"{data.where}: data: {error}"] * first) from error

    def _fingerprinted(self, spec: RunSpec, node: Node) -> RunSpec:
        streams, digest, size = self._facts_of(spec, node)
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
        if not messages:
            messages = [*_stored(spec, streams, node), *_mixing(spec, streams, node)]
        if messages:
            raise ConfigError(*messages)
        return spec.model_copy(update={"fingerprint": digest})


def _train(node: Node) -> TrainSpec:
    value, messages = validate(TrainSpec, node, "train.")
    if messages:
        raise ConfigError(*messages)
    return cast(TrainSpec, value)


def _stored(spec: RunSpec, streams: Mapping[str, Stream], node: Node) -> Iterator[str]:
    """What is asked of stored tokens that only others have."""
    for stream, encoder in spec.encoders.items():
        where, key = node.at(["encoders", stream]).where, f"encoders.{stream}"
        if not encoder.frozen and (encoder.views or encoder.cache != "float32"):
            yield f"{where}: {key}: views and cache are for `frozen: true`; it is trained here"
        elif encoder.views and (encoder.cache == "none" or streams[stream].kind != "video"):
            yield f"{where}: {key}.views: augmented views are of stored tokens of a video"


def _mixing(spec: RunSpec, streams: Mapping[str, Stream], node: Node) -> Iterator[str]:
    if (why := problem(spec, streams)) is not None:
        yield f"{node.at(['train']).where}: {why}"
