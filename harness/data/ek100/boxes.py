"""Boxes of hands and objects for a clip of EPIC-KITCHENS-100.

Source: ORViT (Herzig et al. 2022), its linked boxes for EPIC-Kitchens; InAViT (Roy et al. 2024)
for its layout of the same. They come from one of

    pickles  the official detections of each video, `P01/hand-objects/P01_01.pkl`,
             `hand-objects/P01/P01_01.pkl`, `P01/P01_01.pkl` or `P01_01.pkl`; linked here, once
    h5       `epickitchens.h5` with datasets `/P01_01/1` (n, 5): x0 y0 x1 y1 id (ORViT), or
             `/P01_01/1/hand` and `/P01_01/1/obj` (InAViT)

and leave as (T, O, 4): x0 y0 x1 y1, shares of the native full frame in [0, 1], zeros where there is
none. The slots O are the right hand, the left hand, then objects in the order in which they first
appear in the clip. The official files of P01_109 and P27_103 are wrong, see `detections`.

The boxes of an instant are those on the published image of it (`numbers`).
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.data.ek100 import detections, linking
from harness.data.ek100.numbers import frame_numbers
from harness.files import lock_within, write_atomic

LOG = logging.getLogger(__name__)
VERSION = 1
"""raise it when the same detections give other tracks"""
SMALLEST_SIDE = 0.05
"""boxes no wider or no higher than this share of the frame are taken as absent"""
HANDS = 2
"""the ids 0, right, and 1, left, have slots of their own"""
LAYOUTS = ("P*/hand-objects/P*_*.pkl", "hand-objects/P*/P*_*.pkl", "P*/P*_*.pkl", "P*_*.pkl")
FOLDERS = ("", "EPIC-KITCHENS/")
"""below these of a given folder the layouts are looked for; the official downloader makes one"""
H5_NAME = "epickitchens.h5"
LINKING_SECONDS = 600.0
"""how long one process waits for another that links the same video"""

Rows = NDArray[np.float64]
"""(n, 5): x0, y0, x1, y1, id of the boxes of one frame"""


class Reader(Protocol):
    """Where boxes come from; may be sent to another process."""

    def frames(self, video: str, numbers: NDArray[np.int64]) -> list[Rows] | None:
        """The boxes of some frames of a video; None if nothing is known of the video."""

    def videos(self) -> frozenset[str]:
        """Those of which something is known."""


@dataclass(frozen=True)
class Boxes:
    """Boxes of every video there are any of; without a reader, of none."""

    path: Path | None = None
    reader: Reader | None = None

    @classmethod
    def open(cls, path: Path | None, cache: Path | None = None) -> Boxes:
        """Boxes in the folder of pickles or the `.h5` file `path`; None: every box is absent.

        Linking the pickle of a long video takes seconds; the folder `cache` keeps the result.
        Raises ValueError if there is nothing at `path`, or nothing that is known.
        """
        if path is None:
            return cls()
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder of hand-object boxes")
        if path.is_file():
            return cls(path, H5(path, sniff(path)))
        files = find_pickles(path)
        if files:
            return cls(path, Pickles(tuple(sorted(files.items())), cache))
        if (path / H5_NAME).is_file():
            return cls.open(path / H5_NAME)
        raise ValueError(
            f"{path}: no hand-object boxes; looked for {', '.join(LAYOUTS)}, and {H5_NAME}"
        )

    def videos(self) -> frozenset[str]:
        """Those there are boxes of."""
        return frozenset() if self.reader is None else self.reader.videos()

    def clip(self, video: str, seconds: NDArray[Any], slots: int = 4) -> NDArray[np.float32]:
        """Boxes (T, O, 4) of a video at the moments `seconds` (T,), with O `slots`.

        A video of which nothing is known has absent boxes; that is logged once per process. Raises
        ValueError, with the path, where a file is damaged.
        """
        numbers = frame_numbers(video, seconds)
        if self.reader is None:
            return np.zeros((len(numbers), slots, 4), np.float32)
        rows = self.reader.frames(video, numbers)
        if rows is None:
            _say_absent(video, self.path)
            return np.zeros((len(numbers), slots, 4), np.float32)
        return in_slots(rows, slots)


def in_slots(frames: Sequence[Rows], slots: int) -> NDArray[np.float32]:
    """Boxes of T frames -> (T, O, 4); objects that find no slot are left out."""
    slot_of = {number: number for number in range(HANDS)}
    result = np.zeros((len(frames), slots, 4), np.float32)
    for place, rows in enumerate(frames):
        for row in rows[(rows[:, 2:4] - rows[:, :2] > SMALLEST_SIDE).all(axis=1)]:
            slot = slot_of.setdefault(int(row[4]), len(slot_of))
            if slot < slots:
                result[place, slot] = row[:4]
    return result.clip(0, 1)


@cache
def _say_absent(video: str, path: Path | None) -> None:
    LOG.warning("%s: no hand-object boxes of %s; they are taken as absent", path, video)


@cache
def say_none() -> None:
    """Log, once per process, that no boxes are given at all."""
    LOG.warning("no hand-object boxes are given (data.ek100.boxes): orvit sees them as absent")


def find_pickles(folder: Path) -> dict[str, Path]:
    """Video -> its pickle, in any of the known layouts."""
    found: dict[str, Path] = {}
    for layout in (above + layout for above in FOLDERS for layout in LAYOUTS):
        for file in sorted(folder.glob(layout)):
            other = found.setdefault(file.stem, file)
            if other != file:
                raise ValueError(f"two files of {file.stem}: {other} and {file}; keep one of them")
    return found


@dataclass(frozen=True)
class Pickles:
    """The official detections, a file per video."""

    files: tuple[tuple[str, Path], ...]
    """video, its pickle"""
    cache: Path | None

    def frames(self, video: str, numbers: NDArray[np.int64]) -> list[Rows] | None:
        """As in `Reader`."""
        tracks = self.tracks(video)
        if tracks is None:
            return None
        frames = tracks["frame"]
        # bisect reads a few places of the mapped file; searchsorted would copy all of it first
        chosen = (tracks[bisect_left(frames, n) : bisect_right(frames, n)] for n in numbers)
        return [np.column_stack([rows["box"], rows["id"]]).astype(np.float64) for rows in chosen]

    def videos(self) -> frozenset[str]:
        """As in `Reader`."""
        return frozenset(video for video, _ in self.files)

    def tracks(self, video: str) -> NDArray[Any] | None:
        """All linked boxes of a video, (n,) of `linking.TRACK`; None if it has no file."""
        path = dict(self.files).get(video)
        if path is None:
            return None
        try:
            stat = path.stat()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror or error}") from None
        return _tracks(path, self.cache, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _tracks(path: Path, cache: Path | None, size: int, mtime_ns: int) -> NDArray[Any]:
    if cache is None:
        return _linked(path)
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"{path.stem}-{size}-{mtime_ns}-{VERSION}.npy"
    kept = _kept(file)
    if kept is not None:
        return kept
    with (cache / f"{path.stem}.lock").open("w") as lock:
        with suppress(OSError):  # without locks the same is done twice, which does no harm
            lock_within(lock, LINKING_SECONDS)
        kept = _kept(file)
        if kept is not None:
            return kept
        tracks = _linked(path)
        write_atomic(file, lambda out: np.save(out, tracks))
    return tracks


def _linked(path: Path) -> NDArray[Any]:
    try:
        found = detections.read(path)
    except OSError as error:  # of the disk: reading does not say of which file
        raise ValueError(f"{path}: {error.strerror or error}") from None
    return linking.link(found)


def _kept(file: Path) -> NDArray[Any] | None:
    """Tracks that were kept, mapped from the file so that a clip reads only its part of them."""
    try:
        tracks = np.load(file, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):  # not there, or damaged: made anew
        return None
    return np.asarray(tracks) if tracks.dtype == linking.TRACK else None


@dataclass(frozen=True)
class H5:
    """Linked boxes of all videos in one file."""

    path: Path
    parts: tuple[str, ...]
    """datasets of a frame; none: the frame is one itself"""

    def frames(self, video: str, numbers: NDArray[np.int64]) -> list[Rows] | None:
        """As in `Reader`."""
        videos = _handle(str(self.path), os.getpid())
        if video not in videos:
            return None
        try:
            return [self._frame(videos[video], int(number)) for number in numbers]
        except (OSError, RuntimeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{self.path}: {video}: {error}") from None

    def videos(self) -> frozenset[str]:
        """As in `Reader`."""
        return frozenset(_handle(str(self.path), os.getpid()))

    def _frame(self, video: Any, number: int) -> Rows:
        frame = video.get(str(number))
        if frame is None:
            return np.empty((0, 5))
        stored = [frame[part] for part in self.parts if part in frame] if self.parts else [frame]
        rows = [np.asarray(part[()], np.float64) for part in stored]
        for part in rows:
            if part.ndim != 2 or part.shape[1] != 5:
                raise ValueError(f"frame {number} is {part.shape}, not (n, 5): x0 y0 x1 y1 id")
            if not np.isfinite(part).all():
                raise ValueError(f"a box of frame {number} is not of finite numbers")
            if (np.abs(part[:, :4]) > 2).any():  # a tracked box may leave the frame a little
                raise ValueError(f"a box of frame {number} is not in shares of the frame")
        return np.concatenate([np.empty((0, 5)), *rows])


def sniff(path: Path) -> tuple[str, ...]:
    """Which of the two layouts an h5 file has: its `H5.parts`."""
    videos = _handle(str(path), os.getpid())
    try:
        frames = videos[next(iter(videos))]
        frame = frames[next(iter(frames))]
        if hasattr(frame, "shape"):
            return ()
        if "hand" in frame or "obj" in frame:
            return ("hand", "obj")
    except (StopIteration, OSError, RuntimeError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{path}: neither /VIDEO/FRAME nor /VIDEO/FRAME/hand and /obj are in it")


@lru_cache(maxsize=4)
def _handle(path: str, process: int) -> Any:
    """The open file; of each process its own, for HDF5 does not survive a fork."""
    import h5py

    try:
        return h5py.File(path, "r", locking="best-effort")
    except OSError as error:
        raise ValueError(f"{path}: not an HDF5 file that can be read: {error}") from None
