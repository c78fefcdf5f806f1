"""Frames of video files: whole videos, and videos cut into chunks of some seconds.

Source: none, ours. That one crop is kept across the chunks of a clip departs from AVION's loader,
which draws another in each.

A clip costs one seek, and one more wherever that skips frames up to a later key frame; what lies
between is decoded, and only the wanted frames are cropped, resized and made RGB. Files stay open
for the next clip, in the thread of the process that opened them.
"""

from __future__ import annotations

import ctypes
import math
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, cast

import av
import numpy as np
from av.error import FFmpegError

from harness.data.ek100.crop import Crop
from harness.data.ek100.footage import (
    OVERRUN_SECONDS,
    BadFootage,
    Floats,
    Footage,
    Pixels,
    Unreadable,
)
from harness.data.ek100.resize import Resizer
from harness.data.ek100.staging import Stage

OPEN_FILES = 4
"""kept open per thread; the index of a long video takes some megabytes"""
TRIM_EVERY = 16
"""files closed after which the memory that decoders left in pieces is given back"""
REORDER_SECONDS = 0.25
"""how long a frame may be stored before it is shown; an index tells when it is stored"""
DAMAGED = "it is damaged there, or a little before"
CHUNK_GAP_SECONDS = 0.1
"""what may be missing at the end of a chunk that has a successor"""


class Reader:
    """An open video file."""

    def __init__(self, path: Path) -> None:
        self.container = av.open(str(path))
        if not self.container.streams.video:
            self.container.close()
            raise Unreadable("there is no video stream in it")
        self.stream = self.container.streams.video[0]
        self.stream.codec_context.thread_count = 1  # the workers of a loader share the cores out
        assert self.stream.time_base is not None
        self.base = float(self.stream.time_base)
        self.start = self.stream.start_time or 0

    @property
    def size(self) -> tuple[int, int]:
        return self.stream.codec_context.width, self.stream.codec_context.height

    @property
    def duration(self) -> float:
        if self.stream.duration is not None:
            return self.stream.duration * self.base
        return (self.container.duration or 0) / av.time_base

    def frames_from(self, seconds: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """(time stamp in seconds, frame) in order, beginning at or before `seconds` if it can."""
        step_back = 0.0
        while True:
            first = max(0.0, seconds - step_back)
            target = self.start + math.floor(first / self.base)
            self.container.seek(target, stream=self.stream)
            frames = self._decoded()
            one = next(frames, None)
            if one is None:
                return
            if one[0] <= seconds or first == 0.0:
                break
            step_back = 2 * step_back + 5
        yield one
        yield from frames

    def _decoded(self) -> Iterator[tuple[float, av.VideoFrame]]:
        for frame in self.container.decode(self.stream):
            stamp = frame.pts if frame.pts is not None else frame.dts
            if stamp is None:
                raise Unreadable("its frames have no time stamps")
            if frame.is_corrupt:
                raise Unreadable(DAMAGED)
            yield (stamp - self.start) * self.base, frame

    def skips(self, frame: av.VideoFrame, seconds: float) -> bool:
        """Whether to seek to `seconds` after `frame` saves more than it costs."""
        entries = self.stream.index_entries
        latest = self.start + math.floor((seconds - REORDER_SECONDS) / self.base)
        found = entries.search_timestamp(latest)
        decoded = frame.dts if frame.dts is not None else frame.pts
        if found < 0 or decoded is None:
            return False
        return (entries[found].timestamp - decoded) * self.base > REORDER_SECONDS


class OpenFiles(threading.local):
    """Readers of this thread. A forked child begins with none: it would share the file's position
    with its parent."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.readers: OrderedDict[Any, Reader] = OrderedDict()
        self.closed = 0

    def get(self, path: Path) -> Reader:
        """The reader of a file as it is now."""
        if self.owner != os.getpid():
            self.__init__()  # type: ignore[misc]
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise Unreadable("it is not a file")
        key = (path, facts.st_mtime_ns, facts.st_size)
        if key not in self.readers:
            self.readers[key] = Reader(path)
            if len(self.readers) > OPEN_FILES:
                self.readers.popitem(last=False)[1].container.close()
                self.closed += 1
                if self.closed % TRIM_EVERY == 0:
                    _trim()
        self.readers.move_to_end(key)
        return self.readers[key]

    def drop(self, path: Path) -> None:
        """Close what is open of a file that failed."""
        for key in [key for key in self.readers if key[0] == path]:
            self.readers.pop(key).container.close()


@lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int] | None:
    """That of GNU's C library, if it is the one."""
    try:
        found = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    return cast("Callable[[int], int]", found)


def _trim() -> None:
    """Give free memory back: a reader of thousands of chunks would hold more and more of it."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


OPEN = OpenFiles()


@dataclass(frozen=True)
class Video(Footage):
    """A video in one file."""

    video: str
    path: Path
    begins: float = 0.0
    """of what whole video's second it is the beginning, if it is a chunk"""
    overrun: float = OVERRUN_SECONDS
    """how far beyond its last frame an instant may lie, seconds"""

    @property
    def size(self) -> tuple[int, int]:
        return self._reader().size

    @property
    def duration(self) -> float:
        return self._reader().duration

    @property
    def fps(self) -> float:
        rate = self._reader().stream.average_rate
        if not rate:
            raise self.bad(None, "its rate is unknown: no frames?")
        return float(rate)

    def bad(self, seconds: float | None, why: str) -> BadFootage:
        return super().bad(None if seconds is None else seconds + self.begins, why)

    def _reader(self, seconds: float | None = None) -> Reader:
        try:
            return OPEN.get(self.path)
        except (FFmpegError, OSError, Unreadable) as error:
            raise self.bad(seconds, self._cause(error)) from None

    def _read(self, moments: Floats, crop: Crop | None, out: Pixels) -> None:
        reader = self._reader(float(moments[0]))
        filled = Filled(moments, crop, out, self.video)
        try:
            while filled.row < len(moments):
                self._read_on(reader, filled)
        except (FFmpegError, OSError, Unreadable) as error:
            OPEN.drop(self.path)
            if isinstance(error, av.error.InvalidDataError):
                error = Unreadable(DAMAGED)
            raise self.bad(filled.moment, self._cause(error)) from None

    def _read_on(self, reader: Reader, filled: Filled) -> None:
        """Seek to the next moment and decode until all are filled, or another seek is better."""
        time, shown = 0.0, None
        for next_time, frame in reader.frames_from(filled.moment):
            got = shown is not None and filled.put(shown, until=(time + next_time) / 2)
            if got and (filled.done or reader.skips(frame, filled.moment)):
                return
            time, shown = next_time, frame
        if shown is None:
            raise self.bad(filled.moment, "no frame could be decoded")
        promised = reader.duration
        if promised > time + OVERRUN_SECONDS and filled.last > time + CHUNK_GAP_SECONDS:
            why = f"it ends at {time:.3f} s and promises {promised:.3f} s: is it truncated?"
            raise self.bad(filled.moment, why)
        if filled.last > time + self.overrun:
            raise self.bad(filled.last, f"the footage ends at {time + self.begins:.3f} s")
        filled.put(shown, until=math.inf)

    def _cause(self, error: Exception) -> str:
        if isinstance(error, FileNotFoundError):
            return "there is no such file"
        if isinstance(error, av.error.InvalidDataError):
            if self.path.stat().st_size == 0:
                return "the file is empty"
            return "not a video that can be read; is it truncated?"
        return getattr(error, "strerror", None) or str(error)


class Filled:
    """The frames of a clip, filled in the order of their moments."""

    def __init__(self, moments: Floats, crop: Crop | None, out: Pixels, video: str) -> None:
        self.moments = moments.tolist()
        self.last: float = self.moments[-1]
        self.out = out
        self.row = 0
        self.resize = Resizer(video, crop, (out.shape[1], out.shape[2]))

    @property
    def done(self) -> bool:
        return self.row == len(self.moments)

    @property
    def moment(self) -> float:
        """The next one, or the last if all have their frame."""
        return float(self.moments[min(self.row, len(self.moments) - 1)])

    def put(self, frame: av.VideoFrame, until: float) -> bool:
        """`frame` for all next moments up to `until`, seconds; whether there was any."""
        end = self.row
        while end < len(self.moments) and self.moments[end] <= until:
            end += 1
        if end == self.row:
            return False
        self.out[self.row : end] = self.resize(frame)
        self.row = end
        return True


@dataclass(frozen=True)
class Chunks(Footage):
    """A video cut into files that each begin at the second they are named by, from 0 on."""

    video: str
    path: Path
    """their folder"""
    files: tuple[tuple[int, str], ...]
    """(second, name) in order"""
    stage: Stage | None = None
    """what copies each chunk to a fast folder as it is opened"""
    resampled: ClassVar[bool] = True

    @property
    def size(self) -> tuple[int, int]:
        return self._chunk(0).size

    @property
    def duration(self) -> float:
        return self.files[-1][0] + self._chunk(-1).duration

    @property
    def fps(self) -> float:
        return self._chunk(0).fps

    def _chunk(self, number: int) -> Video:
        second, name = self.files[number]
        is_last = number in (-1, len(self.files) - 1)
        overrun = OVERRUN_SECONDS if is_last else CHUNK_GAP_SECONDS
        file = self.path / name
        if self.stage is not None:
            file = self.stage.file(file)
        return Video(self.video, file, second, overrun)

    def _read(self, moments: Floats, crop: Crop | None, out: Pixels) -> None:
        begins = np.array([second for second, _ in self.files], np.float64)
        first = max(int(np.searchsorted(begins, moments[0], side="right")) - 1, 0)
        half_frame = 0.5 / self._chunk(first).fps  # the next chunk's first frame may be nearer
        number = np.searchsorted(begins, moments + half_frame, side="right") - 1
        if number[0] < 0:
            raise self.bad(moments[0], f"the first chunk is {self.files[0][1]}")
        for chunk in np.unique(number).tolist():
            rows = np.flatnonzero(number == chunk)
            part = slice(rows[0], rows[-1] + 1)
            local = np.maximum(moments[part] - begins[chunk], 0.0)
            self._chunk(chunk)._read(local, crop, out[part])
