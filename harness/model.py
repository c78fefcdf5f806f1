"""One run's model: encoders -> fusion -> heads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from harness.checkpoint import read_checkpoint
from harness.config import ConfigError
from harness.contracts import Dataset, Encoder, PartedTokens, Stream, Tokens
from harness.registry import ENCODERS, FUSIONS
from harness.spec import EncoderSpec, Paths, RunSpec, dataset_of, init_of, plugin_config
from harness.weights import Fit, load_into


class Model(nn.Module):
    """Logits of every target from the streams of a batch.

    A stream may come as its encoder's input, or as Tokens the encoder has made before.
    """

    def __init__(
        self,
        spec: RunSpec,
        dataset: Dataset,
        paths: Paths,
        make_encoder: Callable[[str, EncoderSpec, Stream, Paths], Encoder] | None = None,
    ) -> None:
        super().__init__()
        make_encoder = make_encoder or build_encoder
        self.frozen = [name for name, encoder in spec.encoders.items() if encoder.frozen]
        self.encoders = nn.ModuleDict()
        for stream, encoder in sorted(spec.encoders.items()):
            self.encoders[stream] = make_encoder(stream, encoder, dataset.streams[stream], paths)
        for stream, module in self.encoders.items():
            if module.parts not in (0, len(dataset.targets)):
                raise ValueError(
                    f"encoder {stream} has tokens for {module.parts} heads; the targets are "
                    f"{', '.join(dataset.targets)}"
                )
        widths = {stream: cast(int, module.width) for stream, module in self.encoders.items()}
        config = plugin_config(FUSIONS, spec.fusion, paths)
        self.fusion = FUSIONS[spec.fusion.name](config, widths, spec.width)
        out_width = self.fusion.out_width
        self.pre_logits = (
            nn.Sequential(nn.Linear(out_width, out_width), nn.Tanh())
            if spec.head == "pre_logits"
            else nn.Identity()
        )
        dropout = spec.train.head_dropout
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(out_width, classes) for name, classes in dataset.targets.items()}
        )

    def train(self, mode: bool = True) -> Model:
        """Frozen encoders stay in evaluation mode: their tokens are what the store holds."""
        super().train(mode)
        for stream in self.frozen:
            self.encoders[stream].eval()
        return self

    def tokens(
        self, inputs: Mapping[str, Any], side: Mapping[str, Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tokens | PartedTokens]:
        """Stream name -> tokens; stored ones may be in half precision, and are not here."""
        found: dict[str, Tokens | PartedTokens] = {}
        for stream, value in sorted(inputs.items()):
            if isinstance(value, Tokens | PartedTokens):
                whole = value.features.dtype == torch.float32
                found[stream] = value if whole else value._replace(features=value.features.float())
            else:
                with torch.set_grad_enabled(torch.is_grad_enabled() and stream not in self.frozen):
                    tokens = self.encoders[stream](value, **(side or {}).get(stream, {}))
                found[stream] = tokens
        return found

    def forward(
        self, inputs: Mapping[str, Any], side: Mapping[str, Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor]:
        """Target name -> logits (B, classes)."""
        tokens = self.tokens(inputs, side)
        if not any(isinstance(value, PartedTokens) for value in tokens.values()):
            fused = self.pre_logits(self.fusion(tokens))
            return {name: head(self.dropout(fused)) for name, head in self.heads.items()}
        logits = {}
        for place, (name, head) in enumerate(self.heads.items()):
            seen = {s: v.of(place) if isinstance(v, PartedTokens) else v for s, v in tokens.items()}
            logits[name] = head(self.dropout(self.pre_logits(self.fusion(seen))))
        return logits

    def load_heads(self, heads: Mapping[str, Tensor]) -> list[str]:
        """Take a checkpoint's classifiers (`heads.verb.weight`, `pre_logits.0.bias`); their names.

        Those for targets that the run does not have are left out. If any of the others is not here
        or has another shape none is taken, for they were trained together.
        """
        own = self.state_dict()
        fit = self._heads_of_own_targets(heads)
        if any(name not in own or own[name].shape != value.shape for name, value in fit.items()):
            return []
        if not any(own[name].is_meta for name in fit):
            self.load_state_dict(fit, strict=False)
        return sorted(fit)

    def other_sizes(self, heads: Mapping[str, Tensor]) -> list[str]:
        """Classifiers of a checkpoint that have another number of classes here, in words."""
        own = self.state_dict()
        return [
            f"{name.split('.')[1]} has {len(value)} classes there and {len(own[name])} here"
            for name, value in self._heads_of_own_targets(heads).items()
            if name.startswith("heads.") and name.endswith(".bias") and len(value) != len(own[name])
        ]

    def _heads_of_own_targets(self, heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = self.state_dict().keys()
        return {n: v for n, v in heads.items() if n in own or not n.startswith("heads.")}

    def trained_parameters(self) -> list[Tensor]:
        """Those that are not frozen, in the order of their names in the model."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def trained_state(self) -> dict[str, Tensor]:
        """The state dict without the frozen encoders, whose weights are another run's or a file's.

        Tensors are contiguous copies, as safetensors needs them.
        """
        frozen = tuple(f"encoders.{stream}." for stream in self.frozen)
        return {
            name: value.detach().clone().contiguous()
            for name, value in self.state_dict().items()
            if not name.startswith(frozen)
        }


def build_encoder(name: str, spec: EncoderSpec, stream: Stream, paths: Paths) -> Encoder:
    """The encoder of the stream called `name`, without its starting weights."""
    config = plugin_config(ENCODERS, spec, paths)
    _, source = init_of(spec, paths)
    encoder = ENCODERS[spec.name].build(config, stream, source)
    return encoder.requires_grad_(False) if spec.frozen else encoder


def load_weights(
    model: Model, spec: RunSpec, paths: Paths, needed: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Give the encoders their starting weights: of the run in `needs.weights`, else of `init`.

    `needed` is that run's weights file; it lacks the encoders that were frozen in that run. By
    stream, what came from where, how many tensors were loaded, and which were missing, unexpected
    or resized. Raises ValueError or ConfigError where a file does not fit.
    """
    told: dict[str, dict[str, Any]] = {}
    saved = read_checkpoint(needed).tensors if needed else {}
    for stream, encoder in spec.encoders.items():
        kind, source = init_of(encoder, paths)
        module = cast(Encoder, model.encoders[stream])
        own, _ = _split(saved, stream)
        if own:
            told[stream] = {"from": "run", **_report(load_into(module, own, str(needed), "run"))}
        elif source is not None:
            told[stream] = {"from": kind, **_start(model, stream, module, kind, source)}
        elif needed is not None:
            raise ValueError(f"{needed}: holds no weights of an encoder of {stream}")
    return told


def _start(model: Model, stream: str, module: Encoder, kind: str, source: Path) -> dict[str, Any]:
    """Load what `init` names; what `load_weights` tells of it."""
    meta = any(value.is_meta for value in module.state_dict().values())
    loads_itself = type(module).load is not Encoder.load
    if loads_itself and (meta or module.load(source)):
        return {}
    state = _outline(str(source), source.stat().st_mtime_ns) if meta else None
    own, heads = _split(state or read_checkpoint(source).tensors, stream)
    found = _report(load_into(module, own, str(source), kind))
    shape = module.tokens_shape()
    if kind == "finetuned" and model.fusion.transparent and (shape is None or shape[1] == 1):
        classifiers = heads or module.convert(own).heads
        found["heads"] = model.load_heads(classifiers)
        if other := model.other_sizes(classifiers):
            found["heads_left"] = other
    return found


@lru_cache(maxsize=16)
def _outline(path: str, _mtime_ns: int) -> dict[str, Tensor]:
    """Names and shapes in a checkpoint, which planning asks for again and again."""
    return {name: value.to("meta") for name, value in read_checkpoint(Path(path)).tensors.items()}


def _split(state: Mapping[str, Tensor], stream: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Encoder and heads in a file that a run saved; any other file is an encoder's as a whole."""
    if not any(name.startswith("encoders.") for name in state):
        return dict(state), {}
    prefix = f"encoders.{stream}."
    own = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    return own, {n: v for n, v in state.items() if n.startswith(("heads.", "pre_logits."))}


def _report(found: Fit) -> dict[str, Any]:
    return asdict(found) | {"loaded": len(found.loaded)}


def check_complete(model: Model, loaded: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError if something outside the encoders would be evaluated untrained.

    `loaded` is what `load_weights` told.
    """
    other = [text for told in loaded.values() for text in told.get("heads_left", ())]
    if other:
        raise ValueError(
            f"method evaluate takes the classifiers of the checkpoint as they are, but "
            f"{', '.join(other)}; are the annotations of the data incomplete, or others than the "
            f"checkpoint was trained with?"
        )
    heads = {name for told in loaded.values() for name in told.get("heads", ())}
    random = {name for name, _ in model.named_parameters() if not name.startswith("encoders.")}
    if random - heads:
        raise ValueError(
            f"method evaluate trains nothing, but {', '.join(sorted(random - heads)[:4])} come "
            f"from no checkpoint; take `init: finetuned:<file>` with classifiers for these "
            f"targets, `tokens: cls`, fusion `single` with `project: false`, and `head: "
            f"pre_logits` where the file has one (orvit), else `linear`"
        )


def starts_random(spec: RunSpec, stream: str) -> bool:
    """True if the encoder of `stream` gets no weights from anywhere."""
    return spec.encoders[stream].init in (None, "random") and "weights" not in spec.needs


def check_buildable(spec: RunSpec, paths: Paths, where: str) -> None:
    """Raise ConfigError if the parts of a run, or its files of weights, do not fit each other.

    Allocates no weights.
    """
    problem = _problem(*_shape(spec, paths), spec.train.method == "evaluate")
    if not problem and (spec.train.mixup or spec.train.cutmix):
        encoders = meta_model(spec, paths).encoders.items()
        if dealt := [stream for stream, encoder in encoders if encoder.parts]:
            problem = f"tokens of {dealt[0]} are dealt to heads, and cannot be mixed: no mixup here"
    if problem:
        raise ConfigError(f"{where}: {problem}")


def meta_model(spec: RunSpec, paths: Paths) -> Model:
    """The run's model on the meta device, to count and not to change; equal ones are built once."""
    return _meta_model(*_shape(spec, paths))


def _shape(spec: RunSpec, paths: Paths) -> tuple[str, str]:
    """What decides a model's sizes, as JSON."""
    parts = {"data", "encoders", "fusion", "head", "width"}
    shape = spec.model_dump(mode="json", include=parts)
    return json.dumps(shape, sort_keys=True), json.dumps(dict(paths), sort_keys=True)


@lru_cache(maxsize=32)
def _meta_model(shape: str, paths: str) -> Model:
    spec = RunSpec(**json.loads(shape))
    dataset = dataset_of(spec, json.loads(paths))
    with torch.device("meta"):
        return Model(spec, dataset, json.loads(paths), _meta_encoder).eval()


def _meta_encoder(name: str, spec: EncoderSpec, stream: Stream, paths: Paths) -> Encoder:
    written = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    return _once(name, written, stream, json.dumps(dict(paths), sort_keys=True))


@lru_cache(maxsize=32)
def _once(name: str, spec: str, stream: Stream, paths: str) -> Encoder:
    return build_encoder(name, EncoderSpec(**json.loads(spec)), stream, json.loads(paths))


@lru_cache(maxsize=4096)
def _problem(shape: str, paths: str, complete: bool) -> str | None:
    try:
        model = _meta_model(shape, paths)
        loaded = load_weights(model, RunSpec(**json.loads(shape)), json.loads(paths))
        if complete:
            check_complete(model, loaded)
    except (ValueError, TypeError, RuntimeError, OverflowError, ConfigError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return f"this model cannot be built: {first}"
    return None
