"""Footage of EPIC-Kitchens-100: the frame of an instant, read back from the pixels themselves."""

import pickle
import shutil
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from ek100_footage import (
    RATES,
    make_chunks,
    make_jpegs,
    make_tar,
    make_video,
    read_stamp,
    stamp,
    write_video,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.data.ek100.crop import Crop
from harness.data.ek100.footage import BadFootage, Footage, check
from harness.data.ek100.layout import Layout, find_layout

SECONDS = 5
SIZE = (96, 64)
VIDEO = {"59.94": "P01_01", "50": "P01_101", "29.97": "P01_02", "47.95": "P01_03"}
KINDS = ("videos", "avi", "chunks", "frames", "tars")
ROUNDING = 1e-4
"""seconds, of a stamp"""


def nominal(video: str) -> int:
    return 50 if len(video) == 7 else 60


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> dict[tuple[str, str], Layout]:
    """(kind, rate) -> a layout that holds one video of that rate."""
    top = tmp_path_factory.mktemp("shelf")
    made = {}
    for rate, video in VIDEO.items():
        for kind in KINDS:
            root = top / kind / rate
            if kind in ("videos", "avi"):
                suffix = {"videos": "MP4", "avi": "avi"}[kind]
                make_video(root / f"P01/videos/{video}.{suffix}", RATES[rate], SECONDS)
            elif kind == "chunks":
                make_chunks(root / f"P01/{video}.MP4", SECONDS, length=2)
            elif kind == "frames":
                make_jpegs(root / f"P01/rgb_frames/{video}", SECONDS, nominal(video))
            else:
                make_tar(root / f"P01/rgb_frames/{video}.tar", SECONDS, nominal(video))
            made[kind, rate] = find_layout(root, None, [video])
    return made


def open_one(layout: Layout) -> Footage:
    return layout.open(next(iter(layout.places)))


def half_frame(kind: str, rate: str) -> float:
    fps = {"chunks": 30, "frames": nominal(VIDEO[rate]), "tars": nominal(VIDEO[rate])}
    return 0.5 / float(fps.get(kind, RATES[rate])) + ROUNDING


def stamps(clip: np.ndarray) -> np.ndarray:
    return np.array([read_stamp(frame) for frame in clip])


def video_at(root: Path, name: str = "P01_01.MP4", **options) -> Path:
    return make_video(root / name, RATES["59.94"], options.pop("seconds", 1), **options)


@pytest.mark.parametrize("rate", VIDEO)
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_shows_the_instants_asked_for_within_half_a_frame(shelf, kind, rate):
    footage = open_one(shelf[kind, rate])
    asked = np.linspace(0, SECONDS - 0.05, 101)
    clip = footage.clip(asked, Crop(16, 0, 64, 64), (32, 32))
    assert clip.shape == (101, 32, 32, 3)
    assert clip.dtype == np.uint8
    assert np.abs(stamps(clip) - asked).max() <= half_frame(kind, rate)


@settings(max_examples=40, deadline=None)
@given(
    asked=st.lists(st.floats(-1.0, SECONDS + 0.9), min_size=1, max_size=20),
    kind=st.sampled_from(KINDS),
    rate=st.sampled_from(list(VIDEO)),
)
def test_any_instants_in_any_order_and_at_any_distance_get_their_frame(shelf, asked, kind, rate):
    footage = open_one(shelf[kind, rate])
    got = stamps(footage.clip(np.array(asked), None, (64, 96)))
    inside = np.clip(asked, 0, got.max() if max(asked) > SECONDS - 0.1 else SECONDS)
    assert np.abs(got - inside).max() <= half_frame(kind, rate)
    if max(asked) > SECONDS:
        assert got.max() >= SECONDS - 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_facts_of_the_footage(shelf, kind):
    footage = open_one(shelf[kind, "59.94"])
    assert footage.size == SIZE
    assert footage.duration == pytest.approx(SECONDS, abs=0.1)
    expected = {"chunks": 30, "frames": 60, "tars": 60}.get(kind, 59.94)
    assert footage.fps == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("first_pts", [0, 7, 90])
def test_time_counts_from_the_first_frame_whatever_its_time_stamp(tmp_path, first_pts):
    video_at(tmp_path, first_pts=first_pts)
    footage = find_layout(tmp_path, None, ["P01_01"]).open("P01_01")
    asked = np.array([0.0, 0.3, 0.9])
    got = stamps(footage.clip(asked, None, (64, 96)))
    assert np.abs(got - asked).max() <= half_frame("videos", "59.94")


def test_a_varying_rate_is_followed_by_time_stamps(tmp_path):
    left_out = {*range(10, 30), *range(31, 50, 2)}
    video_at(tmp_path, without=left_out)
    times = np.array([n for n in range(60) if n not in left_out]) / float(RATES["59.94"])
    footage = find_layout(tmp_path, None, ["P01_01"]).open("P01_01")
    asked = np.linspace(0, 0.98, 50)
    nearest = times[np.abs(times[:, None] - asked).argmin(axis=0)]
    assert np.abs(stamps(footage.clip(asked, None, (64, 96))) - nearest).max() <= ROUNDING


def pattern(width: int, height: int) -> np.ndarray:
    """A smooth picture, different everywhere."""
    y, x = np.mgrid[:height, :width] / height
    waves = (np.sin(6 * x + 2 * y), np.cos(5 * y - 3 * x), np.sin(4 * x) * np.cos(7 * y))
    return (128 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Layout:
    """The pattern as video, in two chunks, and as images."""
    root = tmp_path_factory.mktemp("pictures")
    still = [(number, pattern(192, 108)) for number in range(30)]
    write_video(root / "P01_01.mp4", Fraction(30), still)
    for second in (0, 1):
        write_video(root / f"P01_02.MP4/{second}.MP4", Fraction(30), still)
    for number in range(1, 61):
        file = root / f"P01_03/frame_{number:010d}.jpg"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(pattern(192, 108)).save(file, quality=92)
    return find_layout(root, None, ["P01_01", "P01_02", "P01_03"])


@pytest.mark.parametrize("video", ["P01_01", "P01_02", "P01_03"])
@pytest.mark.parametrize(
    ("crop", "size"),
    [
        (Crop(42, 0, 108, 108), (64, 64)),
        (Crop(31, 11, 90, 70), (48, 80)),
        (Crop(30, 11, 61, 67), (112, 112)),
        (Crop(131, 48, 61, 60), (32, 32)),
        (None, (54, 96)),
    ],
)
def test_crop_and_size_are_those_of_an_antialiased_resize(pictures, video, crop, size):
    clip = pictures.open(video).clip(np.array([0.0, 0.5]), crop, size)
    box = (crop.x, crop.y, crop.x + crop.width, crop.y + crop.height) if crop else None
    whole = Image.fromarray(pattern(192, 108))
    expected = np.asarray(whole.resize(size[::-1], Image.Resampling.BILINEAR, box=box), int)
    assert np.abs(clip - expected).mean() < 2
    assert np.abs(clip - expected).max() <= 20


def test_one_crop_holds_on_both_sides_of_a_chunk_border(pictures):
    clip = pictures.open("P01_02").clip(np.linspace(0.5, 1.5, 16), Crop(3, 5, 90, 90), (45, 45))
    assert np.abs(clip.astype(int) - clip[0]).mean() < 1


def test_colours_are_those_the_file_says_they_are_in(tmp_path):
    """Red of ITU-R BT.709 is Y 63, U 102, V 240; read as BT.601 it would be orange."""
    with av.open(str(tmp_path / "P01_01.MP4"), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.options = {"x264-params": "colormatrix=bt709:colorprim=bt709:transfer=bt709"}
        frame = av.VideoFrame(64, 64, "yuv420p")
        for plane, value in zip(frame.planes, (63, 102, 240), strict=True):
            np.frombuffer(plane, np.uint8)[:] = value
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    footage = find_layout(tmp_path, None, ["P01_01"]).open("P01_01")
    red = footage.clip(np.array([0.0]), None, (32, 32)).reshape(-1, 3)
    assert np.abs(red.astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("crop", [Crop(-1, 0, 5, 5), Crop(90, 0, 7, 7), Crop(0, 0, 0, 5)])
def test_a_crop_outside_the_frame_is_the_callers_mistake(shelf, kind, crop):
    with pytest.raises(
        ValueError, match=r"P01_01: Crop\(.*is not inside its frames of 96 x 64"
    ) as e:
        open_one(shelf[kind, "59.94"]).clip(np.array([1.0]), crop, (32, 32))
    assert not isinstance(e.value, BadFootage)


@pytest.mark.parametrize("asked", [[], [np.nan], [np.inf], [[1.0]]])
def test_instants_that_are_none_are_the_callers_mistake(shelf, asked):
    with pytest.raises(ValueError, match="instants must be finite numbers"):
        open_one(shelf["videos", "50"]).clip(np.array(asked), None, (32, 32))


# Faults: each damages one kind of footage; then every clip of it is an error that says what is.


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(4000))


def scratch(path: Path) -> None:
    """Damage the middle of the content."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(data)


def cut_with_index_in_front(path: Path) -> None:
    """As a download that stopped leaves a video whose index comes first."""
    whole = path.with_suffix(".whole.mp4")
    path.rename(whole)
    with (
        av.open(str(whole)) as old,
        av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as new,
    ):
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    cut(path)


def sound_only(path: Path) -> None:
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))


def index_only(path: Path) -> None:
    """A video whose pictures are all zero bytes."""
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def broken_disk(path: Path) -> None:
    """Reading the memory of a process at address 0 is an error of input and output."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


VIDEO_FAULTS = [
    (Path.unlink, "there is no such file"),
    (empty, "the file is empty"),
    (garbage, "not a video that can be read"),
    (cut, "not a video that can be read"),
    (cut_with_index_in_front, "damaged|truncated"),
    (scratch, "damaged"),
    (index_only, "damaged|no frame could be decoded|not a video that can be read"),
    (sound_only, "no video stream"),
    (folder, "it is not a file"),
    (broken_disk, "Input/output error"),
]
IMAGE_FAULTS = [
    (Path.unlink, "there is no image 31, but later ones are there"),
    (empty, "the file is empty"),
    (garbage, "not a JPEG"),
    (cut, "not a JPEG, or a truncated one"),
    (folder, "Is a directory"),
    (broken_disk, "Input/output error"),
]
TAR_FAULTS = [
    (Path.unlink, "there is no such file"),
    (empty, "the tar is truncated"),
    (garbage, "not a tar, or damaged at byte 0"),
    (cut, "the tar is truncated"),
    (folder, "it is not a file"),
    (broken_disk, "the tar is truncated|Input/output error"),
]


def fault_id(value: object) -> str | None:
    return value.__name__ if callable(value) else ""


def fails(footage: Footage, path: Path, capfd) -> str:
    """The message of the error of a clip, which names the video and the file."""
    with pytest.raises(BadFootage) as found:
        footage.clip(np.linspace(0.5, 0.9, 16), None, (64, 96))
    message = str(found.value)
    assert message.startswith(f"P01_01: {path}")
    assert capfd.readouterr() == ("", "")
    return message


@pytest.mark.parametrize(("damage", "cause"), VIDEO_FAULTS, ids=fault_id)
def test_a_bad_video_is_an_error_that_says_what_is_wrong(tmp_path, capfd, damage, cause):
    path = video_at(tmp_path)
    footage = find_layout(tmp_path, None, ["P01_01"]).open("P01_01")
    damage(path)
    message = fails(footage, path, capfd)
    assert any(part in message for part in cause.split("|")), message
    assert " s: " in message, "the instant is told"


@pytest.mark.parametrize(("damage", "cause"), IMAGE_FAULTS, ids=fault_id)
def test_a_bad_image_is_an_error_that_says_what_is_wrong(tmp_path, capfd, damage, cause):
    make_jpegs(tmp_path / "P01_01", 1, 60)
    footage = find_layout(tmp_path, None, ["P01_01"]).open("P01_01")
    damage(tmp_path / "P01_01/frame_0000000031.jpg")
    message = fails(footage, tmp_path / "P01_01", capfd)
    assert "at 0.500 s: " in message
    assert "image 31" in message
    assert cause in message


@pytest.mark.parametrize(("damage", "cause"), TAR_FAULTS, ids=fault_id)
def test_a_bad_tar_is_an_error_that_says_what_is_wrong(tmp_path, capfd, damage, cause):
    path = make_tar(tmp_path / "P01_01.tar", 1, 60)
    footage = find_layout(tmp_path, None, ["P01_01"]).open("P01_01")
    damage(path)
    message = fails(footage, path, capfd)
    assert any(part in message for part in cause.split("|")), message


def test_a_tar_without_images_is_an_error(tmp_path, capfd):
    path = tmp_path / "P01_01.tar"
    shutil.make_archive(str(path.with_suffix("")), "tar", Path(__file__).parent, "conftest.py")
    footage = find_layout(tmp_path, None, ["P01_01"]).open("P01_01")
    assert "no numbered image" in fails(footage, path, capfd)


def test_a_tar_cut_after_its_index_was_made_is_an_error(tmp_path, capfd):
    path = make_tar(tmp_path / "P01_01.tar", 1, 60)
    footage = find_layout(tmp_path, None, ["P01_01"]).open("P01_01")
    index = footage.index
    cut(path)
    with pytest.raises(OSError, match="cut after its index was made"):
        index.read(60)
    assert "the tar is truncated" in fails(footage, path, capfd)


@pytest.mark.parametrize(
    ("damage", "cause"), [(Path.unlink, "no such file"), (empty, "is empty"), (cut, "not a video")]
)
def test_a_bad_chunk_is_an_error_that_names_it(tmp_path, capfd, damage, cause):
    make_chunks(tmp_path / "P01_01.MP4", 4, length=2)
    footage = find_layout(tmp_path, None, ["P01_01"]).open("P01_01")
    damage(tmp_path / "P01_01.MP4/2.MP4")
    footage.clip(np.array([0.0, 1.9]), None, (64, 96))
    with pytest.raises(BadFootage, match=rf"P01_01: .*/2\.MP4 at 2\.500 s: .*{cause}"):
        footage.clip(np.array([1.9, 2.5, 3.0]), None, (64, 96))
    assert capfd.readouterr() == ("", "")


def test_a_gap_between_chunks_is_an_error(tmp_path):
    make_chunks(tmp_path / "P01_01.MP4", 6, length=2)
    (tmp_path / "P01_01.MP4/2.MP4").unlink()
    footage = find_layout(tmp_path, None, ["P01_01"]).open("P01_01")
    with pytest.raises(BadFootage, match=r"at 2\.500 s: the footage ends at 1\.967 s"):
        footage.clip(np.array([1.0, 2.5]), None, (64, 96))
    (tmp_path / "P01_01.MP4/0.MP4").unlink()
    footage = find_layout(tmp_path, None, ["P01_01"]).open("P01_01")
    with pytest.raises(BadFootage, match=r"at 1\.000 s: the first chunk is 4\.MP4"):
        footage.clip(np.array([1.0, 4.5]), None, (64, 96))


@pytest.mark.parametrize("kind", KINDS)
def test_instants_far_beyond_the_footage_are_an_error(shelf, kind):
    footage = open_one(shelf[kind, "59.94"])
    for asked in ([1.0, SECONDS + 1.2], [SECONDS + 300.0], [-1.2, 0.0]):
        with pytest.raises(BadFootage, match=r"P01_01: .*at -?\d+\.\d\d\d s: "):
            footage.clip(np.array(asked), None, (64, 96))


def test_footage_that_failed_is_read_again_once_it_is_whole(tmp_path):
    path = video_at(tmp_path)
    whole = path.read_bytes()
    footage = find_layout(tmp_path, None, ["P01_01"]).open("P01_01")
    scratch(path)
    with pytest.raises(BadFootage):
        footage.clip(np.linspace(0, 0.9, 9), None, (64, 96))
    path.write_bytes(whole)
    assert read_stamp(footage.clip(np.array([0.8]), None, (64, 96))[0]) == pytest.approx(
        0.8, abs=0.01
    )


def test_a_wrong_rate_is_told_of_whole_videos_only(shelf):
    assert check(open_one(shelf["videos", "59.94"]), 59.94) == ""
    assert check(open_one(shelf["videos", "59.94"]), 60) == ""
    told = check(open_one(shelf["videos", "29.97"]), 59.94)
    assert "29.97 frames per second, annotated are 59.94" in told
    assert check(open_one(shelf["chunks", "59.94"]), 59.94) == ""
    assert check(open_one(shelf["tars", "47.95"]), 47.95) == ""


# Processes and threads


class Clips(torch.utils.data.Dataset):
    """Four clips of each layout, as stamps."""

    def __init__(self, layouts: list[Layout]) -> None:
        self.layouts = layouts
        self.opened = [open_one(layout) for layout in layouts]

    def __len__(self) -> int:
        return 4 * len(self.layouts)

    def __getitem__(self, index: int) -> np.ndarray:
        footage = self.opened[index // 4]
        return stamps(footage.clip(np.linspace(0, 3, 4) + index % 4 / 4, None, (64, 96)))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_what_the_parent_has_open_without_disturbing_it(shelf, context):
    clips = Clips([shelf[kind, "59.94"] for kind in KINDS])
    expected = [clips[index] for index in range(len(clips))]
    loader = torch.utils.data.DataLoader(
        clips, batch_size=None, num_workers=2, multiprocessing_context=context, timeout=120
    )
    for index, got in enumerate(loader):
        np.testing.assert_array_equal(got, expected[index])
        np.testing.assert_array_equal(clips[index], expected[index])


def test_a_bad_video_in_a_worker_is_raised_as_such_in_the_parent(tmp_path):
    garbage(tmp_path / "P01_01.MP4")
    clips = Clips([find_layout(tmp_path, None, ["P01_01"])])
    loader = torch.utils.data.DataLoader(clips, batch_size=None, num_workers=1, timeout=120)
    with pytest.raises(BadFootage, match=r"P01_01: .*not a video that can be read"):
        list(loader)


def test_threads_do_not_share_an_open_file(shelf):
    clips = Clips([shelf[kind, "50"] for kind in KINDS])
    expected = [clips[index] for index in range(len(clips))]
    wrong = []

    def read() -> None:
        for index in range(len(clips)):
            if not np.array_equal(clips[index], expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_layout_and_its_footage_survive_pickling_after_use(shelf):
    for kind in KINDS:
        layout = pickle.loads(pickle.dumps(shelf[kind, "50"]))
        assert layout == shelf[kind, "50"]
        footage = pickle.loads(pickle.dumps(open_one(layout)))
        assert footage.clip(np.array([1.0]), None, (64, 96)).shape == (1, 64, 96, 3)


def test_a_stamp_is_read_back_from_a_frame_of_32_pixels():
    for seconds in (0.0, 1.2345, 1600.0001):
        small = Image.fromarray(stamp(seconds, (96, 64))).resize(
            (48, 32), Image.Resampling.BILINEAR
        )
        assert read_stamp(np.asarray(small)) == pytest.approx(seconds, abs=ROUNDING)
