"""Footage copied to a fast folder when it is first opened: `scratch` of the site file.

Source: none, ours.

    <scratch>/footage/<path below the footage folder>          the copy, of the same size and time
    <scratch>/footage/<...>/.<name>.part                       a copy that is being made

A file is copied by one process at a time, under a lock that the system frees when its holder dies;
others wait for it. Nothing is ever deleted but such a part. Where there is no room, or anything
else goes wrong, the original is read: staging makes nothing fail.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import platform
import shutil
import stat
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

SPARE_BYTES = 2 << 30
"""that are left free for others"""
WAIT_SECONDS = 1800.0
"""how long a process waits for another that copies the same file"""
POLL_SECONDS = 0.05
TIME_STEP_SECONDS = 2.0
"""time stamps that differ by less are the same: some file systems keep no finer ones"""
BLOCK = 16 << 20
SAID = ".said"
"""file of those who have said that there is no room"""


@dataclass(frozen=True)
class Stage:
    """Copies files below `root` to `folder`; it can be sent to another process."""

    root: Path
    folder: Path
    copies: bool = True
    """False: what is there is read, and nothing copied"""
    spare_bytes: int = SPARE_BYTES

    def file(self, original: Path) -> Path:
        """The copy of a file, made now if there is none yet; the original where that cannot be."""
        try:
            size, seconds = _facts(original)
            place = self.folder / original.relative_to(self.root)
            if _is_copy(place, size, seconds):
                return place
            if self.copies and self._copied(original, place, size, seconds):
                return place
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            _say(self.folder, f"{original}: not copied there but read in place: {why}")
        return original

    def _copied(self, original: Path, place: Path, size: int, seconds: float) -> bool:
        part = place.with_name(f".{place.name}.part")
        place.parent.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < until:
            with open(part, "ab") as out:
                try:
                    fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:  # another one copies it
                    time.sleep(POLL_SECONDS)
                    continue
                if _is_copy(place, size, seconds):
                    _remove(part, out.fileno())
                    return True
                if not _is_file(part, out.fileno()):  # it was renamed or removed meanwhile
                    continue
                try:
                    return self._fill(original, place, part, out.fileno(), size)
                finally:
                    _remove(part, out.fileno())
        return False

    def _fill(self, original: Path, place: Path, part: Path, out: int, size: int) -> bool:
        os.truncate(out, 0)
        free = shutil.disk_usage(part.parent).free
        if free < size + self.spare_bytes:
            told = f"{free / 1e9:.1f} GB are free; footage that is not there yet is read in place"
            _say(self.folder, told)
            return False
        with open(original, "rb", buffering=0) as source:
            before = os.fstat(source.fileno())
            while data := source.read(BLOCK):
                view = memoryview(data)
                while view:
                    view = view[os.write(out, view) :]
        os.fsync(out)
        if os.fstat(out).st_size != size:
            raise OSError(0, "it changed while it was copied")
        os.utime(out, ns=(before.st_atime_ns, before.st_mtime_ns))
        part.replace(place)
        return True


@lru_cache
def _warned(folder: Path) -> list[str]:
    """What this process has said about a folder."""
    return []


def _say(folder: Path, what: str) -> None:
    """On stderr, the first thing only, and once for all processes of a run."""
    if _warned(folder):
        return
    _warned(folder).append(what)
    parent = multiprocessing.parent_process()
    run = f"{platform.node()} {parent.pid if parent else os.getpid()}\n"
    with contextlib.suppress(OSError), open(folder / SAID, "a+") as said:
        said.seek(0)
        if run in said.readlines():
            return
        said.write(run)
    print(f"{folder}: {what}", file=sys.stderr, flush=True)


@lru_cache(maxsize=65536)
def _facts(original: Path) -> tuple[int, float]:
    """Bytes, and seconds of the last change. Asked once: the original may be far away."""
    facts = original.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError("it is not a file")
    return facts.st_size, facts.st_mtime


def _is_copy(place: Path, size: int, seconds: float) -> bool:
    try:
        facts = place.stat()
    except FileNotFoundError:
        return False
    return facts.st_size == size and abs(facts.st_mtime - seconds) < TIME_STEP_SECONDS


def _is_file(path: Path, handle: int) -> bool:
    """Whether the open file is the one that lies at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _remove(part: Path, handle: int) -> None:
    """Unlink the part, which is locked, unless it has become the copy."""
    if _is_file(part, handle):
        part.unlink()
