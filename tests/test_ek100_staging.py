"""Footage is copied to scratch when it is first opened, and nothing fails by it."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ek100_bench import make
from ek100_footage import RATES, make_chunks, make_jpegs, make_tar, make_video, read_stamp

from harness.data.ek100 import Ek100, Ek100Places
from harness.data.ek100.layout import Layout, find_layout
from harness.data.ek100.staging import Stage


def shows(layout: Layout) -> bool:
    clip = layout.open("P01_01").clip(np.array([0.5, 1.5]), None, (64, 96))
    return bool(np.allclose([read_stamp(frame) for frame in clip], [0.5, 1.5], atol=0.02))


def content(folder: Path) -> set[str]:
    """What lies below a folder, but for the list of those who said something."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".said")
    return {str(file.relative_to(folder)) for file in files}


LAYOUTS = {
    "videos": (lambda p: make_video(p, RATES["50"], 2), "P01/videos/P01_01.MP4", [""]),
    "chunks": (lambda p: make_chunks(p, 2, length=1), "P01/P01_01.MP4", ["/0.MP4", "/1.MP4"]),
    "tars": (lambda p: make_tar(p, 2, 60), "P01/rgb_frames/P01_01.tar", [""]),
    "frames": (lambda p: make_jpegs(p, 2, 60), "P01/rgb_frames/P01_01", []),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_files_are_copied_when_they_are_opened_and_images_stay(tmp_path, kind):
    write, place, copies = LAYOUTS[kind]
    write(tmp_path / "far" / place)
    found = find_layout(tmp_path / "far", None, ["P01_01"])
    before = found.digest_parts(["P01_01"])
    layout = replace(found, stage=Stage(tmp_path / "far", tmp_path / "near"))
    assert not (tmp_path / "near").exists()
    assert shows(pickle.loads(pickle.dumps(layout)))
    assert content(tmp_path / "near") == {place + copy for copy in copies}
    assert layout.digest_parts(["P01_01"]) == before
    for copy in copies:  # it is what is read from now on
        (tmp_path / "far" / (place + copy)).write_bytes(b"")
    assert shows(layout)


@pytest.fixture
def far(tmp_path) -> Path:
    file = tmp_path / "far/P01/P01_01.MP4"
    file.parent.mkdir(parents=True)
    file.write_bytes(os.urandom(3_000_000))
    return file


@pytest.fixture
def stage(tmp_path) -> Stage:
    return Stage(tmp_path / "far", tmp_path / "near")


def test_a_copy_has_the_bytes_and_the_time_of_its_original(far, stage):
    os.utime(far, ns=(10**18, 10**18 + 123_456_789))
    copy = stage.file(far)
    assert copy == stage.folder / "P01/P01_01.MP4"
    assert copy.read_bytes() == far.read_bytes()
    assert copy.stat().st_mtime_ns == far.stat().st_mtime_ns
    made = copy.stat().st_ino
    assert stage.file(far).stat().st_ino == made, "it is not copied again"


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_copy_of_what_has_changed_is_made_anew(far, stage, change):
    copy = stage.file(far)
    if change == "size":
        copy.write_bytes(copy.read_bytes()[:-1])
        os.utime(copy, ns=(far.stat().st_atime_ns, far.stat().st_mtime_ns))
    else:
        os.utime(copy, ns=(0, 0))
        copy.write_bytes(b"?" * far.stat().st_size)
        os.utime(copy, ns=(0, 0))
    assert stage.file(far).read_bytes() == far.read_bytes()


def test_without_room_the_original_is_read_which_is_said_once(far, stage, capfd):
    full = replace(stage, spare_bytes=10**18)
    assert [full.file(far) for _ in range(3)] == [far] * 3
    told = capfd.readouterr().err
    assert told.count("\n") == 1
    assert "GB are free; footage that is not there yet is read in place" in told
    assert content(stage.folder) == set()


LIMITED = """
import resource, signal, sys
from pathlib import Path
from harness.data.ek100.staging import Stage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
far, near, file = map(Path, sys.argv[1:])
print(Stage(far, near).file(file))
"""


def test_a_copy_that_fails_half_way_is_removed_and_the_original_read(far, stage):
    words = [sys.executable, "-c", LIMITED, str(stage.root), str(stage.folder), str(far)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == f"{far}\n"
    assert f"{far}: not copied there but read in place: File too large" in done.stderr
    assert content(stage.folder) == set()


@pytest.mark.parametrize("obstacle", ["a file", "gone"])
def test_what_cannot_be_copied_is_left_where_it_is(far, stage, tmp_path, obstacle):
    if obstacle == "gone":
        far.unlink()
    else:
        (tmp_path / "near").write_text("not a folder")
    assert stage.file(far) == far


def test_nothing_is_copied_that_is_not_asked_for(far, stage):
    looks = replace(stage, copies=False)
    assert looks.file(far) == far
    assert not stage.folder.exists()
    copy = stage.file(far)
    assert looks.file(far) == copy


def test_what_others_keep_in_scratch_stays(far, stage):
    other = stage.folder / "P01/.P01_02.MP4.part"
    other.parent.mkdir(parents=True)
    other.write_text("of another")
    stage.file(far)
    assert content(stage.folder) == {"P01/P01_01.MP4", "P01/.P01_02.MP4.part"}


COPIER = """
import fcntl, sys, time
part = open(sys.argv[1], "ab")
fcntl.flock(part, fcntl.LOCK_EX)
part.write(b"half")
part.flush()
print("begun", flush=True)
time.sleep(600)
"""


def test_others_wait_for_who_copies_and_go_on_when_it_dies(far, stage):
    part = stage.folder / "P01/.P01_01.MP4.part"
    part.parent.mkdir(parents=True)
    copier = subprocess.Popen(
        [sys.executable, "-c", COPIER, str(part)], stdout=subprocess.PIPE, text=True
    )
    try:
        with copier.stdout as out:
            assert out.readline() == "begun\n"
        found: list[Path] = []
        waiting = threading.Thread(target=lambda: found.append(stage.file(far)))
        waiting.start()
        waiting.join(0.5)
        assert found == []
    finally:
        copier.send_signal(signal.SIGKILL)
        copier.wait()
    waiting.join(60)
    assert found == [stage.folder / "P01/P01_01.MP4"]
    assert found[0].read_bytes() == far.read_bytes()
    assert content(stage.folder) == {"P01/P01_01.MP4"}


MANY = """
import sys
from pathlib import Path
from harness.data.ek100.staging import Stage
far, near, file = map(Path, sys.argv[1:])
copy = Stage(far, near).file(file)
print(copy.stat().st_ino, copy.read_bytes() == file.read_bytes())
"""


def test_processes_that_open_a_file_together_make_one_copy(far, stage):
    words = [sys.executable, "-c", MANY, str(stage.root), str(stage.folder), str(far)]
    together = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = [process.communicate(timeout=120)[0].split() for process in together]
    assert {answer[1] for answer in answers} == {"True"}
    assert len({answer[0] for answer in answers}) == 1
    assert content(stage.folder) == {"P01/P01_01.MP4"}


def test_the_dataset_reads_from_scratch_and_keeps_its_fingerprint(tmp_path):
    root = make(tmp_path)
    own = {"annotations": root / "annotations", "footage": root / "footage"}
    plain, fast = Ek100(Ek100.Config(size=32, frames=4)), Ek100(Ek100.Config(size=32, frames=4))
    plain.places = Ek100Places(**own)
    fast.places = Ek100Places(**own, scratch=root / "scratch")
    for dataset in (plain, fast):
        dataset.used = frozenset({"video"})
    expected = plain.split("train")[0].streams["video"]
    print_before = fast.fingerprint()
    assert (fast.split("train")[0].streams["video"] == expected).all()
    video = fast.split("train").seen[0].video
    assert content(root / "scratch") == {f"footage/{video.split('_')[0]}/videos/{video}.MP4"}
    assert fast.fingerprint() == print_before == plain.fingerprint()
    shutil.rmtree(root / "scratch")
    assert (fast.split("train")[0].streams["video"] == expected).all()
