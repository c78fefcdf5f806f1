"""What every fusion promises, over the registry; then what only some of them do."""

import inspect
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fusions.projection import masked_mean
from fusions.scan import BACKENDS, compiled
from fusions.ssm import ConvStem, SsmBranch, SsmConfig, StemConfig
from fusions.transformer import averaged
from harness.contracts import Fusion, Tokens
from harness.registry import FUSIONS, OPERATOR_MACS, load_plugins

load_plugins()

WIDTHS = {"video": 12, "text": 8, "audio": 5}
WIDTH = 16
ONE_STREAM = {"single"}
OLD_JIT = pytest.mark.filterwarnings(r"ignore:`torch\.jit:FutureWarning")  # fvcore uses it
STATE_SPACE = ["mamba_shared", "mamba_per_modality", "mamba_frozen_a", "mamba_joint"]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=FUSIONS.names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def build(name: str, streams: int = 2, **options: object) -> Fusion:
    """The fusion with its default options, in evaluation mode, its parameters stirred.

    Parameters that start at zero or one would hide what multiplies them.
    """
    widths = dict(list(WIDTHS.items())[: 1 if name in ONE_STREAM else streams])
    fusion = FUSIONS[name](FUSIONS[name].Config(**options), widths, WIDTH).eval()
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return fusion


def make_streams(fusion: Fusion, batch: int = 4) -> dict[str, Tokens]:
    """Random tokens, 7 to 9 of a stream, the last ones of some samples masked."""
    streams = {}
    for i, (name, width) in enumerate(fusion.widths.items()):
        length = 7 + i
        real = torch.arange(length) < torch.tensor([length, 3, 1, 5])[:batch, None]
        streams[name] = Tokens(torch.randn(batch, length, width), real)
    return streams


def changed(streams: Mapping[str, Tokens], name: str, tokens: Tokens) -> dict[str, Tokens]:
    return {**streams, name: tokens}


def test_every_fusion_of_the_bench_is_registered() -> None:
    assert set(FUSIONS.names()) >= {
        "late_logits", "mamba_frozen_a", "mamba_joint", "mamba_no_scan", "mamba_per_modality",
        "mamba_shared", "mean", "mlp", "single", "transformer",
    }  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_vector_per_sample_for_any_number_of_streams(name: str, count: int) -> None:
    fusion = build(name, count)
    out = fusion(make_streams(fusion))
    assert out.shape == (4, fusion.out_width)
    assert out.isfinite().all()


@pytest.mark.parametrize("count", [1, 3])
def test_every_stream_and_every_trained_parameter_gets_a_gradient(name: str, count: int) -> None:
    fusion = build(name, count).train()
    streams = make_streams(fusion)
    for tokens in streams.values():
        tokens.features.requires_grad_()
    (fusion(streams) * torch.randn(4, fusion.out_width)).sum().backward()
    for stream, tokens in streams.items():
        reached = tokens.features.grad.abs().sum(dim=-1) > 0
        assert torch.equal(reached.any(dim=1), tokens.mask.any(dim=1)), stream
        assert not (reached & ~tokens.mask).any(), stream
    silent = [n for n, p in fusion.named_parameters() if p.requires_grad and not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("side", ["before", "after"])
def test_padding_changes_nothing_whatever_it_holds(name: str, side: str) -> None:
    fusion = build(name, 3)
    streams = make_streams(fusion)
    padded = {}
    for stream, (features, mask) in streams.items():
        dirty = torch.where(mask[..., None], features, torch.tensor(float("nan")))
        junk = 1e4 * torch.randn(4, 6, features.shape[-1])
        none = torch.zeros(4, 6, dtype=torch.bool)
        first, last = ((junk, dirty), (none, mask)) if side == "before" else (
            (dirty, junk), (mask, none)
        )  # fmt: skip
        padded[stream] = Tokens(torch.cat(first, dim=1), torch.cat(last, dim=1))
    torch.testing.assert_close(fusion(padded), fusion(streams), atol=1e-5, rtol=1e-5)


def test_padding_changes_no_gradient(name: str) -> None:
    fusion = build(name)
    streams = make_streams(fusion)
    pad = nn.functional.pad
    longer = {
        n: Tokens(pad(t.features, (0, 0, 0, 5), value=9.0), pad(t.mask, (0, 5)))
        for n, t in streams.items()
    }
    trained = [p for p in fusion.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(fusion(streams).square().sum(), trained)
    got = torch.autograd.grad(fusion(longer).square().sum(), trained)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * max(1.0, b.abs().max()), rtol=1e-4)


def test_the_order_of_samples_changes_nothing(name: str) -> None:
    fusion = build(name)
    streams = make_streams(fusion)
    order = torch.tensor([2, 0, 3, 1])
    turned = {n: Tokens(t.features[order], t.mask[order]) for n, t in streams.items()}
    torch.testing.assert_close(fusion(turned), fusion(streams)[order])


def test_samples_do_not_leak_into_each_other(name: str) -> None:
    fusion = build(name)
    streams = make_streams(fusion)
    alone = {n: Tokens(t.features[1:2], t.mask[1:2]) for n, t in streams.items()}
    torch.testing.assert_close(fusion(alone), fusion(streams)[1:2])


def test_the_order_of_the_mapping_changes_nothing(name: str) -> None:
    fusion = build(name, 3)
    streams = make_streams(fusion)
    assert torch.equal(fusion(dict(reversed(streams.items()))), fusion(streams))
    torch.manual_seed(1)
    one = FUSIONS[name](fusion.config, fusion.widths, WIDTH)
    torch.manual_seed(1)
    other = FUSIONS[name](fusion.config, dict(reversed(fusion.widths.items())), WIDTH)
    assert torch.equal(other(streams), one(streams))


@pytest.mark.parametrize("empty", ["one stream", "all streams", "no tokens at all"])
def test_a_stream_without_real_tokens_gives_no_nan(name: str, empty: str) -> None:
    fusion = build(name)
    streams = make_streams(fusion)
    for stream in list(streams)[: 1 if empty == "one stream" else None]:
        features, mask = streams[stream]
        if empty == "no tokens at all":
            streams[stream] = Tokens(features[:, :0], mask[:, :0])
        else:
            streams[stream] = Tokens(features, torch.zeros_like(mask))
    out = fusion(streams)
    assert out.isfinite().all()
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in fusion.parameters() if p.grad is not None)


def test_saved_and_loaded_it_computes_the_same(name: str, tmp_path: Path) -> None:
    fusion, other = build(name), build(name)
    streams = make_streams(fusion)
    assert not torch.equal(other(streams), fusion(streams))
    save_file(fusion.state_dict(), tmp_path / "fusion.safetensors")
    other.load_state_dict(load_file(tmp_path / "fusion.safetensors"))
    assert torch.equal(other(streams), fusion(streams))


def test_its_default_options_survive_yaml(name: str) -> None:
    config = FUSIONS[name].Config()
    text = io.StringIO()
    YAML(typ="safe").dump(config.model_dump(), text)
    read = YAML(typ="safe").load(text.getvalue())
    assert FUSIONS[name].Config.model_validate(read) == config


def test_its_options_and_its_source_are_documented(name: str) -> None:
    cls = FUSIONS[name]
    assert "Source:" in (sys.modules[cls.__module__].__doc__ or "")
    assert [n for n, field in cls.Config.model_fields.items() if not field.description] == []
    assert inspect.getdoc(cls)


def test_it_has_no_batch_norm(name: str) -> None:
    norms = (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm)
    assert not [m for m in build(name).modules() if isinstance(m, norms)]


class Positional(nn.Module):
    """fvcore passes tensors by position only."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, *tensors: Tensor) -> Tensor:
        pairs = zip(tensors[::2], tensors[1::2], strict=True)
        return self.fusion(
            {n: Tokens(*pair) for n, pair in zip(self.fusion.widths, pairs, strict=True)}
        )


def count(fusion: Fusion, streams: Mapping[str, Tokens]) -> Any:
    """fvcore's count on the meta device, as the cost table makes it."""
    from fvcore.nn import FlopCountAnalysis  # warns when it is imported

    flat = [part.to("meta") for tokens in streams.values() for part in tokens]
    analysis = FlopCountAnalysis(Positional(fusion.to("meta")), tuple(flat))
    for operator, macs in OPERATOR_MACS.items():
        analysis.set_op_handle(
            operator,
            lambda inputs, outputs, macs=macs: macs(
                [i.type().sizes() for i in inputs if i.isCompleteTensor()]
            ),
        )
    analysis.set_op_handle("aten::scaled_dot_product_attention", lambda inputs, outputs: 1)
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)


@OLD_JIT
def test_its_cost_is_counted_on_the_meta_device_with_no_unknown_operator(name: str) -> None:
    from harness.cost import ZERO_COST

    fusion = build(name, 3)
    analysis = count(fusion, make_streams(fusion))
    assert analysis.total() > 0
    assert set(analysis.unsupported_ops()) <= ZERO_COST


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@OLD_JIT
def test_the_scan_counts_as_one_operator_whatever_computes_it(backend: str) -> None:
    if backend == "numba" and not compiled.available():
        pytest.skip("numba is not installed")
    fusion = build("mamba_shared", backend=backend)
    streams = make_streams(fusion, batch=1)
    analysis = count(fusion, streams)
    tokens = sum(t.mask.shape[1] for t in streams.values())
    assert analysis.by_operator()["selective_scan"] == (9 * 16 + 1) * tokens * WIDTH


def test_it_is_additive_if_and_only_if_it_says_so(name: str) -> None:
    """f(v1,t1) - f(v1,t2) - f(v2,t1) + f(v2,t2) is zero for a sum of f(v) and g(t), always."""
    fusion = build(name).double()
    cells = {}
    ends = [make_streams(fusion), make_streams(fusion)]
    for v in (0, 1):
        for t in (0, 1):
            streams = {n: ends[v if n == "video" else t][n] for n in fusion.widths}
            doubled = {n: Tokens(x.features.double(), x.mask) for n, x in streams.items()}
            cells[v, t] = fusion(doubled)
    mixed = cells[0, 0] - cells[0, 1] - cells[1, 0] + cells[1, 1]
    size = (cells[0, 0] - cells[1, 1]).abs().max()
    assert size > 0
    ratio = (mixed.abs().max() / size).item()
    assert ratio < 1e-12 if fusion.additive else ratio > 1e-4


def test_the_mean_of_real_tokens_is_worked_by_hand() -> None:
    features = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]], [[1.0, 1.0]] * 3])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(Tokens(features, mask)).tolist() == [[2.0, 4.0], [0.0, 0.0]]


def test_the_convolution_is_causal_depthwise_and_starts_from_silence() -> None:
    stem = ConvStem(StemConfig(conv_kernel=4), 6, 3)
    tokens = Tokens(torch.randn(2, 9, 6), torch.ones(2, 9, dtype=torch.bool))
    x = stem.project(tokens.features).transpose(1, 2)
    weight = stem.taps.T[:, None].contiguous()
    padded = nn.functional.pad(x, (3, 0))
    y = nn.functional.conv1d(padded, weight, stem.bias, groups=3).transpose(1, 2)
    torch.testing.assert_close(stem(tokens), nn.functional.silu(y))


@pytest.mark.parametrize("rank", [48, "full"])
def test_dt_starts_between_a_thousandth_and_a_tenth(rank: int | str) -> None:
    branch = SsmBranch(SsmConfig(dt_rank=rank), 5, 200)
    dt = nn.functional.softplus(branch.to_dt.bias)
    assert dt.min() >= 0.99e-3
    assert dt.max() <= 1.01e-1
    assert dt.log().mean().item() == pytest.approx(-4.6, abs=0.3)  # evenly in the logarithm


def test_one_A_serves_all_streams_if_it_is_shared() -> None:
    fusion = build("mamba_shared", 3)
    named = {n: p.shape for n, p in fusion.named_parameters() if "A_log" in n}
    assert named == {"A_log": (WIDTH, 16)}


def test_each_stream_has_its_own_A_if_it_is_not_shared() -> None:
    fusion = build("mamba_per_modality", 3)
    named = [n for n, _ in fusion.named_parameters() if "A_log" in n]
    assert named == ["A_log.audio", "A_log.text", "A_log.video"]


def test_with_equal_A_sharing_it_changes_nothing_but_its_gradient() -> None:
    torch.manual_seed(3)
    shared = FUSIONS["mamba_shared"](FUSIONS["mamba_shared"].Config(), WIDTHS, WIDTH)
    own = FUSIONS["mamba_per_modality"](FUSIONS["mamba_per_modality"].Config(), WIDTHS, WIDTH)
    own.branches.load_state_dict(shared.branches.state_dict())
    streams = make_streams(shared)
    torch.testing.assert_close(own(streams), shared(streams))
    shared(streams).square().sum().backward()
    own(streams).square().sum().backward()
    total = sum(p.grad for p in own.A_log.values())
    torch.testing.assert_close(shared.A_log.grad, total)


def test_a_frozen_A_does_not_learn_and_all_else_does() -> None:
    fusion = build("mamba_frozen_a")
    fusion(make_streams(fusion)).sum().backward()
    assert fusion.A_log.grad is None
    assert [n for n, p in fusion.named_parameters() if p.grad is None] == ["A_log"]


def test_A_starts_at_the_rates_one_to_N() -> None:
    fusion = FUSIONS["mamba_shared"](FUSIONS["mamba_shared"].Config(d_state=3), WIDTHS, WIDTH)
    rates = fusion.A_log.exp()
    torch.testing.assert_close(rates, torch.tensor([[1.0, 2.0, 3.0]]).expand(WIDTH, 3))


@pytest.mark.parametrize("name", STATE_SPACE)
@pytest.mark.parametrize("options", [{"dt_rank": "full"}, {"discretise": "zoh"}, {"d_state": 3}])
def test_each_option_of_the_scan_is_heard(name: str, options: dict[str, object]) -> None:
    plain, other = build(name), build(name, **options)
    same = {k: v for k, v in plain.state_dict().items() if k in other.state_dict()}
    fitting = {k: v for k, v in same.items() if v.shape == other.state_dict()[k].shape}
    other.load_state_dict(fitting, strict=False)
    streams = make_streams(plain)
    assert not torch.allclose(other(streams), plain(streams), rtol=1e-3)


def test_the_options_offer_exactly_the_backends_there_are() -> None:
    offered = get_args(SsmConfig.model_fields["backend"].annotation)
    assert set(offered) == {"auto", "cuda", *BACKENDS}


def test_the_joint_scan_carries_each_stream_into_the_other() -> None:
    """In both orders the later stream hears every real token of the earlier, and only so."""
    fusion = build("mamba_joint")
    streams = make_streams(fusion)
    for first, second in (("text", "video"), ("video", "text")):
        parts = {n: branch.inputs(streams[n]) for n, branch in fusion.branches.items()}
        leaves = {n: part.x.detach().requires_grad_() for n, part in parts.items()}
        parts = {n: part._replace(x=leaves[n]) for n, part in parts.items()}
        y = fusion._scan(parts, (first, second))
        (heard,) = torch.autograd.grad(y[second].sum(), leaves[first], retain_graph=True)
        assert torch.equal(heard.abs().sum(-1) > 0, streams[first].mask)
        (back,) = torch.autograd.grad(y[first].sum(), leaves[second])
        assert not back.any()


def test_the_mamba_head_at_the_paper_s_size_adds_what_table_4_says() -> None:
    """147.678 M of ORViT and this are 157.34 M, the paper's 157."""
    with torch.device("meta"):
        cls = FUSIONS["mamba_shared"]
        fusion = cls(cls.Config(), {"video": 768, "text": 768}, 768)
        full = cls(cls.Config(dt_rank="full"), {"video": 768, "text": 768}, 768)
    assert round(sum(p.numel() for p in fusion.parameters()) / 1e6, 2) == 9.66
    assert round(147.678 + sum(p.numel() for p in full.parameters()) / 1e6, 1) == 158.4


@OLD_JIT
def test_the_mamba_head_at_the_paper_s_size_costs_what_table_4_says() -> None:
    """405.259 G of ORViT and this over 1568 and 77 tokens are 413.37 G, the paper's 413."""
    with torch.device("meta"):
        cls = FUSIONS["mamba_shared"]
        fusion = cls(cls.Config(), {"text": 768, "video": 768}, 768).eval()
        lengths = {"text": 77, "video": 1568}
        streams = {
            n: Tokens(torch.empty(1, length, 768), torch.empty(1, length, dtype=torch.bool))
            for n, length in lengths.items()
        }
    assert round(405.259 + count(fusion, streams).total() / 1e9, 2) == pytest.approx(
        413.37, abs=0.011
    )


def test_the_transformer_at_the_paper_s_size_adds_what_table_4_says() -> None:
    """147.678 M of ORViT and this are 242.18 M, the paper's 242."""
    with torch.device("meta"):
        cls = FUSIONS["transformer"]
        fusion = cls(cls.Config(layers=12, heads=12), {"video": 768, "text": 768}, 768)
    assert round(147.678 + sum(p.numel() for p in fusion.parameters()) / 1e6, 2) == 242.18


def test_single_refuses_several_streams() -> None:
    cls = FUSIONS["single"]
    with pytest.raises(ValueError, match=r"there are text, video; take .* `encoders.video: null`"):
        cls(cls.Config(), {"video": 4, "text": 3}, WIDTH)


def test_transformer_can_pool_a_stream_to_a_few_tokens_first() -> None:
    fusion = build("transformer", pool={"video": 2})
    features = torch.arange(12.0).view(1, 6, 2)
    mask = torch.tensor([[True, True, False, False, False, False]])
    pooled = averaged(Tokens(features, mask), 2)
    assert pooled.mask.tolist() == [[True, False]]  # the second part has no real token
    assert pooled.features[0, 0].tolist() == [1.0, 2.0]
    for length, result in ((8, True), (7, False)):
        streams = {
            name: Tokens(torch.randn(2, tokens, WIDTHS[name]), torch.ones(2, tokens).bool())
            for name, tokens in (("video", length), ("text", 3))
        }
        if result:
            assert fusion(streams).shape == (2, WIDTH)
        else:
            with pytest.raises(ValueError, match="7 tokens cannot be cut into 2 equal parts"):
                fusion(streams)
    with pytest.raises(ValueError, match="pool names sound; the streams are text, video"):
        build("transformer", pool={"sound": 2})


def test_a_linear_layer_on_late_logits_is_one_classifier_per_stream() -> None:
    fusion = build("late_logits")
    head = nn.Linear(fusion.out_width, 3)
    streams = make_streams(fusion)
    projected = fusion.project(streams)
    text = masked_mean(projected["text"]) @ head.weight[:, :WIDTH].T
    video = masked_mean(projected["video"]) @ head.weight[:, WIDTH:].T
    torch.testing.assert_close(head(fusion(streams)), text + video + head.bias)


def test_mlp_can_project_its_streams_first() -> None:
    fusion = build("mlp", project=True, mlp_width=6, layers=3, hidden_width=10)
    sizes = [(m.in_features, m.out_features) for m in fusion.mix if isinstance(m, nn.Linear)]
    assert sizes == [(2 * WIDTH, 10), (10, 10), (10, WIDTH)]
    assert fusion(make_streams(fusion)).shape == (4, WIDTH)


def test_transformer_refuses_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(ValueError, match="5 heads do not divide 16"):
        build("transformer", heads=5)


def test_late_logits_can_pool_the_tokens_as_they_are() -> None:
    fusion = build("late_logits", 2, mlp_width=0)
    streams = make_streams(fusion)
    assert fusion.out_width == WIDTHS["text"] + WIDTHS["video"]
    assert not list(fusion.parameters())
    expected = torch.cat([masked_mean(streams[name]) for name in ("text", "video")], dim=-1)
    torch.testing.assert_close(fusion(streams), expected)
