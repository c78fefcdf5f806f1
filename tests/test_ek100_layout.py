"""Where EPIC-Kitchens-100's footage lies: every layout is found, and what is not there is told."""

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from ek100_footage import RATES, make_chunks, make_jpegs, make_tar, make_video, read_stamp

from harness.config import ConfigError
from harness.data.ek100.layout import KNOWN, Layout, find_layout

SECONDS = 2


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """kind -> footage of one video, to be copied to where a test wants it."""
    top = tmp_path_factory.mktemp("made")
    return {
        "videos": make_video(top / "video.mp4", RATES["59.94"], SECONDS),
        "avi": make_video(top / "video.avi", RATES["59.94"], SECONDS),
        "chunks": make_chunks(top / "chunks", SECONDS, length=1),
        "frames": make_jpegs(top / "frames", SECONDS, 60),
        "tars": make_tar(top / "images.tar", SECONDS, 60),
    }


def lay(made: dict[str, Path], kind: str, path: Path) -> Path:
    """Copy the footage of a kind to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if made[kind].is_dir() else shutil.copy)(made[kind], path)
    return path


def shows(layout: Layout, video: str) -> bool:
    """Whether the footage tells the time that it is asked for."""
    clip = layout.open(video).clip(np.array([1.5]), None, (64, 96))
    return abs(read_stamp(clip[0]) - 1.5) < 0.02


PLACES = [
    ("videos", "P01/videos/P01_01.MP4"),
    ("videos", "P01/P01_01.MP4"),
    ("videos", "P01_01.MP4"),
    ("videos", "videos/train/P01/P01_01.MP4"),
    ("videos", "videos/test/P01/P01_01.MP4"),
    ("avi", "P01/videos/P01_01.avi"),
    ("chunks", "P01/P01_01.MP4"),
    ("chunks", "P01_01.MP4"),
    ("frames", "P01/rgb_frames/P01_01"),
    ("frames", "frames_rgb_flow/rgb/train/P01/P01_01"),
    ("frames", "frames_rgb_flow/rgb/test/P01/P01_01"),
    ("frames", "P01/P01_01"),
    ("frames", "P01_01"),
    ("tars", "P01/rgb_frames/P01_01.tar"),
    ("tars", "frames_rgb_flow/rgb/train/P01/P01_01.tar"),
]


@pytest.mark.parametrize("change", [str, str.lower, str.upper], ids=["as is", "lower", "upper"])
@pytest.mark.parametrize("top", ["", "EPIC-KITCHENS/"])
@pytest.mark.parametrize(("kind", "place"), PLACES)
def test_every_layout_is_found_in_any_letter_case(tmp_path, made, kind, place, top, change):
    path = lay(made, kind, tmp_path / change(top + place))
    layout = find_layout(tmp_path, None, ["P01_01", "P01_02"])
    assert layout.kind == ("videos" if kind == "avi" else kind)
    assert layout.places["P01_01"].path == path
    assert layout.missing == ("P01_02",)
    assert shows(layout, "P01_01")


@pytest.mark.parametrize(
    ("kind", "template", "place"),
    [
        ("videos", "small/{pid}/{vid}_256.mkv", "small/P01/P01_01_256.mkv"),
        ("chunks", "{vid}/{vid}_{second}.mp4", "P01_01"),
        ("frames", "{pid}/jpg/{vid}/frame_{frame:010d}.jpg", "P01/jpg/P01_01"),
        ("tars", "tars/{vid}.tar", "tars/P01_01.TAR"),
    ],
)
def test_a_template_finds_what_lies_elsewhere(tmp_path, made, kind, template, place):
    path = lay(made, kind, tmp_path / place)
    if kind == "chunks":
        for file in path.iterdir():
            file.rename(path / f"P01_01_{file.name}")
    layout = find_layout(tmp_path, template, ["P01_01"])
    assert layout.kind == kind
    assert shows(layout, "P01_01")


@pytest.mark.parametrize("suffix", ["JPG", "jpeg", "JPEG"])
@pytest.mark.parametrize("first", [0, 1])
def test_images_may_begin_at_0_and_be_spelt_otherwise(tmp_path, made, suffix, first):
    for file in sorted(made["frames"].iterdir()):
        number = int(file.stem.split("_")[1]) - 1 + first
        shutil.copy(file, tmp_path / f"P01_01_{number:06d}.{suffix}")
    layout = find_layout(tmp_path, "{vid}_{frame:06d}.jpg", ["P01_01"])
    assert shows(layout, "P01_01")
    assert layout.open("P01_01").duration == SECONDS


def test_images_of_a_tar_may_begin_at_0(tmp_path, made):
    with tarfile.open(tmp_path / "P01_01.tar", "w") as tar:
        for number, file in enumerate(sorted(made["frames"].iterdir())):
            tar.add(file, f"rgb/{number:06d}.jpg")
    assert shows(find_layout(tmp_path, None, ["P01_01"]), "P01_01")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{pid}/{video}.mp4", r"unknown field \{video\}. Known: \{pid\}, \{vid\}, "),
        ("{pid}/{}.mp4", r"unknown field \{\}"),
        ("{vid.__class__}.mp4", r"unknown field \{vid.__class__\}"),
        ("{pid}/{vid.mp4", "expected '}'"),
        ("{pid}/video.mp4", r"it has no \{vid\}"),
        ("{vid:>9}.mp4", r"\{vid\} cannot be written so"),
        ("{vid!r}.mp4", r"\{vid\} cannot be written so"),
        ("{vid}/{frame:x}.jpg", r"\{frame\} cannot be written so; \{frame:06d\} can"),
        ("{vid}/{second}/{frame}.jpg", "may stand in the file's name only"),
        ("{vid}/{second}_{frame}.jpg", "may stand in the file's name only"),
        ("{vid}/{frame:06d}.png", "frames are JPEG files"),
        ("/data/{vid}.mp4", "folders below the root"),
        ("../{vid}.mp4", "folders below the root"),
        ("{vid}/", "folders below the root"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(tmp_path, template, said):
    with pytest.raises(ConfigError, match=said) as found:
        find_layout(tmp_path, template, ["P01_01"])
    assert repr(template) in str(found.value)


def test_of_several_layouts_each_video_takes_the_first_that_has_it(tmp_path, made):
    lay(made, "tars", tmp_path / "P01/rgb_frames/P01_01.tar")
    lay(made, "tars", tmp_path / "P01/rgb_frames/P01_02.tar")
    lay(made, "frames", tmp_path / "P01/rgb_frames/P01_01")
    lay(made, "chunks", tmp_path / "P01/P01_01.MP4")
    lay(made, "frames", tmp_path / "P01_03")
    videos = ["P01_03", "P01_02", "P01_01"]
    layout = find_layout(tmp_path, None, videos)
    kinds = {video: place.kind for video, place in layout.places.items()}
    assert kinds == {"P01_01": "chunks", "P01_02": "tars", "P01_03": "frames"}
    assert layout.kind == "chunks + frames + tars"
    assert all(shows(layout, video) for video in videos)
    lay(made, "videos", tmp_path / "P01/videos/P01_01.MP4")
    assert find_layout(tmp_path, None, videos).kind == "frames + tars + videos"


def test_an_empty_folder_a_pipe_or_a_dead_link_is_no_footage(tmp_path, made):
    lay(made, "videos", tmp_path / "P01_09.MP4")
    (tmp_path / "P01_01.MP4").mkdir()
    (tmp_path / "P01_02").mkdir()
    os.mkfifo(tmp_path / "P01_03.MP4")
    (tmp_path / "P01_04.MP4").symlink_to(tmp_path / "gone")
    videos = ["P01_01", "P01_02", "P01_03", "P01_04", "P01_09"]
    layout = find_layout(tmp_path, None, videos)
    assert layout.missing == tuple(videos[:4])
    with pytest.raises(ValueError, match=r"P01_03: .*no footage of it was found"):
        layout.open("P01_03")


def test_where_nothing_is_found_it_says_what_was_looked_for_and_what_is_there(tmp_path, made):
    def told(root: Path, template: str | None = None) -> str:
        with pytest.raises(ValueError, match="no footage of any of 2 videos") as found:
            find_layout(root, template, ["P01_01", "P01_02"])
        assert str(found.value).startswith(f"{root}: ")
        return str(found.value)

    assert "there is no such folder" in told(tmp_path / "nowhere")
    assert "the folder is empty" in told(tmp_path)
    assert all(f"    {template}\n" in told(tmp_path) for template in KNOWN)
    (tmp_path / "notes.txt").write_text("")
    assert "the folder holds notes.txt" in told(tmp_path)
    assert "it is not a folder" in told(tmp_path / "notes.txt")
    lay(made, "videos", tmp_path / "clips/P07_01.mp4")
    assert f"the nearest thing is {Path('clips/P07_01.mp4')}" in told(tmp_path)
    lay(made, "videos", tmp_path / "x/deep/down/p01_02_small.mp4")
    assert "the nearest thing is x/deep/down/p01_02_small.mp4" in told(tmp_path)
    only = told(tmp_path, "{pid}/{vid}.mkv")
    assert "    {pid}/{vid}.mkv\n" in only
    assert KNOWN[0] not in only


@pytest.mark.parametrize("kind", ["videos", "chunks", "frames", "tars"])
def test_facts_for_a_fingerprint_follow_the_content_and_not_the_place(tmp_path, made, kind):
    place = {"videos": "P01_01.MP4", "chunks": "P01_01.MP4", "tars": "P01_01.tar"}.get(
        kind, "P01_01"
    )
    parts = []
    for root in (tmp_path / "here", tmp_path / "there"):
        path = lay(made, kind, root / place)
        parts.append(find_layout(root, None, ["P01_01"]).digest_parts(["P01_01", "P01_02"]))
    assert parts[0] == parts[1]
    assert parts[0][0].startswith(f"P01_01 {kind} ")
    assert parts[0][1] == "P01_02 missing"
    if kind == "frames":
        (path / f"frame_{60 * SECONDS:010d}.jpg").unlink()
    else:
        with open(path / "1.MP4" if kind == "chunks" else path, "ab") as file:
            file.write(b"more")
    changed = find_layout(root, None, ["P01_01"]).digest_parts(["P01_01", "P01_02"])
    assert changed != parts[1]


def test_the_index_of_a_tar_is_kept_on_disk_and_follows_the_tar(tmp_path, made):
    lay(made, "tars", tmp_path / "P01_01.tar")
    cache = tmp_path / "cache"

    def index(folder: Path) -> np.ndarray:
        layout = find_layout(tmp_path, None, ["P01_01"], folder)
        assert shows(layout, "P01_01")
        return layout.open("P01_01").index.spans

    first = index(cache)
    (kept,) = cache.iterdir()
    kept.write_bytes(b"damaged")
    os.utime(tmp_path / "P01_01.tar", (1, 1))
    np.testing.assert_array_equal(index(cache), first)
    assert len(list(cache.iterdir())) == 2

    (newer,) = set(cache.iterdir()) - {kept}
    np.testing.assert_array_equal(np.load(newer), first)
    blocked = tmp_path / "file"
    blocked.write_text("")
    np.testing.assert_array_equal(index(blocked / "cache"), first)


def test_a_damaged_index_on_disk_is_made_anew(tmp_path, made):
    from harness.data.ek100 import tars

    lay(made, "tars", tmp_path / "P01_01.tar")
    cache = tmp_path / "cache"
    whole = tars.tar_index(tmp_path / "P01_01.tar", cache).spans
    (kept,) = cache.iterdir()
    for bad in (b"", b"damaged", kept.read_bytes()[:-8]):
        kept.unlink()  # whole's pages are mapped from it
        kept.write_bytes(bad)
        tars._index.cache_clear()  # as another process would begin
        np.testing.assert_array_equal(tars.tar_index(tmp_path / "P01_01.tar", cache).spans, whole)
        np.testing.assert_array_equal(np.load(kept), whole)
