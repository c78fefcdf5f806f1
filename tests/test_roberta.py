"""RoBERTa against its own library: tokens, questions, weights in and out, folders and the hub."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import hub
import pytest
import tiny_roberta
import torch
from safetensors.torch import load_file, save_file

from backbones.roberta import Roberta, quiet
from harness.config import ConfigError
from harness.contracts import Stream

STREAM = Stream("text", (48,))
VERB = "what did the person do with the small bowl?"
NOUN = "Which thing was picked up?"
TWO = f"{VERB} </s> {NOUN}"
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with a tokenizer trained on the spot, as the library saves it."""
    return tiny_roberta.write(tmp_path_factory.mktemp("published"), [VERB, NOUN], positions=42)


@pytest.fixture
def copied(folder, tmp_path):
    """The folder again, to be changed."""
    path = tmp_path / "copied"
    path.mkdir()
    for file in folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def roberta(source, stream=STREAM, **options):
    encoder = Roberta.build(Roberta.Config.model_validate(options), stream, source)
    if source is not None:
        assert encoder.load(source)
    return encoder.eval()


def run(encoder, texts):
    with torch.no_grad():
        return encoder(encoder.collate(texts))


@cache
def library(folder):
    from transformers import AutoTokenizer, RobertaModel

    with quiet():
        model = RobertaModel.from_pretrained(folder, add_pooling_layer=False)
        return model.eval(), AutoTokenizer.from_pretrained(folder)


def by_hand(folder, *questions):
    """(L, D): the library's last hidden states of its own tokenization."""
    model, tokenizer = library(folder)
    with torch.no_grad():
        return model(**tokenizer(*questions, return_tensors="pt")).last_hidden_state[0]


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


def test_questions_apart_have_the_tokens_the_library_gives_each(folder):
    features, mask = run(roberta(folder), [TWO])
    assert mask.all()
    close(features[0], torch.cat([by_hand(folder, VERB), by_hand(folder, NOUN)]))


def test_a_pair_of_questions_has_the_tokens_the_library_gives_the_pair(folder):
    encoder = roberta(folder, questions="pair")
    close(run(encoder, [TWO]).features[0], by_hand(folder, VERB, NOUN))
    close(run(encoder, [NOUN]).features[0], by_hand(folder, NOUN))
    with pytest.raises(ValueError, match="3 questions in 'a </s> b </s> c'; `pair` takes two"):
        encoder.collate(["a </s> b </s> c"])


@pytest.mark.parametrize("questions", ["apart", "pair"])
def test_a_text_alone_has_the_tokens_it_has_in_a_batch(folder, questions):
    encoder = roberta(folder, questions=questions)
    texts = [NOUN, TWO, "", f"a </s> {VERB}", f"{VERB} </s>"]
    together = run(encoder, texts)
    assert not together.features[~together.mask].any()
    for row, text in enumerate(texts):
        alone = run(encoder, [text])
        close(alone.features[alone.mask], together.features[row][together.mask[row]])


def test_a_hidden_word_is_the_mask_of_the_tokenizer(folder):
    encoder = roberta(folder)
    tokenizer = encoder.tokenizer()
    wanted = tokenizer("what did the <mask> do?")["input_ids"]
    assert wanted.count(tokenizer.mask_token_id) == 1
    for text in ("what did the <MASK> do?", "what did the <Mask> do?", "what did the <mask> do?"):
        assert encoder.collate([text])[0].tolist() == [wanted]


def test_texts_without_words_have_no_tokens_and_finite_gradients(folder):
    encoder = roberta(folder).train()
    for texts in (["", ""], ["left", " </s> "]):
        features, mask = encoder(encoder.collate(texts))
        assert features.isfinite().all()
        assert not mask[1].any()
        assert not features[1].any()
        features.sum().backward()
        grads = [p.grad for p in encoder.parameters()]
        assert all(grad is not None and grad.isfinite().all() for grad in grads)


def test_a_text_longer_than_the_positions_is_refused(folder):
    encoder = roberta(folder)
    assert run(encoder, ["q" * 38]).features.shape == (1, 40, 32)
    with pytest.raises(ValueError, match=r"'q+' has 41 tokens, the model has 40 positions"):
        encoder.collate(["q" * 39])
    with pytest.raises(ValueError, match=r"'bowl bowl .* has \d+ tokens, the model has 40 pos"):
        encoder.collate(["bowl " * 60])


def test_every_parameter_gets_a_gradient(folder):
    encoder = roberta(folder).train()
    features, mask = encoder(encoder.collate([TWO, NOUN]))
    (features * torch.randn(features.shape))[mask].sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_saved_weights_make_a_fresh_encoder_agree(folder, tmp_path):
    encoder = roberta(folder)
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    fresh = Roberta.build(Roberta.Config(), STREAM, folder).eval()
    assert not torch.equal(run(fresh, [TWO]).features, run(encoder, [TWO]).features)
    fresh.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=True)
    assert torch.equal(run(fresh, [TWO]).features, run(encoder, [TWO]).features)
    assert fresh.width == 32


def test_half_precision_of_the_machine_stays_near(folder):
    encoder = roberta(folder)
    exact = run(encoder, [TWO, NOUN])
    with torch.autocast("cpu", torch.bfloat16):
        rough = run(encoder, [TWO, NOUN])
    assert torch.equal(exact.mask, rough.mask)
    torch.testing.assert_close(rough.features.float(), exact.features, rtol=0, atol=0.1)


def test_shapes_are_known_without_weights(folder):
    with torch.device("meta"):
        encoder = Roberta.build(Roberta.Config(), STREAM, folder).eval()
    inputs = encoder.collate([TWO, ""])
    features, mask = encoder(tuple(part.to("meta") for part in inputs))
    assert features.is_meta
    assert features.shape == run(roberta(folder), [TWO, ""]).features.shape
    assert mask.shape == features.shape[:2]


@pytest.mark.parametrize("saved", ["bin", "half", "pooler"])
def test_weights_load_however_they_were_saved(folder, copied, saved):
    state = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    atol = 0.0
    if saved == "bin":
        torch.save(state, copied / "pytorch_model.bin")
    elif saved == "half":
        save_file(
            {n: v.half() for n, v in state.items()}, copied / "model.safetensors", {"format": "pt"}
        )
        atol = 2e-3
    else:
        inner = {n.removeprefix("roberta."): v for n, v in state.items() if "lm_head" not in n}
        inner["pooler.dense.weight"], inner["pooler.dense.bias"] = (
            torch.ones(32, 32),
            torch.ones(32),
        )
        save_file(inner, copied / "model.safetensors", {"format": "pt"})
    exact, other = (roberta(path).state_dict() for path in (folder, copied))
    assert exact.keys() == other.keys()
    for name, value in other.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name], rtol=0, atol=atol)


def test_a_missing_or_misshapen_tensor_is_named(copied):
    state = load_file(copied / "model.safetensors")
    name = "roberta.encoder.layer.1.output.dense.weight"
    kept = {n: v for n, v in state.items() if n != name}
    save_file(kept, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks 1 tensors: encoder\.layer\.1\.output\.dense\.weight"
    ):
        roberta(copied)
    save_file({**state, name: torch.ones(3, 3)}, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"does not fit its config\.json"):
        roberta(copied)


def test_loading_leaves_the_library_as_talkative_as_it_was(folder):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    roberta(folder).tokenizer()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize(
    ("size", "millions", "width"), [("base", 124.05504, 768), ("large", 354.310144, 1024)]
)
def test_random_weights_can_be_counted_but_read_no_text(size, millions, width):
    with torch.device("meta"):
        encoder = Roberta.build(Roberta.Config(size=size), STREAM, None).eval()
    assert sum(p.numel() for p in encoder.parameters()) == round(millions * 1e6)
    inputs, side = encoder.example()
    features, mask = encoder(tuple(part.to("meta") for part in inputs), **side)
    assert features.shape == (1, 48, width)
    assert mask.shape == (1, 48)
    with pytest.raises(ValueError, match="init: pretrained:<folder"):
        encoder.collate(["left"])


def test_multiply_adds_are_those_of_the_formula():
    from fvcore.nn import FlopCountAnalysis

    with torch.device("meta"):
        encoder = Roberta.build(Roberta.Config(), STREAM, None).eval()
    inputs, _ = encoder.example()
    counted = FlopCountAnalysis(encoder, (tuple(part.to("meta") for part in inputs),))
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad():
        assert counted.by_operator()["linear"] == 12 * 48 * (4 * 768**2 + 2 * 768 * 3072)


def test_an_example_has_no_more_tokens_than_the_model_has_positions(folder):
    encoder = roberta(folder, Stream("text", (500,)))
    inputs, _ = encoder.example()
    assert encoder(inputs).features.shape == (1, 40, 32)


def test_a_folder_is_found_from_where_the_sweep_is(folder):
    assert Roberta.locate(folder.name, folder.parent) == folder
    assert Roberta.locate(str(folder), Path("/")) == folder


def test_what_a_folder_lacks_is_named(copied):
    for name in ("tokenizer.json", "vocab.json", "model.safetensors", "config.json"):
        (copied / name).unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=r"config\.json and weights .* and a tokenizer") as caught:
        Roberta.locate("copied", copied.parent)
    assert str(copied) in str(caught.value)
    with pytest.raises(ConfigError, match="is a file; give the folder"):
        Roberta.locate("copied/merges.txt", copied.parent)
    for text in ("./absent", "some/where/else", str(copied / "absent")):
        with pytest.raises(ConfigError, match="no such folder"):
            Roberta.locate(text, copied.parent)


def test_another_kind_of_model_is_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(ValueError, match="describes a 'bert' model, not 'roberta'"):
        roberta(copied)


def test_a_tokenizer_of_another_model_is_refused(copied):
    tokens = json.loads((copied / "tokenizer.json").read_text())
    tokens["model"]["vocab"] |= {f"more{n}": 300 + n for n in range(9)}
    (copied / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(ValueError, match=r"has 309 tokens and the mask <mask>; the model has 300"):
        roberta(copied).collate(["left"])


def located(name, tmp_path, **environment):
    """`locate` in a process of its own, for the library reads its environment once."""
    code = (
        "import sys, pathlib; from backbones.roberta import Roberta; "
        "from harness.config import ConfigError\n"
        "try: print(Roberta.locate(sys.argv[1], pathlib.Path('.')))\n"
        "except ConfigError as error: print('ConfigError:', error)"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    clean |= {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, name],
        env=clean,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


UNREACHABLE = {"HF_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize("environment", [UNREACHABLE, {"HF_HUB_OFFLINE": "1"}], ids=str)
def test_without_internet_it_says_what_was_tried_and_what_would_help(tmp_path, environment):
    told = located("someone/tiny", tmp_path, **environment)
    assert told.startswith("ConfigError: no folder someone/tiny; not in the cache")
    for part in (str(tmp_path / "hf" / "hub"), "HF_HOME", "not to be had", "hf download someone"):
        assert part in told


def test_a_name_is_found_in_the_cache_without_the_network(folder, tmp_path):
    place = tmp_path / "hf" / "hub" / "models--someone--tiny"
    snapshot = place / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    for file in folder.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    assert located("someone/tiny", tmp_path, **UNREACHABLE) == str(snapshot)
    (snapshot / "model.safetensors").unlink()
    assert "in the cache lacks weights" in located("someone/tiny", tmp_path, **UNREACHABLE)


def test_a_name_is_downloaded_once_and_only_what_is_needed(folder, tmp_path):
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    files |= {"pytorch_model.bin": b"twice", "tf_model.h5": b"thrice"}
    with hub.serving("someone/tiny", files) as endpoint:
        found = Path(located("someone/tiny", tmp_path, HF_ENDPOINT=endpoint))
    names = {file.name for file in found.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"pytorch_model.bin", "tf_model.h5"}
    close(run(roberta(found), [TWO]).features, run(roberta(folder), [TWO]).features)
    assert located("someone/tiny", tmp_path, **UNREACHABLE) == str(found)
