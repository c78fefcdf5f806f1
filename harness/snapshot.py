"""The code as it was when a sweep was submitted: jobs that start hours later run this.

`runs/code/<digest>/` holds the packages of the harness, unchanged, and `snapshot.json`: commit, and
what differed from it. The same code is stored once. Plugins of other distributions are not copied.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.files import file_digest, read_json, write_json

PACKAGES = ("backbones", "fusions", "harness", "reports")
RECORD = "snapshot.json"


def take(root: Path, folder: Path, record: Mapping[str, Any]) -> Path:
    """Copy the packages in `root` to `folder`/<digest>, if they are not there; that folder."""
    partial = folder / f".{uuid.uuid4().hex[:12]}"
    for package in PACKAGES:
        _copy(root / package, partial / package)
    place = folder / _digest(partial)  # of the copy: the original may be edited meanwhile
    write_json(partial / RECORD, {**record, "digest": place.name})
    try:
        partial.rename(place)
    except OSError:
        shutil.rmtree(partial)
        if not place.exists():  # else the same code was frozen before
            raise
    return place


def _copy(source: Path, target: Path) -> None:
    """A folder, with what is compiled of it: time stamps are kept, so that stays valid."""
    for file in source.rglob("*"):
        if file.is_file():
            to = target / file.relative_to(source)
            to.parent.mkdir(parents=True, exist_ok=True)
            # another process may be writing, or removing, what it compiled
            with contextlib.suppress(FileNotFoundError):
                shutil.copy2(file, to)


def _digest(root: Path) -> str:
    lines = [
        f"{file_digest(file)} {file.relative_to(root).as_posix()}"
        for file in sorted(root.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def record_of(root: Path) -> dict[str, Any] | None:
    """What was noted when the code in `root` was frozen; None if `root` is no snapshot."""
    found = read_json(root / RECORD)
    return found if isinstance(found, dict) else None


def path_line(place: Path) -> str:
    """A line of shell after which Python imports the frozen code first."""
    return f"export PYTHONPATH={shlex.quote(str(place))}${{PYTHONPATH:+{os.pathsep}$PYTHONPATH}}"
