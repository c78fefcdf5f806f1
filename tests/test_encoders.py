"""What every registered encoder of a video, text or sensor stream promises."""

import copy
import importlib

import pytest
import tiny_roberta
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from harness.contracts import Stream
from harness.registry import ENCODERS

STREAMS = {
    "video": Stream("video", (8, 32, 32, 3)),
    "text": Stream("text", (48,)),
    "sensor": Stream("sensor", (100, 3)),
}
SMALL = {
    name: ({"size": "demo"}, STREAMS["video"])
    for name in ("orvit", "motionformer", "clip_vit", "timesformer")
}
"""encoder -> options and stream, where the defaults are too large to test with"""
CASES = [
    (name, kind) for name in ENCODERS.names() for kind in ENCODERS[name].kinds if kind in STREAMS
]
WORDS = ("what", "are", "gently", "to", "<mask>", "left", "rather", "than", "right", "?", "</s>")


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """Encoder -> the folder that it needs to be of any use."""
    folder = tmp_path_factory.mktemp("roberta")
    return {"roberta": tiny_roberta.write(folder, [" ".join(WORDS)], positions=514)}


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def case(request, sources):
    """(encoder class, config, stream, what it starts from)"""
    name, kind = request.param
    return chosen(name, kind, sources)


def chosen(name, kind, sources):
    options, stream = SMALL.get(name, ({}, STREAMS[kind]))
    cls = ENCODERS[name]
    return cls, cls.Config.model_validate(options), stream, sources.get(name)


def made(case):
    """A new encoder, with its weights where it starts from a folder."""
    cls, config, stream, source = case
    encoder = cls.build(config, stream, source)
    if source is not None:
        assert encoder.load(source)
    return encoder


@pytest.fixture
def raws(case):
    """Raw values of a batch, texts of different lengths among them."""
    return examples(case[2], 5)


@pytest.fixture
def encoder(case, raws):
    """Fitted to `raws`."""
    torch.manual_seed(0)
    encoder = made(case)
    encoder.fit(raws)
    return encoder.eval()


def examples(stream, count):
    random = torch.Generator().manual_seed(1)
    if stream.kind == "video":
        shape = (count, *stream.shape)
        return list(torch.randint(256, shape, generator=random, dtype=torch.uint8))
    if stream.kind == "sensor":
        return list(torch.randn(count, *stream.shape, generator=random).cumsum(dim=1))
    lengths = [min(n, stream.shape[0]) for n in (3, stream.shape[0], 1, 17, 8)]
    picks = torch.randint(len(WORDS), (count, stream.shape[0]), generator=random).tolist()
    return [
        " ".join(WORDS[p] for p in row[:n]) for row, n in zip(picks, lengths[:count], strict=True)
    ]


def run(encoder, raws):
    with torch.no_grad():
        return encoder(encoder.collate(raws))


def test_tokens_have_the_promised_shape(encoder, raws):
    features, mask = run(encoder, raws)
    assert features.shape == (len(raws), mask.shape[1], encoder.width)
    assert mask.shape[0] == len(raws)
    assert mask.dtype == torch.bool
    assert mask.any(dim=1).all()
    assert features.dtype == torch.float32
    assert features.isfinite().all()


def test_a_sample_alone_has_the_tokens_it_has_in_a_batch(encoder, raws):
    together = run(encoder, raws)
    for row, raw in enumerate(raws):
        alone = run(encoder, [raw])
        torch.testing.assert_close(
            alone.features[alone.mask],
            together.features[row][together.mask[row]],
            rtol=1e-4,
            atol=1e-5,
        )


def test_different_samples_have_different_tokens(encoder, raws):
    first, second = (run(encoder, [raw]) for raw in raws[1:3])
    assert first.features.shape != second.features.shape or not torch.allclose(
        first.features, second.features
    )


def test_every_trainable_parameter_gets_a_gradient(encoder, raws):
    _, side = encoder.example()
    side = {name: value.expand(len(raws), *value.shape[1:]) for name, value in side.items()}
    features, mask = encoder.train()(encoder.collate(raws), **side)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    trainable = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    if trainable:
        (features * weights)[mask].sum().backward()
    still = [name for name, p in trainable.items() if p.grad is None or not p.grad.any()]
    assert not still


def test_saved_weights_make_a_fresh_encoder_agree(case, encoder, raws, tmp_path):
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    fresh = made(case).eval()
    fresh.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=True)
    for one, other in zip(run(encoder, raws), run(fresh, raws), strict=True):
        assert torch.equal(one, other)


def test_fitting_again_changes_nothing(encoder, raws):
    before = copy.deepcopy(encoder.state_dict())
    encoder.fit(raws)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_an_encoder_runs_on_the_meta_device(case, encoder, raws):
    cls, config, stream, source = case
    with torch.device("meta"):
        unreal = cls.build(config, stream, source).eval()
    inputs = unreal.collate(raws)
    inputs = (
        inputs.to("meta")
        if isinstance(inputs, torch.Tensor)
        else tuple(part.to("meta") for part in inputs)
    )
    features, mask = unreal(inputs)
    assert features.is_meta
    assert features.shape == run(encoder, raws).features.shape
    assert mask.shape == features.shape[:2]


def test_the_shape_an_encoder_promises_is_that_of_its_example(encoder):
    inputs, side = encoder.example()
    with torch.no_grad():
        features = encoder(inputs, **side).features
    assert encoder.tokens_shape() in (None, features.shape)


def test_no_encoder_normalises_over_the_batch(encoder):
    assert not [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def test_every_encoder_names_its_source(case):
    assert "Source:" in (importlib.import_module(case[0].__module__).__doc__ or "")


@pytest.mark.parametrize("name", [name for name, kind in CASES if kind == "text"])
def test_texts_without_words_have_no_tokens_and_no_nan(name, sources):
    encoder = made(chosen(name, "text", sources)).eval()
    encoder.fit(["left right", ""])
    for texts in (["", ""], ["left", ""]):
        features, mask = run(encoder, texts)
        assert features.isfinite().all()
        assert not mask[1].any()
    _, mask = encoder.collate(["", ""])
    assert mask.shape[1] >= 1


@pytest.mark.parametrize("name", [name for name, kind in CASES if kind == "text"])
def test_a_text_without_words_gives_finite_gradients(name, sources):
    encoder = made(chosen(name, "text", sources))
    encoder.fit(["left right", ""])
    encoder(encoder.collate(["left", ""])).features.sum().backward()
    grads = [p.grad for p in encoder.parameters() if p.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)


def word_transformer(**options):
    cls = ENCODERS["word_transformer"]
    return cls(cls.Config.model_validate(options), STREAMS["text"])


def test_words_outside_the_vocabulary_are_all_alike():
    encoder = word_transformer()
    encoder.fit(["left right"])
    ids, _ = encoder.collate(["left quark <mask> boson </s>"])
    assert ids[0, 1] == ids[0, 3]
    assert len(set(ids[0].tolist())) == 4


def test_the_vocabulary_does_not_depend_on_the_order_of_the_texts():
    one, other = word_transformer(), word_transformer()
    one.fit(["left right", "window door"])
    other.fit(["door left", "right window"])
    assert one.vocabulary() == other.vocabulary()


def test_what_does_not_fit_the_word_transformer_is_refused():
    encoder = word_transformer(slots=6)
    with pytest.raises(RuntimeError, match="call `fit`"):
        encoder.collate(["left"])
    with pytest.raises(ValueError, match="slots=6"):
        encoder.fit(["one two three"])
    with pytest.raises(ValueError, match="longer than 32 bytes"):
        encoder.fit(["a" * 33])
    encoder.fit(["left"])
    with pytest.raises(ValueError, match="a text of 49 words"):
        encoder.collate(["left " * 49])
    with pytest.raises(ValueError, match="not a multiple"):
        word_transformer(width=30)


def test_order_of_words_changes_their_tokens():
    encoder = word_transformer().eval()
    encoder.fit(["hard rather than gently"])
    one, other = (
        run(encoder, [text]).features.mean(dim=1)
        for text in ("hard rather than gently", "gently rather than hard")
    )
    assert not torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(("tokens", "length"), [("patch", 32), ("frame", 2), ("cls", 1)])
def test_the_video_transformer_hands_on_what_was_asked_for(tokens, length):
    cls = ENCODERS["video_transformer"]
    encoder = cls(cls.Config(tokens=tokens), STREAMS["video"])
    clips = torch.stack(examples(STREAMS["video"], 2))
    features, _ = encoder(clips, boxes=torch.zeros(2, 8, 4, 4))
    assert features.shape == (2, length, 64)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(3))
    (features * weights).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters())


def test_a_tubelet_holds_its_own_pixels_and_no_others():
    cls = ENCODERS["video_transformer"]
    encoder = cls(cls.Config(), STREAMS["video"])
    clips = torch.zeros(1, 8, 32, 32, 3, dtype=torch.uint8)
    changed = clips.clone()
    changed[0, 5, 17, 9] = 255  # second half of the clip, third row of patches, second column
    before, after = encoder._tubelets(clips), encoder._tubelets(changed)
    assert (before != after).any(dim=-1)[0].nonzero().tolist() == [[16 + 2 * 4 + 1]]


def test_clips_that_do_not_fit_the_video_transformer_are_refused():
    cls = ENCODERS["video_transformer"]
    with pytest.raises(ValueError, match="cannot be cut into tubelets"):
        cls(cls.Config(patch=7), STREAMS["video"])
    encoder = cls(cls.Config(), STREAMS["video"])
    with pytest.raises(ValueError, match="built for"):
        encoder(torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8))
