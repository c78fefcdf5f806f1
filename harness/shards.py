"""The files of one store of tokens: shards, each with a journal while it is filled; then an index.

`harness.cache` fills them, and says what lies where.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from harness.config import ConfigError
from harness.files import read_json, write_atomic
from harness.splits import Labels
from harness.tokens import HALF_AS, Damaged, TokenFile

FILES = ("about.json", "done.json", "labels.npz")
"""one of them is in every store, the last in those of former versions"""
NO_LABELS = Labels(np.zeros(0, np.str_), np.zeros(0, np.str_), np.zeros(0, np.str_), {})
"""of tokens that are of no samples, but of texts"""
SHARD = 2048
"""samples (or texts) of a shard"""

NUMBERS: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": HALF_AS,
}


@dataclass(frozen=True)
class Shard:
    """A file of tokens, and what is known of it while it is filled."""

    folder: Path
    view: int
    number: int
    count: int
    """samples, or texts, of it when it is complete"""

    @property
    def file(self) -> Path:
        return self.folder / f"{self.view}-{self.number:04}.bin"

    @classmethod
    def of(cls, file: Path) -> Shard:
        """The shard in a file, whose full size is not known."""
        view, number = file.stem.split("-")
        return cls(file.parent, int(view), int(number), SHARD)

    def lines(self) -> list[dict[str, Any]]:
        """What is known of its batches, but for a line that was cut short."""
        try:
            text = self.file.with_suffix(".jsonl").read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def stored(self) -> int:
        return sum(len(line["lengths"]) for line in self.lines())

    def complete(self) -> bool:
        done = (self.folder / "done.json").exists()
        return done or (self.stored() == self.count and self.file.exists())

    def resume(self) -> int:
        """Cut back to the batches that are whole; how many samples that are."""
        kept = list(self.sound())
        with open(self.file, "ab") as data:
            data.truncate(sum(line["bytes"] for line in kept))
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomic(self.file.with_suffix(".jsonl"), lambda out: out.write(text.encode()))
        return sum(len(line["lengths"]) for line in kept)

    def sound(self) -> Iterator[dict[str, Any]]:
        """Its batches, as far as they hold what was written."""
        if not self.file.exists():
            return
        with open(self.file, "rb") as data:
            for line in self.lines():
                if not _sound(data.read(line["bytes"]), line):
                    return
                yield line

    def append(self, out: IO[bytes], data: npt.NDArray[Any], line: dict[str, Any]) -> None:
        """A batch: its tokens first, then that they are there."""
        try:
            out.write(data.tobytes())
            out.flush()
            with open(self.file.with_suffix(".jsonl"), "a") as journal:
                journal.write(json.dumps({**line, "bytes": data.nbytes}) + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.file)) from error


def _sound(content: bytes, line: Mapping[str, Any]) -> bool:
    """Whether a batch holds what was written."""
    tokens = sum(line["lengths"])
    if len(content) != line["bytes"] or not tokens:
        return len(content) == int(line["bytes"])
    each, place = len(content) // tokens, 0
    for length, checksum in zip(line["lengths"], line["checksums"], strict=True):
        if zlib.crc32(content[place : place + length * each]) != checksum:
            return False
        place += length * each
    return True


@contextlib.contextmanager
def locked(file: Path, wait: bool) -> Iterator[bool]:
    """Whether this process has the lock; freed by the system if its holder dies."""
    with open(file, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def note_user(folder: Path, run_id: str) -> None:
    """Remember that a run reads the store, if that can be written."""
    if run_id not in users(folder):
        with contextlib.suppress(OSError), open(folder / "runs.txt", "a") as out:
            out.write(f"{run_id}\n")


def users(folder: Path) -> list[str]:
    """Runs that have read the store."""
    try:
        return list(dict.fromkeys((folder / "runs.txt").read_text().split()))
    except FileNotFoundError:
        return []


def read_index(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What done.json says, and the arrays of index.npz. Raises Damaged."""
    try:
        done = dict(read_json(folder / "done.json") or {})
        with np.load(folder / "index.npz", allow_pickle=False) as file:
            return done, {name: file[name] for name in file.files}
    except (BadZipFile, EOFError, ValueError, KeyError, ConfigError) as error:
        raise Damaged(
            f"{folder}: its index is damaged ({error}); `harness cache rm {folder.name}` removes "
            f"these tokens, and they are computed again"
        ) from None


def open_tokens(folder: Path) -> TokenFile:
    """A complete store. Raises ValueError where its files are not those that were written."""
    done, arrays = read_index(folder)
    names = ("lengths", "checksums", "sums", "shard", "parts", "places")
    lengths, checksums, sums, shard, parts, places = (arrays.pop(n, None) for n in names)
    labels = Labels.of_arrays(arrays) if arrays else NO_LABELS
    numbers: np.dtype[Any] = NUMBERS[done["numbers"]]
    width = int(done["width"])
    begins = np.zeros(len(lengths), np.int64)
    opened: list[npt.NDArray[Any]] = []
    for number, name in enumerate(done["files"]):
        own = lengths[shard == number]
        begins[shard == number] = np.cumsum(own) - own
        total, file_ = int(own.sum()), folder / name
        if not file_.is_file() or file_.stat().st_size != total * width * numbers.itemsize:
            raise ValueError(
                f"{file_} is not as long as it was; `harness cache rm {folder.name}` removes these "
                f"tokens, and they are computed again"
            )
        shape = (total, width)
        mapped: Any = np.memmap(file_, numbers, "r", shape=shape) if total else np.zeros(shape)
        opened.append(np.asarray(mapped, numbers))
    paths = [str(folder / name) for name in done["files"]]
    return TokenFile(
        opened, paths, shard.astype(np.int32), begins, lengths, labels, parts,
        checksums, sums, None, done["views"], places, done["bad"],
    )  # fmt: skip


def in_bytes(count: float) -> str:
    """Bytes in words: 826 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
