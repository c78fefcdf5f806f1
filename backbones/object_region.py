"""The object-region block: patches and boxes attend to each other, and boxes paint their motion.

Source: ORViT (Herzig et al. 2022), "Object-Region Video Transformers", sec. 3.2 and 3.3. Tokens are
(B, 1 + T H W, D), boxes (B, T, O, 4): centre, width and height in [0, 1] of the frame, all zero
where there is none.

    object tokens  (B, T, O, D)     RoIAlign of the patches, H x W cells, through an MLP, largest of
                                    all cells; plus the box through an MLP; plus a learnt vector
    attention      P = H W + O      tokens at each time, by trajectory; objects are then dropped
    motion         (B, T, H, W, D)  boxes alone, encoded by one joint attention over all T O of
                                    them, painted where the boxes are, through an MLP
    output         x + attention + motion, then x + mlp(norm2(x)); the class token gets no motion

Departs from the paper: as in the released code, whose weights expect it, a box is painted from
(x0, y0) with width x1 and height y1, the coordinates of its far corner, not with its own width and
height. An absent object is not left out: its token is the learnt vector alone.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor, cat, nn
from torch.nn import functional as F

from backbones.trajectory import Block, TrajectoryAttention
from backbones.video import Mlp, merge_heads, split_heads

MASK = 8
"""cells along each side of the box mask that the released code stretches over a box"""


def corners(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) as centre, width, height -> x0 y0 x1 y1."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return cat([centre - size / 2, centre + size / 2], dim=-1)


def crop(patches: Tensor, boxes: Tensor) -> Tensor:
    """Patches (B, T, H, W, D) under boxes (B, T, O, 4) -> (B, T, O, H, W, D); absent ones zero."""
    from torchvision.ops import roi_align

    batch, times, height, width, _ = patches.shape
    full = torch.promote_types(patches.dtype, torch.float32)  # not every device has it in half
    maps = patches.flatten(0, 1).permute(0, 3, 1, 2).to(full)
    scale = boxes.new_tensor([width, height, width, height])
    owner = torch.arange(batch * times, device=boxes.device, dtype=full)
    owner = owner[:, None].expand(-1, boxes.shape[2]).reshape(-1, 1)
    regions = cat([owner, (corners(boxes) * scale).flatten(0, 2).to(full)], dim=1)
    # As many samples as a cell is large: none, and so 0, in a box without any extent.
    cells = roi_align(maps, regions, (height, width), sampling_ratio=-1, aligned=True)
    return cells.permute(0, 2, 3, 1).unflatten(0, boxes.shape[:3]).to(patches.dtype)


def layout(boxes: Tensor, height: int, width: int) -> Tensor:
    """How much of each box (..., O, 4) lies on each place: (..., height width, O), in [0, 1].

    The closed form of sampling a mask of ones bilinearly, with zeros around it.
    """
    x0, y0, x1, y1 = corners(boxes).unsqueeze(-3).unbind(-1)
    across, down = _cover(x0, x1, width), _cover(y0, y1, height)
    return (down.unsqueeze(-2) * across.unsqueeze(-3)).flatten(-3, -2)


def _cover(start: Tensor, length: Tensor, places: int) -> Tensor:
    """Along one side: (..., 1, O) each -> (..., places, O); 0 where the length is 0."""
    at = torch.linspace(0, 1, places, device=start.device, dtype=start.dtype)[:, None]
    empty = length == 0
    cell = (MASK - 1) * (at - start) / length.masked_fill(empty, 1)
    cover = torch.minimum(1 + cell, MASK - cell).clamp(0, 1)
    return cover.masked_fill(empty, 0)


def relu_pair(inputs: int, width: int) -> nn.Sequential:
    """inputs -> width / 2 -> width, without biases."""
    hidden = width // 2
    first, second = nn.Linear(inputs, hidden, bias=False), nn.Linear(hidden, width, bias=False)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


class JointAttention(nn.Module):
    """Attention of all tokens (B, L, D) to all."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))


class MotionStream(nn.Module):
    """Boxes (B, T, O, 4) -> what they paint on the places, (B, T H W, D)."""

    def __init__(self, width: int, heads: int, times: int, boxes: int) -> None:
        super().__init__()
        self.box_categories = nn.Parameter(torch.empty(times, boxes, width))
        self.c_coord_to_feature = relu_pair(4, width)
        self.attn = Block(JointAttention(width, heads), width)

    def forward(self, boxes: Tensor, height: int, width: int) -> Tensor:
        tokens = self.c_coord_to_feature(boxes) + self.box_categories
        tokens = self.attn(tokens.flatten(1, 2)).unflatten(1, boxes.shape[1:3])
        return (layout(boxes, height, width) @ tokens).flatten(1, 2)


class ObjectBlock(Block):
    """A plain block whose patches also attend to objects, and which adds their motion."""

    def __init__(
        self, attn: TrajectoryAttention, width: int, boxes: int, grid: tuple[int, int]
    ) -> None:
        super().__init__(attn, width)
        # Not needed to import this file; and `crop` may first run in a trace, which cannot import.
        importlib.import_module("torchvision.ops")
        self.grid = (attn.times, *grid)
        self.box_categories = nn.Parameter(torch.empty(attn.times, boxes, width))
        self.patch_to_d = relu_pair(width, width)
        self.c_coord_to_feature = relu_pair(4, width)
        self.motion_stream = MotionStream(width, attn.heads, attn.times, boxes)
        self.motion_mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
        """x (B, 1 + T H W, D), boxes (B, T, O, 4)."""
        times, height, width = self.grid
        patches = x[:, 1:].unflatten(1, self.grid)
        frames = cat([patches.flatten(2, 3), self._objects(patches, boxes)], dim=2)
        mixed = self.attn(self.norm1(cat([x[:, :1], frames.flatten(1, 2)], dim=1)))
        seen = mixed[:, 1:].unflatten(1, (times, -1))[:, :, : height * width].flatten(1, 2)
        seen = seen + self.motion_mlp(self.motion_stream(boxes, height, width))
        x = x + cat([mixed[:, :1], seen], dim=1)
        return x + self.mlp(self.norm2(x))

    def _objects(self, patches: Tensor, boxes: Tensor) -> Tensor:
        """(B, T, O, D)."""
        cells = self.patch_to_d(crop(patches, boxes)).flatten(3, 4).amax(dim=3)
        return cells + self.box_categories + self.c_coord_to_feature(boxes)


__all__ = ["MotionStream", "ObjectBlock", "corners", "crop", "layout"]
