"""Trajectory attention, the block that is built from it, and the patches that it sees.

Source: Motionformer (Patrick et al. 2021), "Keeping Your Eye on the Ball: Trajectory Attention in
Video Transformers", sec. 3.2, eq. 2-5. Of the tokens (B, 1 + T P, D), a class token and P patches
at each of T times, N = T P are patches:

    trajectory  (B, N, T, D)  per patch and time, an average over the P patches of that time
    own         (B, N, D)     the trajectory at the patch's own time, from which its query is made
    output      (B, N, D)     per patch, an average along its trajectory

The class token attends to all tokens at once; no patch attends to it.

Departs from the paper: the averages along trajectories are taken of the trajectories themselves,
not of their projected values (eq. 5), because the released code does so and its weights expect it.
`proj_kv` keeps the rows of those values, which nothing uses; `discarded_half` says whether they are
computed nevertheless, as the released code does, or left out, which changes no result.
"""

from __future__ import annotations

from torch import Tensor, cat, nn
from torch.nn import functional as F

from backbones.video import DropPath, Mlp, merge_heads, split_heads

EPSILON = 1e-6
"""of every LayerNorm"""


class TrajectoryAttention(nn.Module):
    """(B, 1 + T P, D) -> the same shape, for any P."""

    def __init__(self, width: int, heads: int, times: int, discarded_half: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.times = times
        self.scale = (width // heads) ** -0.5
        self.discarded_half = discarded_half
        self.qkv = nn.Linear(width, 3 * width)
        self.proj_q = nn.Linear(width, width)
        self.proj_kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        summary = merge_heads(F.scaled_dot_product_attention(q[:, :, :1], k, v))
        moved = self._trajectories(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:])
        return self.proj(cat([summary, self._along(moved)], dim=1))

    def _trajectories(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, heads, N, d) each -> (B, N, T, D)."""
        batch = len(q)
        # Four dimensions, (B heads, T, N or P, d): with five there is no fused attention, and the
        # weights (B, heads, T, N, P) would be kept, which are larger than the trajectories.
        q = q.flatten(0, 1).unsqueeze(1).expand(-1, self.times, -1, -1)
        k, v = (part.flatten(0, 1).unflatten(1, (self.times, -1)) for part in (k, v))
        moved = F.scaled_dot_product_attention(q, k, v).unflatten(0, (batch, self.heads))
        return moved.permute(0, 3, 2, 1, 4).flatten(3)

    def _along(self, moved: Tensor) -> Tensor:
        """Trajectories (B, N, T, D) -> (B, N, D)."""
        own = moved.unflatten(1, (self.times, -1)).diagonal(dim1=1, dim2=3)
        q = split_heads(self.proj_q(own.permute(0, 3, 1, 2).flatten(1, 2)).unsqueeze(2), self.heads)
        k = split_heads(self._keys(moved), self.heads)
        weights = (q * self.scale) @ k.transpose(-2, -1)
        return merge_heads(weights.softmax(dim=-1) @ split_heads(moved, self.heads)).flatten(1, 2)

    def _keys(self, moved: Tensor) -> Tensor:
        width = moved.shape[-1]
        if self.discarded_half:
            return self.proj_kv(moved)[..., :width]
        return F.linear(moved, self.proj_kv.weight[:width], self.proj_kv.bias[:width])


class PatchEmbedding(nn.Module):
    """Clips (B, 3, T_in, S, S) -> (B, T P, D), times outermost, then rows."""

    def __init__(self, width: int, tubelet: int, patch: int) -> None:
        super().__init__()
        self.cell = (tubelet, patch, patch)
        self.proj = nn.Conv3d(3, width, kernel_size=self.cell, stride=self.cell)

    def forward(self, clips: Tensor) -> Tensor:
        x = clips
        for dim, length in zip((4, 3, 2), reversed(self.cell), strict=True):
            x = x.unflatten(dim, (-1, length))
        x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


class Block(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)); in training either may be dropped."""

    def __init__(self, attn: nn.Module, width: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attn = attn
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = Mlp(width, 4 * width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def initialise(network: nn.Module) -> None:
    """As the released code: Xavier for all with two axes or more, then the linear layers anew."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
