"""ORViT and Motionformer: trajectories of patches, with or without the boxes of hands and objects.

Source: ORViT (Herzig et al. 2022), "Object-Region Video Transformers", sec. 3; Motionformer
(Patrick et al. 2021), sec. 3. `object_region` and `trajectory` hold their blocks.

    clips   (B, 3, T_in, S, S)      scaled to [-1, 1]; T = T_in / tubelet, P = (S / patch)^2
    boxes   (B, T_in, O, 4)         centre, width, height in [0, 1]; all zero where there is none;
                                    the first frame of each tubelet counts
    tokens  (B, 1 + T P, D)         patch + position + time; the class token has a position only
    logits  head0 (verb), head1     of tanh(linear(class token))

The learnt positions are `grid` x `grid` whatever the image; other images get them resized, bicubic,
so that 224 and 336 pixels have the same tensors.

Departs from the papers: what the released code does instead is said in `object_region` and
`trajectory`. Logits are returned before the softmax, where the released code in evaluation mode
gives probabilities. Patches are embedded by a reshape and a matrix product instead of a
convolution, which is the same map. Released Motionformer checkpoints hold a two-dimensional patch
embedding too, `patch_embed.proj`, which their own code never calls; it is dropped.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.object_region import ObjectBlock
from backbones.trajectory import (
    EPSILON,
    Block,
    PatchEmbedding,
    TrajectoryAttention,
    initialise,
)
from backbones.video import Output, VideoConfig, VideoEncoder, matched, run_block
from harness.contracts import Converted, Stream
from harness.registry import ENCODERS

BOXES_PER_FRAME = 4
"""O; for EPIC-Kitchens the right hand, the left hand, two objects"""
SMALLEST_SIDE = 0.05
"""boxes no wider or no higher than this share of the frame are taken as absent"""
PUBLISHED_HEADS = {
    f"{published}.{kind}": f"{here}.{kind}"
    for published, here in (
        ("pre_logits.fc", "pre_logits.0"),
        ("head0", "heads.verb"),
        ("head1", "heads.noun"),
    )
    for kind in ("weight", "bias")
}
"""classifiers of a checkpoint -> what a run's model calls them"""
UNUSED = "patch_embed.proj."
"""names of what released Motionformer checkpoints hold and never call"""


@dataclass(frozen=True)
class Size:
    """What a published model is made of."""

    width: int
    depth: int
    heads: int
    frames: int
    """T_in"""
    image: int
    """S, pixels"""
    patch: int
    tubelet: int
    """frames of a patch"""
    grid: int
    """places along each side for which positions are learnt"""
    object_blocks: tuple[int, ...]
    drop_path: float
    """rate of the last block; it grows linearly from 0, and is 0 in object blocks"""

    def __post_init__(self) -> None:
        for whole, part in (("image", "patch"), ("frames", "tubelet"), ("width", "heads")):
            many, few = getattr(self, whole), getattr(self, part)
            if many < few or many % few:
                raise ValueError(f"{whole} {many} is not a multiple of {part} {few}")


SIZES = {
    "base": Size(768, 12, 12, 16, 224, 16, 2, 14, (1, 6, 10), 0.2),
    "demo": Size(64, 2, 4, 8, 32, 8, 2, 4, (1,), 0.0),
}


class Network(nn.Module):
    """ORViT, or Motionformer where no block has objects."""

    def __init__(
        self,
        size: Size,
        classes: Mapping[str, int] | None = None,
        *,
        checkpointing: bool = False,
        discarded_half: bool = True,
    ) -> None:
        super().__init__()
        width, side = size.width, size.image // size.patch
        self.size = size
        self.checkpointing = checkpointing
        self.width = width
        self.times = size.frames // size.tubelet
        self.places = side * side
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + size.grid**2, width))
        self.temp_embed = nn.Parameter(torch.empty(1, self.times, width))
        self.patch_embed_3d = PatchEmbedding(width, size.tubelet, size.patch)
        blocks: list[Block] = []
        for i in range(size.depth):
            attn = TrajectoryAttention(width, size.heads, self.times, discarded_half)
            if i in size.object_blocks:
                blocks.append(ObjectBlock(attn, width, BOXES_PER_FRAME, (side, side)))
            else:
                blocks.append(Block(attn, width, size.drop_path * i / max(size.depth - 1, 1)))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.targets = tuple(classes or ())
        if classes:
            layers = {"fc": nn.Linear(width, width), "tanh": nn.Tanh()}
            self.pre_logits = nn.Sequential(OrderedDict(layers))
            for i, target in enumerate(self.targets):
                self.add_module(f"head{i}", nn.Linear(width, classes[target]))
        initialise(self)

    def forward(self, clips: Tensor, boxes: Tensor | None = None) -> Output:
        """`boxes` None: every one is absent."""
        shape = (3, self.size.frames, self.size.image, self.size.image)
        if tuple(clips.shape[1:]) != shape:
            raise ValueError(f"clips of {tuple(clips.shape[1:])}, built for {shape}")
        boxes = self._boxes(clips, boxes) if self.size.object_blocks else None
        x = self._embed(clips)
        for block in self.blocks:
            inputs = (x, boxes) if isinstance(block, ObjectBlock) else (x,)
            x = run_block(block, *inputs, recompute=self.checkpointing)
        tokens = self.norm(x)
        if not self.targets:
            return Output(tokens, tokens[:, 0], {})
        features = self.pre_logits(tokens[:, 0])
        heads = {target: getattr(self, f"head{i}") for i, target in enumerate(self.targets)}
        return Output(tokens, features, {target: head(features) for target, head in heads.items()})

    def _boxes(self, clips: Tensor, boxes: Tensor | None) -> Tensor:
        """One frame's boxes per tubelet: (B, T, O, 4)."""
        shape = (len(clips), self.size.frames, BOXES_PER_FRAME, 4)
        if boxes is None:
            boxes = self.temp_embed.new_zeros(shape)
        if tuple(boxes.shape) != shape:
            raise ValueError(f"boxes of {tuple(boxes.shape)}, the clips need {shape}")
        return boxes[:, :: self.size.tubelet].to(self.temp_embed.dtype)

    def _embed(self, clips: Tensor) -> Tensor:
        patches = self.patch_embed_3d(clips).unflatten(1, (self.times, self.places))
        patches = patches + self._positions() + self.temp_embed[:, :, None]
        summary = self.cls_token + self.pos_embed[:, :1]
        return torch.cat([summary.expand(len(clips), -1, -1), patches.flatten(1, 2)], dim=1)

    def _positions(self) -> Tensor:
        """Of the patches, resized where the image is not as large as `grid` says: (1, P, D)."""
        learnt = self.pos_embed[:, 1:]
        if learnt.shape[1] == self.places:
            return learnt
        grid, side = self.size.grid, self.size.image // self.size.patch
        maps = learnt.transpose(1, 2).unflatten(2, (grid, grid))
        return F.interpolate(maps, size=(side, side), mode="bicubic").flatten(2).transpose(1, 2)

    @staticmethod
    def convert(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Converted:
        """Published names are those here; classifiers that `own` lacks become a run's heads."""
        heads, rest = {}, {}
        for name, value in state.items():
            if name not in own and name in PUBLISHED_HEADS:
                heads[PUBLISHED_HEADS[name]] = value
            elif not name.startswith(UNUSED):
                rest[name] = value
        return matched(rest, own, heads)


@ENCODERS.register("motionformer")
class Motionformer(VideoEncoder):
    """Motionformer, of 16 frames and any multiple of 16 pixels."""

    class Config(VideoConfig):
        """Options of `motionformer` and `orvit`."""

        size: Literal["base", "demo"] = "base"
        """`base` is the published one; `demo` fits SimKitchen (8 frames of 32 x 32)"""
        bgr: bool = True
        """blue first, as checkpoints trained on EPIC-Kitchens expect; False: red first, as those of
        Something-Something do"""
        discarded_half: bool = True
        """compute also the half of `proj_kv` that nothing uses, a fifth of all multiply-adds, as
        the released code does; False gives the same tokens without"""

    pixel_mean = (127.5, 127.5, 127.5)
    pixel_std = (127.5, 127.5, 127.5)
    objects: ClassVar[bool] = False
    """whether its blocks know boxes"""

    def __init__(self, config: Any, stream: Stream) -> None:
        super().__init__(config, stream)
        size = SIZES[config.size]
        frames, height, width, _ = stream.shape
        if frames != size.frames:
            raise ValueError(f"clips of {frames} frames; size {config.size!r} needs {size.frames}")
        if height != width or height % size.patch:
            raise ValueError(
                f"clips of {height} x {width} pixels; size {config.size!r} needs square ones, a "
                f"multiple of {size.patch} wide, for example {size.image} x {size.image}"
            )
        drop_path = size.drop_path if config.drop_path is None else config.drop_path
        self.bgr = config.bgr
        self.network = self.published(
            config.size,
            image=height,
            drop_path=drop_path,
            checkpointing=config.checkpointing,
            discarded_half=config.discarded_half,
        )
        self.width = self.network.width
        # No patch ever attends to the class token, so that without it among the tokens handed on
        # its gradient is zero: it is no parameter to train then, and none to count.
        self.network.cls_token.requires_grad_(config.tokens == "cls")

    @classmethod
    def published(
        cls,
        size: str,
        *,
        frames: int | None = None,
        image: int | None = None,
        classes: Mapping[str, int] | None = None,
        checkpointing: bool = False,
        discarded_half: bool = True,
        **changes: Any,
    ) -> Network:
        """`changes` are of the size's other numbers; `classes`, in order, of `head0`, `head1`."""
        made = SIZES[size]
        made = replace(made, frames=frames or made.frames, image=image or made.image, **changes)
        if not cls.objects:
            made = replace(made, object_blocks=())
        return Network(made, classes, checkpointing=checkpointing, discarded_half=discarded_half)

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """`size` only where all tensors but the classifiers agree; `image` is what the positions
        were learnt for: checkpoints for larger images do not say so."""
        if not {"patch_embed_3d.proj.weight", "temp_embed", "pos_embed"} <= state.keys():
            return None
        if cls.objects != any(name.endswith("box_categories") for name in state):
            return None
        facts: dict[str, Any] = {"name": "orvit" if cls.objects else "motionformer"}
        for size in SIZES:
            with torch.device("meta"):
                own = {n: v.shape for n, v in cls.published(size).state_dict().items()}
            if own == {n: v.shape for n, v in state.items() if n in own or n[:7] == "blocks."}:
                facts["size"] = size
        _, _, tubelet, patch, _ = state["patch_embed_3d.proj.weight"].shape
        facts["frames"] = state["temp_embed"].shape[1] * tubelet
        facts["image"] = math.isqrt(state["pos_embed"].shape[1] - 1) * patch
        heads = {"verb": "head0.weight", "noun": "head1.weight"}
        facts["classes"] = {t: len(state[name]) for t, name in heads.items() if name in state}
        return facts


@ENCODERS.register("orvit")
class Orvit(Motionformer):
    """ORViT, of 16 frames and any multiple of 16 pixels, with boxes where the data has them."""

    objects = True
    takes = ("boxes",)
    may_start_fresh = (
        r"network\.blocks\.\d+\."
        r"(box_categories|(patch_to_d|c_coord_to_feature|motion_stream|motion_mlp)\..+)"
    )

    def example(self) -> tuple[Any, dict[str, Tensor]]:
        """Boxes as large as the frame."""
        inputs, _ = super().example()
        box = torch.tensor([0.0, 0.0, 1.0, 1.0], device=inputs.device)
        return inputs, {"boxes": box.expand(1, self.stream.shape[0], BOXES_PER_FRAME, 4)}

    def boxes(self, side: Mapping[str, Tensor]) -> Tensor | None:
        """Corners (B, T_in, O, 4) in [0, 1] -> centre, width, height; too narrow ones are zero."""
        if "boxes" not in side:
            return None
        near, far = side["boxes"].clamp(0, 1).chunk(2, dim=-1)
        boxes = torch.cat([(near + far) / 2, far - near], dim=-1)
        return boxes * (far - near > SMALLEST_SIDE).all(dim=-1, keepdim=True)
