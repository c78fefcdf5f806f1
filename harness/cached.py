"""What lies in the store of tokens: of what, how large, for which runs, and whether it is sound."""

from __future__ import annotations

import contextlib
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.config import ConfigError
from harness.files import read_json
from harness.registry import unknown
from harness.shards import FILES, Shard, in_bytes, locked, open_tokens, read_index, users
from harness.store import Store

INCOMPLETE = "  incomplete: goes on when it is needed"


@dataclass(frozen=True)
class Entry:
    """The tokens of one encoder over one split."""

    folder: Path

    @property
    def key(self) -> str:
        return self.folder.name

    @property
    def about(self) -> dict[str, Any]:
        """What they are of; empty for what another version has stored."""
        return dict(read_json(self.folder / "about.json") or {})

    @property
    def bytes(self) -> int:
        total = 0
        for file in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # a process fills it at this moment
                total += file.stat().st_size
        return total

    @property
    def complete(self) -> bool:
        return (self.folder / "done.json").exists()

    def in_words(self, store: Store) -> str:
        """One line."""
        about, runs = self.about, users(self.folder)
        if not about:
            return f"{self.key}  {in_bytes(self.bytes):>9}  of another version of the harness"
        encoder, tail = about["encoder"], "" if self.complete else INCOMPLETE
        there = sum(store.run(run).spec_file.exists() for run in runs)
        if "texts" in about:
            told = [f"{about['texts']} texts", encoder["name"], about["numbers"]]
            return f"{self.key}  {in_bytes(self.bytes):>9}  {', '.join(told)}  {there} runs{tail}"
        tokens = encoder["options"].get("tokens")
        told = [
            f"{about['data']['name']} {about['split']}",
            f"{about['stream']}: {encoder['name']}",
            *([f"tokens: {tokens}"] if tokens else []),
            about["numbers"],
            *([f"{about['views']} views"] if about["views"] else []),
        ]
        return f"{self.key}  {in_bytes(self.bytes):>9}  {', '.join(told)}  {there} runs{tail}"

    def damaged(self) -> Iterator[str]:
        """Everything that is not what was stored, in words."""
        if not self.complete:
            for file in sorted(self.folder.glob("*.jsonl")):
                shard = Shard.of(file.with_suffix(".bin"))
                sound, lines = len(list(shard.sound())), len(shard.lines())
                if sound < lines:
                    yield f"{shard.file}: batch {sound} of {lines} is damaged; it is made again"
            return
        try:
            if "texts" in (read_json(self.folder / "done.json") or {}):
                read_index(self.folder)
                return  # their tokens are an entry of their own
            found = open_tokens(self.folder)
        except (ValueError, OSError) as error:
            yield str(error)
            return
        assert found.checksums is not None
        for number, name in enumerate(found.names):
            items = np.flatnonzero(found.array == number)
            wrong = [
                int(item)
                for item in items
                if zlib.crc32(_rows(found, number, int(item))) != found.checksums[item]
            ]
            if wrong:
                yield f"{name}: {len(wrong)} of {len(items)} items are damaged, first {wrong[0]}"

    def remove(self, store: Store) -> None:
        """Delete it. Raises ConfigError while a run is at it."""
        running = [run for run in users(self.folder) if store.run(run).state() == "running"]
        if running:
            raise ConfigError(
                f"{self.key}: run {running[0]} is running with it; nothing is removed"
            )
        with contextlib.ExitStack() as stack:
            for file in self.folder.glob("*.lock"):
                if not stack.enter_context(locked(file, wait=False)):
                    raise ConfigError(f"{self.key}: a process fills it; nothing is removed")
            (self.folder / "done.json").unlink(missing_ok=True)
            shutil.rmtree(self.folder)


def _rows(found: Any, number: int, item: int) -> Any:
    begin, length = int(found.begins[item]), int(found.lengths[item])
    return np.ascontiguousarray(found.arrays[number][begin : begin + length]).data


def entries(store: Store, keys: list[str] | None = None) -> list[Entry]:
    """All that is stored, or what `keys` name. Raises ConfigError for a name that nothing has."""
    found = {
        folder.name: Entry(folder)
        for folder in sorted(store.tokens.glob("*"))
        if any((folder / name).exists() for name in FILES)
    }
    wrong = [unknown(key, sorted(found), "key") for key in keys or () if key not in found]
    if wrong:
        raise ConfigError(*wrong)
    return [found[key] for key in keys] if keys else list(found.values())


def unused(store: Store) -> list[Entry]:
    """Those of which no run folder is left that has read them."""
    return [
        entry
        for entry in entries(store)
        if not any(store.run(run).spec_file.exists() for run in users(entry.folder))
    ]
