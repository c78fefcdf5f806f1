"""Tokens that were made elsewhere, handed on as they are: the encoder of one's own features.

Source: none, ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.contracts import Encoder, PluginConfig, Stream, Tokens
from harness.registry import ENCODERS


@ENCODERS.register("precomputed")
class Precomputed(Encoder):
    """(L, D) per sample -> (B, longest L, D), with a mask; nothing is trained."""

    class Config(PluginConfig):
        """No options."""

    kinds = ("features",)
    passes_on = True

    def __init__(self, config: Config, stream: Stream) -> None:
        super().__init__(config, stream)
        self.width = stream.shape[1]

    def collate(self, raws: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Tokens and mask, zeros where padded."""
        lengths = torch.tensor([len(raw) for raw in raws])
        features = torch.nn.utils.rnn.pad_sequence([raw.float() for raw in raws], batch_first=True)
        return features, torch.arange(features.shape[1]) < lengths[:, None]

    def forward(self, inputs: tuple[Tensor, Tensor], **side: Tensor) -> Tokens:
        """`inputs` as from `collate`."""
        return Tokens(*inputs)
