"""What a checkpoint is, and putting it into an encoder."""

import argparse
from collections import OrderedDict
from pathlib import Path

import pandas
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from backbones.official import build
from harness.checkpoint import read_checkpoint
from harness.contracts import Converted, Encoder, PluginConfig, Stream
from harness.registry import ENCODERS
from harness.weights import describe, fit, load_into


def arguments():
    """What AVION's and LaViLa's files carry."""
    actions = pandas.DataFrame({"verb": [1, 2], "noun": [3, 4]})
    return argparse.Namespace(model="CLIP_VITB16", clip_length=16, actions=actions)


class Small(Encoder):
    """Two tensors, one of which a checkpoint may lack; the file calls them `trunk.*`."""

    kinds = ("video",)
    may_start_fresh = r"times"
    may_be_left_out = r"text\..*"
    width = 4

    class Config(PluginConfig):
        size: str = "base"

    def __init__(self, config, stream):
        super().__init__(config, stream)
        self.patch = nn.Parameter(torch.zeros(4, 3))
        self.times = nn.Parameter(torch.zeros(stream.shape[0]))
        self.register_buffer("scale", torch.ones(1), persistent=False)

    @classmethod
    def recognise(cls, state):
        if "trunk.patch" not in state:
            return None
        return {"size": "base", "frames": 8, "image": 32, "classes": 5}

    def convert(self, state):
        named = {name.removeprefix("trunk."): value for name, value in state.items()}
        heads = {f"heads.{n}": named.pop(n) for n in list(named) if n.startswith("verb.")}
        known = {name: value for name, value in named.items() if name in ("patch", "times")}
        return Converted(known, heads, [], [name for name in named if name not in known])


@pytest.fixture
def small():
    return Small(Small.Config(), Stream("video", (8, 32, 32, 3)))


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(ENCODERS._plugins, "small", Small)


@pytest.fixture
def write(tmp_path):
    """Saves a value as a file of torch."""

    def save(value):
        torch.save(value, tmp_path / "file.pt")
        return tmp_path / "file.pt"

    return save


def test_a_complete_state_is_loaded(small):
    given = {"trunk.patch": torch.ones(4, 3), "trunk.times": torch.ones(8), "text.x": torch.ones(1)}
    told = load_into(small, given, "f.pt", kind="finetuned")
    assert told.loaded == ("patch", "times")
    assert told.missing == ()
    assert told.unexpected == ("text.x",)
    with pytest.raises(ValueError, match=r"has more, for which Small has no place"):
        load_into(small, {**given, "more": torch.ones(1)}, "f.pt", kind="finetuned")
    load_into(small, {**given, "more": torch.ones(1)}, "f.pt", kind="pretrained")
    assert torch.equal(small.patch, torch.ones(4, 3))
    assert torch.equal(small.times, torch.ones(8))


def test_half_precision_is_loaded_as_what_the_encoder_is(small):
    given = {"patch": torch.ones(4, 3).half(), "times": torch.ones(8).half()}
    load_into(small, given, "f.pt", kind="finetuned")
    assert small.patch.dtype == torch.float32
    assert torch.equal(small.patch, torch.ones(4, 3))


def test_only_what_the_encoder_allows_may_be_missing(small):
    told = load_into(small, {"patch": torch.ones(4, 3)}, "f.pt", kind="pretrained")
    assert told.missing == ("times",)
    with pytest.raises(ValueError, match=r"f.pt: lacks times of Small. `init: pretrained:`"):
        load_into(small, {"patch": torch.ones(4, 3)}, "f.pt", kind="finetuned")
    with pytest.raises(ValueError, match=r"f.pt: lacks patch of Small$"):
        load_into(small, {"times": torch.ones(8)}, "f.pt", kind="pretrained")


def test_what_does_not_fit_is_named(small):
    with pytest.raises(ValueError, match=r"f.pt: does not fit Small: patch is \(4, 9\), needed"):
        load_into(small, {"patch": torch.ones(4, 9), "times": torch.ones(8)}, "f.pt", "pretrained")
    with pytest.raises(ValueError, match=r"f.pt: holds nothing of Small: it has stem; needed are"):
        load_into(small, {"stem": torch.ones(1)}, "f.pt", "pretrained")
    assert not small.patch.any()


def test_on_the_meta_device_a_checkpoint_is_checked_and_not_copied():
    with torch.device("meta"):
        unreal = Small(Small.Config(), Stream("video", (8, 32, 32, 3)))
    given = {"patch": torch.ones(4, 3), "times": torch.ones(8)}
    assert load_into(unreal, given, "f.pt", "finetuned").loaded == ("patch", "times")
    with pytest.raises(ValueError, match="lacks"):
        load_into(unreal, {"patch": torch.ones(4, 3)}, "f.pt", "finetuned")


def test_fit_tells_the_classifiers_too(small):
    found, told = fit(small, {"patch": torch.ones(4, 3), "verb.weight": torch.ones(5, 4)})
    assert list(found.heads) == ["heads.verb.weight"]
    assert told.missing == ("times",)


def test_a_description_says_what_to_write(registered, write):
    tensors = {"trunk.patch": torch.ones(4, 3), "trunk.times": torch.ones(8),
               "verb.weight": torch.ones(5, 4), "text.x": torch.ones(1)}  # fmt: skip
    file = write({"epoch": 9, "state_dict": tensors, "args": arguments()})
    text = describe(file)
    assert "epoch 9, args.model CLIP_VITB16" in text
    assert "4, 41 values, float32" in text
    assert "fits the encoder small\n" in text
    assert "frames 8, image 32, classes 5" in text
    assert "loaded    2 of 2 tensors of the encoder" in text
    assert "unexpected text.x" in text
    assert "heads     heads.verb.weight (5, 4)" in text
    line = f'encoders.video: {{name: small, options: {{size: base}}, init: "finetuned:{file}"}}'
    assert line in text


def test_a_description_of_an_incomplete_file_offers_it_as_pretrained(registered, write):
    text = describe(write({"trunk.patch": torch.ones(4, 3)}))
    assert "missing   times" in text
    assert 'init: "pretrained:' in text
    text = describe(write({"trunk.patch": torch.ones(4, 2)}))
    assert "but not   patch is (4, 2), needed is (4, 3)" in text
    assert "write" not in text


def test_a_description_of_a_strange_file_shows_its_names(registered, write):
    text = describe(write({f"conv{i}.weight": torch.ones(2) for i in range(12)}))
    assert "no encoder recognises it" in text
    assert "conv0.weight (2,)" in text
    assert "and 2 more" in text
    assert "small" in text


def test_a_description_knows_the_weights_of_a_run(registered, tmp_path):
    save_file({"encoders.video.patch": torch.ones(4, 3)}, tmp_path / "weights.safetensors")
    assert "of the stream video: 1 tensors" in describe(tmp_path / "weights.safetensors")


PUBLISHED = {
    "clip_vit": ({"action": 30}, "avion"),
    "timesformer": ({"verb": 7, "noun": 9, "action": 30}, "avion"),
    "orvit": ({"verb": 7, "noun": 9}, "orvit"),
    "motionformer": ({"verb": 7, "noun": 9}, "orvit"),
}
"""encoder -> the classifiers its published files have, and who wrote them"""
DEMO = Stream("video", (8, 32, 32, 3))


def published(name, **options):
    """A small network with the published names, its values all different from a fresh one's."""
    network = ENCODERS[name].published("demo", **options)
    random = torch.Generator().manual_seed(1)
    for value in network.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=random))
    return network.eval()


def demo(name):
    cls = ENCODERS[name]
    return cls(cls.Config(size="demo"), DEMO).eval()


def wrapped(layout, tensors):
    if layout == "orvit":
        return {"epoch": 49, "model_state": tensors, "optimizer_state": {}, "cfg": "A: 1"}
    named = OrderedDict((f"module.{name}", value) for name, value in tensors.items())
    return {"epoch": 9, "state_dict": named, "best_acc1": 49.5, "args": arguments()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_is_described_and_loaded_whole(write, name):
    classes, layout = PUBLISHED[name]
    network = published(name, classes=classes)
    file = write(wrapped(layout, network.state_dict()))
    text = describe(file)
    assert text.count("fits the encoder") == 1
    init = f'init: "finetuned:{file}"'
    assert f"encoders.video: {{name: {name}, options: {{size: demo}}, {init}}}" in text
    encoder = demo(name)
    tensors = read_checkpoint(file).tensors
    told = load_into(encoder, tensors, str(file), kind="finetuned")
    assert told.missing == told.unexpected == told.resized == ()
    heads = encoder.convert(tensors).heads
    assert {f"heads.{target}.weight" for target in classes} <= heads.keys()
    clips = torch.randn(2, 3, *DEMO.shape[:3], generator=torch.Generator().manual_seed(2))
    boxes = torch.full((2, 8, 4, 4), 0.5)
    with torch.no_grad():
        expected, found = network(clips, boxes), encoder.network(clips, boxes)
        assert torch.equal(found.tokens, expected.tokens)
        features = expected.features
        for target, logits in expected.logits.items():
            weight, bias = heads[f"heads.{target}.weight"], heads[f"heads.{target}.bias"]
            torch.testing.assert_close(features @ weight.T + bias, logits)


def test_a_pre_trained_file_of_fewer_frames_is_stretched_to_the_clips(write):
    few = published("clip_vit", frames=4).state_dict()
    both = few | {"visual.image_projection": torch.ones(64, 8), "textual.a": torch.ones(2)}
    file = write(wrapped("avion", both))
    assert f'init: "pretrained:{file}"' in describe(file)
    assert "heads     none" in describe(file)
    encoder = demo("clip_vit")
    told = load_into(encoder, read_checkpoint(file).tensors, str(file), kind="pretrained")
    assert told.resized == ("visual.temporal_embedding (4, 64) -> (8, 64)",)
    assert set(told.unexpected) == {"visual.image_projection", "textual.a"}


def test_an_object_model_starts_from_one_without_objects(write):
    file = write(wrapped("orvit", published("motionformer").state_dict()))
    encoder, tensors = demo("orvit"), read_checkpoint(file).tensors
    told = load_into(encoder, tensors, str(file), kind="pretrained")
    assert len(told.missing) == 24
    for name, value in tensors.items():
        assert torch.equal(encoder.state_dict()[f"network.{name}"], value), name
    with pytest.raises(ValueError, match="lets these start anew"):
        load_into(encoder, tensors, str(file), kind="finetuned")
    with pytest.raises(ValueError, match=r"lacks .* of ClipVit|holds nothing of ClipVit"):
        load_into(demo("clip_vit"), tensors, str(file), kind="pretrained")


def test_a_file_with_familiar_names_and_other_shapes_is_not_recognised(tmp_path):
    names = ("patch_embed_3d.proj.weight", "temp_embed", "pos_embed", "visual.conv1.weight",
             "visual.positional_embedding", "visual.class_embedding", "visual.temporal_embed",
             "visual.patch_embed.proj.weight", "visual.pos_embed")  # fmt: skip
    torch.save({name: torch.zeros(()) for name in names}, tmp_path / "odd.pt")
    assert "no encoder recognises it" in describe(tmp_path / "odd.pt")


def test_the_line_to_write_holds_the_whole_path(tmp_path, monkeypatch):
    net = build("clip_vit", "demo", classes={"action": 5})
    torch.save({"state_dict": net.state_dict()}, tmp_path / "clip.pt")
    monkeypatch.chdir(tmp_path)
    text = describe(Path("clip.pt"))
    assert f'init: "finetuned:{tmp_path / "clip.pt"}"' in text
    assert "tokens: cls" in text
