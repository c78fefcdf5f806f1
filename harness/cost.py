"""Parameters and GFLOPs of a run's model, counted without allocating a weight.

Convention (printed under every cost table): fvcore, one multiply-add counts 1, batch 1, evaluation
mode, on the `meta` device. A frozen text encoder is left out of both columns, as in the paper:
fusion starts from its tokens. Softmax, activations, elementwise arithmetic, reductions and moving
data count 0; an operator that is neither counted nor on that list is an error.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.contracts import Dataset, Tokens
from harness.model import Model
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
clamp_min clone complex constant_pad_nd contiguous copy_ cos cumsum detach diff div div_
embedding empty empty_like eq erf exp expand_as expm1 fill_ flip floor full full_like gather
ge gelu gt imag index index_put_ index_select isfinite isnan le lerp lift_fresh linspace log
log1p log_softmax logical_and logical_not logical_or lt masked_fill masked_fill_ max maximum
mean median min minimum mul mul_ nan_to_num ne neg new_full new_ones new_zeros norm one_hot
ones ones_like pad pow real reciprocal relu relu_ repeat repeat_interleave rms_norm roll round
rsqrt rsub scatter select_scatter sigmoid sigmoid_ sign silu silu_ sin slice_scatter softmax
softplus sort sqrt square stack std sub sub_ sum take_along_dim tanh to tril triu type_as
unflatten unfold var view_as_real where zeros zeros_like
"""
"""operators of torch that count 0"""
ZERO_COST = frozenset(f"aten::{name}" for name in ZERO_COST_NAMES.split())


def cost(spec: RunSpec, dataset: Dataset, paths: Paths) -> dict[str, Any]:
    """`gflops`, `params_m` (millions), `params_trained_m`, and GFLOPs by operator and part."""
    with torch.device("meta"):
        model = Model(spec, dataset, paths).eval()
    excluded = [stream for stream in model.frozen if dataset.streams[stream].kind == "text"]
    inputs, side = example(spec, dataset, model, excluded)
    counted = _Flat(model, inputs, side)
    analysis = FlopCountAnalysis(counted, tuple(counted.tensors(inputs, side)))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
    for operator, macs in OPERATOR_MACS.items():
        analysis.set_op_handle(operator, _handle(operator, macs))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused transformer layer would count 0
    try:
        with torch.no_grad():
            total = analysis.total()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    unknown = set(analysis.unsupported_ops()) - ZERO_COST
    if unknown:
        raise ValueError(
            f"the cost of {sorted(unknown)} is not known; add it to harness/cost.py, with a handle "
            f"or among the operators that count 0"
        )
    weights = {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith(tuple(f"encoders.{stream}." for stream in excluded))
    }
    return {
        "gflops": total / 1e9,
        "params_m": sum(p.numel() for p in weights.values()) / 1e6,
        "params_trained_m": sum(p.numel() for p in weights.values() if p.requires_grad) / 1e6,
        "gflops_by_operator": {k: v / 1e9 for k, v in analysis.by_operator().items()},
        "gflops_by_part": {
            name.removeprefix("model."): value / 1e9
            for name, value in analysis.by_module().items()
            if name.startswith("model.") and name.count(".") <= 2 and value
        },
        "excluded": excluded,
        "convention": CONVENTION,
    }


def example(
    spec: RunSpec, dataset: Dataset, model: Model, excluded: list[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """One sample's inputs on the meta device; a stream in `excluded` comes as ready tokens."""
    inputs: dict[str, Any] = {}
    for stream in sorted(spec.encoders):
        info = dataset.streams[stream]
        if stream in excluded:
            width = int(model.encoders[stream].width)  # type: ignore[arg-type]
            shape = (1, info.shape[0])
            inputs[stream] = Tokens(
                torch.empty(*shape, width, device="meta"),
                torch.empty(shape, dtype=torch.bool, device="meta"),
            )
        else:
            raw = _example_raw(info.kind, info.shape)
            made = model.encoders[stream].collate([raw])  # type: ignore[operator]
            inputs[stream] = _to_meta(made)
    return inputs, {}


def _example_raw(kind: str, shape: tuple[int, ...]) -> Any:
    if kind == "text":
        return " ".join(["word"] * shape[0])
    return torch.zeros(shape, dtype=torch.uint8 if kind == "video" else torch.float32)


def _to_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, Mapping):
        return {key: _to_meta(part) for key, part in value.items()}
    return tuple(_to_meta(part) for part in value)


class _Flat(nn.Module):
    """The model behind positional tensors, which is all that fvcore can trace."""

    def __init__(self, model: Model, inputs: Mapping[str, Any], side: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.layout = [(stream, type(value)) for stream, value in inputs.items()]

    @staticmethod
    def tensors(inputs: Mapping[str, Any], side: Mapping[str, Any]) -> list[Tensor]:
        flat: list[Tensor] = []
        for value in inputs.values():
            flat.extend([value] if isinstance(value, Tensor) else list(value))
        return flat

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        left = list(tensors)
        inputs: dict[str, Any] = {}
        for stream, kind in self.layout:
            if kind is Tensor or issubclass(kind, Tensor):
                inputs[stream] = left.pop(0)
            else:
                pair = (left.pop(0), left.pop(0))
                inputs[stream] = Tokens(*pair) if kind is Tokens else pair
        return tuple(self.model(inputs).values())


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
