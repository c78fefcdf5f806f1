"""Anyone's own features: what is read, what is refused, and the steps of docs/your-data.md."""

import csv
import re
import shlex
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harness.cli import main
from harness.config import ConfigError
from harness.contracts import Stream
from harness.data.features import Features
from harness.data.features.manifest import read_manifest
from harness.feed import Feed
from harness.model import Model
from harness.plan import plan
from harness.registry import ENCODERS
from harness.spec import dataset_of

DOC = Path(__file__).resolve().parent.parent / "docs" / "your-data.md"
SAMPLES, SUBJECTS = 240, 12
MANIFEST = """
streams:
  video: {file: video.npy}
  audio: {file: audio.npy}
labels: {file: labels.csv, targets: [label], id: clip, group: subject, split: split}
"""
SWEEP = """
report: {table: mine, title: Mine, metrics: [label_top1]}
base:
  data: {name: features, options: {manifest: data.yaml}}
  encoders: {video: {name: precomputed}, audio: {name: precomputed}}
  width: 8
  train: {epochs: 1, batch_size: 8}
runs: {mlp: {fusion: {name: mlp}}}
"""


def rows(count: int = SAMPLES) -> list[dict[str, str]]:
    """Two words by the sum of what the two streams hold; subjects one after the other."""
    side = ["train"] * 8 + ["select"] * 2 + ["test"] * 2
    return [
        {
            "clip": f"c{row:03}",
            "label": ("pour", "cut")[row % 2],
            "subject": f"s{row * SUBJECTS // count:02}",
            "split": side[row * SUBJECTS // count],
        }
        for row in range(count)
    ]


def write_csv(file: Path, table: list[dict[str, str]]) -> None:
    with open(file, "w", newline="") as out:
        writer = csv.DictWriter(out, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with two arrays, labels and a manifest; the working directory is above it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    rng = np.random.default_rng(0)
    sign = np.where(np.arange(SAMPLES) % 2, 1.0, -1.0)[:, None, None]
    video = rng.normal(size=(SAMPLES, 4, 6)) + 0.3 * sign
    audio = rng.normal(size=(SAMPLES, 3, 5)) + 0.3 * sign
    np.save(folder / "video.npy", video.astype(np.float32))
    np.save(folder / "audio.npy", audio.astype(np.float16))
    write_csv(folder / "labels.csv", rows())
    (folder / "data.yaml").write_text(MANIFEST)
    return folder


def content(folder: Path):
    return read_manifest(folder / "data.yaml")


@pytest.mark.slow
def test_the_steps_of_the_document_end_in_a_table(mine, capsys):
    """Literally: its manifest, and each of its commands."""
    text = DOC.read_text()
    manifest = next(b for b in re.findall(r"```yaml\n(.*?)```", text, re.S) if "streams:" in b)
    (mine / "data.yaml").write_text(manifest)
    write_csv(mine / "labels.csv", [{k: v for k, v in r.items() if k != "split"} for r in rows()])
    commands = re.search(r"## 3.*?```\n(.*?)```", text, re.S)
    assert commands
    for line in commands[1].splitlines():
        words = shlex.split(line)
        assert words[0] == "harness"
        with pytest.raises(SystemExit) as ended:
            main_with(words[1:])
        assert not ended.value.code, line
    table = capsys.readouterr().out
    assert "Encoders: audio: precomputed (given, fp16); video: precomputed (given, fp32)." in table
    assert "# Table 3. Fusion heads, on data.yaml" in table
    for row in ("Audio only", "Video only", "MLP", "Transformer (12x12)", "MambaVL (shared A)"):
        found = re.search(rf"\| {re.escape(row)} \| 1 \| (\d+\.\d) \(n=1\) \|", table)
        assert found, row
        assert float(found[1]) > 60, row


def main_with(words: list[str]) -> None:
    import sys

    before = sys.argv
    sys.argv = ["harness", *words]
    try:
        main()
    finally:
        sys.argv = before


def test_a_batch_holds_the_rows_of_the_arrays(mine):
    (mine / "sweep.yaml").write_text(SWEEP)
    planned = plan(mine / "sweep.yaml")
    spec = planned.runs[0].spec
    dataset = dataset_of(spec, planned.paths)
    model = Model(spec, dataset, planned.paths)
    feed = Feed(spec, dataset, "select", model, torch.device("cpu"), mine / "tokens")
    assert feed.live == []
    batch = next(feed.batches(5))
    video, audio = (np.load(mine / f"{name}.npy") for name in ("video", "audio"))
    first = 8 * SAMPLES // SUBJECTS
    assert batch.inputs["video"].features.numpy().tolist() == video[first : first + 5].tolist()
    assert batch.inputs["audio"].features.dtype == torch.float16
    assert batch.inputs["audio"].features.numpy().tolist() == audio[first : first + 5].tolist()
    assert batch.labels.ids.tolist() == [f"c{row:03}" for row in range(first, first + 5)]
    assert batch.labels.groups[0] == "s08"
    assert not (mine / "tokens").exists()  # nothing is copied


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("suffix", ["npy", "safetensors", "h5", "chunked.h5"])
def test_every_file_and_number_is_read_alike(mine, suffix, kind):
    whole = torch.from_numpy(np.load(mine / "video.npy")).to(getattr(torch, kind))
    file = mine / f"other.{suffix}"
    if suffix == "npy" and kind != "bfloat16":
        np.save(file, whole.numpy())
    elif suffix == "safetensors":
        save_file({"tokens": whole, "more": torch.zeros(1)}, file)
    elif kind == "bfloat16":
        pytest.skip("numpy and HDF5 have no bfloat16")
    else:
        with h5py.File(file, "w") as out:
            chunks = (7, 4, 6) if "chunked" in suffix else None
            out.create_dataset("a/tokens", data=whole.numpy(), chunks=chunks)
    key = {"npy": "", "safetensors": ", key: tokens"}.get(suffix, ", key: a/tokens")
    (mine / "data.yaml").write_text(MANIFEST.replace("video.npy", f"{file.name}{key}"))
    dataset = Features(Features.Config(manifest=mine / "data.yaml"))
    sample = dataset.split("test")[3]
    row = 10 * SAMPLES // SUBJECTS + 3
    assert torch.equal(sample.streams["video"], whole[row].float())
    assert dataset.streams["video"] == Stream("features", (4, 6))


def test_samples_of_different_length_are_padded_and_masked(mine):
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 6, SAMPLES)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = rng.normal(size=(offsets[-1], 6)).astype(np.float32)
    np.save(mine / "video.npy", flat)
    np.save(mine / "offsets.npy", offsets)
    (mine / "data.yaml").write_text(
        MANIFEST.replace("video.npy", "video.npy, offsets: {file: offsets.npy}")
    )
    (mine / "sweep.yaml").write_text(SWEEP)
    planned = plan(mine / "sweep.yaml")
    spec, dataset = planned.runs[0].spec, dataset_of(planned.runs[0].spec, planned.paths)
    model = Model(spec, dataset, planned.paths)
    feed = Feed(spec, dataset, "train", model, torch.device("cpu"), mine / "tokens")
    tokens = next(feed.batches(9)).inputs["video"]
    assert tokens.mask.sum(1).tolist() == lengths[:9].tolist()
    for row in range(9):
        own = flat[offsets[row] : offsets[row + 1]]
        assert torch.equal(tokens.features[row][tokens.mask[row]], torch.from_numpy(own))
    raws = [dataset.split("train")[row].streams["video"] for row in range(9)]
    encoder = ENCODERS["precomputed"](None, dataset.streams["video"])
    live = encoder(encoder.collate(raws))  # as where a sample is made and handed on
    assert torch.equal(live.features, tokens.features)
    assert torch.equal(live.mask, tokens.mask)


def test_splits_that_are_drawn_keep_groups_together(mine):
    text = MANIFEST.replace(", split: split", "") + "splits: {select: 0.2, test: 0.25, seed: 3}\n"
    (mine / "data.yaml").write_text(text)
    labels = content(mine).labels
    sides = {group: set() for group in labels.groups}
    for group, side in zip(labels.groups, labels.split, strict=True):
        sides[group].add(side)
    assert all(len(found) == 1 for found in sides.values())
    assert {name: len(labels.rows_of(name)) for name in ("train", "select", "test")} == {
        "train": 120,
        "select": 60,
        "test": 60,
    }
    assert content(mine).labels.split == labels.split
    (mine / "data.yaml").write_text(text.replace("seed: 3", "seed: 4"))
    assert content(mine).labels.split != labels.split


def test_two_manifests_with_the_same_words_are_two_datasets(mine, tmp_path):
    """As with a folder for each fold or each extractor."""
    other = tmp_path / "other"
    shutil.copytree(mine, other)
    np.save(other / "video.npy", np.load(mine / "video.npy") + 1)
    (tmp_path / "two.yaml").write_text(
        SWEEP.replace("manifest: data.yaml", "manifest: mine/data.yaml").replace(
            "runs: {mlp: {fusion: {name: mlp}}}",
            "runs:\n  a: {fusion: {name: mlp}}\n"
            "  b: {fusion: {name: mlp}, data.options.manifest: other/data.yaml}",
        )
    )
    planned = plan(tmp_path / "two.yaml")
    first, second = (run.spec for run in planned.runs)
    assert first.run_id != second.run_id
    means = [
        float(dataset_of(spec, planned.paths).split("test")[0].streams["video"].mean())
        for spec in (first, second)
    ]
    assert means[1] - means[0] == pytest.approx(1, abs=1e-5)
    alone = SWEEP.replace("manifest: data.yaml", "manifest: other/data.yaml")
    (tmp_path / "one.yaml").write_text(alone)
    assert plan(tmp_path / "one.yaml").runs[0].run_id == second.run_id


def test_names_that_yaml_has_other_uses_for_come_through(mine, tmp_path):
    """A folder, a stream and a target with odd names, to a planned sweep file."""
    odd = tmp_path / "d, r #1"
    mine.rename(odd)
    table = [{("my label (a)" if k == "label" else k): v for k, v in r.items()} for r in rows()]
    write_csv(odd / "labels.csv", table)
    text = MANIFEST.replace("[label]", '["my label (a)"]').replace("  audio:", "  audio-2 (b):")
    (odd / "data.yaml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main_with(["data", "sweep", str(odd / "data.yaml"), "--out", "2024.yaml"])
    assert not ended.value.code
    planned = plan(Path("2024.yaml"))
    assert planned.report.metrics == ["my label (a)_top1"]
    assert {"audio-2 (b)", "video"} == set(planned.runs[-1].spec.encoders)


def test_the_same_content_is_the_same_data_wherever_it_lies(mine, tmp_path):
    def fingerprint(folder):
        return Features(Features.Config(manifest=folder / "data.yaml")).fingerprint()

    first = fingerprint(mine)
    mine.rename(tmp_path / "moved")
    assert fingerprint(tmp_path / "moved") == first
    table = rows()
    table[0]["label"] = "cut"
    write_csv(tmp_path / "moved" / "labels.csv", table)
    second = fingerprint(tmp_path / "moved")
    video = np.load(tmp_path / "moved" / "video.npy")
    video[0, 0, 0] += 1
    np.save(tmp_path / "moved" / "video.npy", video)
    assert len({first, second, fingerprint(tmp_path / "moved")}) == 3


def change(**columns):
    """A change of the CSV file: column -> (row, value)."""

    def apply(folder):
        table = rows()
        for name, (row, value) in columns.items():
            table[row][name] = value
        write_csv(folder / "labels.csv", table)

    return apply


def array(values, name="video.npy"):
    return lambda folder: np.save(folder / name, values)


def manifest(old, new):
    return lambda folder: (folder / "data.yaml").write_text(MANIFEST.replace(old, new))


def offsets(values):
    def apply(folder):
        np.save(folder / "video.npy", np.zeros((480, 6), np.float32))
        np.save(folder / "offsets.npy", values)
        manifest("video.npy", "video.npy, offsets: {file: offsets.npy}")(folder)

    return apply


def not_finite(folder):
    video = np.load(folder / "video.npy")
    video[17, 2, 3] = np.nan
    np.save(folder / "video.npy", video)


def infinite_half(folder):
    audio = np.load(folder / "audio.npy")
    audio[5, 1, 1] = np.inf
    np.save(folder / "audio.npy", audio)


def safetensors_file(folder):
    save_file({"a": torch.zeros(SAMPLES, 2), "b": torch.zeros(1)}, folder / "video.safetensors")
    manifest("video.npy", "video.safetensors")(folder)


def ends_too_late():
    values = np.arange(SAMPLES + 1) * 2
    values[-1] = 481
    return values


LINEAR = np.arange(SAMPLES + 1) * 2
FALLS = LINEAR.copy()
FALLS[7] = 20
ZEROS = np.zeros((SAMPLES, 4, 6), np.float32)
BROKEN = {
    "unknown key": (manifest("streams:", "stream:"), ["data.yaml:2", "stream: no such key"]),
    "unknown label key": (manifest("group:", "groups:"), ["groups: no such key"]),
    "missing array": (manifest("video.npy", "vide.npy"), ["no such file", "Did you mean"]),
    "missing labels": (manifest("labels.csv", "table.csv"), ["labels.file: no such file"]),
    "unknown suffix": (
        lambda folder: (
            (folder / "video.pt").write_bytes(b"x"),
            manifest("video.npy", "video.pt")(folder),
        ),
        [".npy, .safetensors", "not .pt"],
    ),
    "not an array": (
        lambda folder: (folder / "video.npy").write_bytes(b"not numpy"),
        ["not a plain .npy array"],
    ),
    "objects": (
        lambda folder: np.save(folder / "video.npy", np.array([{}] * SAMPLES), allow_pickle=True),
        ["not a plain .npy array"],
    ),
    "key is missing": (safetensors_file, ["`key` is missing", "a, b"]),
    "key in npy": (manifest("video.npy", "video.npy, key: a"), ["leave `key` out"]),
    "whole numbers": (array(np.zeros((SAMPLES, 4), np.int64)), ["is of int64", "float16"]),
    "one axis": (array(np.zeros(SAMPLES, np.float32)), ["has the shape (240,)", "(N, L, D)"]),
    "other length": (array(ZEROS[:-1]), ["has 239 samples, the CSV file 240 rows"]),
    "flat without offsets": (array(np.zeros((900, 6), np.float32)), ["needs `offsets`"]),
    "by columns": (array(np.asfortranarray(ZEROS)), ["column by column"]),
    "no numbers": (array(ZEROS[:, :, :0]), ["a token has no numbers"]),
    "NaN": (not_finite, ["streams.video", "sample 17", "NaN"]),
    "infinite": (infinite_half, ["streams.audio", "sample 5"]),
    "offsets too late": (offsets(ends_too_late()), ["0 to 481", "rows 0 to 480"]),
    "offsets fall": (offsets(FALLS), ["fall from 20 to 16 at sample 7"]),
    "offsets too few": (offsets(LINEAR[:-1]), ["240 numbers for 240 rows; 241 are needed"]),
    "offsets no numbers": (offsets(LINEAR / 2), ["integers (N + 1,)"]),
    "sample without tokens": (
        offsets(np.where(LINEAR == 300, 302, LINEAR)),
        ["sample 150 has no token"],
    ),
    "missing label": (change(label=(4, "")), ["line 6: label is empty"]),
    "unknown column": (
        manifest("[label]", "[labl]"),
        ["labels.csv: targets", "Did you mean 'label'"],
    ),
    "unknown class": (
        manifest("targets: [label]", "targets: [label], classes: {label: [pour, stir]}"),
        ["'cut' is none of its 2 classes"],
    ),
    "number and word": (
        manifest("targets: [label]", "targets: [label], classes: {label: 2}"),
        ["'pour' is no number"],
    ),
    "class out of range": (
        lambda folder: (
            write_csv(
                folder / "labels.csv",
                [{**row, "label": str(n % 4)} for n, row in enumerate(rows())],
            ),
            manifest("targets: [label]", "targets: [label], classes: {label: 3}")(folder),
        ),
        ["line 5: label is 3, not in 0..2"],
    ),
    "a word of torch": (
        lambda folder: (
            write_csv(folder / "labels.csv", [{**row, "type": "a"} for row in rows()]),
            manifest("[label]", "[type]")(folder),
        ),
        ["'type' cannot be the name of a stream or a target"],
    ),
    "a dot": (manifest("audio:", "au.dio:"), ["'au.dio' cannot be the name"]),
    "an id as a target": (
        lambda folder: write_csv(
            folder / "labels.csv",
            [{**row, "label": str(20240100 + n)} for n, row in enumerate(rows())],
        ),
        ["20240340 classes; is it an id?"],
    ),
    "no such home": (manifest("video.npy", "~nobody-at-all/v.npy"), ["streams.video.file"]),
    "blank lines": (
        lambda folder: (folder / "labels.csv").write_text(
            "clip,label,subject,split\n\n\na,pour,s,train\nb,,s,train\n"
        ),
        ["line 5: label is empty"],
    ),
    "offsets end early": (
        offsets(np.minimum(LINEAR, LINEAR[-2] + 1)),
        ["0 to 479, the array has the rows 0 to 480"],
    ),
    "twice": (change(clip=(9, "c002")), ["id: 'c002' is there twice"]),
    "group on two sides": (
        change(split=(3, "test")),
        ["group: s00 (test, train)", "more than one split"],
    ),
    "unknown split": (change(split=(0, "val")), ["line 2", "'val'", "train, select or test"]),
    "empty group": (change(subject=(0, "")), ["line 2: subject is empty"]),
    "empty split": (
        lambda folder: write_csv(
            folder / "labels.csv",
            [{**row, "split": row["split"].replace("select", "train")} for row in rows()],
        ),
        ["no sample is in select"],
    ),
    "both ways": (
        lambda folder: (folder / "data.yaml").write_text(MANIFEST + "splits: {test: 0.2}\n"),
        ["take one of them"],
    ),
    "cells": (
        lambda folder: (folder / "labels.csv").write_text("clip,label\na,b\nc\n"),
        ["line 3", "cells"],
    ),
    "no rows": (lambda folder: (folder / "labels.csv").write_text("clip,label\n"), ["no rows"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_manifest_is_refused_when_a_sweep_is_planned(mine, name):
    spoil, told = BROKEN[name]
    spoil(mine)
    (mine / "sweep.yaml").write_text(SWEEP)
    with pytest.raises(ConfigError) as error:
        plan(mine / "sweep.yaml")
    for text in told:
        assert text in str(error.value), str(error.value)
    assert "Traceback" not in str(error.value)


def test_all_that_is_wrong_is_said_at_once(mine):
    not_finite(mine)
    change(label=(4, ""), split=(0, "val"))(mine)
    infinite_half(mine)
    with pytest.raises(ConfigError) as error:
        content(mine)
    assert len(error.value.messages) == 2  # arrays are looked at once the labels are right
    change()(mine)
    with pytest.raises(ConfigError) as error:
        content(mine)
    assert [("sample 17" in m, "sample 5" in m) for m in error.value.messages] == [
        (True, False),
        (False, True),
    ]


def test_the_doctor_says_what_is_there_and_what_the_test_alone_has(mine, capsys):
    table = rows()
    table[-1]["label"] = "stir"
    write_csv(mine / "labels.csv", table)
    with pytest.raises(SystemExit) as ended:
        main_with(["data", "doctor", "features", "--set", "manifest=mine/data.yaml"])
    told = capsys.readouterr().out
    assert not ended.value.code
    assert "4 tokens of 6 numbers, float32" in told
    assert "train 160, select 40, test 40; groups train 8, select 2, test 2" in told
    assert "in test and not in train: stir" in told
    with pytest.raises(SystemExit) as ended:
        main_with(["data", "doctor", "features"])
    assert ended.value.code == 1
    assert "options.manifest is missing" in capsys.readouterr().out
    (mine / "labels.csv").unlink()
    with pytest.raises(SystemExit) as ended:
        main_with(["data", "doctor", "features", "--set", "manifest=mine/data.yaml"])
    assert ended.value.code == 1
    assert "no such file" in capsys.readouterr().out


def test_a_sweep_file_is_not_written_over_another(mine, capsys):
    (mine / "fusions.yaml").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main_with(["data", "sweep", "mine/data.yaml", "--out", "mine/fusions.yaml"])
    assert ended.value.code == 2
    assert "is there already" in capsys.readouterr().err
    assert (mine / "fusions.yaml").read_text() == "mine"
