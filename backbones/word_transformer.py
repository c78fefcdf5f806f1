"""A small word-level text encoder, trained from scratch: embedding, local mixing, one attention.

Source: none, ours; the block is a pre-norm transformer's (Dosovitskiy et al. 2021, eq. 2-3). Local
mixing, a convolution over three words, comes first: whether `gently` or `hard` is meant in `not
hard but gently` depends on each word's neighbours, which attention over learnt absolute positions
was too slow to find.

    vocabulary   the words of the train split, fitted once, kept in a buffer of fixed shape
    input        ids (B, L) and mask (B, L); L is the longest text of the batch, at least 1
    tokens       (B, L, D), zero where padded
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from backbones.video_transformer import Block
from harness.contracts import Encoder, PluginConfig, Stream, Tokens
from harness.registry import ENCODERS

SPECIAL = ("<pad>", "<unknown>", "<mask>", "</s>")
PAD, UNKNOWN = 0, 1
LONGEST_WORD = 32
"""bytes of UTF-8"""


@ENCODERS.register("word_transformer")
class WordTransformer(Encoder):
    kinds = ("text",)

    class Config(PluginConfig):
        width: int = Field(default=64, gt=0)
        """D of the tokens"""
        depth: int = Field(default=1, gt=0)
        """attention blocks"""
        heads: int = Field(default=4, gt=0)
        """attention heads per block"""
        mlp_ratio: float = Field(default=2.0, gt=0)
        """hidden width of a block's MLP, in widths"""
        slots: int = Field(default=128, gt=len(SPECIAL))
        """most words the vocabulary may hold, four special ones included"""

    def __init__(self, config: Any, stream: Stream) -> None:
        super().__init__(config, stream)
        if config.width % config.heads:
            raise ValueError(f"width {config.width} is not a multiple of {config.heads} heads")
        self.width = config.width
        (self.most_words,) = stream.shape
        self.register_buffer("words", torch.zeros(config.slots, LONGEST_WORD, dtype=torch.uint8))
        self.embed = nn.Embedding(config.slots, self.width)
        self.mix = nn.Linear(3 * self.width, self.width)
        self.positions = nn.Parameter(0.02 * torch.randn(self.most_words, self.width))
        hidden = int(config.mlp_ratio * self.width)
        self.blocks = nn.ModuleList(
            Block(self.width, config.heads, hidden) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(self.width)

    def fit(self, raws: Sequence[str]) -> None:
        """Take the vocabulary from texts."""
        found = sorted({word for text in raws for word in text.split()} - set(SPECIAL))
        words = [word.encode() for word in (*SPECIAL, *found)]
        if len(words) > self.config.slots:
            raise ValueError(
                f"the texts have {len(found)} different words, with {len(SPECIAL)} special ones "
                f"more than slots={self.config.slots}"
            )
        longest = max(words, key=len)
        if len(longest) > LONGEST_WORD:
            raise ValueError(f"{longest.decode()!r} is longer than {LONGEST_WORD} bytes")
        rows = b"".join(word.ljust(LONGEST_WORD, b"\0") for word in words)
        self.words.zero_()
        self.words[: len(words)] = torch.frombuffer(bytearray(rows), dtype=torch.uint8).view(
            -1, LONGEST_WORD
        )

    def vocabulary(self) -> dict[str, int]:
        """Word -> id; empty on the meta device, where nothing is known."""
        if self.words.is_meta:
            return {}
        data = self.words.cpu().numpy().tobytes()
        starts = range(0, len(data), LONGEST_WORD)
        words = [data[start : start + LONGEST_WORD].rstrip(b"\0").decode() for start in starts]
        if not words[PAD]:
            raise RuntimeError("the vocabulary is empty: call `fit`, or load fitted weights")
        return {word: number for number, word in enumerate(words) if word}

    def collate(self, raws: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts -> ids (B, L) and mask (B, L), padded to the longest."""
        vocabulary = self.vocabulary()
        rows = [[vocabulary.get(word, UNKNOWN) for word in text.split()] for text in raws]
        longest = max(1, *map(len, rows))
        if longest > self.most_words:
            raise ValueError(f"a text of {longest} words; the stream promises {self.most_words}")
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
        return ids, torch.arange(longest) < lengths[:, None]

    def forward(self, inputs: tuple[Tensor, Tensor], **side: Tensor) -> Tokens:
        """`inputs` as from `collate`."""
        ids, mask = inputs
        real = mask[:, :, None].to(self.positions.dtype)
        x = self.embed(ids) * real  # zero, so that the mixing sees an end of text, not padding
        x = x + F.gelu(self.mix(neighbours(x))) + self.positions[: ids.shape[1]]
        # A text without words may look at its padding: a softmax over nothing would be NaN.
        attend = mask | ~mask.any(dim=1, keepdim=True)
        for block in self.blocks:
            x = block(x, attend[:, None, None])
        return Tokens(self.norm(x) * real, mask)


def neighbours(x: Tensor) -> Tensor:
    """(B, L, D) -> (B, L, 3 D): each token between its neighbours, zeros beyond the ends."""
    padded = F.pad(x, (0, 0, 1, 1))
    return torch.cat([padded[:, :-2], x, padded[:, 2:]], dim=-1)
