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
from harness.weights import load_into


class Model(nn.Module):
    """Logits of every target from the streams of a batch.

    A stream may come as its encoder's input, or as Tokens the encoder has made before.
    """

    def __init__(
        self,
        spec: RunSpec,
        dataset: Dataset,
        paths: Paths,
        make_encoder: Callable[[EncoderSpec, Stream, Paths], Encoder] | None = None,
    ) -> None:
        super().__init__()
        make_encoder = make_encoder or build_encoder
        self.frozen = [name for name, encoder in spec.encoders.items() if encoder.frozen]
        self.encoders = nn.ModuleDict()
        for stream, encoder in sorted(spec.encoders.items()):
            self.encoders[stream] = make_encoder(encoder, dataset.streams[stream], paths)
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
        """Stream name -> tokens."""
        return {
            stream: value
            if isinstance(value, Tokens | PartedTokens)
            else self.encoders[stream](value, **(side or {}).get(stream, {}))
            for stream, value in sorted(inputs.items())
        }

    def forward(
        self, inputs: Mapping[str, Any], side: Mapping[str, Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor]:
        """Target name -> logits (B, classes)."""
        tokens = self.tokens(inputs, side)
        if not any(isinstance(value, PartedTokens) for value in tokens.values()):
            fused = self.pre_logits(self.fusion(tokens))
            return {name: head(fused) for name, head in self.heads.items()}
        logits = {}
        for place, (name, head) in enumerate(self.heads.items()):
            seen = {s: v.of(place) if isinstance(v, PartedTokens) else v for s, v in tokens.items()}
            logits[name] = head(self.pre_logits(self.fusion(seen)))
        return logits

    def load_heads(self, heads: Mapping[str, Tensor]) -> list[str]:
        """Take published classifiers (`heads.verb.weight`, ...) whose shapes agree; their names."""
        own = self.state_dict()
        fit = {n: v for n, v in heads.items() if n in own and own[n].shape == v.shape}
        if not any(own[name].is_meta for name in fit):
            self.load_state_dict(fit, strict=False)
        return sorted(fit)

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


def build_encoder(spec: EncoderSpec, stream: Stream, paths: Paths) -> Encoder:
    """An encoder without its starting weights."""
    config = plugin_config(ENCODERS, spec, paths)
    _, source = init_of(spec, paths)
    encoder = ENCODERS[spec.name].build(config, stream, source)
    return encoder.requires_grad_(False) if spec.frozen else encoder


def load_weights(
    model: Model, spec: RunSpec, paths: Paths, needed: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Give the encoders their starting weights: those of `init`, or of the run in `needs.weights`.

    `needed` is that run's weights file. By stream, what came from where, how many tensors were
    loaded, and which were missing, unexpected or resized. Raises ValueError or ConfigError where a
    file does not fit.
    """
    told: dict[str, dict[str, Any]] = {}
    for stream, encoder in spec.encoders.items():
        kind, source = init_of(encoder, paths)
        if source is None and needed is None:
            continue
        module = cast(Encoder, model.encoders[stream])
        if source is not None and type(module).load is not Encoder.load:
            if not next(module.parameters()).is_meta:
                module.load(source)
            told[stream] = {"from": kind}
            continue
        file = source or cast(Path, needed)
        prefix = f"encoders.{stream}."
        state = read_checkpoint(file).tensors
        if any(name.startswith(prefix) for name in state):
            state = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        found = load_into(module, state, str(file), may_miss=kind == "pretrained")
        told[stream] = {"from": kind if source else "run", **asdict(found)}
        told[stream]["loaded"] = len(found.loaded)
        if kind == "finetuned" and model.fusion.transparent:
            told[stream]["heads"] = model.load_heads(module.convert(state).heads)
    return told


def check_complete(model: Model, loaded: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError if something outside the encoders would be evaluated untrained.

    `loaded` is what `load_weights` told.
    """
    heads = {name for told in loaded.values() for name in told.get("heads", ())}
    random = {name for name, _ in model.named_parameters() if not name.startswith("encoders.")}
    if random - heads:
        raise ValueError(
            f"method evaluate trains nothing, but {', '.join(sorted(random - heads)[:4])} come "
            f"from no checkpoint; take `init: finetuned:<file>` with classifiers for these "
            f"targets, fusion `single` with `project: false`, and `tokens: cls`"
        )


def starts_random(spec: RunSpec, stream: str) -> bool:
    """True if the encoder of `stream` gets no weights from anywhere."""
    return spec.encoders[stream].init in (None, "random") and "weights" not in spec.needs


def check_buildable(spec: RunSpec, paths: Paths, where: str) -> None:
    """Raise ConfigError if the parts of a run, or its files of weights, do not fit each other.

    Allocates no weights.
    """
    problem = _problem(*_shape(spec, paths), spec.train.method == "evaluate")
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


def _meta_encoder(spec: EncoderSpec, stream: Stream, paths: Paths) -> Encoder:
    written = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    return _once(written, stream, json.dumps(dict(paths), sort_keys=True))


@lru_cache(maxsize=32)
def _once(spec: str, stream: Stream, paths: str) -> Encoder:
    return build_encoder(EncoderSpec(**json.loads(spec)), stream, json.loads(paths))


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
