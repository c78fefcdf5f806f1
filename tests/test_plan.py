"""What a sweep file becomes."""

import json

import pytest
import torch
from safetensors.torch import save_file

from harness.config import ConfigError
from harness.contracts import Stream
from harness.plan import plan
from harness.registry import ENCODERS
from harness.spec import PluginSpec, RunSpec

TEXT_ROW = "runs: {a: {label: Row A, paper: MLP}}\n"


def test_the_run_id_of_a_given_spec_never_changes():
    """If this fails, old results would be taken for something else: raise SPEC_VERSION instead."""
    spec = RunSpec(
        data=PluginSpec(name="d", options={"size": 3}),
        encoders={"s": {"name": "e", "options": {"width": 4}}},
        fusion={"name": "f"},
        width=4,
        fingerprint="00",
    )
    assert spec.run_id == "1b4962ea1cd7"


def test_a_row_has_its_label_and_defaults_are_written_into_its_spec(sweep_file):
    (run,) = plan(sweep_file(TEXT_ROW)).runs
    assert (run.row, run.label, run.paper, run.in_table) == ("a", "Row A", "MLP", True)
    assert run.spec.data.options["rho"] == 0.5
    assert run.spec.encoders["text"].options["width"] == 16
    assert len(run.spec.fingerprint) == 64


def test_the_id_does_not_depend_on_how_a_value_is_written(sweep_file):
    one = plan(sweep_file("runs: {a: {train.momentum: 0.9}}\n", "one.yaml")).runs[0]
    two = plan(sweep_file("runs: {b: {train: {momentum: 9e-1}}}\n", "two.yaml")).runs[0]
    default = plan(sweep_file("runs: {c: {}}\n", "three.yaml")).runs[0]
    assert one.run_id == two.run_id == default.run_id


@pytest.mark.parametrize(
    "change",
    ["seeds=[1]", "train.epochs=4", "data.options.rho=0.25", "head=pre_logits", "width=17"],
)
def test_the_id_changes_with_what_is_computed(sweep_file, change):
    file = sweep_file(TEXT_ROW)
    assert plan(file).runs[0].run_id != plan(file, settings=[change]).runs[0].run_id


def test_axes_are_crossed_and_name_their_rows(sweep_file):
    text = "axes: {train.epochs: [1, 2], fusion: [{name: mean}, {name: mlp}]}\nseeds: [0, 1]\n"
    runs = plan(sweep_file(text)).runs
    assert len({run.run_id for run in runs}) == 8
    assert [run.row for run in runs[::2]] == [
        "epochs=1, mean", "epochs=1, mlp", "epochs=2, mean", "epochs=2, mlp",
    ]  # fmt: skip


def test_rows_and_axes_together_cross(sweep_file):
    text = "runs: {a: {}, b: {head: pre_logits}}\naxes: {train.epochs: [1, 2]}\n"
    rows = [run.row for run in plan(sweep_file(text)).runs]
    assert rows == ["a epochs=1", "b epochs=1", "a epochs=2", "b epochs=2"]


def test_a_seed_may_bring_other_settings_with_it(sweep_file):
    text = "runs: {a: {}}\nseeds: [{seed: 0, data.options.seed: 7}, {seed: 1, train.epochs: 2}]\n"
    first, second = plan(sweep_file(text)).runs
    assert (first.spec.seed, first.spec.data.options["seed"], first.spec.train.epochs) == (0, 7, 3)
    assert (second.spec.seed, second.spec.data.options["seed"]) == (1, 0)
    assert second.spec.train.epochs == 2


def test_a_row_may_have_seeds_of_its_own(sweep_file):
    text = "runs: {a: {}, once: {seeds: [7], train.epochs: 2}}\nseeds: [0, 1]\n"
    runs = plan(sweep_file(text)).runs
    assert [(run.row, run.spec.seed) for run in runs] == [("a", 0), ("a", 1), ("once", 7)]


NEEDS = """
needs:
  perception: {data.options.targets: perception, fusion: {name: mean}}
runs:
  a: {needs.weights: perception, encoders.text.frozen: true}
  b: {needs.weights: a}
seeds: [0, 1]
"""


def test_a_needed_run_is_planned_once_and_before_those_that_need_it(sweep_file):
    runs = plan(sweep_file(NEEDS)).runs
    needed = runs[0]
    assert (needed.row, needed.in_table, len(runs)) == ("perception", False, 5)
    assert {run.spec.needs["weights"] for run in runs if run.row == "a"} == {needed.run_id}


def test_a_row_that_needs_a_row_gets_the_one_of_its_seed(sweep_file):
    runs = {(run.row, run.spec.seed): run for run in plan(sweep_file(NEEDS)).runs}
    for seed in (0, 1):
        assert runs["b", seed].spec.needs["weights"] == runs["a", seed].run_id


def test_a_row_that_needs_a_row_without_its_seed_brings_that_run_along(sweep_file):
    rows = "runs: {a: {needs.weights: b, seeds: [7]}, b: {}}\n"
    runs = plan(sweep_file(rows + "seeds: [0]\n")).runs
    assert [(run.row, run.spec.seed, run.in_table) for run in runs] == [
        ("b", 7, False), ("a", 7, True), ("b", 0, True),
    ]  # fmt: skip
    assert runs[1].spec.needs == {"weights": runs[0].run_id}


def test_seeds_may_be_an_axis(sweep_file):
    by_axis = plan(sweep_file("axes: {head: [linear, pre_logits], seed: [0, 1]}\n")).runs
    by_seeds = plan(sweep_file("axes: {head: [linear, pre_logits]}\nseeds: [0, 1]\n")).runs
    assert [run.run_id for run in by_axis] == [run.run_id for run in by_seeds]
    assert len({run.run_id for run in by_axis}) == 4


def test_settings_are_kept_with_the_sweep(sweep_file):
    sweep = plan(sweep_file("runs: {a: {}}\n"), settings=["train.epochs=2"])
    assert sweep.record()["settings"] == ["train.epochs=2"]


def test_what_a_run_needs_is_part_of_its_id(sweep_file):
    file = sweep_file(NEEDS)
    before = {run.row: run.run_id for run in plan(file).runs}
    after = {run.row: run.run_id for run in plan(file, settings=["needs.perception.width=8"]).runs}
    assert all(before[row] != after[row] for row in ("perception", "a", "b"))


def test_a_preset_lies_over_the_sweep_and_the_first_is_the_default(sweep_file):
    text = TEXT_ROW + (
        "presets:\n"
        "  small: {base: {train.epochs: 1}, runs: {a: {label: Row A (small)}}, seeds: [4]}\n"
        "  large: {base: {train.epochs: 9}}\n"
    )
    file = sweep_file(text)
    (small,) = plan(file).runs
    assert (small.label, small.spec.train.epochs, small.spec.seed) == ("Row A (small)", 1, 4)
    (large,) = plan(file, "large").runs
    assert (large.label, large.spec.train.epochs) == ("Row A", 9)


def test_another_plugin_replaces_the_one_below_with_its_options(sweep_file):
    base = "runs: {a: {fusion: {name: mlp}}}\n"
    file = sweep_file(base + "presets: {p: {runs: {a: {fusion: {name: mean}}}}}\n")
    assert plan(file).runs[0].spec.fusion.name == "mean"


def test_a_stream_is_taken_out_by_null(sweep_file):
    text = "runs: {a: {encoders.video: {name: video_transformer}, encoders.text: null}}\n"
    assert set(plan(sweep_file(text)).runs[0].spec.encoders) == {"video"}


def test_settings_win_over_everything(sweep_file):
    file = sweep_file("runs: {a: {train.epochs: 5}}\n")
    assert plan(file, settings=["train.epochs=7"]).runs[0].spec.train.epochs == 7
    assert [r.spec.seed for r in plan(file, settings=["seeds=[3, 4]"]).runs] == [3, 4]


def test_an_input_file_enters_by_its_content_and_not_by_its_path(sweep_file, tmp_path):
    encoder = ENCODERS["word_transformer"]
    made = encoder(encoder.Config(width=16), Stream("text", (48,)))

    def planned(name: str, value: float) -> RunSpec:
        save_file({**made.state_dict(), "norm.bias": torch.full((16,), value)}, tmp_path / name)
        text = f"runs: {{a: {{encoders.text.init: pretrained:{name}}}}}\n"
        return plan(sweep_file(text, f"{name}.yaml")).runs[0].spec

    first = planned("w1.safetensors", 1.0)
    assert first.encoders["text"].init.startswith("pretrained:sha256:")
    assert str(tmp_path) not in json.dumps(first.model_dump(mode="json"))
    assert planned("w2.safetensors", 1.0).run_id == first.run_id
    assert planned("w1.safetensors", 2.0).run_id != first.run_id


def test_a_file_of_weights_that_does_not_fit_is_found_before_any_run(sweep_file, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    text = "runs: {a: {encoders.text.init: pretrained:w.safetensors}}\n"
    with pytest.raises(ConfigError, match=r"w\.safetensors: holds nothing of WordTransformer"):
        plan(sweep_file(text))


def test_plugins_that_do_not_fit_each_other_are_found_before_any_run(sweep_file):
    text = "runs: {a: {encoders.video: {name: video_transformer}, fusion: {name: single}}}\n"
    with pytest.raises(ConfigError, match=r"tiny.yaml:\d+: this model cannot be built: .*stream"):
        plan(sweep_file(text))


def test_planning_writes_nothing(sweep_file, tmp_path):
    plan(sweep_file(NEEDS))
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]
