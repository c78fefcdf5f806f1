"""Where the studies are: a journal file, or a database by its URL.

The journal is written under a lock that the system takes back from a dead process, so that no
writer waits for a lock that nobody holds. A line that was cut short, by a full disk or a machine
that went down, is taken away before the next one is written: Optuna could not read past it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from harness.config import ConfigError

SQLITE_WAIT_SECONDS = 60.0


class FileLock:
    """One process at a time, as often within itself as it likes; gone with the process."""

    def __init__(self, file: Path, then: Callable[[], None] = lambda: None) -> None:
        self.file, self.then, self._depth = file, then, 0
        self._open: IO[str] | None = None

    def acquire(self) -> bool:
        """Wait for it; `then` comes first."""
        if self._depth == 0:
            self._open = open(self.file, "w")  # noqa: SIM115 - until it is released
            fcntl.flock(self._open, fcntl.LOCK_EX)
        self._depth += 1
        if self._depth == 1:
            try:
                self.then()
            except BaseException:
                self.release()
                raise
        return True

    def release(self) -> None:
        """As often as it was acquired."""
        self._depth -= 1
        if self._depth == 0 and self._open is not None:
            fcntl.flock(self._open, fcntl.LOCK_UN)  # a child that has it open does not keep it
            self._open.close()

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def opened(file: Path, url: str | None, lock: FileLock) -> BaseStorage:
    """The storage at `url`, or the journal `file`. Called with the lock held: a database that two
    create at once is left broken. Raises ConfigError with what the database says."""
    if url is None:
        repair(file)
        backend = JournalFileBackend(str(file), lock_obj=lock)  # type: ignore[arg-type]
        return JournalStorage(backend)
    try:
        options: dict[str, Any] = {}
        if make_url(url).get_backend_name() == "sqlite":
            options = {"connect_args": {"timeout": SQLITE_WAIT_SECONDS}}
        return RDBStorage(url, engine_kwargs=options)
    except ImportError as error:
        hint = "pip install 'mambavl-bench[postgresql]'"
        raise ConfigError(f"search storage {masked(url)}: {error}; try {hint}") from None
    except (ArgumentError, SQLAlchemyError, RuntimeError) as error:
        first = str(error).splitlines()[0].replace(url, masked(url) or "")
        raise ConfigError(f"search storage {masked(url)}: {first}") from None


def has_password(url: str) -> bool:
    """Whether a URL has one in it."""
    try:
        return bool(make_url(url).password)
    except ArgumentError:
        return "@" in url


def masked(url: str | None) -> str | None:
    """A URL without its password."""
    if url is None:
        return None
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url.split("://")[0] + "://***"


def cut_tail(file: Path) -> None:
    """Take away a last line that has no end: its writer is gone, for we have the lock."""
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        return
    if size == 0:
        return
    with open(file, "rb+") as journal:
        journal.seek(size - 1)
        if journal.read(1) == b"\n":
            return
        journal.seek(0)
        whole = journal.read().rfind(b"\n") + 1
        _keep_copy(file, f"its last line is cut short; {size - whole} bytes are taken away")
        journal.truncate(whole)
        journal.flush()
        os.fsync(journal.fileno())


def repair(file: Path) -> None:
    """Bring a journal back to the last line before one that cannot be read; a copy is kept."""
    cut_tail(file)
    if not file.exists():
        return
    good = lines = 0
    with open(file, "rb") as journal:
        for line in journal:
            try:
                json.loads(line)["op_code"]
            except (ValueError, KeyError, TypeError):
                break
            good, lines = good + len(line), lines + 1
        else:
            return
    _keep_copy(file, f"line {lines + 1} is damaged; it is brought back to the {lines} before it")
    os.truncate(file, good)


def _keep_copy(file: Path, why: str) -> None:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    copy = file.with_name(f"{file.name}.damaged-{stamp}-{os.getpid()}")
    shutil.copy2(file, copy)
    print(f"{file}: {why} (a copy: {copy.name})", file=sys.stderr)


__all__ = ["FileLock", "cut_tail", "masked", "opened", "repair"]
