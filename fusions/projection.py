"""What stands before and after every fusion: a token MLP per stream, and the mean of real tokens.

Source: MambaVL, Algorithm 1 (projections, average pooling); the paper does not give the size of the
projections. Two layers, D_m -> hidden -> width with an exact GELU between and hidden four times the
width, are the size with which both counts of the paper's Table 4 add up: a guess, but a tested one.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from harness.contracts import Tokens


def token_mlp(width_in: int, width: int, hidden: int | None = None) -> nn.Sequential:
    """MLP over the last axis, width_in -> hidden -> width; hidden is 4 width if None."""
    hidden = 4 * width if hidden is None else hidden
    return nn.Sequential(nn.Linear(width_in, hidden), nn.GELU(), nn.Linear(hidden, width))


def all_real(mask: Tensor) -> bool:
    """True where it is known, without waiting for a GPU, that nothing is padded."""
    return mask.device.type == "cpu" and bool(mask.all())


def without_padding(tokens: Tokens) -> Tensor:
    """The features (B, L, D) with zeros where the mask is False, whatever stood there."""
    if all_real(tokens.mask):
        return tokens.features
    return tokens.features.masked_fill(~tokens.mask[..., None], 0.0)


def silenced(x: Tensor, mask: Tensor) -> Tensor:
    """x (B, L, D) times the mask: faster than `without_padding`, where padding is finite."""
    return x if all_real(mask) else x * mask[..., None]


def masked_mean(tokens: Tokens) -> Tensor:
    """Mean over the real tokens, (B, D); zeros for a sample without any.

    Padding must be finite; every fusion has cleaned its streams before.
    """
    count = tokens.mask.sum(dim=1, keepdim=True).clamp(min=1)
    return silenced(*tokens).sum(dim=1) / count


class Projections(nn.ModuleDict):
    """One token MLP per stream; all streams leave with the same width."""

    def __init__(self, widths: Mapping[str, int], width: int, hidden: int | None) -> None:
        super().__init__({name: token_mlp(w, width, hidden) for name, w in widths.items()})

    def forward(self, streams: Mapping[str, Tokens]) -> dict[str, Tokens]:
        """Projected tokens of the streams known here, in their sorted order."""
        return {
            name: Tokens(mlp(without_padding(streams[name])), streams[name].mask)
            for name, mlp in self.items()
        }
