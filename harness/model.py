"""One run's model: encoders -> fusion -> heads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.config import ConfigError
from harness.contracts import Dataset, Tokens
from harness.registry import ENCODERS, FUSIONS
from harness.spec import EncoderSpec, Paths, RunSpec, dataset_of, path_of, plugin_config


class Model(nn.Module):
    """Logits of every target from the streams of a batch.

    A stream may come as its encoder's input, or as Tokens the encoder has made before.
    """

    def __init__(self, spec: RunSpec, dataset: Dataset, paths: Paths) -> None:
        super().__init__()
        self.frozen = [name for name, encoder in spec.encoders.items() if encoder.frozen]
        self.encoders = nn.ModuleDict()
        for stream, encoder in sorted(spec.encoders.items()):
            config = plugin_config(ENCODERS, encoder, paths)
            self.encoders[stream] = ENCODERS[encoder.name](config, dataset.streams[stream])
        for stream in self.frozen:
            self.encoders[stream].requires_grad_(False)
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
    ) -> dict[str, Tokens]:
        """Stream name -> Tokens."""
        return {
            stream: value
            if isinstance(value, Tokens)
            else self.encoders[stream](value, **(side or {}).get(stream, {}))
            for stream, value in sorted(inputs.items())
        }

    def forward(
        self, inputs: Mapping[str, Any], side: Mapping[str, Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor]:
        """Target name -> logits (B, classes)."""
        fused = self.pre_logits(self.fusion(self.tokens(inputs, side)))
        return {name: head(fused) for name, head in self.heads.items()}

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


def load_encoder(module: nn.Module, file: Path, prefix: str = "") -> None:
    """Load an encoder's weights from a safetensors file; raises ValueError naming what differs."""
    state = {
        name.removeprefix(prefix): value
        for name, value in load_file(file).items()
        if name.startswith(prefix)
    }
    if not state:
        raise ValueError(f"{file}: holds no tensor called {prefix}*")
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{file}: does not fit {type(module).__name__}: {error}") from error


def load_weights(model: Model, spec: RunSpec, paths: Paths, needed: Path | None) -> None:
    """Give the encoders their starting weights: a file each, or the run in `needs.weights`.

    `needed` is that run's weights file.
    """
    for stream, encoder in spec.encoders.items():
        if encoder.weights is not None:
            load_encoder(model.encoders[stream], Path(path_of(encoder.weights, paths)))
        elif needed is not None:
            load_encoder(model.encoders[stream], needed, f"encoders.{stream}.")


def starts_random(spec: RunSpec, stream: str) -> bool:
    """True if the encoder of `stream` gets no weights from anywhere."""
    encoder: EncoderSpec = spec.encoders[stream]
    return encoder.weights is None and "weights" not in spec.needs


def check_buildable(spec: RunSpec, paths: Paths, where: str) -> None:
    """Raise ConfigError if the plugins of a run do not fit each other. Allocates no weights."""
    shape = spec.model_dump_json(include={"data", "encoders", "fusion", "head", "width"})
    problem = _build_problem(shape, json.dumps(dict(paths)))
    if problem:
        raise ConfigError(f"{where}: {problem}")


@lru_cache(maxsize=4096)
def _build_problem(shape: str, paths: str) -> str | None:
    spec = RunSpec(**json.loads(shape))
    try:
        with torch.device("meta"):
            Model(spec, dataset_of(spec, json.loads(paths)), json.loads(paths))
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return f"this model cannot be built: {first}"
    return None
