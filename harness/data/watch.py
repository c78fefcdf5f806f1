"""Shoulder exercises worn on the wrist: accelerometer and gyroscope of a smartwatch, 50 Hz.

Source: the watch data in the `seglearn` package (Burns et al., "Shoulder physiotherapy exercise
recognition", Physiological Measurement 2018): 140 recordings, 10 subjects, both arms, 7 exercises.

A sample is a window of one recording: `accel` (T, 3) in g and `gyro` (T, 3) in rad/s, with the
exercise as `label`. Nobody is on two sides of a split: of the subjects in sorted order, fold f
tests those at f and f + 5, and `select` takes those that the folds after it test.

Values are as recorded: the mean acceleration holds the direction of gravity, so the scale is left
to the encoders, which learn it from the train split.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import pickle
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from harness.contracts import Dataset, PluginConfig, Sample, Split, Stream
from harness.registry import DATASETS

HERTZ = 50
FOLDS = 5
CLASSES = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
CHANNELS = ("ax", "ay", "az", "wx", "wy", "wz")


def _latin1(text: str, encoding: str) -> bytes:
    """What Python 3 pickles of protocol 2 call to make bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}; only latin1 is read")
    return text.encode("latin1")


_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): _latin1,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}
"""every global the file may name; a pickle that names another could run anything"""


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles plain values and numpy arrays, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(
                f"the pickle asks for {module}.{name}; that is forbidden, only arrays are read"
            )
        return ALLOWED[module, name]


class Recording(NamedTuple):
    """One exercise done by one arm of one subject."""

    subject: str
    label: int
    accel: Tensor
    """(T, 3), float32, g"""
    gyro: Tensor
    """(T, 3), float32, rad/s"""


def parse(data: bytes) -> list[Recording]:
    """Recordings in the bytes of `watch_dataset.npy`. Raises ValueError where they are not it."""
    stream = io.BytesIO(data)
    try:
        np.lib.format.read_magic(stream)
        _, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if not dtype.hasobject:
            raise ValueError(f"holds an array of {dtype}, not one pickled mapping")
        content = ArrayUnpickler(stream).load().item()
        columns = [content[key] for key in ("X", "subject", "y")]
    except (pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if list(content.get("y_labels", [])) != list(CLASSES):
        raise ValueError(f"classes are {content.get('y_labels')}, expected {list(CLASSES)}")
    if list(content.get("X_labels", [])) != list(CHANNELS):
        raise ValueError(f"channels are {content.get('X_labels')}, expected {list(CHANNELS)}")
    if len({len(column) for column in columns}) != 1:
        raise ValueError("X, subject and y differ in length")
    return [_recording(*row) for row in zip(*columns, strict=True)]


def _recording(values: Any, subject: Any, label: Any) -> Recording:
    array = np.ascontiguousarray(values, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] != len(CHANNELS) or not np.isfinite(array).all():
        raise ValueError(f"a recording of shape {array.shape} is not (T, 6) of finite numbers")
    if not 0 <= int(label) < len(CLASSES):
        raise ValueError(f"label {label} is not one of {len(CLASSES)} classes")
    accel, gyro = (torch.from_numpy(part.copy()) for part in np.split(array, 2, axis=1))
    return Recording(str(int(subject)), int(label), accel, gyro)


@lru_cache(maxsize=4)
def _read(path: Path, mtime_ns: int, size: int) -> tuple[list[Recording], str]:
    """Recordings of a file and its SHA-256; the time and size make a changed file another key."""
    data = path.read_bytes()
    try:
        return parse(data), hashlib.sha256(data).hexdigest()
    except ValueError as error:
        raise ValueError(f"{path}: not the watch data: {error}") from None


def packaged_file() -> Path:
    """Where the installed `seglearn` keeps its watch data; seglearn itself is not imported."""
    spec = importlib.util.find_spec("seglearn")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the watch data come with seglearn: `pip install seglearn`")
    return Path(spec.origin).parent / "data" / "watch_dataset.npy"


class Windows:
    """Windows of the recordings of some subjects, `stride` frames apart."""

    def __init__(
        self, recordings: list[Recording], subjects: list[str], length: int, stride: int
    ) -> None:
        self.recordings = recordings
        self.length = length
        self.places = [
            (number, start)
            for number, recording in enumerate(recordings)
            if recording.subject in subjects
            for start in range(0, len(recording.accel) - length + 1, stride)
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        number, start = self.places[index]
        recording = self.recordings[number]
        window = slice(start, start + self.length)
        return Sample(
            id=f"{number}-{start}",
            streams={
                "accel": recording.accel[window].clone(),
                "gyro": recording.gyro[window].clone(),
            },
            targets={"label": recording.label},
            group=recording.subject,
        )


@DATASETS.register("watch")
class Watch(Dataset):
    """Windows of the recordings; five folds by subject."""

    class Config(PluginConfig):
        fold: int = Field(default=0, ge=0, lt=FOLDS)
        """which two subjects are the test split: those at `fold` and `fold + 5`"""
        select_subjects: int = Field(default=1, ge=1, le=7)
        """training subjects held out for every choice"""
        window_seconds: float = Field(default=2.0, gt=0)
        """length of a window"""
        stride_seconds: float = Field(default=1.0, ge=1 / HERTZ)
        """from the start of a window to the start of the next"""
        file: Path | None = Field(default=None, json_schema_extra={"input_file": True})
        """another copy of `watch_dataset.npy`; none means the one that seglearn installs"""

    config: Config

    @property
    def streams(self) -> dict[str, Stream]:
        shape = (self._length, 3)
        return {"accel": Stream("sensor", shape), "gyro": Stream("sensor", shape)}

    @property
    def targets(self) -> dict[str, int]:
        return {"label": len(CLASSES)}

    def class_names(self) -> dict[str, Sequence[str]]:
        return {"label": CLASSES}

    def split(self, name: str) -> Split:
        subjects = self.subjects[name]
        stride = max(1, round(self.config.stride_seconds * HERTZ))
        return Windows(self.recordings, subjects, self._length, stride)

    @property
    def recordings(self) -> list[Recording]:
        """All recordings of the file, in its order."""
        return self._content[0]

    @cached_property
    def subjects(self) -> dict[str, list[str]]:
        """Split name -> its subjects."""
        known = sorted({recording.subject for recording in self.recordings}, key=int)
        pairs = [known[fold::FOLDS] for fold in range(FOLDS)]
        pairs = pairs[self.config.fold :] + pairs[: self.config.fold]
        test, rest = pairs[0], [subject for pair in pairs[1:] for subject in pair]
        held_out = self.config.select_subjects
        return {"train": rest[held_out:], "select": rest[:held_out], "test": test}

    def fingerprint(self) -> str:
        options = self.config.model_dump_json(exclude={"file"})
        return hashlib.sha256(f"{self._content[1]}\n{options}".encode()).hexdigest()

    @property
    def _length(self) -> int:
        return max(1, round(self.config.window_seconds * HERTZ))

    @property
    def _content(self) -> tuple[list[Recording], str]:
        path = (self.config.file or packaged_file()).resolve()
        stat = path.stat()
        return _read(path, stat.st_mtime_ns, stat.st_size)
