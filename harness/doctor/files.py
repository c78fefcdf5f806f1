"""Checks of the file system that runs are stored in, by two processes, best on two machines.

The command holds a lock, touches a file, and replaces another again and again (`Partner`), while a
process on the node looks whether it sees what leases, results and checkpoints rely on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from harness.files import read_json, write_atomic, write_json
from harness.finding import Finding
from harness.lease import EXPIRES_SECONDS, HEARTBEAT_SECONDS

if TYPE_CHECKING:
    from harness.doctor.visit import Visit

LOCK, BEAT, REPLACED = "lock", "beat", "replaced"
HERE, BEGIN, RELEASE, RELEASED = "here.json", "begin.json", "release.json", "released.json"
SIZE = 1 << 16
"""bytes of the file that is replaced"""
LOOK_SECONDS = 2.0
SEEN_SECONDS = 120.0
"""that new files may take to be seen elsewhere; NFS looks again after 60 at most"""
LITTLE_GB, SCARCE_GB = 1, 20
ELSEWHERE = "set `runs` in the site file to a folder on another file system"


def there(folder: Path, name: str) -> bool:
    """Whether a folder has a file; NFS may remember for a minute that a single name had none."""
    return name in os.listdir(folder)


class Partner:
    """Context manager: the command's side of the checks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Partner:
        self._lock: IO[str] = open(self.folder / LOCK, "w")
        with contextlib.suppress(OSError):  # the node finds out
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        (self.folder / BEAT).touch()
        apart = time.time() - (self.folder / BEAT).stat().st_mtime
        write_json(self.folder / HERE, {"apart": apart})
        self._thread.start()
        return self

    def _work(self) -> None:
        while not there(self.folder, BEGIN):
            if self._stop.wait(0.2):
                return
        turn = 0
        while not there(self.folder, RELEASE):
            turn += 1
            _replace(self.folder / REPLACED, b"%d" % (turn % 10) * SIZE)
            os.utime(self.folder / BEAT)
            if self._stop.wait(0.02):
                return
        self._lock.close()
        write_json(self.folder / RELEASED, {})

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._lock.close()
        for name in (HERE, LOCK, BEAT, REPLACED, BEGIN, RELEASE, RELEASED):
            (self.folder / name).unlink(missing_ok=True)


def _replace(file: Path, text: bytes) -> None:
    write_atomic(file, lambda out: out.write(text))


def renaming(visit: Visit) -> Finding:
    """Whether a file that is replaced is always there and whole, as seen from here."""
    write_json(visit.folder / BEGIN, {})
    if not _await(lambda: there(visit.folder, REPLACED)):
        return _not_seen(visit)
    seen: list[bytes] = []
    broken = 0
    until = time.monotonic() + LOOK_SECONDS
    while time.monotonic() < until:
        try:
            text = (visit.folder / REPLACED).read_bytes()
            whole = len(text) == SIZE and len(set(text)) == 1
        except OSError:  # gone for a moment, or stale
            whole = False
        broken += not whole
        seen += [text[:1]] if whole and text[:1] not in seen[-1:] else []
        time.sleep(0.002)
    if broken:
        return Finding(
            "fail", f"{broken} times a replaced file was missing or in pieces", ELSEWHERE
        )
    return Finding("ok", f"replaced {len(seen)} times before our eyes, always whole")


def clocks(visit: Visit) -> Finding:
    """How far a heartbeat's time is from this clock: leases of runs go by that."""
    here = read_json(visit.folder / HERE)
    if here is None or not there(visit.folder, REPLACED):
        return _not_seen(visit)
    until = time.monotonic() + LOOK_SECONDS
    seen = []
    while time.monotonic() < until:
        seen.append(time.time() - (visit.folder / BEAT).stat().st_mtime)
        time.sleep(0.05)
    apart = max(abs(min(seen, key=abs)), abs(here["apart"]))
    found = f"a heartbeat is {apart:.1f} s from the clock; a lease lasts {EXPIRES_SECONDS:.0f} s"
    if apart <= HEARTBEAT_SECONDS:
        return Finding("ok", found)
    late = apart > EXPIRES_SECONDS - 2 * HEARTBEAT_SECONDS
    return Finding(
        "fail" if late else "warn",
        found,
        "ask for the clocks of these machines to be set (chrony, NTP): a run that lives could be "
        "taken for dead",
    )


def locks(visit: Visit) -> Finding:
    """Whether a lock held by the command is respected here, and is free when it lets go."""
    if not there(visit.folder, HERE):
        return _not_seen(visit)
    fix = f"mount it with locks (Lustre: `flock`; NFS: without `nolock`), or {ELSEWHERE}"
    with open(visit.folder / LOCK, "r+") as file:
        try:
            if _taken(file):
                return Finding("fail", "a lock was granted twice, here and to the command", fix)
            write_json(visit.folder / RELEASE, {})
            if not _await(lambda: there(visit.folder, RELEASED)):
                return _not_seen(visit)
            if _await(lambda: _taken(file)):
                return Finding("ok", f"flock excludes {visit.asked['between']}")
        except OSError as error:
            return Finding("fail", f"flock: {error.strerror}", fix)
    return Finding("fail", "a lock that was let go stays taken", fix)


def _taken(file: IO[str]) -> bool:
    """Whether the lock was free, and is this process's now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def links(visit: Visit) -> Finding:
    """Whether a file can have two names, as a checkpoint has while it is replaced."""
    one, two = visit.folder / "one", visit.folder / "two"
    one.write_text("1")
    try:
        os.link(one, two)
    except OSError as error:
        return Finding("fail", f"hard links do not work: {error.strerror}", ELSEWHERE)
    whole = two.read_text() == "1" and two.stat().st_nlink == 2
    one.unlink()
    two.unlink()
    return Finding("ok", "hard links work") if whole else Finding("fail", "no link", ELSEWHERE)


def space(visit: Visit) -> Finding:
    """Whether there is room for checkpoints and tokens; a quota may be smaller."""
    free = shutil.disk_usage(visit.folder).free / 1e9
    kind = _file_system(visit.folder)
    found = f"{free:.0f} GB free{f' ({kind})' if kind else ''}"
    if free >= SCARCE_GB:
        return Finding("ok", found)
    fix = f"make room: checkpoints and tokens may need more, or {ELSEWHERE}"
    return Finding("fail" if free < LITTLE_GB else "warn", found, fix)


def _file_system(folder: Path) -> str:
    """Kind of the file system a folder is on, e.g. `nfs4`; empty where that cannot be told."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    fitting = [(len(at), kind) for at, kind in mounts if folder.resolve().is_relative_to(at)]
    return max(fitting)[1] if fitting else ""


def _not_seen(visit: Visit) -> Finding:
    if not there(visit.folder, HERE):
        return Finding("skipped", "the command that asked has ended")
    return Finding(
        "fail",
        f"nothing of what the command writes is seen within {SEEN_SECONDS:.0f} s",
        f"{ELSEWHERE} that all nodes share",
    )


def _await(seen: Callable[[], bool]) -> bool:
    until = time.monotonic() + SEEN_SECONDS
    while not seen():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
