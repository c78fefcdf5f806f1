"""Stored tokens of frozen encoders: the same floats, resumable, checked, shared by processes."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from harness import cache, shards
from harness.cache import frozen_tokens, wanted
from harness.cached import entries
from harness.cli import main
from harness.config import ConfigError
from harness.contracts import BadSample, Tokens
from harness.feed import Feed
from harness.launch import launch
from harness.loader import Loader
from harness.model import Model
from harness.plan import plan
from harness.spec import RunSpec, dataset_of
from harness.splits import fetch
from harness.tokens import Damaged

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
KITCHEN = """
report: {table: tiny, title: "A tiny sweep", metrics: [verb_top1]}
base:
  data: {name: simkitchen, options: {train_size: 300, select_size: 32, test_size: 200}}
  encoders:
    video: {name: video_transformer, frozen: true, options: {width: 16}}
    text: {name: word_transformer, frozen: true, options: {width: 16}}
  width: 16
  fusion: {name: mlp}
  train: {epochs: 2, batch_size: 16, optimiser: adamw, warmup_epochs: 0}
runs:
"""


def spec_of(sweep_file, changes: str = "") -> RunSpec:
    return plan(sweep_file(f"  a: {{{changes}}}\n", base=KITCHEN)).runs[0].spec


def model_of(spec: RunSpec) -> Model:
    """Always the same weights; the vocabulary is that of the train split."""
    torch.manual_seed(0)
    dataset = dataset_of(spec, {})
    model = Model(spec, dataset, {})
    if "text" in spec.encoders:
        items = fetch(dataset.split("train"), range(300))
        model.encoders["text"].fit([item.streams["text"] for item in items])
    return model


def feed_of(spec: RunSpec, tokens: Path, split: str = "test") -> Feed:
    return Feed(spec, dataset_of(spec, {}), split, model_of(spec), CPU, tokens)


def tokens_of(feed: Feed, size: int) -> list[dict[str, Tokens]]:
    """What the fusion sees, batch by batch."""
    with torch.no_grad():
        return [feed.model.tokens(batch.inputs, batch.side) for batch in feed.batches(size)]


def test_stored_tokens_are_the_very_floats_of_the_encoder_in_the_loop(sweep_file, tmp_path):
    stored = feed_of(spec_of(sweep_file), tmp_path)
    live = feed_of(spec_of(sweep_file, "encoders.video.cache: none"), tmp_path)
    assert (stored.live, live.live) == ([], ["video"])
    for one, other in zip(tokens_of(stored, 200), tokens_of(live, 200), strict=True):
        assert torch.equal(one["video"].features, other["video"].features)
        assert torch.equal(one["video"].mask, other["video"].mask)


@pytest.mark.parametrize(("numbers", "error"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_precision_rounds_each_number_once(sweep_file, tmp_path, numbers, error):
    whole = tokens_of(feed_of(spec_of(sweep_file), tmp_path), 64)
    feed = feed_of(spec_of(sweep_file, f"encoders.video.cache: {numbers}"), tmp_path)
    assert next(feed.batches(4)).inputs["video"].features.dtype == getattr(torch, numbers)
    for one, half in zip(whole, tokens_of(feed, 64), strict=True):
        exact, rounded = one["video"].features, half["video"].features
        assert rounded.dtype == torch.float32
        assert ((rounded - exact).abs() <= error * exact.abs() + 1e-7).all()
        assert not torch.equal(rounded, exact)


class Turning:
    """A dataset whose training clips are drawn anew in every pass, and of which a few may come
    again and again."""

    slow = False

    def __init__(self, whole, different=10_000):
        self.whole, self.views = whole, whole.views
        self.streams, self.targets = whole.streams, whole.targets
        self.different, self.unseen = different, {}
        self.asked: list[tuple[int, int, int]] = []

    def stored(self, split, stream):
        return None

    def split(self, name):
        items, asked, different = self.whole.split(name), self.asked, self.different

        class Items:
            def __len__(self):
                return len(items)

            def __getitem__(self, index):
                return items[index % different]

            def drawn(self, indices, seed, turn):
                asked.extend((index, seed, turn) for index in indices)
                return [items[(index + turn) % len(items)] for index in indices]

        return Items()


def test_a_text_is_encoded_once_however_often_it_is_asked(sweep_file, tmp_path, monkeypatch):
    seen: list[str] = []
    encode = cache.encode
    monkeypatch.setattr(
        cache,
        "encode",
        lambda encoder, samples, stream, device: (
            seen.extend(s.streams[stream] for s in samples if stream == "text"),
            encode(encoder, samples, stream, device),
        )[1],
    )
    spec = spec_of(sweep_file)
    dataset = Turning(dataset_of(spec, {}), different=40)
    feed = Feed(spec, dataset, "test", model_of(spec), CPU, tmp_path)
    texts = [feed.items[index].streams["text"] for index in range(len(feed.items))]
    assert sorted(seen) == sorted(set(texts))
    assert (len(seen), len(texts)) == (40, 200)
    encoder = feed.model.encoders["text"]
    with torch.no_grad():
        live = encoder(encoder.collate(texts[:20]))
    found = next(feed.batches(20)).inputs["text"]
    assert torch.equal(found.mask, live.mask)
    torch.testing.assert_close(found.features, live.features)


def start(spec: RunSpec, folder: Path, seconds: float = 0.0) -> subprocess.Popen:
    file = folder / "spec.json"
    file.write_text(json.dumps(spec.model_dump(mode="json")))
    words = [str(ROOT / "tests" / "filler.py"), str(file), str(folder / "tokens"), "test"]
    return subprocess.Popen(
        [sys.executable, *words, str(seconds)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def batches_of(process: subprocess.Popen) -> int:
    out, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    return out.count("batch")


WHOLE = 13
"""batches of 16 in 200 samples"""
ONLY_VIDEO = "encoders.text: null, fusion: {name: single}"


def test_a_process_killed_while_it_fills_loses_the_batch_in_flight_and_no_more(
    sweep_file, tmp_path
):
    spec = spec_of(sweep_file, ONLY_VIDEO)
    killed = start(spec, tmp_path, seconds=0.3)
    for _ in range(7):
        assert killed.stdout.readline() == "batch\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (folder,) = (tmp_path / "tokens").iterdir()
    assert not (folder / "done.json").exists()
    assert batches_of(start(spec, tmp_path)) == WHOLE - 6  # the seventh was not written yet
    assert_complete(folder, spec, tmp_path)


OWN = (".lock", "runs.txt")
"""files that say who was there, not what is stored"""


def assert_complete(folder: Path, spec: RunSpec, tmp_path: Path) -> None:
    """The store holds what an undisturbed process stores."""
    (tmp_path / "calm").mkdir()
    assert batches_of(start(spec, tmp_path / "calm")) == WHOLE
    (calm,) = (tmp_path / "calm" / "tokens").iterdir()
    assert calm.name == folder.name
    files = sorted(file.name for file in folder.iterdir() if file.name not in OWN)
    assert files == sorted(file.name for file in calm.iterdir() if file.name not in OWN)
    for name in files:
        if name != "index.npz":
            assert (folder / name).read_bytes() == (calm / name).read_bytes(), name
    indices = [np.load(one / "index.npz") for one in (folder, calm)]
    for name in indices[0].files:
        assert np.array_equal(indices[0][name], indices[1][name]), name


def test_what_a_killed_process_left_half_written_is_made_again(sweep_file, tmp_path):
    spec = spec_of(sweep_file, ONLY_VIDEO)
    killed = start(spec, tmp_path, seconds=0.3)
    for _ in range(4):
        killed.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (folder,) = (tmp_path / "tokens").iterdir()
    with open(folder / "0-0000.jsonl", "a") as journal:
        journal.write('{"lengths": [1, 2')  # cut short
    with open(folder / "0-0000.bin", "r+b") as data:
        data.seek(-5, os.SEEK_END)
        data.write(b"?")  # of the third batch, which the disk did not get whole
    assert batches_of(start(spec, tmp_path)) == WHOLE - 2
    assert_complete(folder, spec, tmp_path)


def test_processes_that_lack_the_same_tokens_share_the_work(sweep_file, tmp_path):
    spec = spec_of(sweep_file, ONLY_VIDEO)
    both = [start(spec, tmp_path, seconds=0.8) for _ in range(2)]
    counts = [batches_of(process) for process in both]
    assert sum(counts) == WHOLE
    assert min(counts) >= 1
    (folder,) = (tmp_path / "tokens").iterdir()
    assert_complete(folder, spec, tmp_path)


def flip(file: Path, place: int) -> None:
    with open(file, "r+b") as data:
        data.seek(place)
        byte = data.read(1)[0]
        data.seek(place)
        data.write(bytes([byte ^ 4]))


def run_command(*words: str) -> int:
    before = sys.argv
    sys.argv = ["harness", *words]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = before
    return 0


@pytest.fixture
def filled(sweep_file, store, monkeypatch):
    """A store with one finished run and its tokens; the working directory is beside it."""
    sweep = plan(sweep_file(f"  a: {{{ONLY_VIDEO}}}\n", base=KITCHEN))
    assert launch(store, sweep, "inline", 1, 1).failed == {}
    monkeypatch.chdir(store.root.parent)
    return store, sweep.runs[0].spec


def test_a_flipped_byte_is_found_by_verify_and_by_use(filled, capsys):
    store, _ = filled
    assert run_command("cache", "verify") == 0
    assert "3 looked at: what is complete is sound" in capsys.readouterr().out
    entry = next(one for one in entries(store) if one.about["split"] == "test")
    sample = entry.folder / "0-0000.bin"
    flip(sample, sample.stat().st_size // 2)
    assert run_command("cache", "verify") == 1
    told = capsys.readouterr().out
    assert "0-0000.bin: 1 of 200 items are damaged, first 100" in told
    assert f"harness cache rm {entry.key}" in told
    file = shards.open_tokens(entry.folder)
    file.batch(np.arange(100))
    with pytest.raises(Damaged, match=r"0-0000.bin: item 100 .*harness cache rm"):
        file.batch(np.arange(96, 104))
    assert run_command("cache", "rm", entry.key, "--yes") == 0
    assert run_command("cache", "verify") == 0


def test_a_damaged_index_is_named_and_the_others_are_looked_at(filled, capsys):
    store, _ = filled
    entry = entries(store)[0]
    flip(entry.folder / "index.npz", 200)
    assert run_command("cache", "verify") == 1
    told = capsys.readouterr().out
    assert f"{entry.key}: its index is damaged" in told
    assert "harness cache rm" in told


def test_what_float16_cannot_hold_is_refused(sweep_file, tmp_path):
    spec = spec_of(sweep_file, f"{ONLY_VIDEO}, encoders.video.cache: float16")
    dataset, model = dataset_of(spec, {}), model_of(spec)
    with torch.no_grad():
        model.encoders["video"].norm.weight.mul_(1e6)
    with pytest.raises(ValueError, match=r"float16 ends at 65504.*cache: bfloat16"):
        Feed(spec, dataset, "test", model, CPU, tmp_path)


def test_texts_are_stored_by_their_words_whatever_dataset_asks_them(sweep_file, tmp_path):
    changes = "encoders.video: null, fusion: {name: single}"
    spec = spec_of(sweep_file, changes)
    other = spec_of(sweep_file, f"{changes}, data.options.select_size: 16")
    model = model_of(spec)
    first = Feed(spec, dataset_of(spec, {}), "test", model, CPU, tmp_path)
    stores = set(tmp_path.iterdir())
    second = Feed(other, dataset_of(other, {}), "test", model, CPU, tmp_path)
    assert len(set(tmp_path.iterdir()) - stores) == 1  # which text is whose; no new tokens
    one, two = (next(feed.batches(32)).inputs["text"] for feed in (first, second))
    assert torch.equal(one.features, two.features)
    third = Feed(spec, dataset_of(spec, {}), "test", model, CPU, tmp_path)
    assert torch.equal(next(third.batches(32)).inputs["text"].features, one.features)


def test_a_file_of_another_length_is_found_when_it_is_opened(filled, capsys):
    store, _ = filled
    file = entries(store)[0].folder / "0-0000.bin"
    with open(file, "ab") as out:
        out.write(b"1234")
    with pytest.raises(ValueError, match="is not as long as it was"):
        shards.open_tokens(file.parent)
    assert run_command("cache", "verify") == 1


def test_what_is_stored_is_listed_and_removed(filled, capsys):
    store, spec = filled
    assert run_command("cache", "ls") == 0
    told = capsys.readouterr().out
    assert "simkitchen test, video: video_transformer, tokens: patch, float32  1 runs" in told
    assert "3 in " in told
    assert run_command("cache", "rm") == 2
    assert run_command("cache", "rm", "nothing") == 2
    assert "unknown key 'nothing'" in capsys.readouterr().err
    assert run_command("cache", "rm", "--unused", "--yes") == 0
    assert "nothing to remove" in capsys.readouterr().err
    for file in store.run(spec.run_id).path.rglob("*"):
        if file.is_file():
            file.unlink()
    assert run_command("cache", "rm", "--unused", "--yes") == 0
    assert list(store.tokens.iterdir()) == []


def test_what_is_being_filled_is_not_removed(filled):
    store, _ = filled
    entry = entries(store)[0]
    (entry.folder / "done.json").unlink()
    with shards.locked(entry.folder / "0-0000.lock", wait=False) as mine:
        assert mine
        with pytest.raises(ConfigError, match="a process fills it"):
            entry.remove(store)
    entry.remove(store)
    assert not entry.folder.exists()


def test_a_disk_that_is_too_small_is_refused_before_the_first_token(
    sweep_file, tmp_path, monkeypatch, capsys
):
    usage = os.statvfs(tmp_path)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("U", (), {"free": 10_000}))
    assert usage.f_bavail > 0
    with pytest.raises(OSError, match=r"about .* 10 kB are free.*cache: float16") as error:
        feed_of(spec_of(sweep_file, ONLY_VIDEO), tmp_path)
    assert error.value.errno == errno.ENOSPC
    assert [file.stat().st_size for file in tmp_path.rglob("*.bin")] == [0]
    monkeypatch.undo()
    feed_of(spec_of(sweep_file, ONLY_VIDEO), tmp_path)
    assert "test: 200 to compute, about 410 kB" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system takes root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_stops_it_with_its_name_and_it_goes_on_with_room(
    sweep_file, small_disk, monkeypatch
):
    """The run counts as interrupted: the next sweep goes on by itself."""
    from harness.store import Store

    monkeypatch.setattr(cache, "BATCH", 16)
    monkeypatch.setattr(
        cache.shutil, "disk_usage", lambda _: type("U", (), {"free": 10**12})
    )  # another process fills it meanwhile
    sweep = plan(sweep_file(f"  a: {{{ONLY_VIDEO}}}\n", base=KITCHEN))
    store = Store(small_disk.parent / "runs")
    store.root.mkdir()
    store.tokens.symlink_to(small_disk)
    run_id = sweep.runs[0].run_id
    outcome = launch(store, sweep, "inline", 1, 1)
    assert "No space left on device" in outcome.failed[run_id]
    assert ".bin" in outcome.failed[run_id]
    assert store.run(run_id).state() == "interrupted"
    stored = sum(file.stat().st_size for file in store.tokens.rglob("*.bin"))
    assert stored > 50_000
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert launch(store, sweep, "inline", 1, 1).failed == {}
    assert store.run(run_id).state() == "done"
    assert not any(told for entry in entries(store) for told in entry.damaged())


def test_augmented_views_are_stored_once_and_taken_in_turn(sweep_file, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 64)
    monkeypatch.setattr(shards, "SHARD", 64)
    spec = spec_of(sweep_file, f"{ONLY_VIDEO}, encoders.video.views: 3, train.epochs: 8")
    dataset = Turning(dataset_of(spec, {}))
    model = model_of(spec)
    feed = Feed(spec, dataset, "train", model, CPU, tmp_path)
    count = len(feed.items)
    assert len(dataset.asked) == 3 * count
    assert {seed for _, seed, _ in dataset.asked} == {cache.VIEW_SEED}
    plain = Feed(spec_of(sweep_file, ONLY_VIDEO), dataset, "train", model, CPU, tmp_path)
    file, own = feed.stored["video"], plain.stored["video"]
    for turn in range(6):
        indices = np.array([0, 5, 70, count - 1])
        found = file.batch(indices, turn).features
        wanted_ = own.batch((indices + turn % 3) % count).features
        torch.testing.assert_close(found, wanted_)
    per_pass = count // 16
    first, second = (next(feed.training(step, step + 1, range(16))) for step in (0, per_pass))
    assert first.inputs["video"].features.shape == second.inputs["video"].features.shape
    other = Feed(spec, dataset, "test", model, CPU, tmp_path)
    assert other.stored["video"].views == 1  # the test has the clip as it is


class Hole:
    """A split in which one sample cannot be read."""

    def __init__(self, items, hole):
        self.items, self.hole = items, hole

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if index == self.hole:
            raise BadSample(f"clip-{index}: broken")
        return self.items[index]


def test_a_sample_that_cannot_be_read_has_the_tokens_and_labels_of_its_neighbour(
    sweep_file, tmp_path
):
    spec = spec_of(sweep_file, ONLY_VIDEO)
    dataset, model = dataset_of(spec, {}), model_of(spec)
    encoder = model.encoders["video"].eval()
    want = wanted(spec, dataset, "video", "train", encoder)
    reader = Loader(Hole(dataset.split("train"), 7), ["video"], "repeat")
    file = frozen_tokens(tmp_path, want, encoder, dataset, reader)
    assert dict(file.bad) == {"clip-7": "clip-7: broken"}
    assert file.places.tolist() == [*range(7), 8, *range(8, 300)]
    assert torch.equal(file.batch(np.array([7])).features, file.batch(np.array([8])).features)
    assert file.labels.ids[7] == file.labels.ids[8]


def test_a_sample_that_one_view_could_not_read_has_anothers_in_all_of_them():
    """Else its tokens would be of one sample and its label of another."""
    first, second = np.arange(8), np.arange(8)
    first[3], second[4], second[6] = 4, 5, 7
    found = cache.settled(np.stack([first, second]))
    assert found.tolist() == [0, 1, 2, 5, 5, 5, 7, 7]


def test_batches_come_ahead_of_use_in_order_and_an_error_comes_through(sweep_file, tmp_path):
    feed = feed_of(spec_of(sweep_file), tmp_path)
    ids = [batch.labels.ids.tolist() for batch in feed.batches(16)]
    assert list(chain.from_iterable(ids)) == [f"test-{n}" for n in range(200)]
    first = feed.training(0, 10, range(16))
    again = feed.training(4, 10, range(16))
    wanted_ = [next(first).labels.ids.tolist() for _ in range(10)][4:]
    assert [next(again).labels.ids.tolist() for _ in range(6)] == wanted_  # any step can be next
    begun = time.monotonic()
    first.close()
    assert time.monotonic() - begun < 5
    with pytest.raises(IndexError):
        list(feed._batches(iter([cache.Request((10_000,))])))
