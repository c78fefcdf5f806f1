"""The selective scan: the plain loop against numbers worked by hand, every backend against it."""

import math
import mmap
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from fusions.scan import (
    BACKENDS,
    chunked,
    compiled,
    cuda,
    reference,
    scan_macs,
    selective_scan,
    threads,
)
from harness.registry import IMPLEMENTATIONS

HERE = sorted(name for name in BACKENDS if name != "numba" or compiled.available())
FAST = [name for name in HERE if name != "reference"]
needs_numba = pytest.mark.skipif(not compiled.available(), reason="numba is not installed")
RULES = ["euler", "zoh"]
SHAPES = [(2, 7, 3, 4), (1, 1, 7, 5), (3, 16, 5, 3), (2, 33, 1, 1), (4, 5, 9, 16)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def make(B: int, L: int, D: int, N: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, dt, A, B, C as a Mamba block would make them; leaves of the graph."""
    parts = [
        torch.randn(B, L, D),
        torch.rand(B, L, D) * 0.5,
        -torch.rand(D, N) * 4,
        torch.randn(B, L, N),
        torch.randn(B, L, N),
    ]
    return [part.to(dtype).requires_grad_() for part in parts]


def gradients(y: Tensor, inputs: list[Tensor], gy: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, inputs, gy, materialize_grads=True)


@pytest.fixture(params=["one token", "three", "all"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small problems still have to be cut: set how much fits into a chunk."""
    tokens = {"one token": 1, "three": 3, "all": 1 << 19}[request.param]
    monkeypatch.setattr(chunked, "CHUNK", 1)
    monkeypatch.setattr(chunked, "FEWEST", tokens)


@pytest.mark.parametrize("backend", HERE)
def test_two_euler_steps_agree_with_numbers_worked_by_hand(backend: str) -> None:
    # h1 = 0.5*2*3 = 3; h2 = exp(-ln 2)*3 + 1*0.5*4 = 3.5; y = C h + D x
    x = torch.tensor([[[2.0], [0.5]]])
    dt = torch.tensor([[[0.5], [1.0]]])
    A = torch.tensor([[-math.log(2.0)]])
    B = torch.tensor([[[3.0], [4.0]]])
    C = torch.tensor([[[10.0], [100.0]]])
    y = selective_scan(x, dt, A, B, C, torch.tensor([7.0]), backend=backend)
    torch.testing.assert_close(y, torch.tensor([[[30 + 14.0], [350 + 3.5]]]))


@pytest.mark.parametrize("backend", HERE)
def test_two_zero_order_hold_steps_agree_with_numbers_worked_by_hand(backend: str) -> None:
    # exp(dt A) is 1/2, then 1/4; (exp(dt A) - 1) / A is 1/2 / ln 2, then 3/4 / ln 2
    ln2 = math.log(2.0)
    x = torch.tensor([[[2.0], [4.0]]])
    dt = torch.tensor([[[1.0], [2.0]]])
    A = torch.tensor([[-ln2]])
    B = torch.tensor([[[3.0], [1.0]]])
    C = torch.tensor([[[1.0], [1.0]]])
    y = selective_scan(x, dt, A, B, C, discretise="zoh", backend=backend)
    torch.testing.assert_close(y, torch.tensor([[[3.0], [0.75 + 3.0]]]) / torch.tensor(ln2))


@pytest.mark.parametrize("backend", HERE)
def test_states_of_a_channel_are_read_out_by_C(backend: str) -> None:
    # one token: y_d = sum over n of C_n dt_d B_n x_d = dt_d x_d (1*5 + 2*7)
    x, dt = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 0.5]]])
    B, C = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[5.0, 7.0]]])
    y = selective_scan(x, dt, -torch.ones(2, 2), B, C, backend=backend)
    torch.testing.assert_close(y, torch.tensor([[[19.0, 19.0]]]))


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", FAST)
def test_a_backend_agrees_with_the_plain_loop(
    backend: str, shape: tuple[int, int, int, int], rule: str
) -> None:
    inputs = make(*shape)
    gy = torch.randn_like(inputs[0])
    expected = reference.scan(*inputs, zoh=rule == "zoh")
    y = selective_scan(*inputs, discretise=rule, backend=backend)
    torch.testing.assert_close(y, expected)
    wanted = gradients(expected, inputs, gy)
    for got, want in zip(gradients(y, inputs, gy), wanted, strict=True):
        torch.testing.assert_close(got, want)


def at_the_start(length: int) -> list[Tensor]:
    """Inputs as an untrained Mamba block has them, in single precision; leaves."""
    D, N = 24, 16
    A = -torch.arange(1.0, N + 1).repeat(D, 1)
    parts = [torch.randn(2, length, D), torch.rand(2, length, D) * 0.1, A]
    parts += [torch.randn(2, length, N), torch.randn(2, length, N)]
    return [part.requires_grad_() for part in parts]


def errors(backend: str, inputs: list[Tensor], rule: str) -> list[float]:
    """Of y and all gradients against double precision, over the largest number of each."""
    gy = torch.randn(inputs[0].shape)
    found = []
    for name, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        leaves = [part.detach().to(dtype).requires_grad_() for part in inputs]
        y = selective_scan(*leaves, discretise=rule, backend=name)
        found.append((y.detach(), *gradients(y, leaves, gy.to(dtype))))
    return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(*found, strict=True)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("length", [8, 32, 197])
@pytest.mark.parametrize("backend", HERE)
def test_single_precision_stays_within_a_millionth_of_double(
    backend: str, length: int, rule: str
) -> None:
    assert max(errors(backend, at_the_start(length), rule)) <= 1e-6


@pytest.mark.parametrize("backend", FAST)
def test_over_many_tokens_no_backend_loses_twice_the_digits_of_the_plain_loop(
    backend: str,
) -> None:
    inputs = at_the_start(1568)
    worst = [max(errors(name, inputs, "euler")) for name in ("reference", backend)]
    assert worst[1] <= max(2 * worst[0], 1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("A", [-300.0, -1.0, 0.3], ids=["forgets at once", "", "grows"])
def test_decays_of_any_size_agree_with_double_precision(backend: str, A: float, rule: str) -> None:
    """Some tokens beyond where float32 has an exponential, some not, in one block."""
    inputs = [part.detach() for part in make(2, 40, 70, 5, torch.float32)]
    inputs[2] = inputs[2].abs() * A
    inputs[1][:, ::3] *= 1e-3
    assert max(errors(backend, inputs, rule)) <= 1e-5


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", HERE)
def test_gradients_agree_with_finite_differences(backend: str, rule: str) -> None:
    def scan(*parts: Tensor) -> Tensor:
        return selective_scan(*parts, discretise=rule, backend=backend)

    assert torch.autograd.gradcheck(scan, make(2, 5, 3, 2))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("size", [0.0, 1e-300, 1e-12, 1e-5, 1e-2, 0.0999, 0.1001, 3.0])
def test_zero_order_hold_is_exact_however_small_A_is(backend: str, size: float) -> None:
    """Against the closed form of one token in Python's exact-enough arithmetic."""
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    A = torch.full((1, 1), -size, dtype=torch.float64, requires_grad=True)
    y = selective_scan(one, one, A, one, one, discretise="zoh", backend=backend)
    (slope,) = torch.autograd.grad(y.sum(), A)
    terms = [(-size) ** k / math.factorial(k + 1) for k in range(40)]
    slopes = [k * (-size) ** (k - 1) / math.factorial(k + 1) for k in range(1, 40)]
    assert y.item() == pytest.approx(math.fsum(terms), rel=1e-12)
    assert slope.item() == pytest.approx(math.fsum(slopes), rel=1e-11)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", HERE)
def test_no_token_sees_a_later_one(backend: str, rule: str) -> None:
    x, dt, A, B, C = make(2, 9, 3, 4)
    y = selective_scan(x, dt, A, B, C, discretise=rule, backend=backend)
    reach = torch.autograd.grad(y[:, 4].sum(), (x, dt, B, C))
    assert all((g[:, 5:] == 0).all() for g in reach)
    assert all((g[:, :5].abs().sum((0, 2)) > 0).all() for g in reach[:3])


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", HERE)
def test_masked_tokens_are_as_if_they_were_not_there(backend: str, rule: str) -> None:
    x, dt, A, B, C = make(2, 9, 3, 4)
    D = torch.randn(3, dtype=torch.float64)
    keep = torch.tensor([True, True, False, True, False, False, True, True, False])
    dirty = [part.detach().clone() for part in (x, dt, B, C)]
    for part in dirty:
        part[:, ~keep] = 1e4 * torch.randn_like(part[:, ~keep])
    leaves = [part.requires_grad_() for part in dirty]
    full = selective_scan(
        leaves[0], leaves[1], A, leaves[2], leaves[3], D,
        discretise=rule, mask=keep.expand(2, 9), backend=backend,
    )  # fmt: skip
    short = selective_scan(
        x[:, keep], dt[:, keep], A, B[:, keep], C[:, keep], D, discretise=rule, backend=backend
    )
    torch.testing.assert_close(full[:, keep], short)
    assert (full[:, ~keep] == 0).all()
    for grad in torch.autograd.grad(full.sum(), leaves):
        assert (grad[:, ~keep] == 0).all()
        assert grad.isfinite().all()


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("shape", [(0, 4, 3, 2), (2, 0, 3, 2), (0, 0, 3, 2)])
def test_no_samples_or_no_tokens_give_an_empty_result(
    backend: str, shape: tuple[int, int, int, int]
) -> None:
    inputs = make(*shape)
    y = selective_scan(*inputs, backend=backend)
    assert y.shape == inputs[0].shape
    grads = gradients(y, inputs, torch.empty_like(y))
    assert [g.shape for g in grads] == [p.shape for p in inputs]
    assert (grads[2] == 0).all()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("where", range(5), ids=["x", "dt", "A", "B", "C"])
@pytest.mark.parametrize("rule", RULES)
def test_a_nan_shows_up_exactly_where_the_plain_loop_shows_it(
    backend: str, where: int, rule: str
) -> None:
    inputs = make(3, 8, 5, 4, torch.float32)
    with torch.no_grad():
        inputs[where][(1, 3, 2)[: inputs[where].ndim] if where != 2 else (1, 2)] = float("nan")
    expected = reference.scan(*inputs, zoh=rule == "zoh")
    y = selective_scan(*inputs, discretise=rule, backend=backend)
    assert expected.isnan().any()
    assert not expected.isnan().all()
    assert torch.equal(y.isnan(), expected.isnan())


@pytest.mark.parametrize("backend", FAST)
def test_inputs_need_not_be_contiguous(backend: str) -> None:
    x, dt, A, B, C = (part.detach() for part in make(2, 9, 6, 4))
    skewed = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (x, dt, B, C)]
    skewed.insert(2, A.T.contiguous().T)
    sliced = torch.cat([x, x], dim=-1)[..., 6:]
    expected = reference.scan(x, dt, A, B, C, zoh=False)
    torch.testing.assert_close(selective_scan(*skewed, backend=backend), expected)
    torch.testing.assert_close(selective_scan(sliced, dt, A, B, C, backend=backend), expected)


@pytest.mark.parametrize("backend", FAST)
def test_positive_A_overflows_as_the_plain_loop_does(backend: str) -> None:
    inputs = make(1, 6, 2, 2, torch.float32)
    inputs[2] = inputs[2].detach() * -100
    expected = reference.scan(*inputs, zoh=False)
    assert expected.isinf().any()
    y = selective_scan(*inputs, backend=backend)
    assert torch.equal(y.isfinite(), expected.isfinite())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", HERE)
def test_half_precision_is_computed_in_single(backend: str, dtype: torch.dtype) -> None:
    half = make(2, 50, 6, 4, dtype)
    y = selective_scan(*half, backend=backend)
    exact = selective_scan(*(part.detach().float() for part in half), backend=backend)
    assert y.dtype == dtype
    assert torch.equal(y, exact.to(dtype))
    assert all(g.dtype == dtype for g in gradients(y, half, torch.ones_like(y)))


@pytest.mark.parametrize("backend", HERE)
def test_autocast_does_not_lower_the_precision_inside(backend: str) -> None:
    inputs = make(2, 50, 6, 4, torch.float32)
    plain = selective_scan(*inputs, backend=backend)
    wanted = gradients(plain, inputs, torch.ones_like(plain))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = selective_scan(*inputs, backend=backend)
        got = gradients(y, inputs, torch.ones_like(y))
    assert torch.equal(y, plain)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("backend", HERE)
def test_the_operator_keeps_the_rules_of_torch(backend: str) -> None:
    rules = ("test_schema", "test_autograd_registration", "test_faketensor")
    for shape in [(2, 5, 3, 2), (0, 4, 3, 2)]:
        inputs = (*make(*shape), False, backend, True)
        opcheck(torch.ops.harness.selective_scan.default, inputs, test_utils=rules)


@pytest.mark.parametrize("rule", RULES)
def test_backward_keeps_one_state_per_chunk_and_not_one_per_token(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "CHUNK", 16 * 2 * 8 * 4)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        selective_scan(*make(2, 160, 8, 4), discretise=rule, backend="torch")
    assert 9 * 2 * 8 * 4 in [t.numel() for t in kept]
    assert max(t.numel() for t in kept) <= 2 * 160 * 8


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(
    shape=st.tuples(*(st.integers(1, most) for most in (3, 40, 20, 9))),
    rule=st.sampled_from(RULES),
    backend=st.sampled_from(FAST),
    number=st.integers(0, 2**31),
    masked=st.booleans(),
    skewed=st.booleans(),
    scale=st.sampled_from([1e-6, 0.1, 1.0, 50.0]),
)
def test_any_problem_has_the_same_answer_from_every_backend(
    shape: tuple[int, int, int, int],
    rule: str,
    backend: str,
    number: int,
    masked: bool,
    skewed: bool,
    scale: float,
) -> None:
    torch.manual_seed(number)
    inputs = make(*shape)
    with torch.no_grad():
        inputs[1].mul_(scale)
    if skewed:  # the same numbers in another order in memory
        inputs = [t.detach().transpose(0, 1).contiguous().transpose(0, 1) for t in inputs]
        inputs = [t.requires_grad_() for t in inputs]
    mask = torch.rand(shape[:2]) < 0.7 if masked else None
    gy = torch.randn_like(inputs[0])
    results = []
    for name in ("reference", backend):
        y = selective_scan(*inputs, discretise=rule, mask=mask, backend=name)
        results.append((y, *gradients(y, inputs, gy)))
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


@needs_numba
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(1, 9, 300, 2), (2, 70, 33, 7), (2, 5, 70, 130)])
def test_blocks_of_channels_and_kept_states_leave_no_seam(
    shape: tuple[int, int, int, int], rule: str
) -> None:
    inputs = make(*shape)
    gy = torch.randn_like(inputs[0])
    expected = reference.scan(*inputs, zoh=rule == "zoh")
    y = selective_scan(*inputs, discretise=rule, backend="numba")
    torch.testing.assert_close(y, expected)
    wanted = gradients(expected, inputs, gy)
    for got, want in zip(gradients(y, inputs, gy), wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch with two threads, and no problem too small for them."""
    monkeypatch.setattr(threads, "ALONE", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@needs_numba
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("openmp", [True, False], ids=["torch's threads", "Python's threads"])
def test_the_compiled_loops_give_the_same_bits_on_any_number_of_threads(
    openmp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not openmp:
        monkeypatch.setattr(threads, "_parallel", lambda: None)
    elif threads._parallel() is None:
        pytest.skip("torch was not built with GNU's OpenMP here")
    inputs, found = make(3, 20, 300, 4, torch.float32), []
    for count in (1, 2):
        torch.set_num_threads(count)
        y = selective_scan(*inputs, backend="numba")
        found.append((y, *gradients(y, inputs, torch.ones_like(y))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("openmp", [True, False], ids=["torch's threads", "Python's threads"])
def test_jobs_are_done_once_each_by_two_threads_and_what_they_raise_arrives(
    openmp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not openmp:
        monkeypatch.setattr(threads, "_parallel", lambda: None)
    done, meet = [], threading.Barrier(2, timeout=60)

    def job(first: int, last: int, values: Any) -> None:
        meet.wait()  # nobody passes unless a second thread comes
        done.extend(range(first, last))
        assert values.sum() == 3

    threads.run(job, 7, torch.ones(3), work=1)
    assert sorted(done) == list(range(7))
    with pytest.raises(AssertionError):
        threads.run(job, 7, torch.ones(4), work=1)


@pytest.mark.gpu
@pytest.mark.skipif(not cuda.available(), reason="no GPU, or no mamba-ssm for it")
@pytest.mark.parametrize("shape", [(2, 7, 3, 4), (2, 70, 64, 16)])
def test_the_cuda_kernels_agree_with_the_plain_loop(shape: tuple[int, int, int, int]) -> None:
    inputs = [part.detach().cuda().requires_grad_() for part in make(*shape, torch.float32)]
    gy = torch.randn_like(inputs[0])
    expected = reference.scan(*inputs, zoh=False)
    y = selective_scan(*inputs, backend="cuda")
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    wanted = gradients(expected, inputs, gy)
    for got, want in zip(gradients(y, inputs, gy), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_what_a_backend_cannot_do_is_said() -> None:
    inputs = make(2, 5, 3, 4, torch.float32)
    with pytest.raises(ValueError, match="'cuda': is for GPUs, the tensors are on cpu"):
        selective_scan(*inputs, backend="cuda")


@needs_numba
def test_auto_takes_the_compiled_loops_in_single_precision_on_a_cpu_and_says_so() -> None:
    for dtype, name in [
        (torch.float32, "numba"),
        (torch.bfloat16, "numba"),
        (torch.float64, "torch"),
    ]:
        inputs = make(2, 5, 3, 4, dtype)
        y = selective_scan(*inputs)
        assert torch.equal(y, selective_scan(*inputs, backend=name))
        IMPLEMENTATIONS.clear()
        selective_scan(*inputs)
        assert {"selective_scan": name} == IMPLEMENTATIONS


def run_alone(program: str) -> subprocess.CompletedProcess[str]:
    """The program in a new process."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE") or not Path("/proc/self/smaps").exists(),
    reason="large pages are asked for on Linux only",
)
def test_a_large_result_asks_for_large_pages_and_a_small_one_does_not() -> None:
    """In a process of its own: freed memory that was large once keeps what was asked of it."""
    program = """
        import pathlib, re, torch
        from fusions.scan import pages

        def asked(t):
            middle, inside = t.data_ptr() + t.nbytes // 2, False
            for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
                if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                    inside = int(found[1], 16) <= middle < int(found[2], 16)
                elif inside and line.startswith("VmFlags:"):
                    return "hg" in line.split()
            raise AssertionError("the memory of the tensor is not mapped")

        assert not asked(pages.empty_like(torch.empty(8, 8)))
        like = torch.empty(40, 1000, 256).transpose(0, 1)
        large = pages.empty_like(like)
        assert (large.shape, large.dtype, large.is_contiguous()) == (like.shape, like.dtype, True)
        assert asked(large)
    """
    done = run_alone(program)
    assert done.returncode == 0, done.stderr


def test_a_forked_worker_computes_the_same_and_does_not_abort() -> None:
    """In a process of its own: this one must not be forked with its threads running."""
    program = """
        import os, torch
        from fusions.scan import compiled, selective_scan
        torch.manual_seed(0)
        torch.set_num_threads(2)
        x, dt, A = torch.randn(8, 64, 64), torch.rand(8, 64, 64), -torch.rand(64, 16)
        B, C = torch.randn(2, 8, 64, 16)
        y = selective_scan(x, dt, A, B, C).numpy()
        child = os.fork()
        if child == 0:  # still with two threads, of which one stayed behind
            if not compiled.available():  # torch's own loops would wait for it
                torch.set_num_threads(1)
            again = selective_scan(x, dt, A, B, C).numpy()
            os._exit(0 if abs(again - y).max() < 1e-5 else 1)
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = run_alone(program)
    assert done.returncode == 0, done.stderr


def test_wrong_shapes_and_unknown_names_are_named_in_the_error() -> None:
    x, dt, A, B, C = make(2, 5, 3, 4)
    with pytest.raises(ValueError, match=r"dt is \(2, 4, 3\)"):
        selective_scan(x, dt[:, :4], A, B, C)
    with pytest.raises(ValueError, match=r"C is \(2, 5, 3\)"):
        selective_scan(x, dt, A, B, C[..., :3])
    with pytest.raises(ValueError, match=r"scan backend 'tpu': unknown\. Known: auto"):
        selective_scan(x, dt, A, B, C, backend="tpu")
    with pytest.raises(ValueError, match="unknown discretisation 'bilinear'"):
        selective_scan(x, dt, A, B, C, discretise="bilinear")


def test_the_cost_of_a_scan_is_what_makes_table_4_add_up() -> None:
    # two streams of 1568 and 77 tokens at width 768 with 16 states: 0.183 G
    total = scan_macs(1, 1568, 768, 16) + scan_macs(1, 77, 768, 16)
    assert total == 9 * 1645 * 768 * 16 + 1645 * 768
    assert round(total / 1e9, 3) == 0.183
