"""AVION's CLIP transformer against what the published code gave; its files; its quirks."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from safetensors.torch import load_file
from torch import nn

from backbones.clip_vit import SIZES, ClipVit
from backbones.timesformer import QuickGelu
from harness.contracts import Stream
from harness.cost import ZERO_COST

ROOT = Path(__file__).resolve().parent.parent
REDUCED = ROOT / "tests" / "reference" / "avion.safetensors"
WHOLE = ROOT.parent / "shared" / "fixtures" / "avion_tiny.safetensors"
TINY = {"image": 32, "patch": 8, "width": 48, "depth": 3, "heads": 4}
DEMO = Stream("video", (8, 32, 32, 3))
NAMES = {
    "base_16": (154, "cacff4b25cfe662ab0080c2ab1097ee5505320bfa0c0f3fc12a7a0692bca51b2"),
    "large_14": (298, "081c4fb867c2c97bccee0701c4636e774896b07540ace08f25c758043f90ae57"),
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


def tiny(frames=4, **changes):
    """The network of the reduced reference, with random weights."""
    torch.manual_seed(0)
    changes = {"classes": {"action": 50}, **TINY, **changes}
    return ClipVit.published("base_16", frames=frames, **changes).eval()


def reduced():
    return weights(load_file(REDUCED))


def filled(state, **options):
    """A tiny network with the weights of `state`, none missing or left over."""
    network = tiny(classes={"action": len(state["fc_cls.bias"])}, **options)
    network.load_state_dict(dict(network.convert(state, network.state_dict()).tensors))
    return network


def outputs(network, clips):
    """Everything the reference has, by its names."""
    seen = {}
    hooks = [
        network.visual.ln_pre.register_forward_hook(
            lambda module, inputs, made: seen.update(tokens_in=made[:, :8])
        ),
        network.visual.ln_post.register_forward_pre_hook(
            lambda module, inputs: seen.update(tokens_out=inputs[0][:, :8])
        ),
    ]
    with torch.no_grad():
        made = network(clips)
    for hook in hooks:
        hook.remove()
    return seen | {"features": made.features, "logits": made.logits["action"]}


def farthest(network, reference):
    made = outputs(network, reference["input"])
    return max((made[name] - reference[name]).abs().max().item() for name in made)


def test_every_output_is_that_of_the_published_code(reference):
    network = filled(weights(reference))
    assert farthest(network, reference) < 2e-5
    made = network(reference["input"])
    torch.testing.assert_close(made.features, made.tokens[:, 0])
    assert made.tokens.shape == (1, 1 + 4 * 16, 48)


def test_quick_gelu_another_epsilon_or_no_times_would_miss_the_published_outputs():
    reference = load_file(REDUCED)
    for change, least in ((quicken, 1e-2), (loosen, 1e-4), (forget_times, 1e-2)):
        network = filled(weights(reference))
        change(network)
        assert farthest(network, reference) > least, change.__name__


def quicken(network):
    for block in network.visual.transformer["resblocks"]:
        block.mlp.activation = QuickGelu()


def loosen(network):
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5


def forget_times(network):
    nn.init.zeros_(network.visual.temporal_embedding)


@pytest.mark.parametrize("size", NAMES)
def test_names_and_shapes_are_those_of_the_published_files(size):
    with torch.device("meta"):
        state = ClipVit.published(size, classes={"action": 3806}).state_dict()
    lines = sorted(f"{name} {list(value.shape)}" for name, value in state.items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert (len(lines), digest) == NAMES[size]


@pytest.mark.parametrize(
    ("size", "millions", "gflops"),
    [("base_16", 85.812, 449.98), ("large_14", 303.196, 2065.78)],
)
def test_models_are_as_large_and_as_costly_as_published(size, millions, gflops):
    with torch.device("meta"):
        network = ClipVit.published(size).eval()
        analysis = FlopCountAnalysis(network, torch.zeros(1, 3, 16, 224, 224))
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 3) == millions
    analysis.set_op_handle("aten::scaled_dot_product_attention", products)
    analysis.unsupported_ops_warnings(False)
    # The published code gives the class token alone to the last norm.
    beyond = 5 * network.times * network.places * network.width
    assert round((analysis.total() - beyond) / 1e9, 2) == gflops
    assert set(analysis.unsupported_ops()) <= ZERO_COST


def products(inputs, outputs):
    (*batch, queries, wide), (*_, keys, _), (*_, out) = (item.type().sizes() for item in inputs[:3])
    return Counter({"attention": torch.Size(batch).numel() * queries * keys * (wide + out)})


@pytest.mark.parametrize("plain_names", [False, True])
@pytest.mark.parametrize("plain_weight", [False, True])
def test_all_four_published_layouts_make_the_same_network(plain_names, plain_weight):
    state = reduced()
    if plain_weight:
        state["visual.conv1.weight"] = state["visual.conv1.weight"].view(48, 3, 8, 8)
    if plain_names:
        for ours, other in (("Wqkv.", "in_proj_"), ("fc1.", "c_fc."), ("fc2.", "c_proj.")):
            state = {name.replace(ours, other): value for name, value in state.items()}
        assert "visual.transformer.resblocks.2.attn.in_proj_weight" in state
    made, wanted = filled(state).state_dict(), filled(reduced()).state_dict()
    assert made.keys() == wanted.keys()
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((0, 8, 0, 16), (0, 0, 1, 3, 5, 7, 7, 5, 3, 1, 2, 6, 10, 14, 16, 16)),
        (range(16), range(4)),
    ],
)
def test_times_are_interpolated_between_their_middles_and_too_many_are_cut_off(before, after):
    name = "visual.temporal_embedding"
    times = torch.tensor(before).float()[:, None].expand(-1, 48)
    network = tiny(frames=len(after))
    found = network.convert(reduced() | {name: times}, network.state_dict())
    wanted = torch.tensor(after).float()[:, None].expand(-1, 48)
    assert torch.equal(found.tensors[name], wanted)
    assert found.resized == [f"{name} ({len(before)}, 48) -> ({len(after)}, 48)"]


def test_a_file_of_pre_training_gives_its_video_side_and_names_the_rest():
    state = {n: v for n, v in reduced().items() if not n.startswith("fc_cls")}
    others = ["visual.image_projection", "textual.resblocks.0.mlp.c_fc.bias", "logit_scale"]
    network = tiny(classes=None)
    found = network.convert(state | dict.fromkeys(others, torch.ones(1)), network.state_dict())
    assert found.tensors.keys() == network.state_dict().keys()
    assert (found.unexpected, found.heads, found.resized) == (others, {}, [])


def test_a_classifier_that_the_network_has_not_is_handed_on_as_a_head():
    network = tiny(classes=None)
    state = reduced()
    found = network.convert(state, network.state_dict())
    assert found.heads.keys() == {"heads.action.weight", "heads.action.bias"}
    assert torch.equal(found.heads["heads.action.weight"], state["fc_cls.weight"])
    assert not found.unexpected


def test_a_file_of_another_image_size_is_refused():
    network = tiny(image=64)
    with pytest.raises(ValueError, match=r"positional_embedding is \(17, 48\), needed is \(65, 48"):
        network.convert(reduced(), network.state_dict())


def test_an_encoder_takes_a_published_state_and_its_own():
    torch.manual_seed(0)
    published = ClipVit.published("demo", frames=4, classes={"action": 7}).state_dict()
    encoder = ClipVit(ClipVit.Config(size="demo"), DEMO)
    found = encoder.convert(published)
    assert (found.tensors.keys(), len(found.resized)) == (encoder.state_dict().keys(), 1)
    encoder.load_state_dict(dict(found.tensors))
    assert encoder.convert(encoder.state_dict()).tensors.keys() == found.tensors.keys()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("classes", [None, {"action": 3806}])
def test_a_published_file_is_recognised(size, classes):
    with torch.device("meta"):
        state = ClipVit.published(size, frames=4, classes=classes).state_dict()
    plain = state["visual.conv1.weight"].unflatten(1, (3, *[SIZES[size].patch] * 2))
    for weight in (state["visual.conv1.weight"], plain):
        assert ClipVit.recognise(state | {"visual.conv1.weight": weight}) == {
            "size": size,
            "image": SIZES[size].image,
            "frames": 4,
            "classes": classes or {},
            "layout": "fine-tuned" if classes else "pre-training",
        }


def test_files_of_other_models_and_sizes_are_not_recognised():
    assert ClipVit.recognise({"visual.pos_embed": torch.zeros(1)}) is None
    assert ClipVit.recognise(reduced()) is None


def test_recomputing_blocks_changes_neither_outputs_nor_gradients():
    made = []
    for recompute in (False, True):
        network = filled(reduced(), drop_path=0.4).train()
        network.checkpointing = recompute
        torch.manual_seed(3)
        clips = torch.randn(4, 3, 4, 32, 32)
        output = network(clips)
        (output.tokens.square().sum() + output.logits["action"].square().sum()).backward()
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


def test_one_frame_needs_no_times():
    assert tiny(frames=1).visual.temporal_embedding is None
    encoder = ClipVit(ClipVit.Config(size="demo"), Stream("video", (1, 32, 32, 3)))
    assert encoder(torch.zeros(2, 1, 32, 32, 3, dtype=torch.uint8)).features.shape == (2, 16, 64)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"32 x 32, but size 'base_16' takes 224 x 224"):
        ClipVit(ClipVit.Config(), DEMO)
    with pytest.raises(ValueError, match=r"built for \(3, 4, 32, 32\)"):
        tiny()(torch.zeros(1, 3, 8, 32, 32))
    with pytest.raises(ValueError, match="not whole patches of 7"):
        tiny(patch=7)
    with pytest.raises(ValueError, match="not a multiple of 5 heads"):
        tiny(heads=5)
    with pytest.raises(ValueError, match="one classifier"):
        tiny(classes={"verb": 97, "noun": 300})
    with pytest.raises(ValueError, match="no size is called 'huge'; known: base_16"):
        ClipVit.published("huge")


@pytest.mark.parametrize(("option", "rate"), [(None, 0.1), (0.3, 0.3)])
def test_stochastic_depth_is_the_same_in_every_block(option, rate):
    with torch.device("meta"):
        stream = Stream("video", (16, 224, 224, 3))
        encoder = ClipVit(ClipVit.Config(drop_path=option), stream)
    blocks = encoder.network.visual.transformer["resblocks"]
    assert [block.drop_path.rate for block in blocks] == [rate] * 12


@pytest.mark.parametrize(("red_mean", "red"), [("avion", 108.3272985), ("clip", 122.7709383)])
def test_the_pixels_are_scaled_as_in_training_or_as_in_clip(red_mean, red):
    encoder = ClipVit(ClipVit.Config(size="demo", red_mean=red_mean), DEMO)
    clips = encoder.clips(torch.full((1, *DEMO.shape), 200, dtype=torch.uint8))
    wanted = [(200 - red) / 68.5005327, (200 - 116.7460125) / 66.6321579]
    torch.testing.assert_close(clips[0, :2, 0, 0, 0], torch.tensor(wanted))
