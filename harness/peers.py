"""How the processes of one run notice that one of them has failed or is gone.

A collective may wait for long for a process that will never come. So every process shows a sign of
life in the store that they met by, and looks there for those of the others and for a trace that one
of them left. Who finds one has a little time to end by itself; then it is ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

BEAT_SECONDS = 1.0
SILENT_BEATS = 60
"""a process whose sign of life stands still for so many looks is gone; they are counted, and not
seconds, for a whole job may be suspended"""
GRACE_SECONDS = 20.0
"""what a process has to end by itself once another has failed"""
HEARD_SECONDS = 5.0
"""how long a process that failed waits until rank 0 has stored its trace"""


class PeerLost(RuntimeError):
    """Another process of the run failed, or is gone."""


@contextlib.contextmanager
def exchanging() -> Iterator[None]:
    """Around what other processes take part in: raises PeerLost where it ends because of them."""
    from torch.distributed import DistError

    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DistError) or re.search("gloo|nccl", str(error), re.IGNORECASE):
            raise PeerLost("another process of the run has ended") from error
        raise


class Watch:
    """Signs of life and traces, in `store`, of the processes 0 .. `size` - 1, of which this is
    `rank`; `on_failure` is called in rank 0, by another thread, with a trace that was left."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.on_failure: Callable[[str], None] = lambda trace: None
        self._watched = range(1, size) if rank == 0 else range(1)
        self._seen: dict[int, tuple[bytes, int]] = {}
        self._beats = 0
        self._left = False
        self._ended = threading.Event()
        self._beat()

    def start(self) -> None:
        """Begin to look, once every process is there."""
        threading.Thread(target=self._look, daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def leave(self, trace: str) -> None:
        """Leave the trace of this rank's failure for the others; the first one counts."""
        self._left = True
        with contextlib.suppress(RuntimeError):  # rank 0, and with it the store, may be gone
            self.store.compare_set("failure", "", f"{trace.rstrip()} (rank {self.rank})\n")
            if self.rank == 0:
                self.say("heard")
            deadline = time.monotonic() + HEARD_SECONDS
            while time.monotonic() < deadline and not self.store.check(["heard"]):
                time.sleep(0.05)

    def failure(self) -> str | None:
        """The trace that a process left, if one did."""
        with contextlib.suppress(RuntimeError):
            if self.store.check(["failure"]):
                return str(self.store.get("failure").decode())
        return None

    def say(self, key: str) -> None:
        """Say that something is done."""
        self.store.set(key, "1")

    def _beat(self) -> None:
        self._beats += 1
        self.store.set(f"beat{self.rank}", str(self._beats))

    def _look(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            if (why := self._wrong()) is None:
                continue
            if self.rank == 0 and not self._left and (trace := self.failure()) is not None:
                self.on_failure(trace)
                self.say("heard")
            if self._ended.wait(GRACE_SECONDS):
                return
            print(f"rank {self.rank} is ended: {why}", file=sys.stderr, flush=True)
            os._exit(1)  # the other thread waits in a collective that will not return

    def _wrong(self) -> str | None:
        """Why this process cannot go on, if so."""
        try:
            self._beat()
            if self.store.check(["failure"]):
                return "another process of the run has failed"
            for other in self._watched:
                beat = self.store.get(f"beat{other}")
                last, silent = self._seen.get(other, (b"", 0))
                self._seen[other] = (beat, silent + 1 if beat == last else 0)
                if self._seen[other][1] >= SILENT_BEATS:
                    return f"rank {other} gives no sign of life"
        except RuntimeError as error:
            return f"rank 0 cannot be reached ({error})"
        return None
