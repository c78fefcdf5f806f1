"""Every answer of a model, on disk as it comes: nothing that was paid for is asked for again.

    <out>.parts/answers-<i>-of-<n>.jsonl    a line per answer, each flushed to disk before the next
                                            request is counted as done; never rewritten

A line that a crash has cut is left where it is and skipped. The key of an answer covers all that it
depends on, so that answers under other prompts, models or settings are not taken for it.

Source: none, ours.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.config import ConfigError


@dataclass(frozen=True)
class Answer:
    """What a model said to one request."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0
    response_id: str = ""
    host: str = ""
    """of the server, with its port"""
    model_revision: str = ""
    refused: bool = False
    cut: bool = False
    """ended by the limit of tokens"""
    created: float = 0.0
    """seconds since 1970"""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """of the request, where the server did not take them all: what it took"""


def key_of(step: str, **facts: Any) -> str:
    """SHA-256 of a step and of everything that its answer depends on."""
    told = json.dumps({"step": step, **facts}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(told.encode()).hexdigest()


class Journal:
    """Context manager: the answers so far, and this process's file of new ones.

    Raises ConfigError where another process writes the same part.
    """

    def __init__(
        self, folder: Path, part: int = 0, parts: int = 1, only_read: bool = False
    ) -> None:
        self.folder, self.only_read = folder, only_read
        self.file = folder / f"answers-{part}-of-{parts}.jsonl"
        self.answers: dict[str, Answer] = {}
        self.own: set[str] = set()
        """keys of those in this process's file"""
        self.lost = 0
        """lines that could not be read"""
        self._lock = threading.Lock()

    def __enter__(self) -> Journal:
        if self.only_read:
            self._read_all()
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        self.out = open(self.file, "ab")
        try:
            fcntl.flock(self.out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.out.close()
            raise ConfigError(
                f"{self.file}: another process writes it; wait for it, or share the work out with "
                f"--shard 0/2 and --shard 1/2"
            ) from None
        self._read_all()
        if self.out.tell() and not _ends_with_newline(self.file):
            self.out.write(b"\n")  # after a line that a crash cut
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.only_read:
            self.out.close()

    def _read_all(self) -> None:
        for file in sorted(self.folder.glob("answers-*.jsonl")):
            for key, answer in self._read(file):
                self.answers.setdefault(key, answer)
                if file == self.file:
                    self.own.add(key)

    def _read(self, file: Path) -> Iterator[tuple[str, Answer]]:
        for line in file.read_bytes().split(b"\n"):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
                yield found["key"], Answer(**found["answer"])
            except (ValueError, KeyError, TypeError):
                self.lost += 1

    def add(self, key: str, answer: Answer) -> None:
        """Write an answer; on return it is on the disk."""
        line = json.dumps({"key": key, "answer": asdict(answer)}, ensure_ascii=False) + "\n"
        with self._lock:
            self.out.write(line.encode())
            self.out.flush()
            os.fsync(self.out.fileno())
            self.answers[key] = answer


def _ends_with_newline(file: Path) -> bool:
    with open(file, "rb") as content:
        content.seek(-1, os.SEEK_END)
        return content.read(1) == b"\n"
