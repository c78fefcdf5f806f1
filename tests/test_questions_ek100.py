"""Questions in the dataset: where they come from, what may not be used, what results say."""

import json
import re
from pathlib import Path

import ek100_bench
import numpy as np
import pytest
import questions_bench as bench
from ek100_bench import harness

from harness.config import ConfigError
from harness.data.ek100 import Ek100, Ek100Places, annotations
from harness.data.ek100 import questions as files
from harness.data.ek100.classes import Classes
from harness.evaluate import Predictions
from harness.predictions import read_predictions, write_predictions
from harness.questions import predicted
from harness.questions.rows import read_rows
from harness.store import Store
from harness.track import Tracked
from reports.published import comparable, published
from reports.rows import Row, SeedResult

ROOT = Path(__file__).resolve().parents[1]
CLASSES = {"verb": 97, "noun": 300}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = bench.write_annotations(tmp_path_factory.mktemp("asking"), each=6)
    for name, words in (("questions", ()), ("level0", ("--level", 0))):
        done = bench.harness(place, "questions", "build", "--out", f"{name}.jsonl", *words)
        assert done.returncode == 0, done.stderr
    return place


def dataset(folder, used=("text",), places=(), **options):
    one = Ek100(Ek100.Config(**options))
    one.places = Ek100Places(annotations=folder / "annotations", **dict(places))
    one.used = frozenset(used)
    return one


def texts(one, split="test"):
    return [sample.streams["text"] for sample in one.split(split).__getitems__(range(12))]


FILE = {"questions": "questions.jsonl"}


def placed(folder, **files):
    return {name: folder / file for name, file in files.items()}


@pytest.mark.parametrize(
    ("source", "first"),
    [
        ("constant", "What is the person doing? </s> What is the person using?"),
        ("category", "What is done here, if it is of group A5 of 9? </s> Which object is meant "
                     "here, if it is of group B2 of 9?"),
        ("verb_category", "What is done here, if it is of group A5 of 9? </s> Which object is "
                          "meant here?"),
        ("noun_category", "What is done here? </s> Which object is meant here, if it is of group "
                          "B2 of 9?"),
        ("verb_named", "What is done here? </s> Which object is meant here, if what is done is A0 "
                       "of 97?"),
        ("noun_named", "What is done here, if the object is B1 of 300? </s> Which object is meant "
                       "here?"),
        ("narration", 'What is done here, where someone says: "take the bread knife"? </s> Which '
                      'object is meant here, where someone says: "take the bread knife"?'),
        ("masked_narration", 'What is done here, where someone says: "<mask> the <mask>"? </s> '
                             'Which object is meant here, where someone says: "<mask> the '
                             '<mask>"?'),
    ],
)  # fmt: skip
def test_questions_that_need_no_file_are_made_from_the_annotations(folder, source, first):
    one = dataset(folder, questions=source)
    classes = Classes.read(folder / "annotations")
    said = texts(one)[0]
    number = re.compile(r"(A|B)\d+ of \d+")
    assert number.sub("N", said) == number.sub("N", first)
    if source == "category":
        group = classes.categories("verb").index("retrieve") + 1
        assert f"A{group} of {len(classes.categories('verb'))}" in said
    assert one.told()["questions"]


def test_two_sources_have_two_fingerprints_and_other_classes_another(folder, tmp_path):
    prints = {dataset(folder, questions=source).fingerprint() for source in
              ("constant", "category", "narration")}  # fmt: skip
    assert len(prints) == 3
    other = bench.write_annotations(tmp_path, each=6)
    file = other / "annotations" / "EPIC_100_verb_classes.csv"
    file.write_text(file.read_text().replace("retrieve", "aaa"))
    assert dataset(other, questions="category").fingerprint() not in prints
    assert dataset(other, questions="constant").fingerprint() in prints


def test_a_shuffled_narration_is_that_of_another_segment(folder):
    own = dataset(folder, questions="narration").split("test")
    moved = dataset(folder, questions="shuffled_narration").split("test")
    order = files.shuffled([segment.narration_id for segment in own.segments], 0)
    by_id = {sample.id: sample.streams["text"] for sample in own.__getitems__(range(12))}
    for sample in moved.__getitems__(range(12)):
        assert sample.streams["text"] == by_id[order[sample.id]]


def test_training_segments_may_lie_in_another_file(folder, tmp_path):
    rows = bench.table(folder / "annotations" / "EPIC_100_train.csv")[:10]
    file = tmp_path / "mine.csv"
    ek100_bench.write_csv(file, list(rows[0]), (list(row.values()) for row in rows))
    one = dataset(folder, questions="category", places={"train": file}, select_share=0.0)
    assert len(one.annotations.train) == 10
    assert one.fingerprint() != dataset(folder, questions="category").fingerprint()
    missing = dataset(folder, questions="category", places={"train": tmp_path / "none.csv"})
    with pytest.raises(ValueError, match=r"none\.csv"):
        missing.fingerprint()


def test_planning_stops_with_the_command_that_makes_the_questions_and_what_it_takes(folder):
    with pytest.raises(ValueError, match=r"harness\.site\.yaml") as told:
        dataset(folder).split("train")
    assert "`harness questions build --backend openai --model MODEL --policy" in str(told.value)
    assert "(48 segments: 12 requests, about" in str(told.value)
    with pytest.raises(ValueError, match="--predictions RUNS"):
        dataset(folder, questions="predicted").split("train")


def test_results_made_with_templates_say_so(folder):
    for file, told in (("questions", "masked narration"), ("level0", "no label information")):
        one = dataset(folder, places=placed(folder, questions=f"{file}.jsonl"))
        assert one.told() == {"questions": f"template questions: {told}"}
    shuffled = dataset(folder, questions="shuffled", places=placed(folder, **FILE))
    assert shuffled.told()["questions"].endswith("masked narration, of other segments")


def test_a_file_of_other_labels_is_refused(folder):
    places = placed(folder, predicted_questions="questions.jsonl")
    with pytest.raises(ValueError, match=r"made from labels of ground_truth, but .* predicted"):
        dataset(folder, questions="predicted", places=places).split("test")


@pytest.mark.parametrize("source", ["ground_truth", "category", "narration", "noun_named"])
def test_the_truth_is_refused_in_anticipation_unless_the_leak_is_wanted(folder, source):
    options = {"task": "anticipation", "questions": source, "places": placed(folder, **FILE)}
    with pytest.raises(ValueError, match=r"the very action that is to be anticipated.*allow_leak"):
        dataset(folder, **options).split("test")
    leaking = dataset(folder, allow_leak=True, **options)
    assert len(leaking.split("test")) == 12
    assert leaking.told()["questions"].endswith("leak allowed")
    dataset(folder, task="anticipation", questions="constant").split("test")


def test_a_build_that_was_allowed_to_leak_says_so_in_every_record_and_result(folder, tmp_path):
    out = tmp_path / "leak.jsonl"
    words = ("questions", "build", "--task", "anticipation", "--out", out)
    assert bench.harness(folder, *words).returncode == 2
    assert bench.harness(folder, *words, "--allow-leak").returncode == 0
    assert all(record["allow_leak"] for record in bench.read(out))
    one = dataset(folder, task="anticipation", places={"questions": out})
    assert one.told()["questions"].endswith("leak allowed")
    assert len(one.split("test")) == 12


# folds


def test_every_training_segment_is_tested_once_by_folds_that_have_not_seen_its_video():
    found = annotations.Annotations(
        tuple(annotations.Segment(f"{p}_{v:02}_{n}", p, f"{p}_{v:02}", 0.0, 1.0, 0, 0, "x")
              for p in ("P01", "P02") for v in range(7) for n in range(3)),
        (), frozenset(), frozenset(), frozenset(), (), "")  # fmt: skip
    tested = []
    for fold in range(5):
        parts = annotations.splits(found, 0.1, 5, fold)
        seen = {segment.video for split in ("train", "select") for segment in parts[split]}
        assert not seen & {segment.video for segment in parts["test"]}
        assert parts["select"]
        assert sum(map(len, parts.values())) == len(found.train)
        tested += [segment.narration_id for segment in parts["test"]]
    assert sorted(tested) == sorted(segment.narration_id for segment in found.train)
    for wrong in ({"folds": 1}, {"folds": 5, "fold": 5}, {"fold": 1}):
        with pytest.raises(ValueError, match="fold"):
            Ek100.Config(**wrong)


# predictions


def said(ids, windows=None, **made_by):
    """Predictions that say verb 2 and noun 3 of every segment."""
    logits = {name: np.zeros((len(ids), count), np.float32) for name, count in CLASSES.items()}
    logits["verb"][:, 2] = logits["noun"][:, 3] = 1
    none = np.full(len(ids), "", np.str_)
    origin = {"run": "r1", "weights": "abc", "starts": {"video": "random"}, "needs": {}}
    origin["data"] = {"name": "ek100", "options": {"task": "recognition", "folds": 0}}
    seen = None if windows is None else np.array(windows, np.float64)
    ids = np.array(ids, np.str_)
    return Predictions(ids, none, none, {}, logits, None, seen, {**origin, **made_by})


def rows(folder, name):
    return read_rows(folder / "annotations" / f"EPIC_100_{name}.csv")


def from_predictions(folder, found, name="validation", ahead=None, describe="target"):
    held_out = frozenset(row.narration_id for row in rows(folder, "validation"))
    classes = Classes.read(folder / "annotations")
    asked = rows(folder, name)
    return predicted.rows_from(asked, held_out, [(found, "p.npz")], classes, ahead, describe)


def options(**more):
    return {"name": "ek100", "options": {"task": "recognition", "folds": 0, **more}}


def ids(folder, name="validation"):
    return [row.narration_id for row in rows(folder, name)]


def test_predicted_rows_are_about_what_was_predicted_and_carry_where_it_is_from(folder):
    found = from_predictions(folder, said(ids(folder), [(1.0, 2.0)] * 12))
    assert {row.content[1:6] for row in found} == {("wash", 2, "pan", 3, "predicted")}
    assert found[0].predicted_from == {
        "run": "r1", "checkpoint": "abc", "task": "recognition", "fold": None, "window": (1.0, 2.0)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("made_by", "message"),
    [
        ({"weights": ""}, r"does not say what made it \(weights\)"),
        ({"data": {"name": "watch"}}, "predictions on watch, not on ek100"),
        ({"starts": {"text": "random"}, "data": options(questions="ground_truth")},
         "told the truth by its own questions"),
        ({"data": options(task="anticipation", questions="predicted", allow_leak=True)},
         "was allowed to know"),
    ],
)  # fmt: skip
def test_predictions_of_unknown_or_told_models_are_refused(folder, made_by, message):
    with pytest.raises(ConfigError, match=message):
        from_predictions(folder, said(ids(folder), **made_by))


def test_predictions_in_sample_are_refused_and_those_of_folds_are_taken(folder):
    train = ids(folder, "train")
    with pytest.raises(ConfigError, match=r"may have been trained on.*crossfit"):
        from_predictions(folder, said(train), "train")
    fold = options(folds=5, fold=2)
    knows = {"classifiers": {"video": ["heads.verb.weight"]}}
    for more in ({"starts": {"video": "finetuned:sha256:1"}}, {"needs": {"weights": "r0"}}, knows):
        with pytest.raises(ConfigError, match="may have been trained on the very segments"):
            from_predictions(folder, said(train, data=fold, **more), "train")
    found = from_predictions(folder, said(train, data=fold), "train")
    assert {row.predicted_from["fold"] for row in found} == {"2 of 5"}
    with pytest.raises(ConfigError, match="none of 1 of 36 segments"):
        from_predictions(folder, said(train[1:], data=fold), "train")


def test_in_anticipation_a_window_must_end_in_time(folder):
    starts = [row.start for row in rows(folder, "validation")]
    late = [(max(0.0, start - 2), start - 0.5) for start in starts]
    with pytest.raises(ConfigError, match=r"saw its video until.*describe observed"):
        from_predictions(folder, said(ids(folder), late), ahead=1.0)
    with pytest.raises(ConfigError, match="not known"):
        from_predictions(folder, said(ids(folder)), ahead=1.0)
    in_time = [(0.0, start - 1.0) if start > 1 else (np.nan, np.nan) for start in starts]
    anticipated = said(ids(folder), in_time, data=options(task="anticipation"))
    assert len(from_predictions(folder, anticipated, ahead=1.0)) == 12
    with pytest.raises(ConfigError, match="saw its video until"):
        from_predictions(folder, anticipated, ahead=1.5)


def test_what_was_observed_last_is_described_where_the_action_itself_may_not_be(folder):
    all_rows = rows(folder, "validation")
    found = said(ids(folder), [(row.start, row.start + 0.5) for row in all_rows])
    for number in range(12):  # each segment is said to be of a verb of its own
        found.logits["verb"][number] = np.eye(97, dtype=np.float32)[number]
    made = from_predictions(folder, found, ahead=1.0, describe="observed")
    starts = [row.start for row in all_rows]
    for number, row in enumerate(made):
        own = [n for n, other in enumerate(all_rows)
               if other.video == row.video and starts[n] + 0.5 <= row.start - 1.0]  # fmt: skip
        assert row.content.verb_class == (max(own) if own else -1)
        assert row.predicted_from["window"][1] <= max(starts[number] - 1.0, 0.0)


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """With videos, and narrations that can be masked."""
    place = tmp_path_factory.mktemp("seen")
    ek100_bench.make(place)
    bench.write_annotations(place)
    (place / "harness.site.yaml").write_text(
        "data:\n  ek100: {annotations: annotations, footage: footage,"
        " predicted_questions: predicted.jsonl, questions: questions.jsonl}\n"
    )
    (place / "predicted.jsonl").unlink()
    (place / "recogniser.yaml").write_text(RECOGNISER)
    (place / "asked.yaml").write_text(ASKED)
    return place


SMALL = """
  encoders.video:
    name: video_transformer
    options: {width: 16, depth: 1, patch: 16, tube_frames: 2}
  width: 16
  train: {epochs: 1, steps_per_epoch: 2, batch_size: 4}
"""
RECOGNISER = f"""
base:
  data: {{name: ek100, options: {{size: 32, frames: 4, transform: none, select_share: 0.4}}}}
  fusion: {{name: single}}
{SMALL}
runs:
  folds:
    seeds:
      - {{seed: 0, data.options: {{folds: 3, fold: 0}}}}
      - {{seed: 0, data.options: {{folds: 3, fold: 1}}}}
      - {{seed: 0, data.options: {{folds: 3, fold: 2}}}}
  validation: {{seeds: [0]}}
report: {{table: mine, title: T, metrics: [verb_top1]}}
"""
ASKED = f"""
base:
  data: {{name: ek100, options: {{size: 32, frames: 4, transform: none, questions: predicted}}}}
  encoders.text: {{name: word_transformer, options: {{width: 16, depth: 1}}}}
  fusion: {{name: mlp}}
{SMALL}
runs:
  mine: {{paper: MLP}}
report: {{table: table3, title: T, metrics: [verb_top1]}}
"""


def test_from_a_recognisers_folds_to_a_model_that_is_asked(footage):
    """Real runs: predictions carry what made them and what they saw, questions are made from them,
    and a result says where its questions come from."""
    done = harness(footage, "sweep", "recogniser.yaml", "--launcher", "inline")
    assert done.returncode == 0, done.stderr
    store = Store(footage / "runs")
    for run in store.runs():
        found = run.predictions()
        assert found.made_by["run"] == run.run_id
        assert len(found.made_by["weights"]) == 64
        starts = {row.narration_id: row.start for name in ("train", "validation")
                  for row in rows(footage, name)}  # fmt: skip
        begun = np.array([starts[name] for name in found.ids.tolist()])
        assert (found.windows[:, 0] >= begun - 1e-6).all()
        assert (found.windows[:, 1] > begun).all()
    refused = bench.harness(footage, "plan", "asked.yaml")
    assert refused.returncode == 2
    assert "predicted.jsonl: no such file of questions" in refused.stderr
    words = ("questions", "build", "--predictions", "recogniser", "--out", "predicted.jsonl")
    late = bench.harness(footage, *words, "--task", "anticipation")
    assert late.returncode == 2
    assert "--describe observed" in late.stderr
    two = bench.harness(footage, *words, "--level", 2)
    assert two.returncode == 2
    assert "what is predicted has none; take 1" in two.stderr
    made = bench.harness(footage, *words)
    assert made.returncode == 0, made.stderr
    records = bench.read(footage / "predicted.jsonl")
    assert len(records) == 64
    assert {r["label_source"] for r in records} == {"predicted"}
    assert {r["predicted_from"]["fold"] for r in records} == {"0 of 3", "1 of 3", "2 of 3", None}

    done = harness(footage, "sweep", "asked.yaml")
    assert done.returncode == 0, done.stderr
    report = harness(footage, "report", "asked")
    assert "predicted question (template questions: categories of the label)" in report.stdout
    run_id = plan_ids(footage, "asked.yaml")[0]
    result = store.run(run_id).result()
    assert result["told"] == {"questions": "template questions: categories of the label"}


def plan_ids(folder, file):
    return re.findall(r"^([0-9a-f]{12}) ", bench.harness(folder, "plan", file).stdout, re.M)


def test_predicted_questions_must_be_in_time_when_a_run_is_planned(footage, tmp_path):
    def records(window):
        return "".join(
            json.dumps({"narration_id": row.narration_id, "verb_question": "What is done?",
                        "noun_question": "What is it?", "label_source": "predicted",
                        "predicted_from": {"window": window(row)}}) + "\n"
            for name in ("train", "validation") for row in rows(footage, name))  # fmt: skip

    file = tmp_path / "predicted.jsonl"
    late = dataset(footage, task="anticipation", questions="predicted",
                   places={"predicted_questions": file})  # fmt: skip
    file.write_text(records(lambda row: (0.0, row.start)))
    with pytest.raises(ValueError, match=r"come from the video up to .* only what is before"):
        late.split("test")
    asked = ASKED.replace("transform: none", "transform: none, task: anticipation")
    (footage / "late.yaml").write_text(asked)
    own = footage / "predicted.jsonl"
    before = own.read_text() if own.exists() else None
    own.write_text(file.read_text())
    done = bench.harness(footage, "plan", "late.yaml")
    assert done.returncode == 2
    assert "come from the video up to" in done.stderr
    own.unlink() if before is None else own.write_text(before)
    file.write_text(records(lambda row: None))
    with pytest.raises(ValueError, match="does not say what of the video"):
        late.split("test")
    file.write_text(records(lambda row: (0.0, max(0.0, row.start - 1.0))))
    assert len(late.split("test")) == 16


def test_predictions_keep_what_made_them_and_old_files_have_none(tmp_path):
    found = said(["a", "b"], [(1.0, 2.0), (np.nan, np.nan)])
    write_predictions(tmp_path / "p.npz", found)
    again = read_predictions(tmp_path / "p.npz")
    assert again.made_by == found.made_by
    np.testing.assert_array_equal(again.windows, found.windows)
    old = Predictions(found.ids, found.groups, found.subsets, {}, found.logits)
    write_predictions(tmp_path / "old.npz", old)
    assert read_predictions(tmp_path / "old.npz").made_by == {}
    assert read_predictions(tmp_path / "old.npz").windows is None


def test_template_questions_are_not_set_against_the_papers():
    paper = published("table3", "MLP")

    def row(told):
        tags = {"harness.questions": told}
        run = Tracked("r", "m", {}, dict(paper.protocol), tags)
        seed = SeedResult(0, ("r",), "done", (run,), {})
        return Row("mine", "Mine", "MLP", (seed,), 0)

    assert comparable(row("questions by openai (x), policy paper"), paper) is None
    for told in ("template questions: no label information", "questions by hf, leak allowed"):
        assert comparable(row(told), paper) == told


def test_the_folds_of_crossfit_are_planned(footage):
    done = bench.harness(footage, "plan", ROOT / "sweeps" / "crossfit.yaml", "--set",
                   "encoders.video={name: video_transformer, options: {tokens: patch}}",
                   "--set", "data.options={size: 32, frames: 4, select_share: 0.4}",
                   "--set", "fusion.options.project=true",
                   "--set", "train.batch_size=2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "6 runs" in done.stdout
