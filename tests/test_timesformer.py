"""LaViLa's TimeSformer against what the published code gave; its files; its quirks."""

import hashlib
from pathlib import Path

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from safetensors.torch import load_file
from torch import nn

from backbones.timesformer import SIZES, Attention, TimeSformer
from harness.contracts import Stream
from harness.cost import ZERO_COST

ROOT = Path(__file__).resolve().parent.parent
REDUCED = ROOT / "tests" / "reference" / "lavila.safetensors"
WHOLE = ROOT.parent / "shared" / "fixtures" / "lavila_tiny.safetensors"
TINY = {"image": 32, "patch": 8, "width": 48, "depth": 3, "heads": 4}
TARGETS = ("verb", "noun", "action")
EK100 = {"verb": 97, "noun": 300, "action": 3806}
FEW = dict.fromkeys(TARGETS, 50)
DEMO = Stream("video", (8, 32, 32, 3))
TIMES = "visual.temporal_embed"
NAMES = {
    "base": (230, "9daa4e2093121080d447b63f45fb1be0d2f3af01116a5a441fefd99581fedf18"),
    "large": (446, "d89bf6b825eb309418745bb94c534c93a9f0f78f8eed5032ff47dde1b06f6dc3"),
}
"""tensors of a published file, and SHA-256 of its sorted lines `name [shape]`"""


@pytest.fixture(scope="module", params=[REDUCED, WHOLE], ids=["reduced", "whole"])
def reference(request):
    """A state dict, an input, and what the published code made of them."""
    if not request.param.exists():
        pytest.skip("the whole reference is not part of the repository; the reduced one is tested")
    return load_file(request.param)


def weights(reference):
    start = "state_dict/"
    return {n.removeprefix(start): v for n, v in reference.items() if n.startswith(start)}


def reduced():
    return weights(load_file(REDUCED))


def tiny(frames=4, **changes):
    """The network of the reduced reference, with random weights."""
    torch.manual_seed(0)
    changes = {"classes": FEW, **TINY, **changes}
    return TimeSformer.published("base", frames=frames, **changes).eval()


def filled(state, **options):
    """A tiny network with the weights of `state`, none missing or left over."""
    classes = {t: len(state[f"fc_cls.{i}.bias"]) for i, t in enumerate(TARGETS)}
    network = tiny(classes=classes, **options)
    network.load_state_dict(dict(network.convert(state, network.state_dict()).tensors))
    return network


def farthest(network, reference):
    """Largest difference to everything the reference has."""
    made = {}
    network.visual.ln_pre.register_forward_hook(
        lambda module, inputs, output: made.update(tokens_in=output[:, :8])
    )
    network.visual.norm.register_forward_pre_hook(
        lambda module, inputs: made.update(tokens_out=inputs[0][:, :8])
    )
    with torch.no_grad():
        output = network(reference["input"])
    made["features"] = output.features
    made |= {f"logits/{i}": output.logits[t] for i, t in enumerate(TARGETS)}
    return max((made[name] - reference[name]).abs().max().item() for name in made)


def test_every_output_is_that_of_the_published_code(reference):
    network = filled(weights(reference))
    assert farthest(network, reference) < 2e-5
    made = network(reference["input"])
    torch.testing.assert_close(made.features, made.tokens[:, 0])
    assert made.tokens.shape == (1, 1 + 4 * 16, 48)


def test_exact_gelu_another_epsilon_or_no_times_would_miss_the_published_outputs():
    reference = load_file(REDUCED)
    changes = {use_exact_gelu: 1e-2, tighten: 1e-4, loosen: 2e-5, forget_times: 1e-2}
    for change, least in changes.items():
        network = filled(weights(reference))
        change(network)
        assert farthest(network, reference) > least, change.__name__


def use_exact_gelu(network):
    for block in network.visual.blocks:
        block.mlp.activation = nn.GELU()


def tighten(network):
    network.visual.ln_pre.eps = 1e-6


def loosen(network):
    for block in network.visual.blocks:
        block.norm1.eps = block.norm2.eps = block.norm3.eps = 1e-5


def forget_times(network):
    nn.init.zeros_(network.visual.temporal_embed)


@pytest.mark.parametrize("size", NAMES)
def test_names_and_shapes_are_those_of_the_published_files(size):
    with torch.device("meta"):
        state = TimeSformer.published(size, classes=EK100).state_dict()
    lines = sorted(f"{name} {list(value.shape)}" for name, value in state.items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert (len(lines), digest) == NAMES[size]


@pytest.mark.parametrize(("size", "millions"), [("base", 114.179), ("large", 404.007)])
def test_models_are_as_large_as_published_and_every_operator_is_known(size, millions):
    with torch.device("meta"):
        network = TimeSformer.published(size).eval()
        analysis = FlopCountAnalysis(network, torch.zeros(1, 3, 16, 224, 224))
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 3) == millions
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert analysis.total() > 0
    counted = {"aten::scaled_dot_product_attention"}  # by a handle of harness/cost.py
    assert set(analysis.unsupported_ops()) <= ZERO_COST | counted


@pytest.mark.parametrize("over_time", [False, True])
def test_a_patch_attends_to_its_group_and_the_class_token_to_all(over_time):
    times, places = 3, 4
    layer = Attention(16, 2, over_time)
    before = torch.randn(1, 1 + times * places, 16)
    after = before.clone()
    time, place = 1, 2
    after[0, 1 + time * places + place] += 1
    changed = (layer(before, times) - layer(after, times)).abs().amax(dim=-1)[0] > 1e-6
    group = torch.zeros(times, places, dtype=torch.bool)
    group[:, place] = over_time
    group[time] |= not over_time
    assert changed.tolist() == [True, *group.flatten().tolist()]


def test_the_class_token_is_seen_by_every_patch():
    layer = Attention(16, 2, over_time=True)
    before = torch.randn(1, 13, 16)
    after = torch.cat([before[:, :1] + 1, before[:, 1:]], dim=1)
    assert ((layer(before, 3) - layer(after, 3)).abs().amax(dim=-1) > 1e-6).all()


def test_fewer_frames_use_the_first_times():
    clips = torch.randn(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    shorter = filled(reduced(), frames=3)
    for one, other in zip(filled(reduced())(clips)[:2], shorter(clips)[:2], strict=True):
        torch.testing.assert_close(one, other)
    assert shorter(clips).tokens.shape == (2, 1 + 3 * 16, 48)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((0, 8, 0, 16), (0, 0, 1, 3, 5, 7, 7, 5, 3, 1, 2, 6, 10, 14, 16, 16)),
        (range(16), range(4)),
    ],
)
def test_times_are_interpolated_between_their_middles_and_too_many_are_cut_off(before, after):
    times = torch.tensor(before).float()[None, :, None].expand(1, -1, 48)
    network = tiny(frames=len(after))
    found = network.convert(reduced() | {TIMES: times}, network.state_dict())
    wanted = torch.tensor(after).float()[None, :, None].expand(1, -1, 48)
    assert torch.equal(found.tensors[TIMES], wanted)
    assert found.resized == [f"{TIMES} (1, {len(before)}, 48) -> (1, {len(after)}, 48)"]


def test_classifiers_go_where_their_target_is_and_else_are_heads():
    state = reduced()
    for classes, indices in (({}, ()), ({"action": 50}, (2,)), (FEW, (0, 1, 2))):
        network = tiny(classes=classes)
        found = network.convert(state, network.state_dict())
        assert found.tensors.keys() == network.state_dict().keys()
        assert not found.unexpected
        for index, target in enumerate(TARGETS):
            own = f"fc_cls.{index}" if len(classes) > 1 else "fc_cls"
            for kind in ("weight", "bias"):
                there = found.tensors if index in indices else found.heads
                name = f"{own}.{kind}" if index in indices else f"heads.{target}.{kind}"
                assert torch.equal(there[name], state[f"fc_cls.{index}.{kind}"])
        assert len(found.heads) == 2 * (3 - len(indices))


def test_the_only_classifier_of_a_file_tells_actions_or_what_the_only_one_here_tells():
    with_one = {n: v for n, v in reduced().items() if not n.startswith("fc_cls")}
    with_one |= {"fc_cls.weight": torch.ones(50, 48), "fc_cls.bias": torch.ones(50)}
    network = tiny(classes=None)
    heads = network.convert(with_one, network.state_dict()).heads
    assert heads.keys() == {"heads.action.weight", "heads.action.bias"}
    network = tiny(classes={"label": 50})
    found = network.convert(with_one, network.state_dict())
    assert found.tensors.keys() == network.state_dict().keys() == with_one.keys()


def test_an_encoder_takes_a_published_state_and_its_own():
    published = TimeSformer.published("demo", frames=4, classes=FEW).state_dict()
    encoder = TimeSformer(TimeSformer.Config(size="demo"), DEMO)
    found = encoder.convert(published | {"logit_scale": torch.ones(())})
    assert found.tensors.keys() == encoder.state_dict().keys()
    assert (len(found.resized), len(found.heads), list(found.unexpected)) == (1, 6, ["logit_scale"])
    encoder.load_state_dict(dict(found.tensors))
    assert encoder.convert(encoder.state_dict()).tensors.keys() == found.tensors.keys()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("classes", [{}, {"action": 3806}, EK100])
def test_a_published_file_is_recognised(size, classes):
    with torch.device("meta"):
        state = TimeSformer.published(size, frames=4, classes=classes).state_dict()
    assert TimeSformer.recognise(state) == {
        "size": size,
        "image": SIZES[size].image,
        "frames": 4,
        "classes": classes,
        "layout": "fine-tuned" if classes else "pre-training",
    }
    del state[TIMES]
    assert TimeSformer.recognise(state) is None


def test_recomputing_blocks_changes_neither_outputs_nor_gradients():
    made = []
    for recompute in (False, True):
        network = filled(reduced(), drop_path=0.4).train()
        network.checkpointing = recompute
        torch.manual_seed(3)
        output = network(torch.randn(4, 3, 4, 32, 32))
        loss = sum(logits.square().sum() for logits in output.logits.values())
        (loss + output.tokens.square().sum()).backward()
        made.append([output.tokens, *(p.grad for p in network.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


def test_half_precision_comes_near_and_trains():
    reference = load_file(REDUCED)
    network = filled(weights(reference), drop_path=0).train()
    network.checkpointing = True
    with torch.autocast("cpu", torch.bfloat16):
        features = network(reference["input"]).features
    assert (features - reference["features"]).abs().max() < 0.03
    features.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.visual.parameters())


def test_the_order_of_frames_counts_once_times_have_been_learnt():
    clips = torch.randn(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    network = filled(reduced())
    assert (network(clips).features - network(clips.flip(2)).features).abs().max() > 1e-2
    forget_times(network)
    torch.testing.assert_close(network(clips).features, network(clips.flip(2)).features)


def test_attention_over_time_starts_as_published_and_in_the_demo_so_that_it_learns():
    for blank in (True, False):
        torch.manual_seed(0)
        network = TimeSformer.published("demo", blank_time=blank, classes={"label": 5}).double()
        layer = network.visual.blocks[1].timeattn
        as_published = (layer.proj.weight == 1).all() and (layer.qkv.weight == 0).all()
        assert as_published == blank
        clips = torch.randn(2, 3, 8, 32, 32, dtype=torch.float64)
        nn.functional.cross_entropy(network(clips).logits["label"], torch.tensor([0, 1])).backward()
        largest = max(layer.qkv.weight.grad.abs().max(), layer.proj.weight.grad.abs().max())
        assert largest < 1e-16 if blank else largest > 1e-6
    assert (SIZES["base"].blank_time, SIZES["demo"].blank_time) == (True, False)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"32 x 32, but size 'base' takes 224 x 224"):
        TimeSformer(TimeSformer.Config(), DEMO)
    for shape in ((1, 3, 5, 32, 32), (1, 3, 4, 32, 40), (1, 3, 0, 32, 32)):
        with pytest.raises(ValueError, match=r"built for \(3, 4, 32, 32\)"):
            tiny()(torch.zeros(shape))
    with pytest.raises(ValueError, match="the order is"):
        tiny(classes={"noun": 300, "verb": 97})
    network = tiny(image=64)
    with pytest.raises(ValueError, match=r"pos_embed is \(1, 17, 48\), needed is \(1, 65, 48"):
        network.convert(reduced(), network.state_dict())


def test_stochastic_depth_grows_evenly_from_block_to_block():
    with torch.device("meta"):
        stream = Stream("video", (16, 224, 224, 3))
        for option, last in ((None, 0.1), (0.22, 0.22)):
            blocks = TimeSformer(TimeSformer.Config(drop_path=option), stream).network.visual.blocks
            rates = torch.tensor([block.drop_path.rate for block in blocks], device="cpu")
            torch.testing.assert_close(rates, torch.linspace(0, last, 12, device="cpu"))
