"""Footage that is broken, through the real loader and in real runs: named, counted, never black."""

import itertools
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from ek100_bench import COLUMNS, TEST, TRAIN, make, row, rows_of, write_csv
from ek100_footage import make_jpegs, make_tar, read_stamp
from test_ek100_footage import broken_disk, cut, cut_with_index_in_front, folder, scratch

from harness import loader
from harness.contracts import BadSample, Sample
from harness.data.ek100 import Ek100, Ek100Places, sampling
from harness.data.ek100.annotations import TRAIN as TRAIN_FILE
from harness.data.ek100.annotations import VALIDATION, Annotations
from harness.data.ek100.split import Ek100Split
from harness.feed import Feed
from harness.launch import launch
from harness.loader import Loader, Request, WorkerLost
from harness.model import Model
from harness.plan import plan
from harness.site import places
from harness.spec import dataset_of
from harness.store import Store

VIDEO = "P02_102"
"""the one that is damaged; its videos' instants are stamped into its frames"""
OPTIONS = {"size": 32, "frames": 4, "transform": "none", "questions": "constant"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("ek100"))


@pytest.fixture
def root(whole, tmp_path, monkeypatch) -> Path:
    """A copy to damage, as the working directory."""
    copy = shutil.copytree(whole, tmp_path / "ek100")
    monkeypatch.chdir(copy)
    return copy


def footage(root: Path) -> Path:
    return root / f"footage/P02/videos/{VIDEO}.MP4"


def one_image(path: Path) -> Path:
    """Frames in place of the video; the path of one."""
    path.unlink()
    images = make_jpegs(path.parent.parent / "rgb_frames" / VIDEO, 10, 50, (96, 64))
    return images / "frame_0000000303.jpg"


def missing_frame(path: Path) -> None:
    one_image(path).unlink()


def cut_frame(path: Path) -> None:
    cut(one_image(path))


def cut_tar(path: Path) -> None:
    path.unlink()
    cut(make_tar(path.parent.parent / f"rgb_frames/{VIDEO}.tar", 2, 50))


FAULTS = {
    "truncated": cut_with_index_in_front,
    "no end": cut,
    "corrupt in the middle": scratch,
    "a missing frame": missing_frame,
    "a cut frame": cut_frame,
    "a cut tar": cut_tar,
    "error of the disk": broken_disk,
}


def train_split(**options) -> Ek100Split:
    dataset = Ek100(Ek100.Config(**OPTIONS, **options))
    dataset.places = Ek100Places(**places("ek100", Ek100Places))
    return dataset.split("train")


def read(split, policy: str, workers: int = 0, batch: int = 8) -> tuple[list, dict[str, str]]:
    """All samples of a split, as training without random choices reads them, and the bad ones."""
    indices = range(len(split))
    requests = [Request(tuple(indices[n : n + batch])) for n in range(0, len(split), batch)]
    loader = Loader(split, ["video"], policy, workers)
    samples = [sample for found in loader.read(requests) for sample in found.samples]
    return samples, loader.bad


def show_their_time(split, samples) -> bool:
    """Whether every frame of every sample is the one that was asked for."""
    by_id = {segment.narration_id: segment for segment in split.seen}
    for sample in samples:
        wanted = sampling.recognition(by_id[sample.id], 4, "window", None)
        shown = [read_stamp(frame) for frame in sample.streams["video"].numpy()]
        np.testing.assert_allclose(shown, wanted, atol=0.02)
    return True


@pytest.mark.parametrize("fault", FAULTS)
def test_every_policy_does_with_broken_footage_what_it_says(root, capfd, fault):
    FAULTS[fault](footage(root))
    split = train_split()
    ids = [segment.narration_id for segment in split.seen]
    where = r"\S+" if "frame" in fault or "tar" in fault else re.escape(str(footage(root)))
    message = rf"{VIDEO}_\d: {VIDEO}: {where}( at [\d.]+ s)?: \S"
    with pytest.raises(BadSample, match=message) as failed:
        read(split, "fail")
    assert re.search(r"; the clip is of \d+\.\d{3} to \d+\.\d{3} s$", str(failed.value))

    samples, bad = read(split, "skip")
    assert bad
    assert all(re.match(message, why) for why in bad.values())
    assert {name.rsplit("_", 1)[0] for name in bad} == {VIDEO}
    assert [sample.id for sample in samples] == [name for name in ids if name not in bad]
    assert show_their_time(split, samples)

    samples, again = read(split, "repeat")
    assert again == bad
    assert len(samples) == len(ids)
    kept = [name for name in ids if name not in bad]
    follower = {name: next(k for k in ids[n:] + ids if k in kept) for n, name in enumerate(ids)}
    assert [sample.id for sample in samples] == [follower[name] for name in ids]
    assert show_their_time(split, samples)
    told = capfd.readouterr().err
    assert [told.count(f"cannot be read: {name}: ") for name in sorted(bad)][1:] == [2] * (
        len(bad) - 1
    ), "once by each loader; the strict one stopped at the first"


def test_a_folder_in_place_of_a_video_is_found_before_anything_is_read(root):
    folder(footage(root))
    with pytest.raises(ValueError, match=rf"1 of 8 videos are not here, e\.g\. {VIDEO}"):
        train_split()


def test_a_folder_that_takes_the_place_of_a_video_later_is_named(root):
    split = train_split()
    folder(footage(root))
    _, bad = read(split, "skip")
    assert len(bad) == 8
    assert all(": it is not a file; the clip is of " in why for why in bad.values())


def zero_length(root: Path) -> str:
    train = rows_of(TRAIN)
    place = [one[0] for one in train].index(f"{VIDEO}_3")
    train[place] = row(VIDEO, 3, 4.0, 4.0, 1, 1)
    write_csv(root / "annotations" / TRAIN_FILE, COLUMNS, train)
    return f"{VIDEO}_3"


def test_a_segment_without_length_is_a_bad_sample(root):
    name = zero_length(root)
    split = train_split()
    with pytest.raises(BadSample, match=f"{name}: ends at 4.0 s, begins at 4.0 s"):
        read(split, "fail")
    for policy in ("skip", "repeat"):
        samples, bad = read(split, policy)
        assert list(bad) == [name]
        assert len(samples) == len(split) - (policy == "skip")


@pytest.mark.parametrize("damage", [Path.unlink, cut, broken_disk])
def test_boxes_that_cannot_be_read_are_bad_samples(root, damage):
    place = root / f"boxes/P02/{VIDEO}.pkl"
    split = train_split()
    damage(place)
    _, bad = read(split, "skip")
    assert len(bad) == 8
    assert all(why.startswith(f"{name}: ") and str(place) in why for name, why in bad.items())


def test_workers_do_the_same(root, capfd):
    scratch(footage(root))
    zero_length(root)
    split = train_split()
    with pytest.raises(BadSample, match=rf"{VIDEO}_\d: "):
        read(split, "fail", workers=2)
    for policy in ("skip", "repeat"):
        alone, bad = read(split, policy)
        capfd.readouterr()
        samples, found = read(split, policy, workers=2)
        assert len(bad) > 1
        assert found == bad
        assert capfd.readouterr().err.count("cannot be read: ") == len(bad)
        assert [sample.id for sample in samples] == [sample.id for sample in alone]
        for one, other in zip(samples, alone, strict=True):
            assert torch.equal(one.streams["video"], other.streams["video"])


def test_with_one_view_of_a_test_segment_the_others_go(root):
    scratch(root / "footage/P18/videos/P18_01.MP4")
    dataset = Ek100(Ek100.Config(**OPTIONS, test_clips=2, test_crops=3))
    dataset.places = Ek100Places(**places("ek100", Ek100Places))
    split = dataset.split("test")
    samples, bad = read(split, "skip", batch=12)
    assert 0 < len(bad) <= 8
    assert {name.rsplit("_", 1)[0] for name in bad} == {"P18_01"}
    counts = {name: sum(sample.id == name for sample in samples) for name in
              (segment.narration_id for segment in split.seen)}  # fmt: skip
    assert counts == {name: 0 if name in bad else 6 for name in counts}


def test_where_nothing_can_be_read_a_run_ends_whatever_its_policy(root):
    for file in (root / "footage").rglob("*.MP4"):
        cut(file)
    with pytest.raises(BadSample, match="not a video that can be read; is it truncated"):
        read(train_split(), "repeat")
    in_training = [Request(tuple(range(8)), draw=(0, 0))]
    with pytest.raises(BadSample, match="no sample of a batch can be read: P01_02_0: P01_02: "):
        list(Loader(train_split(), ["video"], "skip").read(in_training))


def test_a_test_of_which_nothing_can_be_read_has_no_result(root):
    for video in TEST:
        cut(root / f"footage/{video.split('_')[0]}/videos/{video}.MP4")
    planned, _, store = sweep(root, "  one: {train.bad_test_samples: skip}\n")
    assert "BadSample: no sample can be read: " in store.run(planned.run_ids[0]).failure_line()


def test_a_worker_that_is_killed_is_a_clear_error(root):
    split = train_split()
    rng = np.random.default_rng(0)
    endless = (Request(tuple(rng.integers(0, len(split), 4).tolist())) for _ in itertools.count())
    batches = Loader(split, ["video"], "skip", workers=2).read(endless)
    next(batches)
    victim = multiprocessing.active_children()[0]
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost, match=r"was killed \(.*fewer `--threads`"):
        for _ in batches:
            pass


@dataclass(frozen=True)
class Hanging:
    """A split whose samples never come, as from a mount that is gone."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Sample:
        time.sleep(600)
        raise AssertionError("unreachable")


def test_a_worker_that_hangs_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(loader, "LOOK", 1.0)
    monkeypatch.setattr(loader, "SILENCE", 2.0)
    batches = Loader(Hanging(), ["video"], workers=1).read([Request((0, 1)), Request((2, 3))])
    with pytest.raises(WorkerLost, match=r"no batch came .* for 2 s: does the disk or the mount"):
        next(batches)


# Real runs


SWEEP = """
report: {table: t, title: T, metrics: [verb_top1, noun_top1]}
base:
  data: {name: ek100, options: {size: 32, frames: 4, transform: none, questions: constant}}
  encoders:
    video: {name: video_transformer, options: {width: 16, depth: 1, heads: 2}}
    text: {name: word_transformer, options: {width: 16}}
  width: 16
  fusion: {name: mlp}
  train: {epochs: 1, batch_size: 8, optimiser: adamw, warmup_epochs: 0}
runs:
"""
LENIENT = "train: {bad_samples: %s, bad_test_samples: skip}"


def sweep(root: Path, runs: str, threads: int = 1):
    """(the sweep, the outcome, the store) of rows, run to their end in this process."""
    (root / "s.yaml").write_text(SWEEP + runs)
    planned, store = plan(root / "s.yaml"), Store(root / "runs")
    try:
        return planned, launch(store, planned, "inline", 1, threads), store
    finally:
        torch.set_num_threads(1)


def damage_two(root: Path) -> None:
    """A training video, and one of the test."""
    scratch(footage(root))
    cut(root / "footage/P18/videos/P18_01.MP4")


def test_a_run_fails_and_names_sample_file_and_instant(root):
    damage_two(root)
    planned, outcome, store = sweep(root, "  strict: {}\n")
    [run] = planned.runs
    assert list(outcome.failed) == [run.run_id]
    line = store.run(run.run_id).failure_line()
    assert re.search(rf"BadSample: {VIDEO}_\d: {VIDEO}: {footage(root)} at [\d.]+ s: ", line)


@pytest.mark.parametrize("threads", [1, 2])
def test_lenient_runs_complete_and_count_what_they_could_not_read(root, threads):
    damage_two(root)
    runs = "".join(
        f"  {policy}: {{{LENIENT % policy}}}\n"
        f"  frozen_{policy}: {{{LENIENT % policy}, encoders.text.frozen: true}}\n"
        for policy in ("repeat", "skip")
    )
    planned, outcome, store = sweep(root, runs, threads)
    assert outcome.failed == {} or list(outcome.failed) == []
    for run in planned.runs:
        bad = store.run(run.run_id).result()["bad_samples"]
        assert bad["train"]
        assert {name.rsplit("_", 1)[0] for name in bad["train"]} == {VIDEO}
        assert sorted(bad["test"]) == [f"P18_01_{n}" for n in range(8)]
        assert all(str(root) in why for why in bad["test"].values())
        assert len(store.run(run.run_id).predictions().ids) == 8


def test_a_bad_sample_of_the_test_fails_a_run_that_only_trains_leniently(root):
    cut(root / "footage/P18/videos/P18_01.MP4")
    planned, outcome, store = sweep(root, "  half: {train.bad_samples: repeat}\n")
    assert list(outcome.failed) == [planned.runs[0].run_id]
    assert "P18_01_0: P18_01: " in store.run(planned.runs[0].run_id).failure_line()


def test_a_run_whose_worker_is_killed_says_so_and_the_next_sweep_completes_it(root):
    ended = []

    def kill_one() -> None:
        until = time.monotonic() + 120
        while not ended and time.monotonic() < until:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
                ended.append(child.pid)
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one)
    killer.start()
    planned, outcome, store = sweep(root, "  one: {}\n", threads=2)
    killer.join()
    [message] = outcome.failed.values()
    assert "WorkerLost: a process that reads samples was killed (" in message
    assert store.run(planned.run_ids[0]).state() == "interrupted"
    _, outcome, _ = sweep(root, "  one: {}\n", threads=2)
    assert outcome.done == planned.run_ids


def test_frozen_video_and_live_text_stay_together_where_a_clip_is_repeated(root, capfd):
    scratch(footage(root))
    lenient = "encoders.video.frozen: true, train.bad_samples: repeat"
    runs = f"  one: {{{lenient}}}\n  other: {{{lenient}, train.epochs: 2}}\n"
    planned, outcome, store = sweep(root, runs)
    assert sorted(outcome.done) == sorted(planned.run_ids)
    counted = [store.run(one).result()["bad_samples"]["train"] for one in planned.run_ids]
    assert counted[0] == counted[1] != {}
    told = capfd.readouterr().err
    assert told.count("cannot be read: ") == len(counted[0]), "the second read stored tokens"

    spec = planned.runs[0].spec
    dataset = dataset_of(spec, planned.paths)
    torch.manual_seed(spec.seed)
    model = Model(spec, dataset, planned.paths)
    model.encoders["text"].fit(["what is used"])
    feed = Feed(spec, dataset, "train", model, torch.device("cpu"), root / "tokens")
    assert feed.bad == counted[0]
    file = feed.stored["video"]
    ids = [segment.narration_id for segment in dataset.split("train").seen]
    taken = [str(name) for batch in feed.batches(8) for name in batch.labels.ids]
    assert len(taken) == len(ids)
    assert not set(taken) & set(feed.bad)
    assert taken == [str(name) for name in file.labels.ids]
    assert all(one == other for one, other in zip(taken, ids, strict=True) if other not in feed.bad)


def test_stored_tokens_of_repeated_samples_are_not_taken_by_a_strict_run(root):
    scratch(footage(root))
    frozen = "encoders.video.frozen: true"
    runs = f"  lenient: {{{frozen}, train.bad_samples: repeat}}\n  strict: {{{frozen}}}\n"
    planned, outcome, store = sweep(root, runs)
    rows = {run.row: run.run_id for run in planned.runs}
    assert list(outcome.done) == [rows["lenient"]]
    assert f"BadSample: {VIDEO}_" in store.run(rows["strict"]).failure_line()


# Annotations


def change(old: str, new: str):
    def damage(file: Path) -> None:
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))

    return damage


ANNOTATION_FAULTS = {
    "no column": (change("stop_timestamp", "stop"), ":1: no column stop_timestamp; there are"),
    "bad time": (
        change("01.15,00:00:01.15", "01.15,1.15"),
        ":3: start_timestamp: '1.15' is not",
    ),
    "bad minute": (
        change("01.15,00:00:01.15", "01.15,00:61:01.15"),
        "'00:61:01.15' is not a time",
    ),
    "class": (change(",verb1,1,", ",verb1,97,"), "verb_class: '97' is not a class in 0..96"),
    "negative": (change(",verb1,1,", ",verb1,-1,"), "verb_class: '-1' is not a class in 0..96"),
    "cut off": (cut, "is the file cut off"),
    "twice": (change("P01_01_1,", "P01_01_0,"), "the narration id P01_01_0 is there twice"),
    "in both": (change("P01_01_1,", "P01_04_1,"), "P01_04_1 and 0 more narration ids are in"),
    "not text": (lambda file: file.write_bytes(b"\x80\x04\x95pickle"), ":1: not CSV text"),
    "empty": (lambda file: file.write_bytes(b""), ":1: no column narration_id"),
    "no rows": (lambda file: write_csv(file, COLUMNS, []), "no rows"),
    "folder": (folder, f"no {TRAIN_FILE} here; get the annotations with `git clone"),
    "error of the disk": (broken_disk, "Input/output error"),
}


@pytest.mark.parametrize("fault", ANNOTATION_FAULTS)
def test_broken_annotations_are_told_when_a_sweep_is_planned(root, fault):
    damage, message = ANNOTATION_FAULTS[fault]
    file = root / "annotations" / TRAIN_FILE
    damage(file)
    from harness.config import ConfigError

    with pytest.raises(ConfigError) as found:
        sweep(root, "  one: {}\n")
    told = str(found.value)
    assert re.match(rf"{root}/s\.yaml:\d+: data: ", told)
    assert message in told
    assert str(root / "annotations") in told
    assert (VALIDATION if fault == "in both" else TRAIN_FILE) in told
    with pytest.raises((ValueError, OSError)):
        Annotations.read(root / "annotations")
