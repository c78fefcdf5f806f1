"""ORViT and Motionformer: the released code's numbers, its names, and what the options change."""

import hashlib
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from backbones.object_region import corners, crop, layout
from backbones.orvit import SIZES, Motionformer, Orvit
from backbones.trajectory import TrajectoryAttention
from harness.contracts import Stream

HERE = Path(__file__).resolve().parent
REFERENCE = HERE / "reference" / "orvit.safetensors"
FIXTURES = HERE.parent.parent / "shared" / "fixtures"
EPIC = {"verb": 97, "noun": 300}
TINY = {"width": 48, "depth": 3, "heads": 4, "object_blocks": (1,)}
CLIP = Stream("video", (8, 32, 32, 3))
OFFICIAL_NAMES = "c962c50313d595c9d96288f7a72ef8e07332a7db25b5a2a6c1d0235f57cc0643"
"""SHA-256 of the released model's sorted `name shape` lines, with 97 verbs and 300 nouns"""


@pytest.fixture
def boxes():
    """(2, 8, 4, 4) as corners; the last slot is empty."""
    random = torch.Generator().manual_seed(1)
    near = 0.5 * torch.rand(2, 8, 4, 2, generator=random)
    far = near + 0.1 + 0.4 * torch.rand(2, 8, 4, 2, generator=random)
    found = torch.cat([near, far], dim=-1)
    found[:, :, 3] = 0
    return found


@pytest.fixture
def clips():
    random = torch.Generator().manual_seed(2)
    return torch.randint(256, (2, *CLIP.shape), generator=random, dtype=torch.uint8)


def encoder(cls=Orvit, stream=CLIP, **options):
    """The demo, with positions and learnt vectors large enough to matter."""
    torch.manual_seed(0)
    made = cls(cls.Config(size="demo", **options), stream)
    with torch.no_grad():
        for value in made.parameters():
            value.mul_(3)
    return made.eval()


def trained(made, clips, boxes):
    """Tokens and gradients of one step in training mode."""
    torch.manual_seed(3)
    tokens = made.train()(clips, boxes=boxes).features
    random = torch.Generator().manual_seed(4)
    (tokens * torch.randn(tokens.shape, generator=random)).sum().backward()
    return tokens, {name: p.grad for name, p in made.named_parameters() if p.requires_grad}


def official(file, image):
    """(network with the file's weights, its tensors)"""
    tensors = load_file(file)
    state = {n.removeprefix("state_dict/"): v for n, v in tensors.items() if "state_dict/" in n}
    state = state or official(FIXTURES / "orvit_tiny.safetensors", 112)[0].state_dict()
    network = Orvit.published("base", frames=4, image=image, classes=EPIC, **TINY).eval()
    found = network.convert(state, network.state_dict())
    assert not found.unexpected
    assert not found.heads
    network.load_state_dict(dict(found.tensors))
    return network, tensors


def compare(file, image):
    network, tensors = official(file, image)
    with torch.no_grad():
        tokens, features, logits = network(tensors["x"], tensors["boxes"])
    found = {"tokens": tokens, "features": features} | {f"logits/{t}": logits[t] for t in logits}
    assert found.keys() == {"tokens", "features", "logits/verb", "logits/noun"}
    for name, value in found.items():
        torch.testing.assert_close(value, tensors[name], rtol=0, atol=2e-5, msg=name)
    return network, tensors


def test_outputs_are_those_of_the_released_code():
    compare(REFERENCE, 112)


@pytest.mark.parametrize(("name", "image"), [("orvit_tiny", 112), ("orvit_tiny224", 224)])
def test_outputs_of_both_image_sizes_are_those_of_the_released_code(name, image):
    if not FIXTURES.is_dir():
        pytest.skip("the full reference outputs are not beside this checkout")
    compare(FIXTURES / f"{name}.safetensors", image)


def test_every_block_and_part_is_that_of_the_released_code():
    if not FIXTURES.is_dir():
        pytest.skip("the reference outputs of blocks are not beside this checkout")
    network, tensors = official(FIXTURES / "orvit_tiny.safetensors", 112)
    seen = {}

    def keep(name):
        return lambda module, inputs, output: seen.update({name: output})

    for i, block in enumerate(network.blocks):
        block.register_forward_hook(keep(f"blocks/{i}"))
    for part in ("attn", "c_coord_to_feature", "patch_to_d", "motion_stream", "motion_mlp", "mlp"):
        network.blocks[1].get_submodule(part).register_forward_hook(keep(f"orvit_parts/1.{part}"))
    network.blocks[1].patch_to_d.register_forward_pre_hook(
        lambda module, inputs: seen.update({"orvit_parts/1.crop_layer": inputs[0].movedim(-1, 3)})
    )
    with torch.no_grad():
        network(tensors["x"], tensors["boxes"])
    for part in ("crop_layer", "patch_to_d"):  # there, objects come before times
        seen[f"orvit_parts/1.{part}"] = seen[f"orvit_parts/1.{part}"].transpose(1, 2)
    assert seen.keys() == {n for n in tensors if n.startswith(("blocks/", "orvit_parts/"))}
    for name, value in seen.items():
        torch.testing.assert_close(value, tensors[name], rtol=0, atol=2e-5, msg=name)


@pytest.mark.parametrize("image", [224, 336])
def test_names_and_shapes_are_those_of_the_released_model(image):
    with torch.device("meta"):
        network = Orvit.published("base", image=image, classes=EPIC)
    lines = sorted(f"{n} {'x'.join(map(str, v.shape))}" for n, v in network.state_dict().items())
    assert len(lines) == 277
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == OFFICIAL_NAMES


@pytest.mark.parametrize(
    ("cls", "image", "values"),
    [(Orvit, 224, 147_678_349), (Orvit, 336, 147_678_349), (Motionformer, 224, 108_551_821)],
)
def test_the_full_size_has_as_many_values_as_the_released_model(cls, image, values):
    with torch.device("meta"):
        network = cls.published("base", image=image, classes=EPIC)
    assert sum(value.numel() for value in network.parameters()) == values


def test_the_full_size_runs_on_the_meta_device_at_336_pixels():
    with torch.device("meta"), torch.no_grad():
        network = Orvit.published("base", image=336, classes=EPIC)
        output = network(torch.empty(1, 3, 16, 336, 336), torch.empty(1, 16, 4, 4))
    assert output.tokens.shape == (1, 1 + 8 * 441, 768)
    assert output.features.shape == (1, 768)
    assert {target: value.shape for target, value in output.logits.items()} == {
        "verb": (1, 97),
        "noun": (1, 300),
    }


def test_images_of_336_pixels_use_the_same_weights():
    network, _ = official(REFERENCE, 112)
    larger = Orvit.published("base", frames=4, image=336, classes=EPIC, **TINY).eval()
    larger.load_state_dict(network.state_dict(), strict=True)
    with torch.no_grad():
        output = larger(torch.zeros(1, 3, 4, 336, 336))
    assert larger.places == 21 * 21
    assert output.tokens.shape == (1, 1 + 2 * 21 * 21, 48)
    assert output.tokens.isfinite().all()


def test_a_network_without_classifiers_gives_the_class_token():
    network = Orvit.published("demo").eval()
    with torch.no_grad():
        output = network(torch.randn(2, 3, 8, 32, 32))
    assert output.logits == {}
    assert torch.equal(output.features, output.tokens[:, 0])
    assert not any(n.startswith(("head", "pre_logits")) for n in network.state_dict())


def test_moving_a_box_changes_the_tokens(clips, boxes):
    made = encoder()
    moved = boxes.clone()
    moved[0, 2, 1] += torch.tensor([0.1, 0.0, 0.1, 0.0])
    with torch.no_grad():
        before, after = (made(clips, boxes=b).features for b in (boxes, moved))
    assert (before[0] - after[0]).abs().max() > 1e-3
    assert torch.equal(before[1], after[1])


def test_only_the_first_frame_of_a_tubelet_gives_boxes(clips, boxes):
    made = encoder()
    other = boxes.clone()
    other[:, 1::2] = 0
    with torch.no_grad():
        assert torch.equal(*(made(clips, boxes=b).features for b in (boxes, other)))


def test_boxes_that_are_all_absent_equal_no_boxes(clips, boxes):
    made = encoder()
    with torch.no_grad():
        absent = made(clips, boxes=torch.zeros_like(boxes)).features
        assert torch.equal(absent, made(clips).features)
        assert not torch.allclose(absent, made(clips, boxes=boxes).features, atol=1e-3)


def test_boxes_are_clipped_turned_into_centres_and_dropped_where_narrow():
    given = torch.tensor(
        [
            [0.25, 0.5, 0.75, 0.75],
            [-0.5, 0.5, 0.5, 1.5],
            [0.25, 0.25, 0.29, 0.75],
            [0.25, 0.25, 0.75, 0.29],
        ]
    )
    wanted = torch.tensor(
        [[0.5, 0.625, 0.5, 0.25], [0.25, 0.75, 0.5, 0.5], [0, 0, 0, 0], [0, 0, 0, 0]]
    )
    torch.testing.assert_close(encoder().boxes({"boxes": given[None, None]})[0, 0], wanted)
    assert encoder().boxes({}) is None
    assert encoder(Motionformer).boxes({"boxes": given[None, None]}) is None


def test_boxes_of_another_number_are_refused(clips, boxes):
    with pytest.raises(ValueError, match=r"boxes of \(2, 8, 3, 4\), the clips need \(2, 8, 4, 4\)"):
        encoder()(clips, boxes=boxes[:, :, :3])


def test_a_crop_is_what_lies_under_the_box_and_nothing_without_one():
    ramp = torch.arange(4.0).expand(4, 4)  # column numbers, then row numbers
    patches = torch.stack([ramp, ramp.T], dim=-1).expand(2, 3, 4, 4, 2)
    boxes = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0, 0, 0, 0], [0.625, 0.375, 0.25, 0.25]])
    whole, absent, patch = crop(patches, boxes.expand(2, 3, 3, 4)).unbind(2)
    torch.testing.assert_close(whole, patches)
    assert not absent.any()
    steps = (torch.arange(4) + 0.5) / 4 - 0.5  # within column 2 and row 1
    torch.testing.assert_close(patch[1, 2, 0, :, 0], 2 + steps)
    torch.testing.assert_close(patch[1, 2, :, 3, 1], 1 + steps)


def slow_trajectory_attention(attention, x, times):
    """One head, one clip, one query and one time after the other: x (1 + T P, D)."""
    width, depth = x.shape[1], x.shape[1] // attention.heads
    places = (len(x) - 1) // times
    q, k, v = attention.qkv(x).split(width, dim=1)
    parts = [slice(h * depth, (h + 1) * depth) for h in range(attention.heads)]

    def attend(query, keys, values):
        return (keys @ query / depth**0.5).softmax(dim=0) @ values

    rows = [torch.cat([attend(q[0, h], k[:, h], v[:, h]) for h in parts])]
    for n in range(1, len(x)):
        frames = [slice(1 + t * places, 1 + (t + 1) * places) for t in range(times)]
        moved = torch.stack(
            [torch.cat([attend(q[n, h], k[f, h], v[f, h]) for h in parts]) for f in frames]
        )
        query = attention.proj_q(moved[(n - 1) // places])
        keys = attention.proj_kv(moved)[:, :width]
        rows.append(torch.cat([attend(query[h], keys[:, h], moved[:, h]) for h in parts]))
    return attention.proj(torch.stack(rows))


@pytest.mark.parametrize("discarded_half", [True, False])
def test_trajectory_attention_is_that_of_one_query_after_the_other(discarded_half):
    torch.manual_seed(0)
    attention = TrajectoryAttention(12, 3, times=4, discarded_half=discarded_half).double()
    for value in attention.parameters():
        value.data.normal_()
    x = torch.randn(2, 1 + 4 * 5, 12, dtype=torch.float64)
    slow = torch.stack([slow_trajectory_attention(attention, clip, 4) for clip in x])
    torch.testing.assert_close(attention(x), slow, rtol=1e-9, atol=1e-9)


def painted(box, height, width):
    """What the released code is said to do: a mask of 8 x 8 ones is sampled on a grid made from
    x0, y0 and a width and height, for which it is given x1 and y1."""
    x0, y0, wide, high = corners(box)
    x = ((torch.linspace(0, 1, width) - x0) / wide) * 2 - 1
    y = ((torch.linspace(0, 1, height) - y0) / high) * 2 - 1
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
    return F.grid_sample(torch.ones(1, 1, 8, 8), grid[None], align_corners=True)[0, 0]


@pytest.mark.parametrize("size", [(14, 14), (4, 7)])
def test_the_layout_is_a_mask_sampled_on_a_grid(boxes, size):
    boxes = encoder().boxes({"boxes": boxes})
    found = layout(boxes, *size).unflatten(2, size)
    assert found.shape == (2, 8, *size, 4)
    for clip in range(2):
        for time in range(8):
            for slot in range(3):
                wanted = painted(boxes[clip, time, slot], *size)
                torch.testing.assert_close(found[clip, time, ..., slot], wanted, rtol=0, atol=1e-5)


def test_a_box_is_painted_as_large_as_its_far_corner_is_away():
    found = layout(torch.tensor([[0.6, 0.6, 0.2, 0.2]]), 11, 11).unflatten(0, (11, 11))[..., 0]
    assert (found[5:, 5:] == 1).all()  # from 0.5 to 1, not to 0.7
    assert found[:5].max() < 0.3


def test_boxes_without_a_far_corner_paint_nothing_and_give_no_infinities():
    boxes = torch.tensor([[0, 0, 0, 0], [-0.25, 0.5, 0.5, 0.5], [0.5, -0.25, 0.5, 0.5]])
    assert torch.equal(layout(boxes, 4, 4), torch.zeros(16, 3))


@pytest.mark.parametrize("tokens", ["patch", "cls"])
def test_leaving_out_the_discarded_half_changes_neither_tokens_nor_gradients(clips, boxes, tokens):
    options = {"drop_path": 0.3, "tokens": tokens}
    full, full_grads = trained(encoder(discarded_half=True, **options), clips, boxes)
    half, half_grads = trained(encoder(discarded_half=False, **options), clips, boxes)
    torch.testing.assert_close(half, full)
    torch.testing.assert_close(half_grads, full_grads)


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_checkpointing_changes_neither_tokens_nor_gradients(clips, boxes, drop_path):
    plain, plain_grads = trained(encoder(drop_path=drop_path), clips, boxes)
    saved, saved_grads = trained(encoder(drop_path=drop_path, checkpointing=True), clips, boxes)
    assert torch.equal(saved, plain)
    torch.testing.assert_close(saved_grads, plain_grads)


def test_checkpointing_keeps_fewer_activations(clips, boxes):
    kept = []
    for checkpointing in (False, True):
        sizes = []
        made = encoder(checkpointing=checkpointing).train()
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.append(x) or x, id):
            made(clips, boxes=boxes)
        kept.append(sum(value.numel() for value in sizes))
    assert kept[1] < kept[0] / 4


def test_every_weight_learns_where_there_are_boxes(clips, boxes):
    for tokens in ("patch", "frame"):
        made = encoder(tokens=tokens)
        _, grads = trained(made, clips, boxes)
        assert [n for n, grad in grads.items() if grad is None or not grad.any()] == []
        assert "network.cls_token" not in grads
    _, grads = trained(encoder(tokens="cls"), clips, boxes)
    assert grads["network.cls_token"].any()


def test_half_precision_gives_nearly_the_same(clips, boxes):
    made = encoder(checkpointing=True)
    with torch.no_grad():
        exact = made(clips, boxes=boxes).features
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens, grads = trained(made, clips, boxes)
    assert (tokens.float() - exact).abs().mean() < 0.05 * exact.abs().mean()
    assert all(grad.isfinite().all() for grad in grads.values())


def test_bgr_flips_the_channels(clips, boxes):
    flipped, plain = encoder(bgr=True), encoder(bgr=False)
    with torch.no_grad():
        one, other = flipped(clips, boxes=boxes), plain(clips.flip(-1), boxes=boxes)
        assert torch.equal(one.features, other.features)
        assert not torch.allclose(one.features, plain(clips, boxes=boxes).features)
    assert flipped.clips(torch.full_like(clips, 255)).unique().tolist() == [1]


@pytest.mark.parametrize(
    ("size", "shape", "message"),
    [
        ("demo", (16, 32, 32, 3), "clips of 16 frames; size 'demo' needs 8"),
        ("base", (8, 224, 224, 3), "clips of 8 frames; size 'base' needs 16"),
        ("base", (16, 230, 230, 3), "clips of 230 x 230 pixels.* multiple of 16 .*224 x 224"),
        ("demo", (8, 32, 40, 3), "clips of 32 x 40 pixels.* square"),
    ],
)
@pytest.mark.parametrize("cls", [Orvit, Motionformer])
def test_streams_of_another_shape_are_refused(cls, size, shape, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        cls(cls.Config(size=size), Stream("video", shape))


def test_sizes_whose_numbers_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="frames 5 is not a multiple of tubelet 2"):
        Orvit.published("demo", frames=5)
    with pytest.raises(ValueError, match="width 50 is not a multiple of heads 4"):
        Orvit.published("demo", width=50)


@pytest.mark.parametrize("image", [224, 240, 336])
def test_the_encoder_takes_its_image_from_the_stream(image):
    with torch.device("meta"):
        made = Orvit(Orvit.Config(), Stream("video", (16, image, image, 3)))
    assert made.network.places == (image // 16) ** 2
    assert made.network.times == 8
    assert made.width == 768


def test_orvit_may_start_from_a_motionformer():
    with torch.device("meta"):
        state = Motionformer.published("base", classes=EPIC).state_dict()
        state["patch_embed.proj.weight"] = torch.empty(768, 3, 16, 16)
        state["patch_embed.proj.bias"] = torch.empty(768)
        made = Orvit(Orvit.Config(), Stream("video", (16, 336, 336, 3)))
    found = made.convert(state)
    missing = made.state_dict().keys() - found.tensors.keys()
    assert len(missing) == 3 * 24
    assert missing == {n for n in made.state_dict() if re.fullmatch(made.may_start_fresh, n)}
    assert list(found.unexpected) == []
    assert {name: tuple(value.shape) for name, value in found.heads.items()} == {
        "pre_logits.0.weight": (768, 768),
        "pre_logits.0.bias": (768,),
        "heads.verb.weight": (97, 768),
        "heads.verb.bias": (97,),
        "heads.noun.weight": (300, 768),
        "heads.noun.bias": (300,),
    }


def test_a_published_state_and_the_encoders_own_give_the_same_tokens(clips, boxes):
    torch.manual_seed(5)
    published = Orvit.published("demo", classes=EPIC)
    made = encoder()
    found = made.convert(published.state_dict())
    made.load_state_dict(found.tensors, strict=True)
    with torch.no_grad():
        wanted = published.eval()(made.clips(clips), made.boxes({"boxes": boxes})).tokens[:, 1:]
        assert torch.equal(made(clips, boxes=boxes).features, wanted)
    again = made.convert(made.state_dict())
    assert again.tensors.keys() == made.state_dict().keys()


def test_tensors_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"pos_embed is \(1, 197, 48\), needed is \(1, 17, 64\)"):
        encoder().convert(load_file(REFERENCE) | {"pos_embed": torch.zeros(1, 197, 48)})


@pytest.mark.parametrize("size", sorted(SIZES))
@pytest.mark.parametrize("cls", [Orvit, Motionformer])
def test_each_recognises_its_own_checkpoints_only(cls, size):
    with torch.device("meta"):
        state = cls.published(size, classes=EPIC).state_dict()
    name, other = ("orvit", Motionformer) if cls is Orvit else ("motionformer", Orvit)
    facts = {"frames": SIZES[size].frames, "image": SIZES[size].image, "classes": EPIC}
    assert cls.recognise(state) == {"name": name, "size": size, **facts}
    assert other.recognise(state) is None


def test_a_size_is_named_only_where_it_fits():
    state = load_file(REFERENCE)
    state = {n.removeprefix("state_dict/"): v for n, v in state.items()}
    facts = Orvit.recognise(state)
    assert "size" not in facts
    assert facts["frames"] == 4
    with torch.device("meta"):
        deeper = Orvit.published("demo", depth=4).state_dict()
    assert "size" not in Orvit.recognise(deeper)
    assert Orvit.recognise({"cls_token": torch.zeros(1, 1, 768)}) is None


@pytest.mark.parametrize("cls", [Orvit, Motionformer])
def test_the_demo_learns_simkitchens_clips_in_the_time_of_a_test(cls, clips):
    torch.manual_seed(0)
    made = cls(cls.Config(size="demo"), CLIP)
    head = torch.nn.Linear(64, 2)
    optimiser = torch.optim.AdamW([*made.parameters(), *head.parameters()], lr=1e-3)
    for _ in range(20):
        logits = head(made(clips).features.mean(dim=1))
        loss = F.cross_entropy(logits, torch.arange(2))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.05


def test_the_example_has_boxes_as_large_as_the_frame():
    made = encoder()
    inputs, side = made.example()
    assert inputs.shape == (1, *CLIP.shape)
    assert made.boxes(side).unique().tolist() == [0.5, 1.0]
    assert made(inputs, **side).features.shape == (1, 4 * 16, 64)
