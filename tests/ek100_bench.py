"""A small EPIC-Kitchens-100: rows of the real schema, and stamped footage to them, all made up."""

import csv
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

from ek100_footage import RATES, make_video

from harness.data.ek100.detections import RIGHT, message_class
from harness.data.ek100.numbers import nominal_fps

COLUMNS = (
    *("narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp"),
    *("stop_timestamp", "start_frame", "stop_frame", "narration", "verb", "verb_class"),
    *("noun", "noun_class", "all_nouns", "all_noun_classes"),
)
TRAIN = ("P01_01", "P01_02", "P01_03", "P02_101", "P02_102", "P02_103")
TEST = ("P01_04", "P18_01")
SECONDS = 10.0
RATE = {
    name: RATES["50"] if len(name) == 7 else rate
    for name, rate in zip(
        (*TRAIN, *TEST),
        [RATES["59.94"], RATES["29.97"], RATES["47.95"], *[RATES["50"]] * 3, *[RATES["59.94"]] * 2],
        strict=True,
    )
}
SIZE = (96, 64)


def clock(seconds: float) -> str:
    """00:00:01.50"""
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes) // 60:02}:{int(minutes) % 60:02}:{rest:05.2f}"


def row(video: str, number: int, start: float, stop: float, verb: int, noun: int) -> list[object]:
    return [
        f"{video}_{number}", video.split("_")[0], video, clock(start), clock(start), clock(stop),
        max(1, int(start * 60)), int(stop * 60), f"do {verb} with {noun}", f"verb{verb}", verb,
        f"noun{noun}", noun, f"['noun{noun}']", f"[{noun}]",
    ]  # fmt: skip


def rows_of(videos: Iterable[str], each: int = 8) -> list[list[object]]:
    """Segments of 0.9 s and more, the first of each video from its beginning on."""
    return [
        row(
            video, n, n * 1.15, n * 1.15 + 0.9 + 0.1 * (n % 3), (n + place) % 5, (n * 7 + place) % 9
        )
        for video in videos
        for place in [(*TRAIN, *TEST).index(video)]
        for n in range(each)
    ]


def write_csv(file: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> Path:
    with open(file, "w", newline="") as out:
        csv.writer(out).writerows([list(header), *rows])
    return file


def write_annotations(folder: Path, train=None, validation=None) -> Path:
    """The CSV files, as the annotation repository has them; `train=()` leaves that one out."""
    folder.mkdir(parents=True, exist_ok=True)
    train = rows_of(TRAIN) if train is None else train
    if train:
        write_csv(folder / "EPIC_100_train.csv", COLUMNS, train)
    test = rows_of(TEST) if validation is None else validation
    write_csv(folder / "EPIC_100_validation.csv", COLUMNS, test)
    write_csv(folder / "EPIC_100_tail_verbs.csv", ["verb"], [[3], [4]])
    write_csv(folder / "EPIC_100_tail_nouns.csv", ["noun"], [[7], [8]])
    unseen = folder / "EPIC_100_unseen_participant_ids_validation.csv"
    write_csv(unseen, ["participant_id"], [["P18"]])
    return folder


def write_footage(root: Path, size: tuple[int, int] = SIZE) -> Path:
    """Whole videos, as the downloader lays them."""
    for video, rate in RATE.items():
        file = root / video.split("_")[0] / "videos" / f"{video}.MP4"
        make_video(file, Fraction(rate), SECONDS, size)
    return root


def write_questions(file: Path, of: Iterable[list[object]], predicted: bool = False) -> Path:
    """Predicted ones say that they are, and come from what is seen a second before the action."""

    def origin(one: list[object]) -> dict[str, object]:
        start = float(str(one[4]).rpartition(":")[2])
        window = [0.0, max(0.0, start - 1.0)]
        return {"label_source": "predicted", "predicted_from": {"window": window}}

    lines = [
        json.dumps(
            {
                "narration_id": one[0],
                "verb_question": f"What is done with the <MASK> of kind {one[12]}?",
                "noun_question": f"What does the person <MASK>, in way {one[10]}?",
                **(origin(one) if predicted else {}),
            }
        )
        for one in of
    ]
    file.write_text("\n".join(lines) + "\n")
    return file


def record(frame: int, objects=(), hands=()) -> bytes:
    """One frame as it is published; `hands` are (side, score, box)."""
    message = message_class()(video_id="P01_01", frame_number=frame)
    for side, score, box in hands:
        hand = message.hands.add(side=side, score=score, state=3)
        hand.bbox.left, hand.bbox.top, hand.bbox.right, hand.bbox.bottom = box
        hand.object_offset.x = 0.25
    for box in objects:
        found = message.objects.add(score=0.01)
        found.bbox.left, found.bbox.top, found.bbox.right, found.bbox.bottom = box
    return message.SerializeToString()


def write_records(path: Path, records: list[bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(records))
    return path


def write_boxes(root: Path) -> Path:
    """The hand-object detections of every video: a hand over a thing that moves to the right."""
    for video in RATE:
        records = []
        for frame in range(1, int(SECONDS * nominal_fps(video)) + 1):
            x = 0.1 + 0.04 * frame / nominal_fps(video)
            thing, hand = (x, 0.3, x + 0.4, 0.7), (x + 0.2, 0.5, x + 0.5, 0.9)
            records.append(record(frame, [thing], [(RIGHT, 0.9, hand)]))
        write_records(root / video.split("_")[0] / f"{video}.pkl", records)
    return root


def make(folder: Path) -> Path:
    """All of it below `folder`, and a site file that says where."""
    write_annotations(folder / "annotations")
    write_footage(folder / "footage")
    write_boxes(folder / "boxes")
    write_questions(folder / "questions.jsonl", rows_of((*TRAIN, *TEST)))
    write_questions(folder / "predicted.jsonl", rows_of((*TRAIN, *TEST)), predicted=True)
    (folder / "harness.site.yaml").write_text(
        "data:\n  ek100:\n    annotations: annotations\n    footage: footage\n    boxes: boxes\n"
        "    questions: questions.jsonl\n    predicted_questions: predicted.jsonl\n"
    )
    return folder


def harness(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """`harness WORDS` in `folder`."""
    root = Path(__file__).resolve().parents[1]
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", *map(str, words)],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip
