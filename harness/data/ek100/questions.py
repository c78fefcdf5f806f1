"""The questions to each segment, from a file of JSON lines.

Source: paper sec. 3.1; it does not say how the two are joined; here one
follows the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

BETWEEN = " </s> "
ASKED = ("verb_question", "noun_question")
CONSTANT = BETWEEN.join(("What is the person doing?", "What is the person using?"))


def read(file: Path, wanted: Sequence[str]) -> Mapping[str, str]:
    """Narration id -> the verb question and the noun question. `<MASK>` becomes `<mask>`.

    Raises ValueError, with the line, for what is no such record, and if a wanted one is missing.
    """
    found = asked_in(file)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(
            f"{file}: no questions to {len(missing)} of {len(wanted)} segments, e.g. "
            f"{', '.join(missing[:3])}"
        )
    return {name: found[name] for name in wanted}


def asked_in(file: Path) -> Mapping[str, str]:
    """All that are in a file; as `read`."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file of questions; see docs/ek100.md")
    return _read(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(file: Path, _mtime_ns: int) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            name, asked = record["narration_id"], [record[key] for key in ASKED]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}:{number}: not a record with narration_id, {', '.join(ASKED)}: {error}"
            ) from None
        if name in found:
            raise ValueError(f"{file}:{number}: {name} is there twice")
        if not all(isinstance(text, str) and text.strip() for text in asked):
            raise ValueError(f"{file}:{number}: a question of {name} is empty")
        found[name] = BETWEEN.join(asked).replace("<MASK>", "<mask>")
    return found


def constant(wanted: Sequence[str]) -> Mapping[str, str]:
    """The same two questions for all."""
    return dict.fromkeys(wanted, CONSTANT)


def shuffled(names: Sequence[str], seed: int) -> dict[str, str]:
    """Each of the names -> another of them: a fixed permutation without a fixed point."""
    order = np.random.default_rng(seed).permutation(len(names))
    return {names[a]: names[b] for a, b in zip(order, np.roll(order, 1), strict=True)}
