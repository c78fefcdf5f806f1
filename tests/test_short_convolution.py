"""The short convolution before a scan: against torch's own, compiled and in torch alike."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.nn import functional as F

from fusions.scan import causal_conv, compiled
from harness.registry import OPERATOR_MACS

SHAPES = [(2, 9, 5, 4), (1, 1, 3, 4), (3, 2, 4, 4), (2, 6, 1, 1), (2, 40, 70, 3)]


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(compiled, "works_on", lambda x: False)
    elif not compiled.available():
        pytest.skip("numba is not installed")


def make(B: int, L: int, D: int, K: int) -> list[Tensor]:
    torch.manual_seed(0)
    parts = (torch.randn(B, L, D), torch.randn(K, D), torch.randn(D))
    return [part.double().requires_grad_() for part in parts]


def by_torch(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    padded = F.pad(x.transpose(1, 2), (len(taps) - 1, 0))
    return F.conv1d(padded, taps.T[:, None], bias, groups=x.shape[2]).transpose(1, 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_torchs_depthwise_convolution(shape: tuple[int, int, int, int]) -> None:
    inputs = make(*shape)
    y, expected = causal_conv(*inputs), by_torch(*inputs)
    torch.testing.assert_close(y, expected)
    gy = torch.randn_like(y)
    wanted = torch.autograd.grad(expected, inputs, gy)
    for got, want in zip(torch.autograd.grad(y, inputs, gy), wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_inputs_need_not_be_contiguous() -> None:
    x, taps, bias = make(2, 9, 5, 4)
    skewed = x.detach().transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(
        causal_conv(skewed, taps.T.contiguous().T, bias), by_torch(x, taps, bias)
    )


@pytest.mark.parametrize("shape", [(0, 4, 3, 2), (2, 0, 3, 2)])
def test_nothing_in_gives_nothing_out(shape: tuple[int, int, int, int]) -> None:
    inputs = make(*shape)
    y = causal_conv(*inputs)
    assert y.shape == inputs[0].shape
    grads = torch.autograd.grad(y.sum(), inputs)
    assert all((grad == 0).all() for grad in grads)


def test_half_precision_is_computed_in_that_of_the_taps() -> None:
    x, taps, bias = (part.detach().float() for part in make(2, 9, 5, 4))
    assert torch.equal(
        causal_conv(x.bfloat16(), taps, bias), causal_conv(x.bfloat16().float(), taps, bias)
    )


def test_the_operator_keeps_the_rules_of_torch_and_is_counted() -> None:
    rules = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(torch.ops.harness.causal_conv.default, tuple(make(2, 9, 5, 4)), test_utils=rules)
    assert OPERATOR_MACS["harness::causal_conv"]([[2, 9, 5], [4, 5], [5]]) == 2 * 9 * 5 * 4


def test_shapes_that_do_not_fit_are_named() -> None:
    x, taps, bias = make(2, 9, 5, 4)
    with pytest.raises(ValueError, match=r"x is \(2, 9, 5\), taps \(4, 4\)"):
        causal_conv(x, taps[:, :4], bias)
