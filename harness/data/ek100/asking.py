"""Where the text of EPIC-Kitchens-100 comes from, and what may not be used.

In anticipation nothing after `start - ahead` may be known: not by the questions either. Those made
from the true labels of what is to be foretold, or from predictions that saw it, are refused unless
`allow_leak` says that this is wanted, which is then part of the run and of every table.

Source: none, ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.ek100.annotations import TRAIN, VALIDATION, Annotations, Segment
from harness.data.ek100.questions import (
    CATEGORIES,
    FROM_FILES,
    NAMED,
    Asked,
    asked_in,
    constant,
    from_annotations,
    read,
)
from harness.questions import template

if TYPE_CHECKING:
    from harness.data.ek100 import Ek100Places

ABOUT_ITSELF = (*CATEGORIES, *NAMED, "ground_truth", "narration", "masked_narration")
"""sources that are made from what is to be recognised"""
SLACK = 1e-6
"""seconds by which times that are equal may differ"""
TOLD = {
    "constant": template.TOLD[0],
    "category": template.TOLD[1],
    "verb_category": "template questions: category of the verb",
    "noun_category": "template questions: category of the noun",
    "verb_named": "the verb is said",
    "noun_named": "the noun is said",
    "narration": "narration as it is: verb and noun are said",
    "masked_narration": template.TOLD[2],
    "shuffled_narration": "narration of another segment",
}


def in_time(window: tuple[float, float] | None, start: float, ahead: float) -> bool:
    """Whether what was seen of a video ends `ahead` seconds before an action that begins at
    `start`; nothing can be seen before one that begins earlier than that."""
    until = max(start - ahead, 0.0)
    return until == 0 if window is None else window[1] <= until + SLACK


class Asking:
    """The questions of one configuration of the dataset."""

    def __init__(self, config: Any, places: Ek100Places, annotations: Annotations) -> None:
        self.config, self.places, self.annotations = config, places, annotations

    def texts(self, segments: Sequence[Segment]) -> Mapping[str, str]:
        """Narration id -> text, of the segments. Raises ValueError where there is none to one, or
        it may not be used."""
        source, wanted = self.config.questions, [segment.narration_id for segment in segments]
        self._refuse_truth()
        if source == "constant":
            return constant(wanted)
        if source not in FROM_FILES:
            return from_annotations(self._files(), self._folder(), source)
        file = self.file()
        assert file is not None
        asked = asked_in(file)
        self._refuse_source(file, asked)
        if source == "predicted":
            self._refuse_late(file, asked, segments)
        return read(file, wanted)

    def digest_part(self) -> bytes:
        """What changes where the texts do."""
        if (file := self.file()) is not None:
            return file.read_bytes()
        if self.config.questions == "constant":
            return b""
        made = from_annotations(self._files(), self._folder(), self.config.questions)
        return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).digest()

    def told(self) -> str:
        """What results say of the questions."""
        source, file = self.config.questions, self.file()
        told = TOLD[source] if file is None else asked_in(file).told
        told += ", of other segments" if source == "shuffled" else ""
        return told + (", leak allowed" if self.config.allow_leak and "leak" not in told else "")

    def file(self) -> Path | None:
        """The file that the text comes from; None where it needs none. Raises ValueError, with the
        command that makes it, where the site file names none."""
        source = self.config.questions
        if source not in FROM_FILES:
            return None
        name = "predicted_questions" if source == "predicted" else "questions"
        file: Path | None = getattr(self.places, name)
        if file is None:
            raise ValueError(
                f"questions of EPIC-Kitchens-100 ({source}) are asked for: write `data: {{ek100: "
                f"{{{name}: FILE}}}}` into harness.site.yaml. {self._how_to_build(name)}; "
                f"see docs/questions.md"
            )
        return file

    def _how_to_build(self, name: str) -> str:
        if name == "predicted_questions":
            return (
                "`harness questions build --predictions RUNS --backend openai --model MODEL --out "
                "predicted.jsonl` makes one, from runs of sweeps/crossfit.yaml"
            )
        from harness.questions.rows import by_content, read_rows
        from harness.questions.writers import forecast_of

        rows = [row for file in self._files() for row in read_rows(file)]
        cost = forecast_of(list(by_content(rows)))
        return (
            "`harness questions build --backend openai --model MODEL --policy paper --out "
            f"questions.jsonl` makes one ({len(rows):,} segments: {cost})"
        )

    def _folder(self) -> Path:
        assert self.places.annotations is not None
        return self.places.annotations

    def _files(self) -> list[Path]:
        """The annotations of all segments."""
        return [self.places.train or self._folder() / TRAIN, self._folder() / VALIDATION]

    def _refuse_truth(self) -> None:
        if not self._foretells() or self.config.questions not in ABOUT_ITSELF:
            return
        file = self.file()
        if file is not None and asked_in(file).allow_leak:
            return
        raise ValueError(
            f"questions: {self.config.questions} are made from the very action that is to be "
            f"anticipated; take questions: predicted, or say data.options.allow_leak: true, which "
            f"every result will then say too"
        )

    def _foretells(self) -> bool:
        return self.config.task == "anticipation" and not self.config.allow_leak

    def _refuse_source(self, file: Path, asked: Asked) -> None:
        """A file of predicted questions in the place of true ones, or the other way round."""
        wanted = "predicted" if self.config.questions == "predicted" else "ground_truth"
        said = asked.label_source
        if said != wanted and (said or wanted == "predicted"):
            raise ValueError(
                f"{file}: its questions are made from labels of {said or 'unknown origin'}, but "
                f"questions: {self.config.questions} asks for {wanted}"
            )

    def _refuse_late(self, file: Path, asked: Asked, segments: Sequence[Segment]) -> None:
        """Predicted questions to what is foretold, by a model that saw later than it may."""
        if not self._foretells() or asked.allow_leak:
            return
        for segment in segments:
            if segment.narration_id not in asked.texts:
                continue
            window, until = asked.windows[segment.narration_id], segment.start - self.config.ahead
            if in_time(window, segment.start, self.config.ahead):
                continue
            if window is None:
                raise ValueError(
                    f"{file}: does not say what of the video the questions to "
                    f"{segment.narration_id} come from; build it with `harness questions build "
                    f"--task anticipation --predictions RUNS`, or say data.options.allow_leak: true"
                )
            raise ValueError(
                f"{file}: the questions to {segment.narration_id} come from the video up to "
                f"{window[1]:.2f} s, but only what is before {until:.2f} s may be known "
                f"({self.config.ahead:g} s ahead of the action)"
            )
