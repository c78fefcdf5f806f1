"""EPIC-Kitchens-100 from rows of the real schema and stamped footage: what a sample shows, when."""

import json
import re
from pathlib import Path

import ek100_bench as bench
import numpy as np
import pytest
import tiny_roberta
import torch
from ek100_footage import read_stamp
from hypothesis import given
from hypothesis import strategies as st

from harness.config import ConfigError
from harness.data.ek100 import Ek100, annotations, boxes, questions, sampling
from harness.data.ek100.annotations import Annotations, Segment, segments, splits
from harness.loader import Loader, Request
from harness.plan import plan
from harness.splits import fetch
from harness.store import Store
from harness.train import over_views

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "ek100"
LARGE = {"frames": 8, "size": 64, "transform": "none"}
"""clips whose stamps can be read"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bench.make(tmp_path_factory.mktemp("ek100"))


def dataset(folder, used=("video", "text"), **options) -> Ek100:
    made = Ek100(Ek100.Config(**LARGE | options))
    made.places = Ek100.Places(
        annotations=folder / "annotations",
        footage=folder / "footage",
        boxes=folder / "boxes",
        questions=folder / "questions.jsonl",
        predicted_questions=folder / "predicted.jsonl",
    )
    made.used = frozenset(used)
    return made


def stamps(sample) -> np.ndarray:
    return np.array([read_stamp(frame.numpy()) for frame in sample.streams["video"]])


def half(sample) -> float:
    """Half a frame of the sample's video, and the stamp's rounding."""
    return 0.5 / float(bench.RATE[sample.group]) + 2e-4


def test_select_is_held_out_videos_of_each_participant(folder):
    parts = splits(Annotations.read(folder / "annotations"), 0.05)
    videos = {name: {segment.video for segment in part} for name, part in parts.items()}
    assert videos["train"] | videos["select"] == set(bench.TRAIN)
    assert not videos["train"] & videos["select"]
    assert sorted(name.split("_")[0] for name in videos["select"]) == ["P01", "P02"]
    assert videos["test"] == set(bench.TEST)


@pytest.mark.parametrize("kind", ["window", "segment"])
@pytest.mark.parametrize("name", ["train", "select", "test"])
def test_a_recognition_clip_shows_its_segment_at_its_instants(folder, kind, name):
    split = dataset(folder, sampling=kind).split(name)
    for index in range(0, len(split), 3):
        sample, segment = split[index], split.seen[index]
        wanted = sampling.recognition(segment, 8, kind, None)
        assert (wanted >= segment.start).all()
        assert (wanted <= segment.stop).all()
        assert np.abs(stamps(sample) - wanted).max() <= half(sample)
        assert sample.targets == {"verb": segment.verb, "noun": segment.noun}


def test_training_instants_are_within_the_segment_and_settled_by_seed_turn_and_index(folder):
    split = dataset(folder, sampling="segment", transform="clip").split("train")
    (first,), (again,) = split.drawn([5], 3, 1), split.drawn([5], 3, 1)
    assert torch.equal(first.streams["video"], again.streams["video"])
    others = [*split.drawn([5], 3, 2), *split.drawn([5], 4, 1)]
    assert not any(torch.equal(first.streams["video"], o.streams["video"]) for o in others)
    split = dataset(folder, sampling="segment").split("train")
    segment = split.seen[5]
    seen = np.concatenate([stamps(s) for t in range(20) for s in split.drawn([5], 0, t)])
    slack = half(split[5])
    assert seen.min() >= segment.start - slack
    assert seen.max() <= segment.stop + slack
    assert len(np.unique(seen)) > 20


def test_nothing_after_the_time_before_the_action_is_seen(folder):
    split = dataset(folder, task="anticipation", questions="constant").split("test")
    for index in range(len(split)):
        segment, sample = split.seen[index], split[index]
        if split.hidden(segment):
            assert (sample.streams["video"] == 128).all()
            assert "unobserved" in sample.subset.split()
        else:
            assert stamps(sample).max() <= max(segment.start - 1.0, 0) + half(sample)
    hidden = [segment for segment in split.segments if split.hidden(segment)]
    assert len(hidden) == 2  # the first segment of each video
    train = dataset(folder, task="anticipation", questions="constant").split("train")
    assert len(train) == len(train.segments) - len({s.video for s in train.segments})


@given(
    st.floats(0, 7200), st.floats(0.01, 150), st.integers(1, 64), st.sampled_from([0.5, 1.0, 2.5])
)
def test_no_sampled_instant_lies_in_the_time_that_is_kept_from_sight(start, length, frames, ahead):
    segment = Segment("P01_01_0", "P01", "P01_01", start, start + length, 0, 0, "")
    found = sampling.anticipation(segment, frames, ahead)
    if found is None:
        assert start <= ahead
    else:
        assert found.shape == (frames,)
        assert (found <= start - ahead).all()
        assert (found >= 0).all()


@pytest.mark.skipif(not SHARED.exists(), reason="the real annotations (../shared/ek100) are absent")
def test_in_all_real_validation_segments_nothing_after_the_kept_time_is_seen():
    found = segments(SHARED / annotations.VALIDATION)
    assert len(found) == 9668
    instants = [(s, sampling.anticipation(s, 16, 1.0)) for s in found]
    # 27 begin earlier than a second, and one at it: the first frame is not before 0 s
    assert sum(times is None for _, times in instants) == 28
    assert all((t <= s.start - 1.0).all() and t[0] >= 0 for s, t in instants if t is not None)
    partial = [t for _, t in instants if t is not None and t[0] == 0.0]
    assert 0 < len(partial) <= 129 - 28
    released = [sampling.recognition(s, 16, "inavit_release", None, 0, 10) for s in found]
    assert all((t >= s.start).all() for s, t in zip(found, released, strict=True))


def test_views_are_several_clips_and_crops_of_one_sample(folder):
    split = dataset(folder, test_clips=2, test_crops=3, frames=4).split("test")
    assert len(split) == 6 * len(split.seen)
    views = fetch(split, range(6, 12))
    assert {sample.id for sample in views} == {split.seen[1].narration_id}
    assert len(np.unique([sample.streams["video"].numpy() for sample in views], axis=0)) == 6
    centre, times = stamps(views[1]), sampling.recognition(split.seen[1], 4, "window", None, 0, 2)
    assert np.abs(centre - times).max() <= half(views[1])
    assert dataset(folder, test_clips=2).split("train").views == 1


def test_the_mean_of_the_views_probabilities_counts():
    logits = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    said = over_views(logits, 2)
    mean = logits.softmax(1).unflatten(0, (2, 2)).mean(1)
    np.testing.assert_allclose(np.exp(said), mean.numpy(), rtol=1e-6)
    assert (over_views(logits, 1) == logits.numpy()).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_what_one_process_reads(folder, workers):
    split = dataset(folder, transform="orvit", size=32).split("train")
    requests = [Request((3, 1, 7), (0, 0)), Request((2,), (0, 1)), Request((4, 5))]
    loader = Loader(split, ["video", "text"], workers=workers)
    found = list(loader.read(requests))
    assert [batch.indices.tolist() for batch in found] == [[3, 1, 7], [2], [4, 5]]
    wanted = [*split.drawn([3, 1, 7], 0, 0), *split.drawn([2], 0, 1), *fetch(split, [4, 5])]
    for got, want in zip([s for batch in found for s in batch.samples], wanted, strict=True):
        assert torch.equal(got.streams["video"], want.streams["video"])
        assert torch.equal(got.side["video"]["boxes"], want.side["video"]["boxes"])
        assert (got.id, got.streams["text"]) == (want.id, want.streams["text"])


def test_the_boxes_of_a_clip_come_with_it_and_move_as_what_is_in_it(folder):
    """In the middle crop of 64 of 96 pixels a share x of the frame is at 1.5 x - 0.25; frames are
    numbered from 1."""
    items = dataset(folder, test_crops=3).split("test")
    (read,) = Loader(items, ["video"], workers=1).read([Request((7, 10))])
    for sample in read.samples:
        thing = sample.side["video"]["boxes"][:, 2].numpy()
        left = 0.1 + 0.04 * (1 + np.round(stamps(sample) * 60)) / 60
        np.testing.assert_allclose(thing[:, 0], 1.5 * left - 0.25, atol=0.002)
        np.testing.assert_allclose(thing[:, 1::2], [[0.3, 0.7]] * len(thing), atol=1e-6)


def test_that_there_are_no_boxes_is_said_once_and_only_where_video_is_seen(folder, caplog):
    boxes.say_none.cache_clear()
    for used, times in ((("text",), 0), (("video",), 1), (("video",), 1)):
        made = dataset(folder, used)
        made.places = made.places.model_copy(update={"boxes": None})
        made.split("test")
        assert caplog.text.count("no hand-object boxes are given") == times


def test_questions_are_the_segments_own_another_ones_or_the_same_for_all(folder):
    own = dataset(folder, ("text",)).split("test")
    text = own[3].streams["text"]
    segment = own.seen[3]
    assert text == (
        f"What is done with the <mask> of kind {segment.noun}?{questions.BETWEEN}"
        f"What does the person <mask>, in way {segment.verb}?"
    )
    texts = [own[index].streams["text"] for index in range(len(own))]
    other = dataset(folder, ("text",), questions="shuffled").split("test")
    mixed = [other[index].streams["text"] for index in range(len(other))]
    assert sorted(mixed) == sorted(texts)
    names = [segment.narration_id for segment in own.seen]
    moved = questions.shuffled(names, 0)
    assert sorted(moved.values()) == sorted(names)
    assert all(name != taken for name, taken in moved.items())
    same = dataset(folder, ("text",), questions="constant").split("test")
    assert {same[index].streams["text"] for index in range(len(same))} == {questions.CONSTANT}


def test_what_is_not_seen_need_not_be_there_and_is_not_in_the_fingerprint(folder):
    made = dataset(folder, ("text",))
    made.places = made.places.model_copy(update={"footage": None})
    assert made.fingerprint() == dataset(folder, ("text",)).fingerprint()
    assert made.split("train")[0].streams["text"]
    made.used = frozenset(["video"])
    with pytest.raises(ValueError, match=r"\{footage: DIR\}.*docs/ek100.md"):
        made.fingerprint()
    assert dataset(folder, ("video",)).fingerprint() != dataset(folder).fingerprint()


def test_the_shares_of_a_test_segment_are_those_of_its_participant_and_classes(folder):
    split = dataset(folder).split("test")
    for sample, segment in zip(fetch(split, range(len(split))), split.seen, strict=True):
        shares = set(sample.subset.split())
        assert ("unseen" in shares) == (segment.participant == "P18")
        assert ("tail@verb" in shares) == (segment.verb in (3, 4))
        assert ("tail@noun" in shares) == (segment.noun in (7, 8))
        assert ("tail@action" in shares) == bool({"tail@verb", "tail@noun"} & shares)
    assert dataset(folder).split("train")[0].subset == ""


BROKEN = {
    "no column": (lambda text: text.replace("verb_class", "verbs"), r":1: no column verb_class"),
    "a time": (lambda text: text.replace("00:00:01.15", "1.15", 2), r":3: start_timestamp: '1.15'"),
    "a class": (
        lambda text: text.replace("noun7,7,", "noun7,300,", 1),
        r"noun_class: '300' is not",
    ),
    "cut off": (lambda text: text[: len(text) // 2], r"is the file cut off\?"),
    "twice": (lambda text: text + text.splitlines()[1] + "\n", r"P01_04_0 is there twice"),
    "no rows": (lambda text: text.splitlines()[0] + "\n", r"no rows"),
    "no text": (lambda text: b"\xff\xfe\x00\x80" * 9, r"not CSV text"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_annotation_file_is_an_error_that_says_where(tmp_path, broken):
    change, message = BROKEN[broken]
    file = bench.write_annotations(tmp_path) / annotations.VALIDATION
    changed = change(file.read_text())
    file.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    with pytest.raises(ValueError, match=f"{annotations.VALIDATION}.*{message}"):
        Annotations.read(tmp_path)


def test_a_list_of_actions_settles_their_order_and_must_have_those_that_occur(tmp_path):
    bench.write_annotations(tmp_path)
    occurring = Annotations.read(tmp_path).actions
    file, head = tmp_path / annotations.PAIRS, ["id", "verb", "noun", "action"]
    listed = [(96, 299), *occurring[::-1]]
    bench.write_csv(file, head, [(n, *pair, "x") for n, pair in enumerate(listed)])
    assert Annotations.read(tmp_path).actions == tuple(listed)
    bench.write_csv(file, head, [(n, *pair, "x") for n, pair in enumerate(listed[:-2])])
    with pytest.raises(ValueError, match=r"actions\.csv: lacks 2 pairs"):
        Annotations.read(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "inavit_release"}, "is of task anticipation"),
        ({"task": "anticipation", "sampling": "segment"}, "take window"),
        ({"task": "anticipation", "test_clips": 10}, "is one window"),
        ({"sampling": "segment", "test_clips": 2}, "test_clips is 1"),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Ek100.Config(**options)


@pytest.mark.parametrize("table", ["table1", "table2", "table3"])
def test_without_data_planning_says_what_to_get_and_where_to_write_it(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    roberta = tmp_path / "roberta"
    roberta.mkdir()
    tiny_roberta.write(roberta, [questions.CONSTANT], 130)
    with pytest.raises(ConfigError) as told:
        plan(
            ROOT / "sweeps" / f"{table}.yaml", "ek100", [f"encoders.text.init=pretrained:{roberta}"]
        )
    assert "epic-kitchens-100-annotations" in str(told.value)
    assert "{annotations: DIR}" in str(told.value)
    assert len(told.value.messages) <= 2


SMALL = [
    "data.options.size=32", "data.options.frames=8", "encoders.video.options.size=demo",
    "encoders.text.init=pretrained:roberta", "width=16", "train.epochs=1", "train.batch_size=16",
    "train.warmup_epochs=0", "seeds=[0]",
]  # fmt: skip


@pytest.mark.parametrize("table", ["table1", "table2"])
def test_the_papers_tables_are_run_on_it_from_end_to_end(folder, table):
    """Recognition by every backbone, ORViT with boxes and two clips; anticipation with three
    crops."""
    roberta = folder / "roberta"
    if not roberta.exists():
        roberta.mkdir()
        texts = [json_line for json_line in (folder / "questions.jsonl").read_text().splitlines()]
        tiny_roberta.write(roberta, texts, 130)
    settings = [s.replace("pretrained:roberta", f"pretrained:{roberta}") for s in SMALL]
    more = ["data.options.test_clips=1"] if table == "table1" else []
    words = [f"--set={setting}" for setting in [*settings, *more]]
    file = ROOT / "sweeps" / f"{table}.yaml"
    done = bench.harness(folder, "sweep", file, "--preset=ek100", "--launcher=inline", *words)
    assert done.returncode == 0, done.stderr
    assert "absent" not in done.stderr
    said = bench.harness(folder, "report", table, "--preset=ek100", "--html")
    assert said.returncode == 0, said.stderr
    page = (folder / "runs" / "report" / "index.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    (samples,) = [found for found in data["samples"].values() if found["samples"]][:1]
    assert samples["note"] == ""
    shown = samples["samples"][0]["shown"]
    assert shown["video"]["src"].startswith("data:image/jpeg;base64,")
    assert shown["text"]["text"]
    store = Store(folder / "runs")
    (record,) = [one for one in store.sweeps() if one["name"] == table]
    for row in record["runs"]:
        result = store.run(row["run_id"]).result()
        assert result["bad_samples"] == {"train": {}, "select": {}, "test": {}}
        assert result["samples"]["test"] == 16
        assert row["label"] in said.stdout
    names = set(result["metrics"])
    assert {"test/action_top1_3806", "test/verb_recall5[tail]", "test/noun_top1[unseen]"} <= names
    assert ("test/action_top1[unobserved]" in names) == (table == "table2")


def test_table_3_asks_two_questions_at_the_papers_scale(folder, monkeypatch):
    """All heads on the same few tokens, and each on what Table 4 counts."""
    roberta = folder / "roberta-3"
    roberta.mkdir()
    texts = (folder / "questions.jsonl").read_text().splitlines()
    tiny_roberta.write(roberta, texts, 130)
    settings = [s.replace("pretrained:roberta", f"pretrained:{roberta}") for s in SMALL]
    settings = [s.replace("width=16", "width=24") for s in settings]  # for 12 heads
    monkeypatch.chdir(folder)
    runs = plan(ROOT / "sweeps" / "table3.yaml", "ek100", settings).runs
    blocks: dict[str, list] = {}
    for run in runs:
        blocks.setdefault(run.block, []).append(run)
    matched, cost = blocks["all heads on frame tokens"], blocks["at the paper's cost"]
    assert len(blocks) == 2
    tokens = [
        {
            run.spec.encoders["video"].options["tokens"]
            for run in block
            if "video" in run.spec.encoders
        }
        for block in (matched, cost)
    ]
    assert tokens == [{"frame"}, {"patch"}]
    assert {run.spec.head for run in matched} == {"linear"}
    assert {run.spec.head for run in cost} == {"pre_logits"}  # as in Table 4
    assert [run.paper for run in cost] == [
        "MLP", "Transformer (6x4)", "Transformer (12x12)", "MambaVL",
    ]  # fmt: skip
    assert cost[2].spec.fusion.options["pool"] == {"video": 8, "text": 1}
    rates = {run.label: run.spec.train.peak_lr.fusion for run in cost}
    assert rates["MambaVL (shared A)"] == 3e-3
    assert rates["MLP"] == 1e-3
    assert all(run.block is None for run in plan(ROOT / "sweeps" / "table3.yaml").runs)


def test_avions_recipe_trains_its_backbone_with_a_question(folder):
    """Mixup and CutMix of clips beside stored text, float16, dropout: on footage."""
    roberta = folder / "roberta-avion"
    roberta.mkdir()
    texts = (folder / "questions.jsonl").read_text().splitlines()
    tiny_roberta.write(roberta, texts, 130)
    (folder / "avion.yaml").write_text(f"""
report: {{table: avion, title: AVION, metrics: [verb_top1]}}
base:
  data: {{name: ek100, options: {{frames: 8, size: 32, sampling: segment, transform: clip}}}}
  encoders:
    video: {{name: clip_vit, options: {{size: demo}}}}
    text: {{name: roberta, frozen: true, init: "pretrained:{roberta}"}}
  width: 16
  fusion: {{name: mlp}}
  train: {{recipe: avion, epochs: 2, batch_size: 16, warmup_epochs: 0, accumulate: 2}}
runs: {{a: {{}}}}
""")
    done = bench.harness(folder, "sweep", "avion.yaml", "--launcher=inline")
    assert done.returncode == 0, done.stderr
    assert "encoder, no decay" in done.stderr  # the parameter groups
    store = Store(folder / "runs")
    (record,) = [one for one in store.sweeps() if one["name"] == "avion"]
    run = store.run(record["runs"][0]["run_id"])
    assert np.isfinite([row["train/loss"] for row in run.metrics()]).all()
    peaks = {group["name"]: group["peak_lr"] for group in run.result()["groups"]}
    assert peaks["encoder"] == pytest.approx(3e-3 * 16 / 128)
