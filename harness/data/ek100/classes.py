"""The classes of EPIC-Kitchens-100: which words each of the 97 verbs and 300 nouns stands for.

Source: EPIC_100_verb_classes.csv and EPIC_100_noun_classes.csv of the annotations.
"""

from __future__ import annotations

import ast
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from harness.data.ek100.annotations import NOUNS, VERBS, WHERE_FROM, rows

FILES = {"verb": "EPIC_100_verb_classes.csv", "noun": "EPIC_100_noun_classes.csv"}
COUNTS = {"verb": VERBS, "noun": NOUNS}


class WordClass(NamedTuple):
    """One class."""

    key: str
    """`pick-up`, `board:chopping`"""
    instances: tuple[str, ...]
    """words of narrations that mean it, written as keys are"""
    category: str


@dataclass(frozen=True)
class Classes:
    verbs: tuple[WordClass, ...]
    nouns: tuple[WordClass, ...]
    digest: str
    """SHA-256 of the two files"""

    @staticmethod
    def read(folder: Path) -> Classes:
        """Raises ValueError that names the file, and the line, of what is wrong."""
        files = [folder / name for name in FILES.values()]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ValueError(
                f"{folder}: no {' and no '.join(missing)} here; get them with `{WHERE_FROM}`"
            )
        return _read(folder, tuple(file.stat().st_mtime_ns for file in files))

    def categories(self, kind: str) -> tuple[str, ...]:
        """The categories of `verb` or `noun`, sorted."""
        classes = self.verbs if kind == "verb" else self.nouns
        return tuple(sorted({one.category for one in classes}))


@lru_cache(maxsize=4)
def _read(folder: Path, _stamps: tuple[int, ...]) -> Classes:
    digest = hashlib.sha256()
    for name in FILES.values():
        digest.update((folder / name).read_bytes())
    verbs, nouns = (_classes(folder / name, COUNTS[kind]) for kind, name in FILES.items())
    return Classes(verbs, nouns, digest.hexdigest())


def _classes(file: Path, most: int) -> tuple[WordClass, ...]:
    columns = {"id": int, "key": _word, "instances": words, "category": str.strip}
    found = {row[0]: WordClass(*row[1:]) for row in rows(file, columns)}  # type: ignore[arg-type]
    if sorted(found, key=str) != sorted(range(most), key=str):
        raise ValueError(f"{file}: classes are not 0..{most - 1}, each once; is it the right file?")
    return tuple(found[number] for number in range(most))


def _word(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text.strip()


def words(text: str) -> tuple[str, ...]:
    """`['pick-up', 'take']` -> its strings. Raises ValueError."""
    try:
        found = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        raise ValueError(f"{text[:40]!r} is not a list of words") from None
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise ValueError(f"{text[:40]!r} is not a list of words")
    return tuple(found)
