"""What a fusion, an encoder and a dataset promise; the shape letters used everywhere.

    B  samples in a batch        L  tokens of one stream      D  width of a token
    T  frames of a clip          N  state size of an SSM      O  boxes per frame

A *stream* is one modality. Raw values enter an encoder, tokens leave it, a fusion turns the tokens
of all streams into one vector per sample, and linear heads turn that vector into logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn, stack

from harness.config import Config
from harness.finding import Look


class PluginConfig(Config):
    """Options of a plugin: typed, frozen, each documented by the string below it."""


class Tokens(NamedTuple):
    """Tokens of one stream: features (B, L, D) and mask (B, L), True where a token is real."""

    features: Tensor
    mask: Tensor


class PartedTokens(NamedTuple):
    """Tokens of which each head is to see a part: features (B, L, D), mask (B, L), and part (B, L),
    the head that a token is for, by its place among the dataset's targets."""

    features: Tensor
    mask: Tensor
    part: Tensor

    def of(self, head: int) -> Tokens:
        """What one head sees: the others' tokens are padding."""
        return Tokens(self.features, self.mask & (self.part == head))


@dataclass(frozen=True)
class Sample:
    """One item of a dataset."""

    id: str
    """unique within its split, but for the views of one sample"""
    streams: Mapping[str, Any]
    """stream name -> raw value, as the stream's `Stream.kind` says"""
    targets: Mapping[str, int]
    """target name -> class index"""
    group: str = ""
    """what samples are not independent of each other within: a video, a subject"""
    subset: str = ""
    """named shares of the split that are also reported by themselves, set apart by spaces; empty
    for none. `tail@verb` counts for metrics of that target alone; those of pairs are of `action`"""
    side: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """stream name -> further inputs of its encoder. `boxes` (T, O, 4): x0 y0 x1 y1 in [0, 1] of the
    frame, all zero where there is none"""


@dataclass(frozen=True)
class Stream:
    """What raw values of a stream look like.

    kind `video`: uint8 tensor (T, H, W, 3), RGB. kind `sensor`: float tensor (T, channels). kind
    `features`: tokens (L, D), as many as `shape` says or fewer. kind `text`: a string; several
    questions are set apart by ` </s> `, a hidden word is `<mask>`. `shape` is that shape; for text
    it is (most words,), marks counted.
    """

    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StoredTokens:
    """Tokens of a stream that a dataset has at hand, for all samples of a split."""

    name: str
    """of the file, for messages"""
    features: Any
    """(total, D): an array, memory-mapped or not, or what gives one when it is sliced by rows"""
    begins: Any
    """(samples,) int64, the first row of each sample"""
    lengths: Any
    """(samples,) int64, how many rows it has"""


class BadSample(ValueError):
    """A sample that cannot be read: `<id>: <where, and why>`."""


class Split(Protocol):
    """Map-style torch dataset.

    Two more methods may exist: `__getitems__(indices)` fetches a whole batch at once, and
    `drawn(indices, seed, turn)` the same with the random choices of training, which are settled by
    seed, turn (the number of the pass) and index alone. The values in a sample's `streams` and
    `side` may be made when they are asked for; BadSample is raised where one cannot be.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Dataset:
    """A dataset with the splits `train`, `select` (for every choice) and `test` (for the table).

    Built from its config alone; `split` may be called in any process.
    """

    Config: ClassVar[type[PluginConfig]] = PluginConfig
    Places: ClassVar[type[PluginConfig]] = PluginConfig
    """where its files lie on a machine: section `data.<name>` of the site file, in no run id"""
    manifests: ClassVar[tuple[str, ...]] = ()
    """options that hold a file which names others: its identity is the fingerprint of the data that
    it leads to, wherever they lie"""
    unseen: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """stream -> options that change nothing of it, and no label: runs share its stored tokens"""
    slow: ClassVar[bool] = False
    """whether samples take so long to make that worker processes are to make them ahead"""
    places: Any = None
    """a `Places`; None where the machine has no site file"""
    used: frozenset[str] | None = None
    """streams that the run at hand sees; None: all"""
    views: int = 1
    """items of `test` per sample, side by side; the mean of what is said of them counts"""

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

    def actions(self) -> tuple[tuple[int, int], ...] | None:
        """Which (verb, noun) exist, in the order of the target `action`; None: it is not known."""
        return None

    def class_names(self) -> Mapping[str, Sequence[str]]:
        """Target -> names of its classes, in order, of those that have any."""
        return {}

    def split(self, name: str) -> Split:
        """The split `train`, `select` or `test`."""
        raise NotImplementedError

    def stored(self, split: str, stream: str) -> StoredTokens | None:
        """A stream's tokens over a split, where it is of kind `features` and they are at hand: they
        are then read without a sample being made. None: they are not."""
        return None

    def fingerprint(self) -> str:
        """SHA-256 hex digest of everything the samples are made from; same samples, same digest.

        Raises ValueError if a used stream lacks something."""
        raise NotImplementedError

    def told(self) -> Mapping[str, str]:
        """What results say of the samples beside their options: `questions` -> how it was made."""
        return {}

    def windows(self, name: str) -> Mapping[str, tuple[float, float]]:
        """Sample id -> first and last second seen of its recording, where that is known."""
        return {}

    def ceilings(self) -> Mapping[str, Mapping[str, float]]:
        """Best reachable scores where they are known: ceiling name -> metric -> share in [0, 1].

        Ceiling names are a stream's name (that stream alone), `additive` and `joint`. Metric names
        are those of `harness.evaluate`, e.g. `verb_top1`, `verb_top1[two_handed]`.
        """
        return {}

    def doctor(self, workers: int, seconds: float) -> Iterator[Look] | None:
        """What `harness data doctor` says of the files on this machine, one after another; how fast
        samples come is measured for some seconds with that many workers. None: it has no files."""
        return None


@dataclass(frozen=True)
class Converted:
    """A published checkpoint in an encoder's own terms."""

    tensors: Mapping[str, Tensor]
    """names of the encoder's state dict -> values of its shapes"""
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    """classifiers that came with it, named as in a run: `heads.verb.weight`, `pre_logits.0.bias`"""
    resized: Sequence[str] = ()
    """what was changed in shape, e.g. `temporal_embedding (4, 768) -> (16, 768)`"""
    unexpected: Sequence[str] = ()
    """names in the checkpoint that nothing here has"""


class Encoder(nn.Module):
    """Raw values of one stream -> Tokens."""

    Config: ClassVar[type[PluginConfig]] = PluginConfig
    kinds: ClassVar[tuple[str, ...]] = ()
    """stream kinds it reads"""
    default_init: ClassVar[str] = "random"
    """what it starts from where a sweep does not say"""
    may_start_fresh: ClassVar[str] = ""
    """regular expression of the tensors that a `pretrained:` checkpoint may lack"""
    may_be_left_out: ClassVar[str] = ""
    """regular expression of what a checkpoint may hold and the encoder has no use for"""
    width: int
    """D of the tokens it returns"""
    passes_on: ClassVar[bool] = False
    """True if it hands on tokens as they come, changing nothing: they need not be stored again"""
    chooses_by: ClassVar[tuple[str, ...]] = ()
    """options that only choose which of its tokens are handed on: they change no cost"""
    takes: ClassVar[tuple[str, ...] | None] = None
    """side inputs that it has use for; None: all there are"""
    parts: int = 0
    """number of heads that its tokens are dealt to, if it returns PartedTokens"""

    def __init__(self, config: Any, stream: Stream) -> None:
        super().__init__()
        self.config = config
        self.stream = stream

    @classmethod
    def build(cls, config: Any, stream: Stream, source: Path | None) -> Self:
        """The encoder, without its weights yet; overridden where `source`, the file or folder it
        starts from, also decides its sizes."""
        return cls(config, stream)

    @classmethod
    def locate(cls, text: str, base_dir: Path) -> Path:
        """The file (or folder) that `init: pretrained:<text>` means; it need not exist. Raises
        ConfigError if `text` is something else and cannot be had."""
        return base_dir / Path(text).expanduser()

    def load(self, source: Path) -> bool:
        """Take the weights in `source`; False: the harness reads the file and asks `convert`."""
        return False

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Options and facts (`size`, `image`, ...) if `state`, a published checkpoint's tensors
        without `module.` before their names, holds this encoder; else None."""
        return None

    def convert(self, state: Mapping[str, Tensor]) -> Converted:
        """`state`, of this encoder or of a published checkpoint, in this encoder's terms."""
        own = self.state_dict().keys()
        known = {name: value for name, value in state.items() if name in own}
        return Converted(known, unexpected=[name for name in state if name not in own])

    def tokens_shape(self) -> tuple[int, int, int] | None:
        """Shape (1, L, D) of the tokens of `example`, where it is known without a forward pass."""
        return None

    def example(self) -> tuple[Any, dict[str, Tensor]]:
        """(inputs, side) of one sample as large as the stream allows, for counting cost."""
        if self.stream.kind == "text":
            return self.collate([" ".join(["word"] * self.stream.shape[0])]), {}
        kind = torch.uint8 if self.stream.kind == "video" else torch.float32
        return self.collate([torch.zeros(self.stream.shape, dtype=kind)]), {}

    def fit(self, raws: Sequence[Any]) -> None:
        """Learn what must be known before training starts (a vocabulary, a scale).

        `raws` are raw values of the train split. What is learnt lives in buffers, so that it is
        saved and loaded with the weights.
        """

    def collate(self, raws: Sequence[Any]) -> Any:
        """Raw values -> one batch for `forward`: a tensor, or a tuple of tensors."""
        return stack(list(raws))

    def forward(self, inputs: Any, **side: Tensor) -> Tokens | PartedTokens:
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
    mamba: ClassVar[bool] = False
    """True if it is made of Mamba blocks, for which recipes have rates of their own"""
    transparent: bool = False
    """True if the result is the mean of one stream's tokens as they come, so that the classifiers
    of a published checkpoint fit on it"""

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
    "BadSample", "Converted", "Dataset", "Encoder", "Fusion", "PartedTokens", "PluginConfig",
    "Sample", "Split", "StoredTokens", "Stream", "Tokens",
]  # fmt: skip
