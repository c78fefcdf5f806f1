"""One writer per run folder, across processes and hosts.

A lease is a small file: who holds it (host, boot id, pid, start time of that process), a fencing
number that grows with every holder, and its time of change as a heartbeat. On the same host a dead
holder frees it at once; on another host it expires `EXPIRES_SECONDS` after its last heartbeat. An
old writer that comes back notices through the fencing number and stops.

A SLURM job that was put back into the queue has precedence over its former self: where a node is
lost to SLURM, and its processes are not, the older ones are fenced off at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.config import ConfigError
from harness.files import read_json, write_json
from harness.slurm import this_job

EXPIRES_SECONDS = 300.0
HEARTBEAT_SECONDS = 20.0


class LeaseLost(RuntimeError):
    """Another process took the run over; this one must not write any more."""


class LeaseTaken(RuntimeError):
    """Another process holds the run."""


def me() -> dict[str, Any]:
    """What identifies this process, also after its pid is used again."""
    job, restart = this_job() or (None, 0)
    return {
        "job": job,
        "restart": restart,
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
    }


def _former_self(holder: dict[str, Any]) -> bool:
    """Whether a holder is the same SLURM job as this process, before it was requeued."""
    job, restart = this_job() or (None, 0)
    return job is not None and holder.get("job") == job and holder.get("restart", 0) < restart


def holder_alive(file: Path) -> bool:
    """Whether the lease in `file` is held by a process that lives, as far as can be told."""
    holder = lease_holder(file)
    if not holder or holder.get("released"):
        return False
    if (holder["host"], holder["boot"]) == (socket.gethostname(), _boot_id()):
        started = _start_time(holder["pid"])
        return started is not None and started == holder["started"]
    try:
        return time.time() - file.stat().st_mtime < EXPIRES_SECONDS
    except FileNotFoundError:
        return False


def last_holder(file: Path) -> int | None:
    """Pid of the process that holds the lease in `file` or held it last; None if elsewhere."""
    holder = lease_holder(file)
    here = (holder.get("host"), holder.get("boot")) == (socket.gethostname(), _boot_id())
    return int(holder["pid"]) if here else None


@dataclass
class Lease:
    """Context manager that holds the lease in `file`; raises LeaseTaken if another has it."""

    file: Path
    fence: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Lease:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with _guard(self.file):
            holder = lease_holder(self.file)
            if holder_alive(self.file) and not _former_self(holder):
                raise LeaseTaken(f"process {holder.get('pid')} on {holder.get('host')} holds it")
            self.fence = int(holder.get("fence", 0)) + 1
            write_json(self.file, {**me(), "fence": self.fence, "released": False})
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """For what is written: nobody takes the lease meanwhile. Raises LeaseLost if it is lost."""
        with _guard(self.file):
            self.check()
            yield

    def check(self) -> None:
        """Raise LeaseLost if another process has taken the lease since."""
        held = read_json(self.file)
        if held is None or held.get("fence") != self.fence:
            raise LeaseLost(f"{self.file.parent.name}: taken over by {held}")

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self.check()
                os.utime(self.file)
            except (LeaseLost, OSError):
                return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        with _guard(self.file):
            held = read_json(self.file)
            if held is not None and held.get("fence") == self.fence:
                write_json(self.file, {**held, "released": True})


def break_lease(file: Path, holder: Mapping[str, Any]) -> None:
    """Free a lease whose holder is known to be gone, though its heartbeat is young."""
    with _guard(file):
        held = lease_holder(file)
        if held and all(held.get(key) == value for key, value in holder.items()):
            write_json(file, {**held, "fence": held["fence"] + 1, "released": True})


def lease_holder(file: Path) -> dict[str, Any]:
    """Who holds a lease, or held it last; empty if nobody did or the file is damaged."""
    try:
        held = read_json(file)
    except ConfigError:
        return {}
    return held if isinstance(held, dict) and "pid" in held else {}


@contextlib.contextmanager
def _guard(file: Path) -> Iterator[None]:
    """Keeps two processes from reading and writing one lease at once."""
    with open(file.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _start_time(pid: int) -> str | None:
    """Start time of a living process, None if it is gone (or only a zombie is left)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return None if fields[0] == "Z" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return None
    except OSError:
        return None
    try:  # no /proc, as on macOS: only the pid can be asked for
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


__all__ = [
    "Lease",
    "LeaseLost",
    "LeaseTaken",
    "break_lease",
    "holder_alive",
    "last_holder",
    "lease_holder",
]
