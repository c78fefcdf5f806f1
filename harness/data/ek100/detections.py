"""Hands and objects found in every frame, as EPIC-KITCHENS-100 publishes them: a pickle per video.

Source: the repository `epic-kitchens-100-hand-object-bboxes` of Damen et al. (its `types.proto` and
README), detector of Shan et al. (CVPR 2020). A file is a pickled list of serialised protocol buffer
messages, one per frame. Boxes are shares of the frame: left, top, right, bottom. All detections
with a score of at least 0.1 (hands) and 0.01 (objects) are in it, and all are read.

The files of P01_109 and P27_103 on data.bris are wrong: they were extracted incorrectly, and the
README of that repository links to the right ones. Nothing in a file tells the two apart.
"""

from __future__ import annotations

import pickle
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LEFT, RIGHT = 0, 1
"""the published numbers of a hand's side"""
FLOAT, INT32, STRING, MESSAGE, ENUM = 2, 5, 9, 11, 14
"""types of a field, as protocol buffers number them"""
SCHEMA: dict[str, tuple[tuple[str, int, str], ...]] = {
    "FloatVector": (("x", FLOAT, ""), ("y", FLOAT, "")),
    "BBox": (("left", FLOAT, ""), ("top", FLOAT, ""), ("right", FLOAT, ""), ("bottom", FLOAT, "")),
    "HandDetection": (
        ("bbox", MESSAGE, "BBox"),
        ("score", FLOAT, ""),
        ("state", ENUM, "HandState"),
        ("object_offset", MESSAGE, "FloatVector"),
        ("side", ENUM, "HandSide"),
    ),
    "ObjectDetection": (("bbox", MESSAGE, "BBox"), ("score", FLOAT, "")),
    "Detections": (
        ("video_id", STRING, ""),
        ("frame_number", INT32, ""),
        ("hands", MESSAGE, "HandDetection"),
        ("objects", MESSAGE, "ObjectDetection"),
    ),
}
"""message -> its fields (name, type, what type); they are numbered from 1 in this order"""
ENUMS = {
    "HandState": (
        "NO_CONTACT",
        "SELF_CONTACT",
        "ANOTHER_PERSON",
        "PORTABLE_OBJECT",
        "STATIONARY_OBJECT",
    ),
    "HandSide": ("LEFT", "RIGHT"),
}
"""enumeration -> its values, numbered from 0"""
REPEATED = ("hands", "objects")
PACKAGE = "model.detections"


class Detections(NamedTuple):
    """Everything found in one video of F frames."""

    frames: NDArray[np.int64]
    """(F,) numbers of the frames, rising, from 1, at the nominal 60 or 50 frames per second"""
    hands: NDArray[np.float64]
    """(F, 2, 4) the best right and the best left hand, zeros where there is none"""
    objects: NDArray[np.float64]
    """(N, 4) of all frames, one after the other"""
    ends: NDArray[np.int64]
    """(F,) where the objects of each frame end in `objects`"""


class BytesUnpickler(pickle.Unpickler):
    """Unpickles lists, bytes and strings; whatever needs a name to be looked up is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(
            f"the pickle asks for {module}.{name}; that is forbidden, only lists of bytes are read"
        )


@cache
def message_class() -> Any:
    """The class of the message of one frame, made from `SCHEMA`."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name="hand_object_detections.proto", package=PACKAGE, syntax="proto3"
    )
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        if name == "HandDetection":  # the published enumerations are declared inside
            for enum, values in ENUMS.items():
                made = message.enum_type.add(name=enum)
                for number, value in enumerate(values):
                    made.value.add(name=value, number=number)
        for number, (field, kind, of) in enumerate(fields, 1):
            added = message.field.add(name=field, number=number)
            added.type = kind
            added.label = 3 if field in REPEATED else 1
            if of:
                owner = "HandDetection." if of in ENUMS else ""
                added.type_name = f".{PACKAGE}.{owner}{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    found = pool.FindMessageTypeByName(f"{PACKAGE}.Detections")
    return message_factory.GetMessageClass(found)


def read(path: Path) -> Detections:
    """What the pickle at `path` holds. Raises ValueError, with the path, where it is not one."""
    rows = []
    for position, record in enumerate(_records(path)):
        try:
            rows.append(_row(record))
        except ValueError as error:
            raise ValueError(f"{path}: record {position}: {error}") from None
    rows.sort(key=lambda row: row[0])
    frames = np.array([row[0] for row in rows], np.int64)
    twice = frames[1:][np.diff(frames) == 0]
    if len(twice):
        raise ValueError(f"{path}: frame {twice[0]} is there twice")
    hands = np.array([row[1] for row in rows], np.float64).reshape(-1, 2, 4)
    objects = np.array([box for row in rows for box in row[2]], np.float64).reshape(-1, 4)
    ends = np.cumsum([len(row[2]) for row in rows], dtype=np.int64)
    wrong = np.concatenate(
        [
            np.flatnonzero(~np.isfinite(hands).all(axis=(1, 2))),
            np.searchsorted(ends, np.flatnonzero(~np.isfinite(objects).all(axis=1)), "right"),
        ]
    )
    if len(wrong):
        raise ValueError(f"{path}: a box of frame {frames[wrong].min()} is not of finite numbers")
    return Detections(frames, hands, objects, ends)


def _records(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as file:
            content = BytesUnpickler(file).load()
    except (
        pickle.UnpicklingError,
        EOFError,
        AttributeError,
        ImportError,
        LookupError,
        MemoryError,
        OverflowError,
        TypeError,
        ValueError,
    ) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: not a pickle of hand-object detections: {what}") from None
    if not isinstance(content, list) or not all(isinstance(row, bytes) for row in content):
        raise ValueError(f"{path}: not a pickled list of bytes, as hand-object detections are")
    if not content:
        raise ValueError(f"{path}: an empty list; detections have one record per frame")
    return content


Box = tuple[float, float, float, float]


def _row(record: bytes) -> tuple[int, tuple[Box, Box], list[Box]]:
    """Frame number, right and left hand, objects."""
    from google.protobuf.message import DecodeError

    message = message_class()()
    try:
        message.ParseFromString(record)
    except DecodeError as error:
        raise ValueError(f"not a message of hand-object detections: {error}") from None
    if message.frame_number < 1:
        raise ValueError(f"frame number {message.frame_number}; frames are numbered from 1")
    hands = _best(message.hands, RIGHT), _best(message.hands, LEFT)
    return message.frame_number, hands, [_box(found.bbox) for found in message.objects]


def _best(hands: Any, side: int) -> Box:
    of_side = [hand for hand in hands if hand.side == side]
    if not of_side:
        return 0.0, 0.0, 0.0, 0.0
    return _box(max(of_side, key=lambda hand: hand.score).bbox)


def _box(box: Any) -> Box:
    return box.left, box.top, box.right, box.bottom
