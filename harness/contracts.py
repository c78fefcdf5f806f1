"""What a fusion, an encoder and a dataset promise; the shape letters used everywhere.

    B  samples in a batch        L  tokens of one stream      D  width of a token
    T  frames of a clip          N  state size of an SSM      O  boxes per frame

A *stream* is one modality. Raw values enter an encoder, tokens leave it, a fusion turns the tokens
of all streams into one vector per sample, and linear heads turn that vector into logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor, nn, stack

from harness.config import Config


class PluginConfig(Config):
    """Options of a plugin: typed, frozen, each documented by the string below it."""


class Tokens(NamedTuple):
    """Tokens of one stream: features (B, L, D) and mask (B, L), True where a token is real."""

    features: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Sample:
    """One item of a dataset."""

    id: str
    """unique within its split"""
    streams: Mapping[str, Any]
    """stream name -> raw value, as the stream's `Stream.kind` says"""
    targets: Mapping[str, int]
    """target name -> class index"""
    group: str = ""
    """what samples are not independent of each other within: a video, a subject"""
    subset: str = ""
    """a named share of the split that is also reported by itself; empty for none"""
    side: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """stream name -> further inputs of its encoder, e.g. boxes (T, O, 4)"""


@dataclass(frozen=True)
class Stream:
    """What raw values of a stream look like.

    kind `video`: uint8 tensor (T, H, W, 3). kind `sensor`: float tensor (T, channels).
    kind `text`: a string. `shape` is that shape; for text it is (most words,).
    """

    kind: str
    shape: tuple[int, ...]


class Split(Protocol):
    """Map-style torch dataset. `__getitems__` may exist too and fetch a whole batch at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Dataset:
    """A dataset with the splits `train`, `select` (for every choice) and `test` (for the table).

    Built from its config alone; `split` may be called in any process.
    """

    Config: ClassVar[type[PluginConfig]] = PluginConfig

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def streams(self) -> Mapping[str, Stream]:
        """Every stream the dataset offers."""
        raise NotImplementedError

    @property
    def targets(self) -> Mapping[str, int]:
        """Target name -> number of classes."""
        raise NotImplementedError

    def split(self, name: str) -> Split:
        """The split `train`, `select` or `test`."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """SHA-256 hex digest of everything the samples are made from; same samples, same digest."""
        raise NotImplementedError

    def ceilings(self) -> Mapping[str, Mapping[str, float]]:
        """Best reachable scores where they are known: ceiling name -> metric -> share in [0, 1].

        Ceiling names are a stream's name (that stream alone), `additive` and `joint`. Metric names
        are those of `harness.evaluate`, e.g. `verb_top1`, `verb_top1[two_handed]`.
        """
        return {}


class Encoder(nn.Module):
    """Raw values of one stream -> Tokens."""

    Config: ClassVar[type[PluginConfig]] = PluginConfig
    kinds: ClassVar[tuple[str, ...]] = ()
    """stream kinds it reads"""
    width: int
    """D of the tokens it returns"""

    def __init__(self, config: Any, stream: Stream) -> None:
        super().__init__()
        self.config = config
        self.stream = stream

    def fit(self, raws: Sequence[Any]) -> None:
        """Learn what must be known before training starts (a vocabulary, a scale).

        `raws` are raw values of the train split. What is learnt lives in buffers, so that it is
        saved and loaded with the weights.
        """

    def collate(self, raws: Sequence[Any]) -> Any:
        """Raw values -> one batch for `forward`: a tensor, or a tuple of tensors."""
        return stack(list(raws))

    def forward(self, inputs: Any, **side: Tensor) -> Tokens:
        """Tokens of a batch made by `collate`."""
        raise NotImplementedError


class Fusion(nn.Module):
    """Tokens of all streams -> one vector (B, out_width) per sample.

    Streams are taken in sorted name order. Padding, batch order and the order of the mapping do not
    change the result.
    """

    Config: ClassVar[type[PluginConfig]] = PluginConfig
    additive: ClassVar[bool] = False
    """True if the result is a sum (or a concatenation) of one function per stream, so that linear
    heads on it can only add the streams' evidence"""

    def __init__(self, config: Any, widths: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.config = config
        self.widths = dict(sorted(widths.items()))
        self.width = width
        self.out_width = width

    def forward(self, streams: Mapping[str, Tokens]) -> Tensor:
        """(B, out_width)."""
        raise NotImplementedError


__all__ = [
    "Dataset",
    "Encoder",
    "Fusion",
    "PluginConfig",
    "Sample",
    "Split",
    "Stream",
    "Tokens",
]
