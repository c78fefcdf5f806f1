"""What all video encoders have in common: pixels in, tokens out, and the parts of their blocks.

A *network* is a published model under its published names: `network(clips, boxes)` takes clips
(B, 3, T, H, W), normalised as it was trained, and gives `Output`. A `VideoEncoder` holds one
without classifiers as `self.network`, feeds it raw clips, and picks the tokens asked for.

Source: none, ours; the networks name theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.contracts import Converted, Encoder, PluginConfig, Stream, Tokens


class Output(NamedTuple):
    """What a network gives."""

    tokens: Tensor
    """(B, 1 + T' P, D), after the last norm: the class token, then patches, times outermost"""
    features: Tensor
    """(B, D), what the classifiers see"""
    logits: dict[str, Tensor]
    """target -> (B, classes), before any softmax; empty without classifiers"""


class VideoConfig(PluginConfig):
    """Options of every video encoder."""

    tokens: Literal["patch", "frame", "cls"] = "patch"
    """what is handed on: every patch, the mean of each time, or the class token"""
    drop_path: float | None = Field(default=None, ge=0, lt=1)
    """rate of stochastic depth in training; None: what `size` was published with"""
    checkpointing: bool = False
    """training: recompute each block in the backward pass instead of keeping its activations"""


class VideoEncoder(Encoder):
    """A network behind the contract of an encoder."""

    kinds = ("video",)
    takes: ClassVar[tuple[str, ...] | None] = ()
    chooses_by = ("tokens",)
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    """of 0..255 values, RGB"""
    bgr = False
    """whether the network takes blue first"""
    network: Any
    """nn.Module; `network.times` and `network.places` say how its tokens are laid out"""

    def __init__(self, config: Any, stream: Stream) -> None:
        super().__init__(config, stream)
        scale = torch.tensor([self.pixel_mean, self.pixel_std])
        self.register_buffer("scale", scale, persistent=False)

    def clips(self, raw: Tensor) -> Tensor:
        """uint8 (B, T, H, W, 3) RGB -> (B, 3, T, H, W), normalised."""
        if tuple(raw.shape[1:]) != self.stream.shape:
            raise ValueError(f"clips of {tuple(raw.shape[1:])}, built for {self.stream.shape}")
        mean, std = self.scale
        x = (raw.to(mean.dtype) - mean) / std
        return (x.flip(-1) if self.bgr else x).permute(0, 4, 1, 2, 3)

    def forward(self, inputs: Tensor, **side: Tensor) -> Tokens:
        """`inputs` (B, T, H, W, 3); side `boxes` as in `contracts.Sample`, where it is used."""
        x = self.network(self.clips(inputs), self.boxes(side)).tokens
        if self.config.tokens == "cls":
            x = x[:, :1]
        else:
            x = x[:, 1:]
            if self.config.tokens == "frame":
                x = x.unflatten(1, (-1, self.network.places)).mean(dim=2)
        return Tokens(x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))

    def tokens_shape(self) -> tuple[int, int, int]:
        """One, T', or T' P tokens."""
        times, places = self.network.times, self.network.places
        length = {"cls": 1, "frame": times, "patch": times * places}[self.config.tokens]
        return 1, length, self.width

    def boxes(self, side: Mapping[str, Tensor]) -> Tensor | None:
        """The network's boxes from the side inputs; None where it has no use for them."""
        return None

    def convert(self, state: Mapping[str, Tensor]) -> Converted:
        """Published names and shapes -> those of the network here; own state dicts pass."""
        if any(name.startswith("network.") for name in state):
            return super().convert(state)
        found = self.network.convert(state, self.network.state_dict())
        return Converted(
            {f"network.{name}": value for name, value in found.tensors.items()},
            found.heads,
            found.resized,
            found.unexpected,
        )


def matched(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    heads: Mapping[str, Tensor],
    resized: Iterable[str] = (),
) -> Converted:
    """Tensors that `own` has too, with the same shape; ValueError names those of another."""
    wrong = [
        f"{name} is {tuple(value.shape)}, needed is {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError("; ".join(wrong[:3]) + more)
    tensors = {name: value for name, value in state.items() if name in own}
    unexpected = [name for name in state if name not in own]
    return Converted(tensors, heads, list(resized), unexpected)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training a sample's branch is 0 at `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


class Mlp(nn.Module):
    """fc2(activation(fc1(x))); the names are the published ones."""

    def __init__(self, width: int, hidden: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.activation = activation or nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(..., L, heads d) -> (..., heads, L, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """(..., heads, L, d) -> (..., L, heads d)."""
    return x.transpose(-3, -2).flatten(-2)


def run_block(block: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """block(*inputs); with `recompute` its activations are made again in the backward pass."""
    if recompute and block.training and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
