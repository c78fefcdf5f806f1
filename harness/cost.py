"""Parameters and GFLOPs of a run's model, counted without allocating a weight.

Convention (printed under every cost table): fvcore, one multiply-add counts 1, batch 1, evaluation
mode, on the `meta` device. A frozen text encoder is left out of both columns, as in the paper:
fusion starts from its tokens. Softmax, activations, elementwise arithmetic, reductions and moving
data count 0; an operator that is neither counted nor on that list is an error. RoIAlign, whose cost
depends on the size of the boxes, is counted apart, for boxes as large as the frame.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.flop_counter import FlopCounterMode

from harness.batch import to_device
from harness.contracts import Dataset, Encoder, PartedTokens, Tokens
from harness.model import Model, meta_model
from harness.registry import OPERATOR_MACS
from harness.spec import Paths, RunSpec

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # it scripts a loss as it is imported
    from fvcore.nn import FlopCountAnalysis

CONVENTION = (
    "fvcore, 1 multiply-add = 1, batch 1, evaluation mode, frozen text encoder excluded; "
    "softmax, activations, elementwise operations and reductions count 0; a selective scan counts "
    "9 B L D N + B L D, the single operations that Mamba's authors count"
)
ZERO_COST_NAMES = """
__and__ __or__ __xor__ _softmax _to_copy abs add add_ addcdiv addcmul all amax amin
any arange argmax argsort bitwise_and bitwise_not bitwise_or cat clamp clamp_ clamp_max
clamp_min clone complex constant_pad_nd contiguous copy_ cos cumsum detach diagonal diff div div_
embedding empty empty_like eq erf exp expand_as expm1 fill_ flip floor full full_like gather
ge gelu gt imag index index_put_ index_select isfinite isnan le lerp lift_fresh linspace log
log1p log_softmax logical_and logical_not logical_or lt masked_fill masked_fill_ max maximum
mean median min minimum mul mul_ nan_to_num ne neg new_full new_ones new_zeros norm one_hot
ones ones_like pad pow real reciprocal relu relu_ repeat repeat_interleave rms_norm roll round
rsqrt rsub scatter select_scatter sigmoid sigmoid_ sign silu silu_ sin slice_scatter softmax
softplus sort sqrt square stack std sub sub_ sum take_along_dim tanh to tril triu type_as
unflatten unfold upsample_bicubic2d var view_as_real where zeros zeros_like
"""
"""operators of torch that count 0"""
ZERO_COST = frozenset(f"aten::{name}" for name in ZERO_COST_NAMES.split())


def _roi_align_macs(shapes: list[list[int]]) -> int:
    """Boxes x cells x channels x 4: one bilinear sample per cell, as a box of the whole map has.

    `shapes` are those of the maps (B, D, H, W) and the boxes (O, 5); there are H x W cells.
    """
    maps, boxes = shapes[:2]
    return 4 * boxes[0] * math.prod(maps[1:])


APART = {"torchvision::roi_align": _roi_align_macs}
"""operators whose cost depends on the data: not in the total"""


@dataclass(frozen=True)
class Count:
    """Multiply-adds of one module."""

    operators: Mapping[str, float]
    parts: Mapping[str, float]
    """submodule -> multiply-adds, `` for all of it"""
    recounted: float
    """the same by torch, without the norms"""
    first: tuple[int, ...]
    """shape of its first result"""


def cost(spec: RunSpec, dataset: Dataset, paths: Paths) -> dict[str, Any]:
    """`gflops`, `params_m` (millions), `params_trained_m`, and GFLOPs by operator and part.

    `gflops_apart`: operators whose cost depends on the data, not in `gflops`. `gflops_recounted`:
    the same model counted by torch, without the norms.
    """
    model = meta_model(spec, paths)
    excluded = excluded_streams(model, dataset)
    counts: dict[str, Count] = {}
    tokens: dict[str, Tokens | PartedTokens] = {}
    for stream in sorted(spec.encoders):
        encoder = cast(Encoder, model.encoders[stream])
        shape: tuple[int, ...] = (1, encoder.stream.shape[0], encoder.width)
        if stream not in excluded:
            counts[f"encoders.{stream}"], shape = _encoder_count(spec, stream, encoder)
        tokens[stream] = _tokens(encoder, shape, torch.device("meta"))
    counts[""] = _count(model, (tokens,))
    operators = sum((Counter(count.operators) for count in counts.values()), Counter[str]())
    apart = sum(operators.pop(name, 0) for name in APART)
    parts = {
        ".".join(filter(None, (prefix, part))): value / 1e9
        for prefix, count in counts.items()
        for part, value in count.parts.items()
        if value and (prefix or part) and part.count(".") <= (not prefix)
    }
    weights = {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith(tuple(f"encoders.{stream}." for stream in excluded))
    }
    return {
        "gflops": sum(operators.values()) / 1e9,
        "gflops_apart": apart / 1e9,
        "gflops_recounted": sum(count.recounted for count in counts.values()) / 1e9,
        "params_m": sum(p.numel() for p in weights.values()) / 1e6,
        "params_trained_m": sum(p.numel() for p in weights.values() if p.requires_grad) / 1e6,
        "params_m_by_part": _params_by_part(weights),
        "gflops_by_operator": {k: v / 1e9 for k, v in operators.items()},
        "gflops_by_part": parts,
        "tokens": {stream: _length(one) for stream, one in tokens.items()},
        "excluded": excluded,
        "convention": CONVENTION,
    }


def _length(tokens: Tokens | PartedTokens) -> int:
    """L, of the longest sample."""
    return int(tokens.features.shape[1])


_counted: dict[str, Count] = {}
"""encoders counted before, for many rows of a sweep share theirs"""
_shapes: dict[str, tuple[int, ...]] = {}
"""of the tokens that an encoder hands on"""


def _encoder_count(spec: RunSpec, stream: str, encoder: Encoder) -> tuple[Count, tuple[int, ...]]:
    """The cost of an encoder, and the shape (1, L, D) of its tokens."""
    written = spec.encoders[stream].model_dump(mode="json", exclude={"frozen"})
    options = {k: v for k, v in written["options"].items() if k not in encoder.chooses_by}
    whole, shared = (
        json.dumps([what, str(encoder.stream), type(encoder).__module__], sort_keys=True)
        for what in (written, written | {"options": options})
    )
    made, beside = encoder.example()
    meta = torch.device("meta")
    inputs, side = to_device(made, meta), to_device(beside, meta)
    if shared not in _counted:
        _counted[shared] = _count(encoder, (inputs,), side)
        _shapes[whole] = _counted[shared].first
    if whole not in _shapes:
        with torch.no_grad():
            known = encoder.tokens_shape()
            _shapes[whole] = known or tuple(encoder(inputs, **side).features.shape)
    return _counted[shared], _shapes[whole]


def _count(
    module: nn.Module, inputs: tuple[Any, ...], side: Mapping[str, Tensor] | None = None
) -> Count:
    """Raises ValueError for an operator whose cost is not known."""
    flat, layout = tree_flatten((inputs, dict(side or {})))
    counted = _Flat(module, layout)
    analysis = FlopCountAnalysis(counted, tuple(flat))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
    for operator, macs in (OPERATOR_MACS | APART).items():
        analysis.set_op_handle(operator, _handle(operator, macs))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused transformer layer would count 0
    try:
        with torch.no_grad():
            operators = analysis.by_operator()
            recounted = recount(counted, flat)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    unknown = set(analysis.unsupported_ops()) - ZERO_COST
    if unknown:
        raise ValueError(
            f"the cost of {sorted(unknown)} is not known; add it to harness/cost.py, with a handle "
            f"or among the operators that count 0"
        )
    parts = {
        name.removeprefix("module").removeprefix("."): sum(
            value for operator, value in found.items() if operator not in APART
        )
        for name, found in analysis.by_module_and_operator().items()
        if name.startswith("module")
    }
    return Count(dict(operators), parts, recounted, counted.shape)


def _params_by_part(weights: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """`encoders.video`, `fusion`, `pre_logits`, `heads` -> millions."""
    found: Counter[str] = Counter()
    for name, parameter in weights.items():
        parts = name.split(".")
        found[".".join(parts[: 2 if parts[0] == "encoders" else 1])] += parameter.numel()
    return {part: count / 1e6 for part, count in found.items()}


def recount(module: nn.Module, inputs: Sequence[Tensor]) -> float:
    """Multiply-adds of a forward pass by `torch.utils.flop_counter`, attention as products.

    Norms and RoIAlign count 0 here; the operators of plugins count by their own formulas.
    """
    formulas = {
        getattr(getattr(torch.ops, space), name): _formula(macs)
        for (space, name), macs in ((o.split("::"), macs) for o, macs in OPERATOR_MACS.items())
    }
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with sdpa_kernel(SDPBackend.MATH), counter:
        module(*inputs)
    return counter.get_total_flops() / 2


def _formula(macs: Callable[[list[list[int]]], int]) -> Callable[..., int]:
    def count(*shapes: Any, **others: Any) -> int:
        return 2 * macs([list(s) for s in shapes if isinstance(s, torch.Size | tuple | list)])

    return count


def excluded_streams(model: Model, dataset: Dataset) -> list[str]:
    """Streams whose encoder is in neither column: frozen text encoders."""
    return [stream for stream in model.frozen if dataset.streams[stream].kind == "text"]


def example(
    spec: RunSpec, model: Model, excluded: Sequence[str], device: torch.device
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One sample's inputs and side inputs; a stream in `excluded` comes as ready tokens."""
    inputs: dict[str, Any] = {}
    side: dict[str, Any] = {}
    for stream in sorted(spec.encoders):
        encoder = cast(Encoder, model.encoders[stream])
        if stream in excluded:
            shape = (1, encoder.stream.shape[0], encoder.width)
            inputs[stream] = _tokens(encoder, shape, device)
        else:
            made, beside = encoder.example()
            inputs[stream] = to_device(made, device)
            side[stream] = to_device(beside, device)
    return inputs, side


def _tokens(
    encoder: Encoder, shape: tuple[int, ...], device: torch.device
) -> Tokens | PartedTokens:
    """Ready tokens of an encoder, all real."""
    features = torch.zeros(shape, device=device)
    mask = torch.ones(shape[:2], dtype=torch.bool, device=device)
    if not encoder.parts:
        return Tokens(features, mask)
    return PartedTokens(features, mask, torch.zeros(shape[:2], dtype=torch.uint8, device=device))


class _Flat(nn.Module):
    """A module behind positional tensors, which is all that fvcore can trace."""

    def __init__(self, module: nn.Module, layout: Any) -> None:
        super().__init__()
        self.module = module
        self.layout = layout
        self.shape: tuple[int, ...] = ()
        """of the first result"""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, side = tree_unflatten(tensors, self.layout)
        made = tuple(tree_flatten(self.module(*inputs, **side))[0])
        self.shape = tuple(int(size) for size in made[0].shape)
        return made


def _sizes(value: Any) -> list[int]:
    return list(value.type().sizes())


def _attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """q k^T and (attention) v: B heads Lq Lk (Dk + Dv) multiply-adds."""
    query, key, value = (_sizes(item) for item in inputs[:3])
    batch = 1
    for size in query[:-2]:
        batch *= size
    macs = batch * query[-2] * key[-2] * (query[-1] + value[-1])
    return Counter({"attention": macs})


def _handle(operator: str, macs: Callable[[list[list[int]]], int]) -> Any:
    def count(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        return Counter({operator: macs([_sizes(item) for item in inputs if _is_tensor(item)])})

    return count


def _is_tensor(value: Any) -> bool:
    return bool(value.isCompleteTensor())


logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
