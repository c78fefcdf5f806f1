"""A run sends itself to the tracking server as it goes; training neither waits for it nor fails.

A second process, at the lowest priority, reads the run folder (the truth) and sends it by the code
of the collector. It does so only while the run's process is the writer of the folder, and ends with
it, however that ends. It is started for a server (http, https) only: a database is left to the
collector.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.store import Store

EVERY_SECONDS = 15.0
LONGEST_PAUSE_SECONDS = 120.0
"""between two tries while the server is away"""
END_SECONDS = 8.0
"""what a run that has ended waits for its last lines to be sent; more than one request may take"""
POLL_SECONDS = 0.5
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""sent to all processes of a job; the run's own process decides what they mean"""


def remote(uri: str | None) -> bool:
    """Whether the tracking URI is a server's, which many may reach at once."""
    return bool(uri) and str(uri).startswith(("http://", "https://"))


@contextlib.contextmanager
def syncing(store: Store, run_id: str, uri: str | None) -> Iterator[None]:
    """While the run is being made in this process, send it to the server at `uri` as it goes.

    Around all that takes and releases the run's lease, so that the last state is sent too; the end
    takes `END_SECONDS` at most. Nothing that happens to the server, or to the process that sends,
    is raised.
    """
    child = _start(store, run_id, str(uri)) if remote(uri) else None
    try:
        yield
    finally:
        if child is not None:
            _end(child)


def _start(store: Store, run_id: str, uri: str) -> subprocess.Popen[bytes] | None:
    here = [str(store.root.resolve()), run_id, uri, str(EVERY_SECONDS), str(os.getpid())]
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-m", "harness.live_sync", *here],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
    except OSError as error:  # no memory or processes left: the run matters more
        print(f"{uri}: not synced as the run goes: {error}", file=sys.stderr)
        return None


def _end(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    child.stdin.close()  # tells it
    try:
        child.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        child.kill()
        child.wait()


def _ended(parent: int, seconds: float) -> bool:
    """Wait so long, or until the run's process says that it has ended, or is gone."""
    until = time.monotonic() + seconds
    while True:
        left = max(0.0, min(POLL_SECONDS, until - time.monotonic()))
        if select.select([sys.stdin], [], [], left)[0] or os.getppid() != parent:
            return True
        if time.monotonic() >= until:
            return False


def _follow(store: Store, run_id: str, uri: str, every: float, parent: int) -> None:
    """Send the run again and again until its process has ended, and once then."""
    folder, ended = store.run(run_id), False
    while not ended and not folder.held_by(parent):
        ended = _ended(parent, POLL_SECONDS)
    from harness.config import ConfigError

    pause, told = every, False
    while folder.held_by(parent):  # not, or no more: another process is at the run
        try:
            from harness import track  # takes seconds

            track.collect_run(store, run_id, uri)
            pause = every
        except (ConfigError, OSError) as error:
            if not told:
                print(f"{error}; the run goes on", file=sys.stderr, flush=True)
            told, pause = True, min(2 * pause, LONGEST_PAUSE_SECONDS)
            if _ended(parent, 0):
                return
        if ended:
            return
        ended = _ended(parent, pause)


def main() -> None:
    """The second process: `harness.live_sync ROOT RUN_ID URI SECONDS PID`."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.nice(19)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"  # the next try comes anyway
    from harness.store import Store

    root, run_id, uri, every, parent = sys.argv[1:]
    _follow(Store(Path(root)), run_id, uri, float(every), int(parent))


if __name__ == "__main__":
    main()
