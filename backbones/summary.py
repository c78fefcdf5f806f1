"""Describe a window of a sensor by summary statistics: what a neural encoder has to beat.

Source: none, ours; hand-made features as activity recognition used them before networks did. Per
channel of x (B, T, C) mean, standard deviation, mean absolute difference of neighbours, and

    plain      smallest and largest value, amplitudes of the six lowest Fourier bins
    octaves    amplitudes of six octaves (bins 1, 2-3, 4-7, 8-15, 16-31, 32-63)

Bin k of a window of 2 s is k / 2 Hz. With a linear head this is a multinomial logistic regression.
Nothing is trained; `fit` learns mean and deviation of each feature over the train split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from harness.contracts import Encoder, PluginConfig, Stream, Tokens
from harness.registry import ENCODERS

BANDS = 6
FEATURES = {"plain": 5 + BANDS, "octaves": 3 + BANDS}


@ENCODERS.register("summary")
class Summary(Encoder):
    """One token per window: (B, 1, 11 C) or (B, 1, 9 C)."""

    class Config(PluginConfig):
        """Options of `summary`."""

        features: Literal["plain", "octaves"] = "plain"
        """which statistics; the octaves are the stronger ones on `watch`"""

    kinds = ("sensor",)
    mean: Tensor
    deviation: Tensor
    basis: Tensor

    def __init__(self, config: Config, stream: Stream) -> None:
        super().__init__(config, stream)
        length, channels = stream.shape
        self.width = FEATURES[config.features] * channels
        self.register_buffer("mean", torch.zeros(self.width))
        self.register_buffer("deviation", torch.ones(self.width))
        self.register_buffer("basis", fourier_basis(length), persistent=False)

    def fit(self, raws: Sequence[Tensor]) -> None:
        """Feature scales of the windows `raws`, each (T, C)."""
        features = self.statistics(self.collate(raws))
        self.mean.copy_(features.mean(0))
        self.deviation.copy_(features.std(0, correction=0).clamp_min(1e-6))

    def forward(self, inputs: Tensor, **side: Tensor) -> Tokens:
        """(B, T, C) -> one token."""
        features = (self.statistics(inputs) - self.mean) / self.deviation
        mask = torch.ones(len(inputs), 1, dtype=torch.bool, device=inputs.device)
        return Tokens(features[:, None], mask)

    def statistics(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, width)."""
        mean = x.mean(dim=1)
        centred = (x - mean[:, None]).transpose(1, 2)
        cosines, sines = (centred @ self.basis).chunk(2, dim=-1)
        power = cosines.square() + sines.square()
        if self.config.features == "plain":
            bands = list(power[..., :BANDS].unbind(dim=-1))
            extremes = [x.amin(dim=1), x.amax(dim=1)]
        else:
            octaves = [slice(2**i - 1, 2 ** (i + 1) - 1) for i in range(BANDS)]
            bands = [power[..., octave].sum(dim=-1) for octave in octaves]
            extremes = []
        roots = [p.clamp_min(1e-12).sqrt() for p in (centred.square().mean(dim=-1), *bands)]
        change = (x[:, 1:] - x[:, :-1]).abs().mean(dim=1)
        return torch.cat([mean, change, *extremes, *roots], dim=-1)


def fourier_basis(length: int) -> Tensor:
    """Cosines, then sines, of bins 1 to K of a Fourier transform, divided by T: (T, 2 K)."""
    bins = torch.arange(1, min(length // 2 + 1, 2**BANDS))
    angles = 2 * torch.pi * torch.arange(length)[:, None] * bins / length
    return torch.cat([angles.cos(), angles.sin()], dim=1) / length
