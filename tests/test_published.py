"""Runs that start from published weights, and questions that each head has to itself."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_roberta
import torch

from backbones.official import build
from harness import track
from harness.config import ConfigError
from harness.cost import cost
from harness.data.simkitchen.questions import NOUN_QUESTIONS, VERB_QUESTIONS
from harness.launch import launch
from harness.model import Model, meta_model
from harness.plan import plan
from harness.registry import DATASETS
from harness.spec import dataset_of
from harness.splits import side_of
from harness.store import Store
from reports.build import build as report

BASE = """
report: {table: tiny, title: "Published", metrics: [verb_top1, noun_top1]}
base:
  data: {name: simkitchen, options: {train_size: 32, select_size: 16, test_size: 24}}
  width: 64
  train: {epochs: 1, steps_per_epoch: 2, batch_size: 8, optimiser: adamw, warmup_epochs: 0.5}
"""
ALONE = """
  encoders:
    video: {name: orvit, options: {size: demo, tokens: cls}, init: "INIT"}
  fusion: {name: single, options: {project: false}}
  head: pre_logits
"""


def published(name="orvit", **changes):
    torch.manual_seed(3)
    net = build(name, "demo", classes={"verb": 8, "noun": 12}, **changes)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return net


@pytest.fixture
def orvit(tmp_path):
    """A network as ORViT's code saves it, and its file."""
    net = published()
    file = tmp_path / "orvit.pyth"
    torch.save({"epoch": 3, "model_state": net.state_dict(), "cfg": "..."}, file)
    return net, file


def sweep(tmp_path, rows, init="random", base=BASE + ALONE):
    file = tmp_path / "s.yaml"
    file.write_text(base.replace("INIT", init) + rows)
    return file


def run(file, store, settings=()):
    planned = plan(file, settings=settings)
    track.prepare(store)
    store.write_sweep(planned.record())
    outcome = launch(store, planned, "inline", jobs=1, threads=1)
    return planned, outcome


def test_a_finetuned_checkpoint_is_scored_as_it_is(tmp_path, store, orvit):
    net, file = orvit
    rows = "runs: {a: {train.method: evaluate}}\n"
    planned, outcome = run(sweep(tmp_path, rows, f"finetuned:{file}"), store)
    assert not outcome.failed
    spec = planned.runs[0].spec
    data = DATASETS["simkitchen"](DATASETS["simkitchen"].Config(**spec.data.options))
    samples = data.split("test").__getitems__(range(24))
    clips = torch.stack([s.streams["video"] for s in samples]).permute(0, 4, 1, 2, 3).flip(1)
    near, far = torch.stack([s.side["video"]["boxes"] for s in samples]).chunk(2, dim=-1)
    boxes = torch.cat([(near + far) / 2, far - near], dim=-1)
    boxes = boxes * (far - near > 0.05).all(dim=-1, keepdim=True)
    with torch.no_grad():
        expected = net((clips.float() - 127.5) / 127.5, boxes).logits
    said = store.run(planned.runs[0].run_id).predictions()
    for target in ("verb", "noun"):
        np.testing.assert_allclose(said.logits[target], expected[target], atol=2e-5)


def test_nothing_is_evaluated_with_classifiers_that_come_from_nowhere(tmp_path, orvit):
    file = sweep(tmp_path, "runs: {a: {train.method: evaluate}}\n", f"pretrained:{orvit[1]}")
    with pytest.raises(ConfigError, match=r"but heads\.noun\.bias, .* come from no checkpoint"):
        plan(file)


@pytest.mark.parametrize(
    "change",
    [
        "head: linear",
        "encoders.video.options.tokens: patch",
        "encoders.video.options.tokens: frame",
    ],
)
def test_a_finetuned_checkpoint_is_not_scored_as_another_model(tmp_path, orvit, change):
    rows = f"runs: {{a: {{train.method: evaluate, {change}}}}}\n"
    with pytest.raises(ConfigError, match="come from no checkpoint"):
        plan(sweep(tmp_path, rows, f"finetuned:{orvit[1]}"))


def test_a_finetuned_file_holds_nothing_the_encoder_has_no_place_for(tmp_path, orvit):
    rows = "runs: {a: {}}\n"
    base = (BASE + ALONE).replace("name: orvit", "name: motionformer")
    with pytest.raises(ConfigError, match=r"has .*, for which Motionformer has no place"):
        plan(sweep(tmp_path, rows, f"finetuned:{orvit[1]}", base))
    assert plan(sweep(tmp_path, rows, f"pretrained:{orvit[1]}", base)).runs


def test_the_weights_of_a_needed_run_win_over_what_it_started_from(tmp_path, store, orvit):
    rows = "needs: {first: {}}\nruns: {a: {needs.weights: first, encoders.video.frozen: true}}\n"
    planned, outcome = run(sweep(tmp_path, rows, f"pretrained:{orvit[1]}"), store)
    assert not outcome.failed
    row = next(r for r in planned.runs if r.row == "a")
    assert store.run(row.run_id).result()["loaded"]["video"]["from"] == "run"
    track.collect(store)
    text = report(store, track.uri(store), [], None, [], store.report_folder)
    assert "a [cached, tokens: cls, fp32, from a run]" in text


def test_what_was_frozen_in_a_needed_run_comes_from_init(tmp_path, store, folder):
    rows = "needs: {first: {}}\nruns: {a: {needs.weights: first}}\n"
    planned, outcome = run(sweep(tmp_path, rows, base=with_text("true", "apart", "mlp")), store)
    assert not outcome.failed
    loaded = store.run(planned.runs[-1].run_id).result()["loaded"]
    assert loaded["text"]["from"] == "pretrained"
    assert loaded["video"]["from"] == "run"


def test_a_pretrained_encoder_is_trained_on_and_said_in_the_label(tmp_path, store, orvit):
    file = sweep(tmp_path, "runs: {a: {label: ORViT}}\n", f"pretrained:{orvit[1]}")
    planned, outcome = run(file, store)
    assert not outcome.failed
    result = store.run(planned.runs[0].run_id).result()
    assert result["loaded"]["video"]["from"] == "pretrained"
    assert not result["loaded"]["video"]["missing"]
    track.collect(store)
    text = report(store, track.uri(store), [], None, [], store.report_folder)
    assert "ORViT [cls tokens, pretrained]" in text


def test_the_content_of_a_checkpoint_is_in_the_run_id_and_its_path_is_not(tmp_path, orvit):
    net, file = orvit
    first = plan(sweep(tmp_path, "runs: {a: {}}\n", f"finetuned:{file}")).runs[0]
    moved = file.rename(tmp_path / "moved.pyth")
    assert plan(sweep(tmp_path, "runs: {a: {}}\n", f"finetuned:{moved}")).runs[0].run_id == (
        first.run_id
    )
    assert plan(sweep(tmp_path, "runs: {a: {}}\n", f"pretrained:{moved}")).runs[0].run_id != (
        first.run_id
    )
    with torch.no_grad():
        net.norm.bias += 1
    torch.save({"model_state": net.state_dict()}, moved)
    assert plan(sweep(tmp_path, "runs: {a: {}}\n", f"finetuned:{moved}")).runs[0].run_id != (
        first.run_id
    )


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("finetuned:absent.pyth", "encoders.video.init: no such file"),
        ("trained:x.pyth", "none of random, pretrained:<file>, finetuned:<file>"),
        ("pretrained:", "none of random, pretrained:<file>, finetuned:<file>"),
        ("finetuned:s.yaml", r"s\.yaml: damaged, cut short or not a checkpoint"),
        ("finetuned:motionformer.pyth", r"lacks network\.blocks\.1\.box_categories.*start anew"),
        ("finetuned:wide.pyth", r"does not fit Orvit: .*needed is"),
        ("finetuned:clip.pt", "holds nothing of Orvit"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_when_it_is_planned(tmp_path, init, message):
    torch.save(
        {"model_state": published("motionformer").state_dict()}, tmp_path / "motionformer.pyth"
    )
    torch.save({"model_state": published(width=32).state_dict()}, tmp_path / "wide.pyth")
    clip = build("clip_vit", "demo").state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in clip.items()}}, tmp_path / "clip.pt")
    with pytest.raises(ConfigError, match=rf"(?s)s\.yaml:\d+.*{message}"):
        plan(sweep(tmp_path, "runs: {a: {}}\n", init))


def test_an_encoder_starts_from_the_weights_that_another_run_saved(tmp_path, store, orvit):
    first, _ = run(sweep(tmp_path, "runs: {a: {}}\n", f"pretrained:{orvit[1]}"), store)
    saved = store.run(first.runs[0].run_id).weights_file
    planned, outcome = run(sweep(tmp_path, "runs: {a: {}}\n", f"pretrained:{saved}"), store)
    assert not outcome.failed
    assert planned.runs[0].run_id != first.runs[0].run_id
    assert not store.run(planned.runs[0].run_id).result()["loaded"]["video"]["unexpected"]


def test_orvit_starts_from_motionformer_with_new_object_parts(tmp_path, store, capsys):
    net = published("motionformer")
    torch.save({"model_state": net.state_dict()}, tmp_path / "motionformer.pyth")
    file = sweep(tmp_path, "runs: {a: {}}\n", "pretrained:motionformer.pyth")
    planned, outcome = run(file, store)
    assert not outcome.failed
    missing = store.run(planned.runs[0].run_id).result()["loaded"]["video"]["missing"]
    assert len(missing) == 24
    assert all(".1." in name for name in missing)
    assert "video: weights pretrained: 39 loaded, 24 missing (" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["orvit", "clip_vit", "timesformer"])
def test_a_state_dict_brings_its_classifiers_without_their_being_named(name):
    classes = {"verb": 8, "noun": 12} if name == "orvit" else {"action": 5}
    state = {f"module.{k}": v for k, v in build(name, "demo", classes=classes).state_dict().items()}
    net = build(name, "demo", state)
    assert not net.training
    logits = net(torch.zeros(1, 3, 8, 32, 32)).logits
    assert {target: value.shape[1] for target, value in logits.items()} == classes
    del state["module.fc_cls.bias" if name != "orvit" else "module.head1.bias"]
    with pytest.raises(ValueError, match="missing"):
        build(name, "demo", state)


@pytest.fixture
def folder(tmp_path):
    texts = [
        question.format(cue="gently", word="<mask>", pointer="on the left side")
        for question in (*VERB_QUESTIONS, *NOUN_QUESTIONS)
    ]
    path = tmp_path / "roberta"
    path.mkdir()
    return tiny_roberta.write(path, texts, positions=514)


WITH_TEXT = """
  encoders:
    video: {name: video_transformer, options: {width: 16}}
    text: {name: roberta, init: "pretrained:roberta", frozen: FROZEN, options: {questions: HOW}}
  fusion: {name: FUSION}
"""


def with_text(frozen, how, fusion):
    filled = WITH_TEXT.replace("FROZEN", frozen).replace("HOW", how).replace("FUSION", fusion)
    return BASE + filled


@pytest.mark.parametrize("frozen", ["true", "false"])
@pytest.mark.parametrize("how", ["apart", "pair", "per_head"])
def test_a_roberta_from_a_folder_is_trained_with(tmp_path, store, folder, frozen, how):
    file = sweep(tmp_path, "runs: {a: {}}\n", base=with_text(frozen, how, "mamba_shared"))
    planned, outcome = run(file, store)
    assert not outcome.failed
    result = store.run(planned.runs[0].run_id).result()
    assert result["loaded"]["text"] == {"from": "pretrained"}
    assert result["cost"]["excluded"] == (["text"] if frozen == "true" else [])


def test_with_a_question_for_each_head_a_head_sees_its_own_alone(tmp_path, store, folder):
    file = sweep(tmp_path, "runs: {a: {}}\n", base=with_text("true", "per_head", "mlp"))
    planned, _ = run(file, store)
    spec, paths = planned.runs[0].spec, planned.paths
    data = DATASETS["simkitchen"](DATASETS["simkitchen"].Config(**spec.data.options))
    torch.manual_seed(0)
    model = Model(spec, data, paths).eval()
    clip = torch.stack([data.split("test")[0].streams["video"]])

    def logits(text):
        inputs = {"video": clip, "text": model.encoders["text"].collate([text])}
        with torch.no_grad():
            return model(inputs)

    before = logits("what are you doing ? </s> which thing is it ?")
    after = logits("what are you doing ? </s> what do you press ?")
    # the questions may be padded to other lengths, and processors then round otherwise
    torch.testing.assert_close(before["verb"], after["verb"], rtol=0, atol=1e-6)
    assert (before["noun"] - after["noun"]).abs().max() > 1e-4


def test_a_question_for_each_head_costs_the_fusion_twice(tmp_path, folder):
    def fusion_cost(how):
        planned = plan(sweep(tmp_path, "runs: {a: {}}\n", base=with_text("true", how, "mlp")))
        spec = planned.runs[0].spec
        data = dataset_of(spec, planned.paths)
        return cost(spec, data, planned.paths)["gflops_by_part"]["fusion"]

    assert fusion_cost("per_head") == pytest.approx(2 * fusion_cost("apart"))


def test_tokens_for_two_heads_need_two_targets(tmp_path, folder):
    base = (
        with_text("true", "per_head", "mlp")
        .replace("test_size: 24", "test_size: 24, targets: perception")
        .replace("[verb_top1, noun_top1]", "[manner_top1]")
    )
    with pytest.raises(ConfigError, match="tokens for 2 heads; the targets are left_motion"):
        plan(sweep(tmp_path, "runs: {a: {}}\n", base=base))


def test_a_roberta_that_nobody_has_is_refused_when_it_is_planned(tmp_path, monkeypatch):
    base = with_text("true", "apart", "mlp").replace("pretrained:roberta", "pretrained:no/such")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"s\.yaml:\d+: encoders\.text\.init: .*no folder"):
        plan(sweep(tmp_path, "runs: {a: {}}\n", base=base))


def test_other_files_beside_a_roberta_change_no_run_id(tmp_path, folder):
    file = sweep(tmp_path, "runs: {a: {}}\n", base=with_text("true", "apart", "mlp"))
    before = plan(file).runs[0].run_id
    for name in ("README.md", "tf_model.h5", "pytorch_model.bin"):
        (folder / name).write_text("other")
    assert plan(file).runs[0].run_id == before
    (folder / "tokenizer_config.json").write_text("{}")
    assert plan(file).runs[0].run_id != before


def test_metrics_make_no_sense_where_nothing_is_trained(tmp_path):
    with pytest.raises(ConfigError, match=r"report\.metrics: no row is trained"):
        plan(sweep(tmp_path, "runs: {a: {train.method: cost}}\n"))


def test_samples_with_and_without_boxes_are_not_mixed():
    data = DATASETS["simkitchen"](DATASETS["simkitchen"].Config())
    first, second = data.split("test").__getitems__([0, 1])
    assert side_of([first, second], "video")["boxes"].shape == (2, 8, 4, 4)
    with pytest.raises(ValueError, match="sample test-1: video comes with nothing"):
        side_of([first, replace(second, side={})], "video")


def test_models_built_to_be_counted_hold_no_weights(tmp_path):
    planned = plan(sweep(tmp_path, "runs: {a: {}}\n"))
    model = meta_model(planned.runs[0].spec, planned.paths)
    assert all(value.is_meta for value in model.state_dict().values())
    assert Store(tmp_path / "runs").sweeps() == []
