"""The watch data: safe to read, split by subject, cut into windows of one recording each."""

import os
import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from harness.data.watch import FOLDS, Watch, packaged_file, parse
from harness.registry import DATASETS

SUBJECTS = {str(number) for number in range(1, 11)}
SPLITS = ("train", "select", "test")


def watch(**options) -> Watch:
    return Watch(Watch.Config(**options))


def groups(dataset: Watch, split: str) -> Counter[str]:
    items = dataset.split(split)
    return Counter(items[i].group for i in range(len(items)))


@pytest.fixture(scope="module")
def content() -> dict:
    """The packaged data as numpy itself unpickles them: an independent reader."""
    with packaged_file().open("rb") as file:
        file.seek(128)
        return pickle.load(file, encoding="latin1").item()


def write(path: Path, content: object) -> Path:
    """`content` in a file like the packaged one."""
    array = np.empty((), dtype=object)
    array[()] = content
    np.save(path, array, allow_pickle=True)
    return path


class Payload:
    """Makes a folder when it is unpickled by a reader that trusts the file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_pickle_that_runs_code_is_refused_by_name_and_does_not_run(tmp_path):
    target = tmp_path / "harmed"
    file = write(tmp_path / "evil.npy", {"X": Payload(target)})
    with pytest.raises(ValueError, match=r"evil\.npy: .*posix\.mkdir; that is forbidden"):
        watch(file=file).split("train")
    assert not target.exists()
    np.load(file, allow_pickle=True)
    assert target.exists(), "the payload is harmless, so the test shows nothing"


@pytest.mark.parametrize("name", ["builtins eval", "os system", "numpy load", "numpy.f2py compile"])
def test_a_global_outside_the_list_is_refused(name, tmp_path):
    header = write(tmp_path / "file.npy", {}).read_bytes()[:128]
    module, attribute = name.split()
    with pytest.raises(ValueError, match=rf"{module}\.{attribute}; that is forbidden"):
        parse(header + f"c{module}\n{attribute}\n.".encode())


def test_bytes_in_another_encoding_are_refused(tmp_path):
    header = write(tmp_path / "file.npy", {}).read_bytes()[:128]
    with pytest.raises(ValueError, match="'rot13'; only latin1"):
        parse(header + b"c_codecs\nencode\n(Va\nVrot13\ntR.")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({}, "KeyError"),
        ([1, 2], "TypeError"),
        ({"y_labels": ["PEN", "ROW"]}, "classes are"),
        ({"X_labels": ["wx", "wy", "wz", "ax", "ay", "az"]}, "channels are"),
        ({"y": np.zeros(3, int)}, "differ in length"),
        ({"y": np.full(140, 7)}, "label 7"),
        ({"X": [np.zeros((9, 5))] * 140}, r"shape \(9, 5\)"),
        ({"X": [np.full((9, 6), np.nan)] * 140}, "finite"),
    ],
)
def test_a_file_with_other_content_is_refused_with_the_reason(broken, message, content, tmp_path):
    other = {**content, **broken} if broken and isinstance(broken, dict) else broken
    with pytest.raises(ValueError, match=f"other.npy: not the watch data: .*{message}"):
        watch(file=write(tmp_path / "other.npy", other)).fingerprint()


@pytest.mark.parametrize("size", [0, 5, 300, 100_000])
def test_a_truncated_file_is_refused(size, tmp_path):
    file = tmp_path / "cut.npy"
    file.write_bytes(packaged_file().read_bytes()[:size])
    with pytest.raises(ValueError, match=r"cut\.npy: not the watch data"):
        watch(file=file).split("train")


def test_an_array_of_numbers_is_refused(tmp_path):
    np.save(tmp_path / "numbers.npy", np.zeros(3))
    with pytest.raises(ValueError, match="array of float64"):
        watch(file=tmp_path / "numbers.npy").split("train")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npy"):
        watch(file=tmp_path / "nowhere.npy").fingerprint()


def test_the_data_have_the_published_sizes():
    dataset = watch()
    assert DATASETS["watch"] is Watch
    assert len({recording.subject for recording in dataset.recordings}) == 10
    assert len(dataset.recordings) == 140
    assert sum(len(dataset.split(name)) for name in SPLITS) == 4677
    assert dataset.targets == {"label": 7}


@pytest.mark.parametrize("fold", range(FOLDS))
@pytest.mark.parametrize("select_subjects", [1, 2, 7])
def test_no_subject_is_on_two_sides(fold, select_subjects):
    dataset = watch(fold=fold, select_subjects=select_subjects)
    train, select, test = (set(groups(dataset, name)) for name in SPLITS)
    assert len(train) == 8 - select_subjects
    assert len(select) == select_subjects
    assert len(test) == 2
    assert train | select | test == SUBJECTS


def test_the_five_folds_test_each_subject_and_window_once():
    tested: Counter[str] = Counter()
    ids: set[str] = set()
    for fold in range(FOLDS):
        items = watch(fold=fold).split("test")
        tested.update(set(groups(watch(fold=fold), "test")))
        ids |= {items[i].id for i in range(len(items))}
    assert tested == Counter(dict.fromkeys(SUBJECTS, 1))
    assert len(ids) == 4677


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_every_class(split):
    for fold in range(FOLDS):
        items = watch(fold=fold).split(split)
        assert {items[i].targets["label"] for i in range(len(items))} == set(range(7))


@pytest.mark.parametrize("stride_seconds", [0.5, 1.0, 3.0])
def test_a_window_is_two_seconds_of_one_recording(stride_seconds, content):
    dataset = watch(fold=3, stride_seconds=stride_seconds)
    for split in SPLITS:
        items = dataset.split(split)
        samples = [items[i] for i in range(0, len(items), 37)] + [items[len(items) - 1]]
        for sample in samples:
            number, start = map(int, sample.id.split("-"))
            expected = content["X"][number][start : start + 100].astype(np.float32)
            assert expected.shape == (100, 6), "the window crosses the end of its recording"
            assert start % round(50 * stride_seconds) == 0
            np.testing.assert_array_equal(sample.streams["accel"].numpy(), expected[:, :3])
            np.testing.assert_array_equal(sample.streams["gyro"].numpy(), expected[:, 3:])
            assert sample.targets["label"] == content["y"][number]
            assert sample.group == str(content["subject"][number])


def test_samples_are_what_the_streams_promise():
    dataset = watch(window_seconds=1.5)
    sample = dataset.split("test")[0]
    assert set(sample.streams) == set(dataset.streams) == {"accel", "gyro"}
    for name, stream in dataset.streams.items():
        assert stream.kind == "sensor"
        assert sample.streams[name].shape == stream.shape == (75, 3)
        assert sample.streams[name].dtype == torch.float32


def test_ids_are_unique_and_an_index_past_the_end_is_an_error():
    items = watch().split("train")
    assert len({items[i].id for i in range(len(items))}) == len(items)
    with pytest.raises(IndexError):
        items[len(items)]


def test_a_sample_can_be_changed_without_changing_the_data():
    items = watch().split("train")
    before = items[5].streams["gyro"].clone()
    items[5].streams["gyro"].zero_()
    torch.testing.assert_close(items[5].streams["gyro"], before, rtol=0, atol=0)


def test_equal_configs_give_equal_samples_and_digests():
    first, second = watch(fold=2), watch(fold=2)
    assert first.fingerprint() == second.fingerprint()
    for split in SPLITS:
        a, b = first.split(split)[7], second.split(split)[7]
        assert (a.id, a.targets, a.group) == (b.id, b.targets, b.group)
        assert torch.equal(a.streams["accel"], b.streams["accel"])


def test_the_fingerprint_follows_content_and_options_but_not_the_place(content, tmp_path):
    copy = tmp_path / "copy.npy"
    shutil.copyfile(packaged_file(), copy)
    digest = watch().fingerprint()
    assert watch(file=copy).fingerprint() == digest
    changed = [values.copy() for values in content["X"]]
    changed[0][0, 0] += 1
    write(copy, {**content, "X": changed})
    assert watch(file=copy).fingerprint() != digest
    options = [{"fold": 1}, {"select_subjects": 2}, {"stride_seconds": 2.0}, {"window_seconds": 1}]
    assert len({digest, *(watch(**option).fingerprint() for option in options)}) == 5


def test_a_file_is_read_once_as_long_as_it_stays_the_same(tmp_path, content):
    copy = tmp_path / "copy.npy"
    shutil.copyfile(packaged_file(), copy)
    before = watch(file=copy).recordings
    assert watch(file=copy, fold=4).recordings is before
    os.utime(copy, ns=(1, 1))
    assert watch(file=copy).recordings is not before


@pytest.mark.parametrize(
    "options",
    [
        {"fold": 5},
        {"fold": -1},
        {"select_subjects": 0},
        {"select_subjects": 8},
        {"stride_seconds": 0},
        {"window_seconds": 0},
        {"hertz": 100},
    ],
)
def test_an_impossible_option_is_refused(options):
    with pytest.raises(ValidationError):
        watch(**options)
