"""`harness data doctor`: what is wrong with the files of EPIC-Kitchens-100 is told, and counted."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ek100_bench import COLUMNS, RATE, TEST, TRAIN, make, row, rows_of, write_csv
from ek100_footage import RATES, make_video

from harness.data.ek100 import Ek100, Ek100Places
from harness.data.ek100.annotations import TRAIN as TRAIN_FILE
from harness.data.ek100.annotations import VALIDATION, VIDEO_INFO
from harness.finding import Look
from harness.site import places

SHARED = Path(__file__).resolve().parents[2] / "shared/ek100"
OPTIONS = {"size": 32, "frames": 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A dataset with nothing wrong but its size, and its list of videos."""
    folder = make(tmp_path_factory.mktemp("ek100"))
    info = [[video, "10.0", float(rate), "96x64"] for video, rate in RATE.items()]
    columns = ["video_id", "duration", "fps", "resolution"]
    write_csv(folder / "annotations" / VIDEO_INFO, columns, [*info, ["P99_01", "1", "50", "1x1"]])
    return folder


@pytest.fixture
def folder(whole, tmp_path, monkeypatch) -> Path:
    """A copy to damage, as the working directory."""
    copy = shutil.copytree(whole, tmp_path / "ek100")
    monkeypatch.chdir(copy)
    return copy


def looks(workers: int = 0, **options) -> dict[str, Look]:
    """Check -> what was found, in the working directory, by its site file."""
    dataset = Ek100(Ek100.Config(**OPTIONS, **options))
    dataset.places = Ek100Places(**places("ek100", Ek100Places))
    return {look.check: look for look in dataset.doctor(workers, 0.2)}


def states(found: dict[str, Look]) -> dict[str, str]:
    """Of what is not well."""
    told = {check: look.finding.state for check, look in found.items()}
    return {check: state for check, state in told.items() if state not in ("ok", "skipped")}


def site(folder: Path, **more: str) -> None:
    """Add lines to the site file."""
    lines = [f"    {name}: {value}\n" for name, value in more.items()]
    with open(folder / "harness.site.yaml", "a") as out:
        out.writelines(lines)


def test_of_good_files_only_their_number_is_odd(folder):
    found = looks()
    assert states(found) == {"annotations": "warn"}
    told = {check: look.finding.found for check, look in found.items()}
    assert told["annotations"].startswith("48 train, 16 validation, 39 actions")
    assert "67,217 train, 9,668 validation, 3,806 actions" in found["annotations"].finding.fix
    assert told["footage"] == f"8 of 8 videos, videos; 8 of the 9 of {VIDEO_INFO}"
    assert told["clips"] == "3 of 3 can be read, one of each participant"
    assert told["questions"] == "questions: 64 of 64, predicted_questions: 64 of 64"
    assert "2 of validation" in told["anticipation"]
    assert len(found["anticipation"].every) == 8
    rate, hours = re.match(
        r"([\d.]+) clips of 4 x 32 x 32 a second with 0 workers: (\S+) h to read an epoch of 32$",
        told["speed"],
    ).groups()
    assert float(hours) == pytest.approx(32 / float(rate) / 3600, rel=0.1)


def test_speed_is_measured_with_worker_processes_too(folder):
    assert "a second with 1 workers" in looks(workers=1)["speed"].finding.found


def test_missing_videos_are_counted_and_listed(folder):
    for video in (*TRAIN[:2], *TEST):
        (folder / f"footage/{video.split('_')[0]}/videos/{video}.MP4").unlink()
    found = looks()
    assert states(found) == {"annotations": "warn", "footage": "fail"}
    told = found["footage"].finding
    assert told.found.startswith("4 of 8 videos, videos; 4 of the 9")
    assert "missing: P01_01, P01_02, P01_04 and 1 more, 32 segments with them" in told.found
    assert "--specific-videos P01_01,P01_02,P01_04" in told.fix
    assert found["footage"].every[:4] == ("P01_01", "P01_02", "P01_04", "P18_01")
    assert len(found["footage"].every) == 4 + 32
    assert found["clips"].finding.found.startswith("2 of 2"), "the others are looked at"


def test_a_video_at_another_rate_is_told(folder):
    make_video(folder / "footage/P01/videos/P01_02.MP4", RATES["50"], 10)
    found = looks()
    assert states(found) == {"annotations": "warn", "rates": "warn"}
    assert "50.00 frames per second, annotated are 29.97" in found["rates"].finding.found


def test_segments_that_do_not_fit_are_told(folder):
    train = rows_of(TRAIN)
    train[0] = row(TRAIN[0], 0, 9.0, 11.2, 1, 1)
    train[1] = row(TRAIN[0], 1, 9.0, 10.9, 1, 1)  # less than a second too far
    train[9] = row(TRAIN[1], 1, 3.0, 3.0, 1, 1)
    write_csv(folder / "annotations" / TRAIN_FILE, COLUMNS, train)
    found = looks()
    assert states(found) == {"annotations": "warn", "segments": "warn", "zero length": "warn"}
    assert found["segments"].every == ("P01_01_0: ends at 11.20 s, P01_01 at 9.99",)
    assert found["zero length"].every == ("P01_02_1",)
    assert "train.bad_samples: repeat" in found["zero length"].finding.fix


def test_broken_videos_are_told_by_path(folder):
    cut = folder / "footage/P02/videos/P02_101.MP4"
    cut.write_bytes(cut.read_bytes()[:20_000])
    damaged = folder / "footage/P18/videos/P18_01.MP4"
    data = bytearray(damaged.read_bytes())
    begins, middle = data.index(b"mdat") + 4, len(data) * 4 // 5
    data[begins:middle] = bytes(middle - begins)
    damaged.write_bytes(data)
    found = looks()
    assert states(found) == {"annotations": "warn", "headers": "fail", "clips": "fail"}
    assert found["headers"].every[0].startswith(f"P02_101: {cut}: not a video")
    [clip] = found["clips"].every
    assert re.match(rf"P18_01_\d: P18_01: {re.escape(str(damaged))} at [\d.]+ s: ", clip)


def test_the_first_thing_that_is_not_there_is_told_alone(folder, tmp_path, monkeypatch):
    (folder / "annotations" / VALIDATION).rename(tmp_path / "away")
    found = looks()
    assert list(found) == ["site file", "annotations"]
    assert f"no {VALIDATION} here" in found["annotations"].finding.found
    assert "git clone" in found["annotations"].finding.fix
    shutil.rmtree(folder / "footage")
    assert states(looks()) == {"site file": "fail"}
    (folder / "harness.site.yaml").unlink()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    fix = looks()["site file"].finding.fix
    assert "    annotations: " in fix.replace("        ", "    ")
    assert "git clone https://github.com/epic-kitchens" in fix
    assert "epic_downloader.py --output-path /data --videos" in fix


def test_a_list_of_videos_that_cannot_be_read_is_told(folder):
    (folder / "annotations" / VIDEO_INFO).write_text("video_id,fps\nP01_01,many\n")
    found = looks()
    assert "fps: could not convert" in found["annotations"].finding.found
    assert found["rates"].finding.found == f"8 not compared, there is no {VIDEO_INFO} to be read"


def test_questions_and_boxes_that_lack_are_counted(folder):
    lines = (folder / "questions.jsonl").read_text().splitlines()
    (folder / "questions.jsonl").write_text("\n".join(lines[5:]) + "\n")
    (folder / f"boxes/P18/{TEST[1]}.pkl").unlink()
    found = looks()
    assert states(found)["questions"] == "fail"
    assert "questions: 59 of 64, predicted_questions: 64 of 64" in found["questions"].finding.found
    assert len(found["questions"].every) == 5
    assert found["boxes"].finding.state == "warn"
    assert found["boxes"].finding.found == "of 7 of 8 videos; 1 not: P18_01"


def test_scratch_is_measured_and_nothing_is_copied_there(folder):
    site(folder, scratch="scratch")
    told = looks()["scratch"].finding
    assert told.state == "ok"
    assert re.search(r"0\.0 of 0\.0 GB are copied, \d+\.\d GB are free", told.found)
    assert not (folder / "scratch/footage").exists()


def harness(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", "data", "doctor", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_the_command_prints_a_table_and_its_exit_code_says_whether_sweeps_can_start(folder):
    words = ["--set", "size=32", "--set", "frames=4", "--workers", "0", "--seconds", "1"]
    done = harness(folder, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^footage +ok +8 of 8 videos", done.stdout, re.M)
    assert "clips of 4 x 32 x 32 a second" in done.stdout
    (folder / "footage/P18/videos/P18_01.MP4").unlink()
    done = harness(folder, *words, "--list", "all.txt")
    assert done.returncode == 1
    assert "\n  footage: `python epic_downloader.py" in done.stdout
    assert "footage\tP18_01\n" in (folder / "all.txt").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "sise=3"], "no such key. Did you mean 'size'?"),
        (["--set", "size"], "write key=value"),
        (["ek1000"], "unknown dataset 'ek1000'. Did you mean 'ek100'?"),
        (["simkitchen"], "simkitchen: this dataset offers nothing to look at"),
    ],
)
def test_wrong_usage_has_exit_code_2(tmp_path, words, message):
    done = harness(tmp_path, *words)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real annotations are not on this machine")
def test_the_real_validation_set_is_counted(whole, tmp_path, monkeypatch):
    real = tmp_path / "annotations"
    shutil.copytree(SHARED, real)
    shutil.copy(SHARED / "EPIC_100_uda_source_val.csv", real / TRAIN_FILE)
    monkeypatch.chdir(tmp_path)
    Path("harness.site.yaml").write_text(
        f"data: {{ek100: {{annotations: annotations, footage: {whole / 'footage'}}}}}\n"
    )
    found = looks()
    assert "9,668 validation" in found["annotations"].finding.found
    assert f"700 videos in {VIDEO_INFO}" in found["annotations"].finding.found
    # 27 begin before 1 s, one at 1.00 s
    assert "28 of validation" in found["anticipation"].finding.found
    assert np.mean([one.startswith("P") for one in found["anticipation"].every]) == 1
    assert found["zero length"].finding.state == "ok"
