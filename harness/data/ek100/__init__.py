"""EPIC-Kitchens-100: recognition, and anticipation a second ahead; footage in any usual layout.

`train` and `select` are training videos, `test` is the validation set; streams are `video`, with
the boxes of hands and objects beside it, and `text`, the questions. Where the files lie is said in
the site file, section `data.ek100` (docs/ek100.md).

    annotations  segments and classes        layout, footage, ...  decoding
    sampling     the instants of a clip      boxes, ...            hands and objects
    transforms   crop, augmentation          asking, questions     the text
    split        one sample from all of it   submission            a challenge's file

Source: Damen et al., "Rescaling Egocentric Vision" (IJCV 2022).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from harness.contracts import Dataset, PluginConfig, Stream
from harness.data.ek100.annotations import (
    NOUNS,
    VERBS,
    WHERE_FROM,
    Annotations,
    Pair,
    splits,
)
from harness.finding import Look
from harness.registry import DATASETS

if TYPE_CHECKING:
    from harness.data.ek100.asking import Asking
    from harness.data.ek100.layout import Layout
    from harness.data.ek100.split import Ek100Split

MOST_WORDS = 64
"""of the questions to a segment"""
INSTEAD = "see docs/ek100.md"
Source = Literal[
    "ground_truth", "predicted", "shuffled", "constant", "category", "verb_category",
    "noun_category", "verb_named", "noun_named", "narration", "masked_narration",
    "shuffled_narration",
]  # fmt: skip


class Ek100Places(PluginConfig):
    """Where a machine has the dataset; `data.ek100` of the site file."""

    annotations: Path | None = None
    """folder of the CSV files"""
    train: Path | None = None
    """CSV file of the segments to train on, if not EPIC_100_train.csv of that folder"""
    footage: Path | None = None
    """folder of videos, chunks, frames or tars; layouts are found out"""
    template: str | None = None
    """where each video lies below `footage`, if nowhere usual: `{pid}/small/{vid}.mp4`"""
    boxes: Path | None = None
    """folder of hand-object pickles, or `epickitchens.h5`; None: boxes are absent"""
    questions: Path | None = None
    """questions made from the true labels, as `harness questions build` writes them"""
    predicted_questions: Path | None = None
    """the same, from what a model predicted"""
    scratch: Path | None = None
    """fast local folder: footage is copied there when it is first opened, and indices are kept"""


@DATASETS.register("ek100")
class Ek100(Dataset):
    """97 verbs, 300 nouns; 67,217 segments to train on, 9,668 to test."""

    Places = Ek100Places
    slow = True
    unseen = {"video": ("questions", "allow_leak")}

    class Config(PluginConfig):
        task: Literal["recognition", "anticipation"] = "recognition"
        """what is seen of a segment: itself, or what comes before it"""
        frames: int = Field(default=16, gt=0)
        """of a clip"""
        size: int = Field(default=224, gt=0)
        """height and width of a clip, pixels"""
        sampling: Literal["window", "segment", "inavit_release"] = "window"
        """where the frames of a clip are: `window`, 2.133 s for 16 frames, as ORViT; `segment`, all
        over the segment, as AVION and LaViLa. `inavit_release`: what the code of InAViT does, whose
        frames are of the action itself; comparable with nothing"""
        ahead: float = Field(default=1.0, ge=0)
        """seconds between the last thing seen and the action, in anticipation"""
        transform: Literal["orvit", "clip", "lavila", "none"] = "orvit"
        """the recipe of random crops and augmentation in training"""
        test_clips: int = Field(default=1, gt=0)
        """clips of each test segment, over time"""
        test_crops: Literal[1, 3] = 1
        """crops of each, over its longer side"""
        slots: int = Field(default=4, ge=2)
        """boxes per frame: right hand, left hand, objects"""
        boxes: Literal["correct", "orvit_release"] = "correct"
        """`orvit_release`: as the released ORViT transforms them, whose boxes are lost by it"""
        questions: Source = "ground_truth"
        """what the text is made from. From files of the site: `ground_truth`, `predicted`, and
        `shuffled`, the true questions of another segment of the split. From the annotations alone:
        `constant`, the same two for all; the `category` of the classes, or of one of them; one
        class itself, `verb_named` or `noun_named`, in the question for the other; `narration`,
        `masked_narration` and `shuffled_narration`, that of another segment"""
        allow_leak: bool = False
        """in anticipation: take questions that were made from what is to be foretold"""
        select_share: float = Field(default=0.05, ge=0, lt=0.5)
        """share of each participant's training videos that is `select`"""
        folds: int = Field(default=0, ge=0)
        """2 or more: `test` is a part of the training videos that is not trained on, so that every
        training segment is once predicted by a model that has not seen it; 0: the validation set"""
        fold: int = Field(default=0, ge=0)
        """which of the `folds` is `test`"""
        targets: Literal["pair", "action", "all"] = "pair"
        """what there are heads for: `pair`, verb and noun; `action`, the 3,806 pairs of them that
        the annotations have; `all`, these and both"""

        @model_validator(mode="after")
        def _fits(self) -> Self:
            if self.task == "recognition" and self.sampling == "inavit_release":
                raise ValueError("sampling inavit_release is of task anticipation")
            if self.task == "anticipation" and self.sampling == "segment":
                raise ValueError("sampling segment is of task recognition; take window")
            released = self.sampling == "inavit_release"
            if self.task == "anticipation" and not released and self.test_clips > 1:
                raise ValueError("what is seen before an action is one window: test_clips is 1")
            if self.folds == 1 or self.fold >= max(1, self.folds):
                raise ValueError(f"fold {self.fold} of {self.folds}: take folds: 5 and fold 0 to 4")
            if self.sampling == "segment" and self.test_clips > 1:
                raise ValueError("sampling segment takes the whole segment: test_clips is 1")
            return self

    config: Config
    places: Ek100Places | None

    @property
    def streams(self) -> Mapping[str, Stream]:
        clip = (self.config.frames, self.config.size, self.config.size, 3)
        return {"video": Stream("video", clip), "text": Stream("text", (MOST_WORDS,))}

    @property
    def targets(self) -> Mapping[str, int]:
        pair = {"verb": VERBS, "noun": NOUNS}
        if self.config.targets == "pair":
            return pair
        action = {"action": len(self.actions())}
        return action if self.config.targets == "action" else pair | action

    @property
    def views(self) -> int:  # type: ignore[override]
        return self.config.test_clips * self.config.test_crops

    def actions(self) -> tuple[Pair, ...]:
        return self.annotations.actions

    def class_names(self) -> Mapping[str, Sequence[str]]:
        from harness.data.ek100.classes import Classes

        try:  # only to be read by people: the files need not be there
            found = Classes.read(self._place("annotations", "the annotations"))
        except ValueError:
            return {}
        verbs, nouns = ([one.key for one in of] for of in (found.verbs, found.nouns))
        actions = [f"{verbs[verb]} {nouns[noun]}" for verb, noun in self.actions()]
        named = {"verb": verbs, "noun": nouns, "action": actions}
        return {kind: names for kind, names in named.items() if kind in self.targets}

    @cached_property
    def annotations(self) -> Annotations:
        """Raises ValueError if they are not there."""
        folder = self._place("annotations", f"the annotations (`{WHERE_FROM}`)")
        return Annotations.read(folder, (self.places.train if self.places else None) or True)

    @cached_property
    def asking(self) -> Asking:
        """Where the text comes from."""
        from harness.data.ek100.asking import Asking

        return Asking(self.config, self.places or Ek100Places(), self.annotations)

    @cached_property
    def layout(self) -> Layout:
        """Where the videos of all segments lie. Raises ValueError if one is missing."""
        from harness.data.ek100.layout import find_layout

        found = self.annotations
        videos = sorted({segment.video for segment in (*found.train, *found.validation)})
        root = self._place("footage", "the videos or frames")
        own = self.places or Ek100Places()
        layout = find_layout(root, own.template, videos, own.scratch)
        if layout.missing:
            raise ValueError(
                f"{root}: {len(layout.missing)} of {len(videos)} videos are not here, e.g. "
                f"{', '.join(layout.missing[:3])}; `harness data doctor` lists them"
            )
        return self.staged(layout)

    def staged(self, layout: Layout, copies: bool = True) -> Layout:
        """The layout, its files copied to `scratch` when they are opened; without `copies` only
        what is there already is read there."""
        from harness.data.ek100.staging import Stage

        scratch = self.places.scratch if self.places else None
        stage = None if scratch is None else Stage(layout.root, scratch / "footage", copies)
        return replace(layout, stage=stage)

    def split(self, name: str) -> Ek100Split:
        from harness.data.ek100.boxes import Boxes, say_none
        from harness.data.ek100.split import Ek100Split

        parts = splits(
            self.annotations, self.config.select_share, self.config.folds, self.config.fold
        )
        if name not in parts:
            raise ValueError(f"ek100 has the splits {', '.join(parts)}, not {name!r}")
        own = self.places or Ek100Places()
        if own.boxes is None and self._sees("video"):
            say_none()
        return Ek100Split(
            self.config,
            name,
            parts[name],
            replace(self.annotations, train=(), validation=()),  # this is sent to workers
            self.layout if self._sees("video") else None,
            Boxes.open(own.boxes if self._sees("video") else None, own.scratch),
            self.asking.texts(parts[name]) if self._sees("text") else None,
            self.views if name == "test" else 1,
        )

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.annotations.digest.encode())
        if self._sees("video"):
            digest.update("\n".join(self.layout.digest_parts(sorted(self.layout.places))).encode())
            digest.update(self._boxes_facts().encode())
        if self._sees("text"):
            digest.update(self.asking.digest_part())
        return digest.hexdigest()

    def told(self) -> Mapping[str, str]:
        return {"questions": self.asking.told()} if self._sees("text") else {}

    def windows(self, name: str) -> Mapping[str, tuple[float, float]]:
        return self.split(name).windows() if self._sees("video") else {}

    def doctor(self, workers: int, seconds: float) -> Iterator[Look]:
        from harness.data.ek100.doctor import examine

        return examine(self, workers, seconds)

    def _sees(self, stream: str) -> bool:
        return self.used is None or stream in self.used

    def _place(self, name: str, what: str) -> Path:
        """A folder of the site file that must be there."""
        path: Path | None = getattr(self.places, name, None)
        if path is None:
            raise ValueError(
                f"where {what} of EPIC-Kitchens-100 lie is not known: write `data: {{ek100: "
                f"{{{name}: DIR}}}}` into harness.site.yaml; {INSTEAD}"
            )
        if not path.is_dir():
            raise ValueError(f"data.ek100.{name}: {path} is no folder; {INSTEAD}")
        return path

    def _boxes_facts(self) -> str:
        """What changes where the boxes do, without a path: names and sizes of their files."""
        root = self.places.boxes if self.places else None
        if root is None:
            return "no boxes"
        files = [root] if root.is_file() else sorted([*root.rglob("*.pkl"), *root.rglob("*.h5")])
        return "\n".join(f"{file.name} {file.stat().st_size}" for file in files)
