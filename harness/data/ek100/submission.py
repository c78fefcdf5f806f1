"""Results files of the EK100 challenges: scores as JSON, in a zip file.

Source: github.com/epic-kitchens/C1-Action-Recognition and C3-Action-Anticipation, READMEs: version
0.2; for each segment scores of all verbs and nouns, and if wished of the 100 best actions; three
levels of supervision, 0 to 5: `sls_pt` pre-training, `sls_tl` labels, `sls_td` data.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from harness.actions import CHUNK, Floats, Ints, best_pairs, marginals
from harness.config import ConfigError
from harness.data.ek100.annotations import NOUNS, VERBS
from harness.data.ek100.truth import Truth, order_of
from harness.files import write_atomic

VERSION: Final = "0.2"
SUPERVISION: Final = {"action_recognition": (2, 3, 4), "action_anticipation": (1, 4, 3)}
"""challenge -> pt, tl, td, as the published baselines have them"""
BEST_ACTIONS: Final = 100
COMPRESSION: Final = 5


@dataclass(frozen=True)
class BestActions:
    """The 100 best actions of each segment."""

    verb: Ints
    """(N, 100)"""
    noun: Ints
    scores: Floats


def best_of_pairs(verb: Floats, noun: Floats) -> BestActions:
    """By the sum of the two logits, as the evaluation makes them itself where none are given."""
    return BestActions(*best_pairs(verb, noun, BEST_ACTIONS))


def best_of_head(logits: Floats, actions: Ints) -> BestActions:
    """By a head over `actions` (A, 2); ties go to the lower place."""
    best = np.empty((len(logits), min(BEST_ACTIONS, logits.shape[1])), np.int64)
    for start in range(0, len(logits), CHUNK):
        order = np.argsort(-logits[start : start + CHUNK], axis=1, kind="stable")
        best[start : start + CHUNK] = order[:, :BEST_ACTIONS]
    pairs = actions[best]
    return BestActions(pairs[..., 0], pairs[..., 1], np.take_along_axis(logits, best, axis=1))


def summed(logits: Floats, actions: Ints) -> tuple[Floats, Floats]:
    """Scores of verbs and nouns by a head over `actions` (A, 2) alone: logarithms of sums of its
    probabilities. Classes that no action has get less than the least of the others."""
    found = marginals(logits, actions, VERBS, NOUNS)
    for said in found:
        never = said == -np.inf
        least = np.min(said, axis=1, keepdims=True, where=~never, initial=0.0)
        np.copyto(said, least - 1, where=never)
    return found


@dataclass(frozen=True)
class Submission:
    """What is sent to a challenge."""

    challenge: str
    """`action_recognition` or `action_anticipation`"""
    ids: npt.NDArray[np.str_]
    """(N,) narration ids"""
    verb: Floats
    """(N, 97)"""
    noun: Floats
    """(N, 300)"""
    actions: BestActions | None = None
    """for all segments or none"""
    supervision: tuple[int, int, int] | None = None
    """pt, tl, td; None: those of the challenge's baseline"""

    def write(self, file: Path, truth: Truth, overwrite: bool = False) -> None:
        """Check it against the segments of the split and write `file`, whole or not at all.

        Raises ConfigError where it is not what the challenge takes, or `file` exists.
        """
        self.check(truth)
        if file.exists() and not overwrite:
            raise ConfigError(f"{file}: is there already; name another file, or give --overwrite")
        write_atomic(file, self._zip)

    def check(self, truth: Truth) -> None:
        """ConfigError with everything that the challenge would refuse."""
        wrong = []
        if self.challenge not in SUPERVISION:
            wrong.append(f"challenge {self.challenge!r} is none of {', '.join(SUPERVISION)}")
        levels = self.supervision or (0, 0, 0)
        if len(levels) != 3 or not all(0 <= level <= 5 for level in levels):
            wrong.append(f"supervision levels (pt, tl, td) are three of 0..5, not {levels}")
        try:
            order_of(self.ids.tolist(), truth, "submission")
        except ValueError as error:
            wrong.append(str(error))
        wrong += self._wrong_scores("verb", self.verb, VERBS)
        wrong += self._wrong_scores("noun", self.noun, NOUNS)
        if self.actions is not None:
            wrong += self._wrong_actions(self.actions)
        if wrong:
            raise ConfigError(*wrong)

    def _wrong_scores(self, name: str, scores: Floats, width: int) -> Iterator[str]:
        if scores.shape != (len(self.ids), width):
            yield f"{name} scores are {scores.shape}, not {(len(self.ids), width)}"
        elif not np.isfinite(scores).all():
            row = int((~np.isfinite(scores)).any(axis=1).argmax())
            yield f"{name} scores of {self.ids[row]} are not all finite numbers"

    def _wrong_actions(self, best: BestActions) -> Iterator[str]:
        shape = (len(self.ids), BEST_ACTIONS)
        shapes = {best.verb.shape, best.noun.shape, best.scores.shape}
        if shapes != {shape}:
            yield f"actions are {sorted(shapes)}, not {BEST_ACTIONS} of each of {shape[0]} segments"
            return
        yield from self._wrong_scores("action", best.scores, BEST_ACTIONS)
        inside = (best.verb >= 0) & (best.verb < VERBS) & (best.noun >= 0) & (best.noun < NOUNS)
        pairs = np.sort(best.verb * NOUNS + best.noun, axis=1)
        wrong = ~inside.all(axis=1) | (np.diff(pairs, axis=1) == 0).any(axis=1)
        if wrong.any():
            yield f"an action of {self.ids[int(wrong.argmax())]} is there twice, or does not exist"

    def _zip(self, out: BinaryIO) -> None:
        entry = zipfile.ZipInfo("test.json")  # of a fixed date: the same scores, the same bytes
        entry.compress_type = zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(out, "w", compresslevel=COMPRESSION) as archive:
            entry.external_attr = 0o644 << 16
            with archive.open(entry, "w") as text:
                for part in self._json():
                    text.write(part.encode())

    def _json(self) -> Iterator[str]:
        """The file's text, a segment at a time."""
        levels = self.supervision or SUPERVISION[self.challenge]
        head: dict[str, Any] = {"version": VERSION, "challenge": self.challenge}
        head |= dict(zip(("sls_pt", "sls_tl", "sls_td"), levels, strict=True))
        yield json.dumps(head)[:-1] + ', "results": {'
        verbs, nouns = (list(map(str, range(count))) for count in (VERBS, NOUNS))
        for row, name in enumerate(self.ids.tolist()):
            parts = {"verb": _scores(verbs, self.verb[row]), "noun": _scores(nouns, self.noun[row])}
            if (best := self.actions) is not None:
                both = zip(best.verb[row].tolist(), best.noun[row].tolist(), strict=True)
                parts["action"] = _scores([f"{v},{n}" for v, n in both], best.scores[row])
            told = ", ".join(f'"{key}": {text}' for key, text in parts.items())
            yield f"{', ' if row else ''}{json.dumps(name)}: {{{told}}}"
        yield "}}"


def _scores(keys: list[str], values: Floats) -> str:
    """With as many digits as tell all numbers of their precision apart."""
    number = "%.17g" if values.dtype == np.float64 else "%.9g"
    form = ", ".join([f'"{key}": {number}' for key in keys])
    return f"{{{form % tuple(values.tolist())}}}"
