"""Files that are either whole or not there: written beside their place, then renamed into it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, BinaryIO

from harness.config import ConfigError

LOCK_POLL_SECONDS = 0.05


def write_atomic(file: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` fill a temporary file, flush it to disk, and rename it to `file`."""
    beside = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(beside, "wb") as out:
            write(out)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(file)
    except OSError as error:
        if error.filename is None:  # a write to a full disk does not say where
            raise OSError(error.errno, error.strerror, str(file)) from error
        raise
    finally:
        beside.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove temporary files that a killed `write_atomic` left in `folder`."""
    for file in folder.glob(".*"):
        if re.fullmatch(r"\..+\.[0-9a-f]{8}", file.name):
            file.unlink()


def lock_within(file: IO[Any], seconds: float) -> bool:
    """Lock an open file until it is closed; False if others held it for all of `seconds`.

    Raises OSError where the file system has no locks.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(LOCK_POLL_SECONDS)


def write_json(file: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    write_atomic(file, lambda out: out.write(text.encode()))


def read_json(file: Path) -> Any | None:
    """The JSON in `file`, or None if there is no such file. Raises ConfigError if it is damaged."""
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{file}: damaged ({error}); delete it, and it is made anew") from None


OTHER_FORMATS = {".h5", ".md", ".msgpack", ".onnx", ".ot"}
"""what lies beside a model's weights and is not read"""


def content_digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of the files that make a folder a model.

    Hidden files, documents and the same weights in other formats are left out. A file is read again
    only if its size or time of change differ.
    """
    if not path.is_dir():
        return file_digest(path)
    inside = [file.relative_to(path) for file in path.rglob("*") if file.is_file()]
    twice = {".bin"} if any(name.suffix == ".safetensors" for name in inside) else set()
    lines = [
        f"{file_digest(path / name)} {name.as_posix()}"
        for name in sorted(inside)
        if name.suffix not in OTHER_FORMATS | twice
        and not any(part.startswith(".") for part in name.parts)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, computed again only if its size or time of change differ."""
    stat = path.stat()
    return _file_digest(str(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _file_digest(path: str, _mtime_ns: int, _size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
