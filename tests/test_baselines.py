"""Published checkpoints scored as they are: from sweep file to gate, and what other tables say."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import ek100_bench as bench
import numpy as np
import pytest
import tiny_roberta
import torch
from report_bench import Bench, kitchen, kitchen_spec

from backbones.official import build
from harness import track
from harness.config import ConfigError
from harness.data.ek100 import Ek100
from harness.data.ek100.annotations import ACTIONS, Annotations
from harness.evaluate import Predictions, metric_names, scores
from harness.plan import plan
from harness.scoretable import score_table
from harness.spec import EncoderSpec, PluginSpec
from harness.store import Store
from reports.gate import Gated, stamps
from reports.numbers import MINUS, NONE
from reports.rows import Row, SeedResult

ROOT = Path(__file__).resolve().parents[1]
BASELINES = ROOT / "sweeps" / "baselines.yaml"
CHECKPOINTS = {
    "orvit": "orvit_mf_hr_ek100.pyth",
    "vit_b": "avion_finetune_cls_lavila_vitb_best.pt",
    "vit_l": "avion_finetune_cls_lavila_vitl_best.pt",
    "tsf_b": "clip_openai_timesformer_base.ft_ek100_cls.ep_0100.md5sum_4e3575.pth",
    "tsf_l": "clip_openai_timesformer_large.ft_ek100_cls.ep_0090.md5sum_4a2509.pth",
}
SIZES = {"orvit": "demo", "vit_b": "demo", "vit_l": "demo_large"}
SIZES |= {"orvit_correct": "demo", "tsf_b": "demo", "tsf_l": "demo_large"}
PAIR, AVION, LAVILA = (3, 5), (4, 2), (2, 6)
"""verb and noun that the classifiers of each say of every clip"""


@pytest.fixture(autouse=True)
def no_site_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def saying(name, size, said, classes):
    """A released layout's state dict whose classifiers say one class each, whatever they see."""
    torch.manual_seed(0)
    state = build(name, size, classes=classes).state_dict()
    for place, (target, number) in enumerate(said.items()):
        own = {"orvit": f"head{place}", "motionformer": f"head{place}", "clip_vit": "fc_cls"}
        prefix = own.get(name, f"fc_cls.{place}")
        state[f"{prefix}.weight"].zero_()
        state[f"{prefix}.bias"].zero_()[number] = 5.0
        assert len(state[f"{prefix}.bias"]) == classes[target]
    return state


def write_checkpoints(folder: Path, actions) -> None:
    folder.mkdir()
    pair, head = {"verb": 97, "noun": 300}, {"action": len(actions)}
    said = dict(zip(("verb", "noun"), PAIR, strict=True))
    for name, file in (("orvit", CHECKPOINTS["orvit"]), ("motionformer", "motionformer.pyth")):
        state = saying(name, "demo", said, pair)
        torch.save({"epoch": 3, "model_state": state}, folder / file)
    for row, size in (("vit_b", "demo"), ("vit_l", "demo_large")):
        state = saying("clip_vit", size, {"action": actions.index(AVION)}, head)
        module = {f"module.{key}": value for key, value in state.items()}
        torch.save({"state_dict": module, "best_acc1": 49.5}, folder / CHECKPOINTS[row])
    for row, size in (("tsf_b", "demo"), ("tsf_l", "demo_large")):
        three = said | {"action": actions.index(LAVILA)}
        state = saying("timesformer", size, three, pair | head)
        module = {f"module.{key}": value for key, value in state.items()}
        torch.save({"state_dict": module, "epoch": 100}, folder / CHECKPOINTS[row])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = bench.make(tmp_path_factory.mktemp("ek100"))
    write_checkpoints(made / "weights", Annotations.read(made / "annotations").actions)
    with open(made / "harness.site.yaml", "a") as site:
        site.write("weights: weights\n")
    return made


def small(folder):
    """Settings that make the sweep as small as the checkpoints."""
    yield from ("data.options.size=32", "data.options.frames=8")
    for row, size in SIZES.items():
        yield f"runs.{row}.encoders.video.options.size={size}"
    for row in ("orvit", "orvit_correct"):
        yield f"runs.{row}.data.options.test_clips=2"


def share(verb=None, noun=None) -> float:
    """Of the test segments, those of a verb, a noun or both, in %."""
    rows = bench.rows_of((*bench.TRAIN, *bench.TEST))[-16:]
    return 100 * float(
        np.mean([verb in (None, row[10]) and noun in (None, row[12]) for row in rows])
    )


LATER = """
report: {table: later, title: "Later", metrics: [verb_marginal_top1, noun_top1]}
base:
  data: {name: ek100, options: {size: 32, frames: 8}}
  fusion: {name: single, options: {project: false}}
  encoders.video.options: {tokens: cls}
  train: {method: evaluate, batch_size: 32}
runs:
  same:
    data.options: {targets: action, sampling: segment, transform: clip}
    encoders.video: {name: clip_vit, options.size: demo, init: "finetuned:avion_finetune_cls_lavila_vitb_best.pt"}
  large:
    data.options: {targets: action, sampling: segment, transform: clip}
    encoders.video: {name: clip_vit, options.size: demo_large, init: "finetuned:avion_finetune_cls_lavila_vitl_best.pt"}
  other:
    encoders.video: {name: motionformer, options.size: demo, init: "finetuned:motionformer.pyth"}
    head: pre_logits
"""  # noqa: E501


def test_the_baselines_are_scored_and_the_gate_is_told_here_and_in_later_tables(folder):
    near = share(*AVION) + 0.4
    published = {
        "orvit": {"verb_top1": share(3), "noun_top1": share(noun=5), "action_top1": share(*PAIR)},
        "vit_b": {
            "verb_marginal_top1": share(4),
            "noun_marginal_top1": share(noun=2),
            "action_joint_top1": near,
        },
        "tsf_b": {
            "verb_top1": share(3),
            "noun_top1": share(noun=5),
            "action_joint_top1": share(*LAVILA) + 0.6,
        },
    }
    told = [f"runs.{row}.published.{m}={v}" for row, of in published.items() for m, v in of.items()]
    words = [f"--set={setting}" for setting in (*small(folder), *told)]
    done = bench.harness(folder, "sweep", BASELINES, "--launcher=inline", *words)
    assert done.returncode == 0, done.stderr
    (folder / "later.yaml").write_text(LATER)
    done = bench.harness(folder, "sweep", "later.yaml", "--launcher=inline")
    assert done.returncode == 0, done.stderr
    store = Store(folder / "runs")
    runs = {r["row"]: r["run_id"] for record in store.sweeps() for r in record["runs"]}
    assert runs["same"] == runs["vit_b"]

    said = bench.harness(folder, "report")
    assert said.returncode == 0, said.stderr
    with open(folder / "runs" / "report" / "baselines-ek100.csv") as lines:
        found = {row["row"]: row for row in csv.DictReader(lines)}
    verdicts = {row: of["gate"] for row, of in found.items()}
    assert verdicts == {
        "orvit": "passed", "orvit_correct": "not passed", "vit_b": "passed",
        "vit_l": "not passed", "tsf_b": "not passed", "tsf_l": "not passed",
    }  # fmt: skip
    assert float(found["orvit"]["action_top1_mean"]) == share(*PAIR) / 100
    assert float(found["vit_b"]["verb_marginal_top1_gap"]) == pytest.approx(0)
    assert float(found["vit_b"]["action_joint_top1_gap"]) == pytest.approx(-0.4)
    assert float(found["tsf_b"]["action_joint_top1_gap"]) == pytest.approx(-0.6)
    assert float(found["vit_l"]["action_joint_top1_gap"]) == pytest.approx(share(*AVION) - 54.4)
    line = next(text for text in said.stdout.splitlines() if text.startswith("| AVION (ViT-B)"))
    assert f"| 18.8 / 12.5 / 6.7 | 0.0 / 0.0 / {MINUS}0.4 | passed |" in line
    assert "AVION (ViT-B), AVION (ViT-L): verb top-1, summed over actions; noun" in said.stdout
    assert (
        "Baseline gate: clip_vit demo passed (6.2, published 6.7); clip_vit demo_large not passed "
        "(6.2, published 54.4); motionformer demo not run."
    ) in said.stdout
    assert said.stdout.count("Baseline gate") == 1


def test_without_data_and_weights_planning_says_what_to_get_and_where_to_put_it():
    with pytest.raises(ConfigError) as told:
        plan(BASELINES)
    text = str(told.value)
    for file in CHECKPOINTS.values():
        assert f"no such file: {BASELINES.parent / file}" in text
    assert "(docs/weights.md) may lie where `weights: DIR` of harness.site.yaml says" in text
    assert text.count("epic-kitchens-100-annotations") == 1
    assert "{annotations: DIR}" in text
    documented = (ROOT / "docs" / "weights.md").read_text()
    assert all(f"`{file}`" in documented for file in CHECKPOINTS.values())


def test_a_head_of_other_actions_than_the_annotations_have_is_refused_when_it_is_planned(
    folder, monkeypatch
):
    monkeypatch.chdir(folder)
    rows = Annotations.read(folder / "annotations").actions
    state = saying("clip_vit", "demo", {"action": 7}, {"action": ACTIONS})
    torch.save({"state_dict": state}, folder / "whole.pt")
    text = LATER.split("runs:")[0].replace("verb_marginal_top1, noun_top1", "action_joint_top1")
    row = re.search(r"  same:\n.*\n.*\n", LATER)[0]
    (folder / "s.yaml").write_text(f"{text}runs:\n{row}".replace(CHECKPOINTS["vit_b"], "whole.pt"))
    with pytest.raises(ConfigError) as told:
        plan(folder / "s.yaml")
    assert f"action has 3806 classes there and {len(rows)} here" in str(told.value)
    assert "annotations of the data incomplete" in str(told.value)


@pytest.mark.parametrize("targets", ["pair", "action", "all"])
def test_the_targets_are_those_of_the_heads_and_samples_have_them(folder, targets):
    data = Ek100(Ek100.Config(targets=targets, frames=8, size=32))
    data.places = Ek100.Places(annotations=folder / "annotations", footage=folder / "footage")
    data.used = frozenset(["video"])
    wanted = {"pair": ["verb", "noun"], "action": ["action"], "all": ["verb", "noun", "action"]}
    assert list(data.targets) == wanted[targets]
    items = data.split("test")
    for index in (0, 9):
        sample = items[index]
        assert list(sample.targets) == wanted[targets]
        if "action" in sample.targets:
            pair = data.actions()[sample.targets["action"]]
            assert pair == (items.segments[index].verb, items.segments[index].noun)


KITCHEN = """
report: {table: tiny, title: "Tiny", metrics: [verb_top1]}
base:
  data: {name: simkitchen, options: {train_size: 16, select_size: 8, test_size: 8}}
  encoders: {video: {name: clip_vit, options: {size: demo}, init: "pretrained:x.pt"}}
  fusion: {name: mean}
  width: 64
  train: {batch_size: 4, epochs: 1}
runs: {a: {}}
"""


def save(file: Path, seed: int) -> None:
    torch.manual_seed(seed)
    torch.save({"state_dict": build("clip_vit", "demo").state_dict()}, file)


def test_weights_are_looked_for_beside_the_sweep_and_then_where_the_site_says(tmp_path):
    (tmp_path / "sweeps").mkdir()
    file = tmp_path / "sweeps" / "s.yaml"
    file.write_text(KITCHEN)
    (tmp_path / "harness.site.yaml").write_text("weights: published\n")
    with pytest.raises(ConfigError, match=r"yaml:1: weights: no such folder: .*/published"):
        plan(file)
    (tmp_path / "published").mkdir()
    with pytest.raises(ConfigError) as told:
        plan(file)
    for place in (file.parent / "x.pt", tmp_path / "published" / "x.pt"):
        assert str(place) in str(told.value)
    save(tmp_path / "published" / "x.pt", 0)
    there = plan(file)
    assert str(tmp_path / "published" / "x.pt") in there.paths.values()
    save(file.parent / "x.pt", 1)
    beside = plan(file)
    assert str(file.parent / "x.pt") in beside.paths.values()
    assert beside.runs[0].run_id != there.runs[0].run_id
    (file.parent / "x.pt").write_bytes((tmp_path / "published" / "x.pt").read_bytes())
    assert plan(file).runs[0].run_id == there.runs[0].run_id


def test_a_folder_of_weights_is_found_there_too_and_no_hub_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = tmp_path / "published" / "roberta"
    model.mkdir(parents=True)
    tiny_roberta.write(model, ["what is this ?"], 514)
    (tmp_path / "harness.site.yaml").write_text("weights: published\n")
    (tmp_path / "s.yaml").write_text(
        KITCHEN.replace("video: {name: clip_vit, options: {size: demo},", "text: {name: roberta,")
        .replace("pretrained:x.pt", "pretrained:roberta")
        .replace("mean", "single")
    )
    assert str(model) in plan(tmp_path / "s.yaml").paths.values()


GATE = KITCHEN.replace("metrics: [verb_top1]", "gate: 0.5").replace(
    "a: {}", "a: {published: {verb_top1: 50}}"
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("verb_top1: 50", "verb_top: 50", r"yaml:9: published: unknown metric of this row 'verb_t"),
        ("verb_top1: 50", "action_joint_top1: 50", "unknown metric of this row 'action_joint_top1"),
        ("verb_top1: 50", "verb_top1: half", "published.verb_top1: a number of 0 to 100 .*'half'"),
        ("verb_top1: 50", "verb_top1: true", "published.verb_top1: a number of 0 to 100 .*True"),
        ("verb_top1: 50", "verb_top1: 101", "published.verb_top1: a number of 0 to 100 .*101"),
        ("{verb_top1: 50}", "50", "published: a mapping is needed, e.g. .*not a number"),
        ("published: {verb_top1: 50}", "", "report.gate: no row has `published` numbers"),
        ("gate: 0.5", "metrics: [verb_top1]", "report.gate: is missing, and rows have `published`"),
        ("gate: 0.5", "gate: 0", "report.gate: input should be greater than 0"),
        ("gate: 0.5", "gate: 1, metrics: [verb_top1]", "report.metrics: with a gate it is what"),
    ],
)
def test_published_numbers_and_gates_that_mean_nothing_are_refused(tmp_path, old, new, message):
    save(tmp_path / "x.pt", 0)
    (tmp_path / "s.yaml").write_text(GATE)
    (run,) = plan(tmp_path / "s.yaml").runs
    assert run.published == {"verb_top1": 50.0}
    assert old in GATE
    (tmp_path / "s.yaml").write_text(GATE.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path / "s.yaml")


def test_what_is_published_is_in_no_run_id(tmp_path):
    save(tmp_path / "x.pt", 0)
    (tmp_path / "s.yaml").write_text(GATE)
    (tmp_path / "t.yaml").write_text(KITCHEN)
    assert plan(tmp_path / "s.yaml").run_ids == plan(tmp_path / "t.yaml").run_ids


def by_actions(alone: bool) -> Predictions:
    """Random scores of 200 samples over 30 actions of 9 verbs and 11 nouns, with shares."""
    rng = np.random.default_rng(4)
    flat = rng.choice(99, 30, replace=False)
    actions = np.stack([flat // 11, flat % 11], axis=1)
    truth = rng.integers(30, size=200)
    verb, noun = actions[truth].T
    none = np.full(200, "")
    subsets = np.where(verb < 3, "tail@verb", "")
    heads = {"verb": (200, 9), "noun": (200, 11), "action": (200, 30)}
    logits = {name: rng.normal(size=size).astype(np.float32) for name, size in heads.items()}
    targets = {"verb": verb, "noun": noun, "action": truth}
    if alone:
        logits, targets = {"action": logits["action"]}, {"action": truth}
    return Predictions(np.arange(200).astype(str), none, subsets, targets, logits, actions)


def test_a_head_over_actions_alone_is_scored_as_it_is_beside_the_two_others():
    alone, beside = scores(by_actions(alone=True)), scores(by_actions(alone=False))
    assert {"action_joint_top1", "verb_marginal_top5", "noun_marginal_recall5"} <= set(alone)
    assert {"verb_marginal_top1[tail]"} == {name for name in alone if "marginal_top1[" in name}
    assert alone == {name: beside[name] for name in alone}
    assert not {name for name in beside if "_joint" in name or "_marginal" in name} - set(alone)


def test_the_names_of_its_metrics_are_known_without_predictions():
    said = by_actions(alone=True)
    pairs = [tuple(pair) for pair in said.actions.tolist()]
    plain = {name for name in scores(said) if "[" not in name}
    assert set(metric_names({"action": 30}, pairs)) == plain
    assert set(metric_names({"action": 30})) == {f"action_{k}" for k in ("top1", "top5", "recall5")}
    assert set(scores(replace(said, actions=None, subsets=said.groups))) == set(
        metric_names({"action": 30})
    )


def test_saved_predictions_of_actions_alone_are_printed_with_their_shares():
    said = by_actions(alone=True)
    text = score_table(said)
    assert re.search(r"verb top-1 +joint3806, summed over actions", text)
    count = int((said.subsets != "").sum())
    assert f"tail: action 0, verb {count}, noun 0 samples" in text


def test_a_head_that_has_not_the_actions_of_the_data_is_not_scored():
    said = by_actions(alone=True)
    with pytest.raises(ValueError, match="has 30 classes, but 29 actions exist"):
        scores(replace(said, actions=said.actions[:29]))


def gated(size, score, published, gate=0.5, data="ek100", stale=""):
    params = {"data.name": data, "encoders.video.name": "orvit"}
    params |= {"encoders.video.options.size": size, "encoders.text.name": "roberta"}
    run = track.Tracked("id", "mlflow", {}, params, {"harness.stale": stale})
    metrics = {"verb_top1": 0.5, "action_top1": score}
    seed = SeedResult(0, ("id",), "done", (run,), metrics) if score else SeedResult(0, (), "new")
    told = {"verb_top1": 50.0, "action_top1": published}
    return Gated(Row(size, "ORViT", None, (seed,), 16, {}, False, told), gate)


def test_a_table_says_of_every_encoder_whether_its_baseline_passed():
    table = [gated(size, 0.3, 0).row for size in ("base", "demo", "huge", "base")]
    known = [
        gated("base", 0.40, 45.7),
        gated("base", 0.456, 45.7),
        gated("demo", 0.30, 45.7),
        gated("demo", 0.44, 45.7, stale="harness/train.py"),
        gated("huge", None, 45.7),
        gated("huge", 0.457, 45.7, data="simkitchen"),
    ]
    assert list(stamps(table, known)) == [
        "Baseline gate: orvit base passed (45.6, published 45.7); orvit demo not passed (44.0, "
        "published 45.7, before the code changed); orvit huge not run."
    ]
    elsewhere = [gated("base", 0.3, 0, data="simkitchen").row]
    assert list(stamps(elsewhere, known)) == []


@pytest.mark.parametrize(("score", "passed"), [(0.452, True), (0.462, True), (0.451, False)])
def test_a_gate_is_as_wide_on_either_side(score, passed):
    assert gated("base", score, 45.7).passed is passed
    assert gated("base", 0.457 + 0.457 - score, 45.7).passed is passed


def test_every_published_number_must_be_near():
    one = gated("base", 0.457, 45.7)
    far = replace(one.row, published={**one.row.published, "verb_top1": 51.0})
    assert one.passed is True
    assert Gated(far, 0.5).passed is False
    lacking = replace(one.row, published={**one.row.published, "noun_top1": 51.0})
    assert Gated(lacking, 0.5).passed is None
    assert Gated(lacking, 0.5).in_words == NONE


def test_a_table_with_a_gate_shows_rows_that_are_not_done(tmp_path):
    made = Bench(Store(tmp_path / "runs"))
    spec = replaced(kitchen_spec("single", 0, ["video"]), "base")
    folder = made.plan("a", "Done", spec)
    made.finish(folder, kitchen((35, 25), (10, 10)))
    made.runs[-1]["published"] = {"verb_top1": 60.2, "noun_top1": 20.0}
    made.plan("b", "Waits", replaced(kitchen_spec("single", 0, ["video"]), "large"))
    made.runs[-1]["published"] = {"action_top1": 45.7}
    made.write_sweep("mine", "", {"table": "mine", "title": "Mine", "gate": 0.5})
    made.plan("c", "Later", replaced(kitchen_spec("mean", 0), "base"))
    made.finish(made.store.run(made.runs[-1]["run_id"]), kitchen((35, 25), (10, 10)))
    made.write_sweep("other", "", {"table": "o", "title": "Other", "metrics": ["verb_top1"]})
    track.prepare(made.store)
    track.collect(made.store)
    text = made.report(tmp_path / "out")
    rows = text.replace(NONE, "-").replace(MINUS, "-").splitlines()
    done = next(row for row in rows if row.startswith("| Done ["))
    assert "| 1 | 60.0 (n=1) | 20.0 (n=1) | - | 60.2 / 20.0 / - |" in done
    assert "| 60.2 / 20.0 / - | -0.2 / 0.0 / - | passed |" in done
    waits = next(row for row in rows if row.startswith("| Waits |"))
    assert "| not run | - | - | - | - / - / 45.7 | - | not run |" in waits
    assert "Waits: action top-1." in text
    assert text.count("Baseline gate: tubes base passed (60.0, published 60.2).") == 1


def replaced(spec, size):
    """The same on EPIC-Kitchens-100, with an encoder of another size."""
    video = EncoderSpec(name="tubes", options={"size": size, "tokens": "patch"})
    data = PluginSpec(name="ek100")
    return spec.model_copy(update={"data": data, "encoders": {**spec.encoders, "video": video}})
