"""EK100 hand-object boxes: official pickles and both h5 layouts, linked, in a clip's slots."""

import ast
import logging
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from ek100_bench import record
from ek100_bench import write_records as write
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.ek100 import boxes as boxes_module
from harness.data.ek100 import linking
from harness.data.ek100.boxes import Boxes
from harness.data.ek100.detections import LEFT, RIGHT, Detections, message_class, read
from harness.data.ek100.numbers import frame_numbers, nominal_fps

CUP = (0.5, 0.5, 0.7, 0.8)
KNIFE = (0.1, 0.1, 0.3, 0.25)


def video(frames: list[list[tuple]]) -> Detections:
    """Objects of successive frames, as `read` gives them."""
    count = len(frames)
    objects = np.array([box for frame in frames for box in frame], float).reshape(-1, 4)
    ends = np.cumsum([len(frame) for frame in frames])
    return Detections(np.arange(1, count + 1), np.zeros((count, 2, 4)), objects, ends)


def told(frames: list[list[tuple]]) -> list[list[int]]:
    """Ids that are told of, frame by frame."""
    tracks = linking.link(video(frames))
    return [tracks["id"][tracks["frame"] == n + 1].tolist() for n in range(len(frames))]


def moved(box: tuple, x: float, y: float = 0.0) -> tuple:
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y


def test_a_message_is_encoded_as_the_published_schema_says():
    box = b"\x0d\x00\x00\x00\x3e\x15\x00\x00\x80\x3e\x1d\x00\x00\x00\x3f\x25\x00\x00\x40\x3f"
    hand = b"\x0a\x14" + box + b"\x15\x00\x00\x80\x3f\x18\x04\x22\x05\x15\x00\x00\x80\x3e\x28\x01"
    thing = b"\x0a\x14" + box + b"\x15\x00\x00\x00\x3f"
    raw = b"\x0a\x06P01_01\x10\x2a"
    raw += b"\x1a" + bytes([len(hand)]) + hand + b"\x22" + bytes([len(thing)]) + thing
    message = message_class()()
    message.ParseFromString(raw)
    assert (message.video_id, message.frame_number) == ("P01_01", 42)
    (found,), (other,) = message.hands, message.objects
    corners = [found.bbox.left, found.bbox.top, found.bbox.right, found.bbox.bottom]
    assert corners == [0.125, 0.25, 0.5, 0.75]
    assert (found.score, found.state, found.side, found.object_offset.y) == (1, 4, RIGHT, 0.25)
    assert (other.score, other.bbox.right) == (0.5, 0.5)
    assert message.SerializeToString() == raw, "a field went unread"


def test_a_pickle_gives_best_hands_and_all_objects_in_order_of_frames(tmp_path):
    hands = [(RIGHT, 0.4, CUP), (RIGHT, 0.9, KNIFE), (LEFT, 0.2, CUP)]
    file = write(tmp_path / "P01_01.pkl", [record(2, [CUP, KNIFE]), record(1, [KNIFE], hands)])
    found = read(file)
    assert found.frames.tolist() == [1, 2]
    assert found.ends.tolist() == [1, 3]
    np.testing.assert_allclose(found.hands[0], [KNIFE, CUP], rtol=1e-6)
    assert not found.hands[1].any()
    np.testing.assert_allclose(found.objects, [KNIFE, CUP, KNIFE], rtol=1e-6)


class Payload:
    """Makes a folder when it is unpickled by a reader that trusts the file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    target = tmp_path / "harmed"
    file = write(tmp_path / "P01_01.pkl", [Payload(target)])
    with pytest.raises(ValueError, match=r"P01_01\.pkl: .*posix\.mkdir; that is forbidden"):
        read(file)
    assert not target.exists()
    pickle.loads(file.read_bytes())
    assert target.exists(), "the payload is harmless, so the test shows nothing"


NAN = float("nan")
WHOLE = pickle.dumps([record(1, [CUP])])


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "EOFError"),
        (WHOLE[:-9], "not a pickle of hand-object detections: .*truncated|Ran out"),
        (b"\x89HDF\r\n", "not a pickle"),
        (pickle.dumps({"frames": []}), "not a pickled list of bytes"),
        (pickle.dumps(["text"]), "not a pickled list of bytes"),
        (pickle.dumps([]), "empty list"),
        (pickle.dumps([record(1), b"\xff\xff\xff"]), "record 1: not a message"),
        (pickle.dumps([record(0)]), "record 0: frame number 0"),
        (pickle.dumps([record(1), record(1)]), "frame 1 is there twice"),
        (pickle.dumps([record(1), record(7, [CUP, (0, 0, NAN, 1)])]), "frame 7 .*finite"),
        (pickle.dumps([record(3, [], [(LEFT, 1, (0, 0, NAN, 1))])]), "frame 3 .*finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_pickle_is_an_error_that_says_where_and_why(content, cause, tmp_path):
    file = tmp_path / "P01_01.pkl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=cause) as error:
        read(file)
    assert str(error.value).startswith(f"{file}: ")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_cut_or_changed_pickle_is_read_or_refused(data, tmp_path_factory):
    whole = pickle.dumps([record(n, [CUP], [(LEFT, 0.5, KNIFE)]) for n in range(1, 4)])
    content = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place in data.draw(st.lists(st.integers(0, max(0, len(content) - 1)), max_size=3)):
        content[place : place + 1] = bytes([data.draw(st.integers(0, 255))])
    file = tmp_path_factory.mktemp("cut") / "P01_01.pkl"
    file.write_bytes(bytes(content))
    try:
        found = read(file)
    except ValueError as error:
        refused = str(error)
    else:
        assert len(found.frames) == len(found.hands) == len(found.ends)
        assert np.isfinite(found.objects).all()
        return
    assert refused.startswith(f"{file}: ")


def test_a_moving_object_keeps_its_id_and_its_place():
    path = [[moved(KNIFE, 0.01 * n)] for n in range(40)]
    assert told(path) == [[3]] * 40
    tracks = linking.link(video(path))
    np.testing.assert_allclose(tracks["box"][10:], [frame[0] for frame in path[10:]], atol=2e-3)


def test_an_object_that_comes_later_is_told_of_in_its_fourth_frame():
    frames = [[KNIFE]] * 5 + [[KNIFE, CUP]] * 5
    assert told(frames) == [[3]] * 8 + [[4, 3]] * 2, "the newest is told of first"


def test_objects_that_cross_keep_their_ids():
    right = [moved((0.1, 0.40, 0.25, 0.60), 0.015 * n) for n in range(40)]
    left = [moved((0.7, 0.45, 0.90, 0.70), -0.015 * n) for n in range(40)]
    frames = [[a, b] if n % 2 else [b, a] for n, (a, b) in enumerate(zip(right, left, strict=True))]
    tracks = linking.link(video(frames))
    assert set(tracks["id"].tolist()) == {3, 4}
    (first,) = tracks["box"][(tracks["frame"] == 1) & (tracks["id"] == 3)]
    begins_right = np.allclose(first, right[0], atol=1e-5)
    last = tracks["box"][(tracks["frame"] == 40) & (tracks["id"] == 3)][0]
    np.testing.assert_allclose(last, right[-1] if begins_right else left[-1], atol=0.01)


def test_a_track_outlives_one_frame_without_its_object_and_not_two():
    one = [[KNIFE]] * 6 + [[]] + [[KNIFE]] * 6
    assert told(one) == [[3]] * 6 + [[]] * 3 + [[3]] * 4
    two = [[KNIFE]] * 6 + [[], []] + [[KNIFE]] * 6
    assert told(two) == [[3]] * 6 + [[]] * 5 + [[4]] * 3


def test_frames_without_a_record_are_frames_without_objects():
    def gap(of: int) -> list[int]:
        found = video([[KNIFE]] * 12)
        shifted = found.frames + of * (found.frames > 6)
        tracks = linking.link(found._replace(frames=shifted))
        return sorted(set(tracks["id"].tolist()))

    assert gap(1) == [3]
    assert gap(2) == gap(10**9) == [3, 4]


def test_objects_of_a_hundredth_of_the_frame_or_less_are_not_linked():
    small = (0.5, 0.5, 0.5 + 1 / 128, 0.9)
    assert told([[small, KNIFE]] * 4) == [[3]] * 4
    assert told([[small]] * 4) == [[]] * 4


def matrix_filter(values: np.ndarray, found: list[bool]) -> np.ndarray:
    """SORT's filter as the textbook writes it: seven numbers, full matrices. Estimates (T, 4)."""
    step = np.eye(7) + np.diag([1.0, 1, 1], 4)
    see = np.eye(4, 7)
    x, spread = np.concatenate([values[0], [0, 0, 0]]), np.diag([10.0] * 4 + [1e4] * 3)
    noise, error = np.diag([1, 1, 1, 1, 1e-2, 1e-2, 1e-4]), np.diag([1.0, 1, 10, 10])
    out = [x[:4]]
    for value, there in zip(values[1:], found[1:], strict=True):
        x, spread = step @ x, step @ spread @ step.T + noise
        if there:
            gain = spread @ see.T @ np.linalg.inv(see @ spread @ see.T + error)
            x = x + gain @ (value - see @ x)
            spread = (np.eye(7) - gain @ see) @ spread
        out.append(x[:4])
    return np.array(out)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 20))
def test_the_split_filter_is_the_filter_of_full_matrices(seed, gap):
    rng = np.random.default_rng(seed)
    path = np.array(CUP) + np.cumsum(rng.normal(0, 0.004, (30, 4)), axis=0)
    there = [n != gap for n in range(30)]
    tracker, got = linking.Sort(), []
    for box, found in zip(path, there, strict=True):
        tracker.step(box[None] if found else np.empty((0, 4)))
        assert len(tracker.ids) == 1
        got.append(tracker.state[0, 0].copy())
    np.testing.assert_allclose(got, matrix_filter(linking.measured(path), there), rtol=1e-9)


def test_where_boxes_overlap_with_several_the_sum_of_overlaps_is_largest():
    boxes = np.array([[0.0, 0, 1, 1], [0.2, 0, 1.2, 1]])
    predicted = np.array([[0.15, 0, 1.15, 1], [0.6, 0, 1.6, 1]])
    rows, columns = linking.match(boxes, predicted)
    pairs = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    overlap = linking.overlaps(boxes, predicted)
    assert overlap[0, 0] + overlap[1, 1] > overlap[0, 1] + overlap[1, 0]
    assert pairs == {0: 0, 1: 1}


def seconds(*frames: int, fps: int = 60) -> np.ndarray:
    """Instants of the frames of those numbers."""
    return (np.array(frames) - 1) / fps


HANDS = [(LEFT, 0.9, (0.0, 0.5, 0.25, 1.0)), (RIGHT, 0.8, (0.5, 0.5, 1.0, 1.0))]


@pytest.fixture
def pickled() -> list[bytes]:
    """A knife from the start, a cup from frame 5 on, hands in frame 2 and from 30 on."""
    return [
        record(n, [KNIFE] if n < 5 else [KNIFE, CUP], HANDS if n == 2 or n >= 30 else [])
        for n in range(1, 61)
    ]


@pytest.mark.parametrize("above", ["", "EPIC-KITCHENS/"])
@pytest.mark.parametrize(
    "layout", ["P01/hand-objects/P01_01.pkl", "hand-objects/P01/P01_01.pkl", "P01/P01_01.pkl",
               "P01_01.pkl"],
)  # fmt: skip
def test_every_layout_of_pickles_is_found(layout, above, pickled, tmp_path):
    write(tmp_path / above / layout, pickled)
    clip = Boxes.open(tmp_path).clip("P01_01", seconds(2))
    np.testing.assert_allclose(clip[0, :2], [HANDS[1][2], HANDS[0][2]])


def test_slots_are_right_hand_left_hand_then_objects_as_they_appear(pickled, tmp_path):
    write(tmp_path / "P01_01.pkl", pickled)
    boxes = Boxes.open(tmp_path)
    clip = boxes.clip("P01_01", seconds(1, 2, 40, 61))
    assert clip.shape == (4, 4, 4)
    assert clip.dtype == np.float32
    none = [0, 0, 0, 0]
    right, left = HANDS[1][2], HANDS[0][2]
    expected = [[none, none, KNIFE, none], [right, left, KNIFE, none], [right, left, KNIFE, CUP],
                [none] * 4]  # fmt: skip
    np.testing.assert_allclose(clip, expected, atol=1e-6)
    late = boxes.clip("P01_01", seconds(40), slots=3)
    np.testing.assert_allclose(late, [[right, left, CUP]], atol=1e-6)


def test_boxes_leave_within_the_frame_and_small_ones_take_no_slot(tmp_path):
    wide, thin = (-0.1, 0.2, 0.4, 1.2), (0.1, 0.1, 0.14, 0.9)
    write(tmp_path / "P01_01.pkl", [record(n, [thin, wide]) for n in range(1, 9)])
    clip = Boxes.open(tmp_path).clip("P01_01", seconds(8))
    np.testing.assert_allclose(clip[0, 2], [0, 0.2, 0.4, 1], atol=1e-6)
    assert not clip[0, [0, 1, 3]].any()


def test_boxes_are_those_of_the_image_that_is_shown():
    assert (nominal_fps("P01_01"), nominal_fps("P01_101")) == (60, 50)
    assert frame_numbers("P01_01", np.array([0.0, 0.008, 0.01, 1.0, 1.019])).tolist() == [
        1, 1, 2, 61, 62
    ]  # fmt: skip
    for video_name in ("P01_01", "P01_101"):
        frames = np.arange(1, 200_000)
        times = (frames - 1) / nominal_fps(video_name)
        assert (frame_numbers(video_name, times) == frames).all()
    with pytest.raises(ValueError, match="'cup' is not a video's name"):
        nominal_fps("cup")


@pytest.fixture
def rows() -> dict[int, np.ndarray]:
    """Frame -> linked boxes with ids, as `epickitchens.h5` has them."""
    first = [[*HANDS[1][2], 0], [0, 0, 0, 0, 1], [*CUP, 9], [*KNIFE, 7]]
    second = [[*HANDS[1][2], 0], [*HANDS[0][2], 1], [*moved(KNIFE, 0.1), 7]]
    return {1: np.array(first), 12: np.array(second)}


def write_h5(path: Path, rows: dict[int, np.ndarray], parts: bool) -> Path:
    with h5py.File(path, "w") as file:
        for frame, values in rows.items():
            if parts:
                file[f"P01_01/{frame}/hand"] = values[values[:, 4] < 2]
                file[f"P01_01/{frame}/obj"] = values[values[:, 4] > 2]
            else:
                file[f"P01_01/{frame}"] = values
    return path


@pytest.mark.parametrize("parts", [False, True], ids=["orvit", "inavit"])
def test_both_h5_layouts_are_told_apart_and_read(parts, rows, tmp_path):
    write_h5(tmp_path / "epickitchens.h5", rows, parts)
    none = [0, 0, 0, 0]
    right, left = HANDS[1][2], HANDS[0][2]
    expected = [[right, none, CUP, KNIFE], [none] * 4, [right, left, none, moved(KNIFE, 0.1)]]
    for path in (tmp_path, tmp_path / "epickitchens.h5"):
        clip = Boxes.open(path).clip("P01_01", seconds(1, 5, 12))
        np.testing.assert_allclose(clip, expected, atol=1e-6)


def _clip(boxes: Boxes, queue) -> None:
    before = boxes_module._handle.cache_info().misses
    clip = boxes.clip("P01_01", seconds(1, 12))
    queue.put((clip, boxes_module._handle.cache_info().misses - before))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_an_opened_h5_file_is_read_in_other_processes_too(method, rows, tmp_path):
    boxes = Boxes.open(write_h5(tmp_path / "epickitchens.h5", rows, False))
    here = boxes.clip("P01_01", seconds(1, 12))
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    workers = [context.Process(target=_clip, args=(boxes, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for _ in workers:
        clip, opened = queue.get(timeout=60)
        np.testing.assert_array_equal(clip, here)
        assert opened == 1, "it reads through what another process had opened"
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda r: r * np.nan, "frame 1 is not of finite numbers"),
        (lambda r: r * 256, "frame 1 is not in shares of the frame"),
        (lambda r: r[:, :4], r"frame 1 is \(4, 4\), not \(n, 5\)"),
    ],
)
def test_a_bad_frame_of_an_h5_file_is_an_error_that_names_it(change, cause, rows, tmp_path):
    file = write_h5(tmp_path / "epickitchens.h5", {1: change(rows[1])}, False)
    with pytest.raises(ValueError, match=cause) as error:
        Boxes.open(file).clip("P01_01", seconds(1))
    assert str(error.value).startswith(f"{file}: P01_01: ")


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n" + bytes(40), b"text"])
def test_a_file_that_is_not_hdf5_is_an_error_that_names_it(content, tmp_path):
    file = tmp_path / "epickitchens.h5"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"epickitchens\.h5: not an HDF5 file"):
        Boxes.open(file)


def test_an_h5_file_of_something_else_is_an_error_that_says_what_is_needed(tmp_path):
    for name, key in (("a.h5", "weights"), ("b.h5", "P01_01/1/weights"), ("c.h5", None)):
        with h5py.File(tmp_path / name, "w") as file:
            if key:
                file[key] = np.zeros(3)
        with pytest.raises(ValueError, match="neither /VIDEO/FRAME nor"):
            Boxes.open(tmp_path / name)


def test_a_place_without_boxes_is_an_error_and_no_place_means_none(tmp_path):
    with pytest.raises(ValueError, match=r"elsewhere: no such file or folder"):
        Boxes.open(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"no hand-object boxes; looked for .*epickitchens\.h5"):
        Boxes.open(tmp_path)
    clip = Boxes.open(None).clip("P01_01", seconds(1, 2, 3), slots=6)
    assert clip.shape == (3, 6, 4)
    assert not clip.any()


def test_two_files_of_one_video_are_an_error_that_names_both(pickled, tmp_path):
    write(tmp_path / "P01_01.pkl", pickled)
    write(tmp_path / "P01/hand-objects/P01_01.pkl", pickled)
    with pytest.raises(ValueError, match=r"two files of P01_01: .*hand-objects.*keep one"):
        Boxes.open(tmp_path)


def test_a_video_without_boxes_has_none_and_that_is_said_once(pickled, rows, tmp_path, caplog):
    write(tmp_path / "P01_01.pkl", pickled)
    h5 = write_h5(tmp_path / "epickitchens.h5", rows, False)
    for path in (tmp_path, h5):
        caplog.clear()
        boxes = Boxes.open(path)
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert not boxes.clip("P02_02", seconds(1, 2)).any()
        (said,) = caplog.messages
        assert "P02_02" in said


def test_linked_tracks_are_kept_until_the_file_changes(pickled, tmp_path, monkeypatch):
    file = write(tmp_path / "P01_01.pkl", pickled)
    cache = tmp_path / "cache"
    first = Boxes.open(tmp_path, cache).clip("P01_01", seconds(1, 40))
    (kept,) = cache.glob("*.npy")

    def linked_again(found):
        raise AssertionError("linked again")

    boxes_module._tracks.cache_clear()
    monkeypatch.setattr(linking, "link", linked_again)
    np.testing.assert_array_equal(Boxes.open(tmp_path, cache).clip("P01_01", seconds(1, 40)), first)
    boxes_module._tracks.cache_clear()
    kept.write_bytes(kept.read_bytes()[:-7])
    with pytest.raises(AssertionError, match="linked again"):
        Boxes.open(tmp_path, cache).clip("P01_01", seconds(1))
    monkeypatch.undo()
    np.testing.assert_array_equal(Boxes.open(tmp_path, cache).clip("P01_01", seconds(1, 40)), first)
    write(file, [record(n, [CUP]) for n in range(1, 50)])
    changed = Boxes.open(tmp_path, cache).clip("P01_01", seconds(1))
    np.testing.assert_allclose(changed[0, 2], CUP, atol=1e-6)
    shutil.rmtree(cache)
    np.testing.assert_array_equal(Boxes.open(tmp_path).clip("P01_01", seconds(1)), changed)


def _count_links(boxes: Boxes, links) -> None:
    plain = linking.link

    def counted(found):
        with links.get_lock():
            links.value += 1
        return plain(found)

    linking.link = counted
    boxes.clip("P01_01", seconds(1))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_of_several_processes_one_links_a_video(pickled, tmp_path):
    write(tmp_path / "P01_01.pkl", pickled)
    context = multiprocessing.get_context("fork")
    links = context.Value("i", 0)
    boxes = Boxes.open(tmp_path, tmp_path / "cache")
    workers = [context.Process(target=_count_links, args=(boxes, links)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert links.value == 1


def test_reading_modules_load_no_library_before_it_is_needed():
    code = (
        "import sys, harness.data.ek100.boxes, harness.data.ek100.transforms; "
        "print({name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = ast.literal_eval(done.stdout)
    assert "harness" in loaded
    assert not loaded & {"h5py", "google", "scipy", "torchvision", "PIL", "pandas"}


def test_opened_pickles_can_be_sent_to_another_process(pickled, tmp_path):
    write(tmp_path / "P01_01.pkl", pickled)
    boxes = Boxes.open(tmp_path, tmp_path / "cache")
    sent = pickle.loads(pickle.dumps(boxes))
    assert sent == boxes
    assert sent.clip("P01_01", seconds(2))[0, :2].any()
