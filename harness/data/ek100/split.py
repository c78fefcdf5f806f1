"""The samples of one split of EPIC-Kitchens-100: instants, a decoded clip, boxes, questions.

A sample's clip is decoded when its stream is asked for, and its boxes with it, so that a run which
only reads questions opens no video. It can be sent to another process; files are opened there.

Source: none, ours; the parts name theirs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from harness.contracts import BadSample, Sample
from harness.data.ek100 import questions, sampling
from harness.data.ek100.annotations import Annotations, Segment
from harness.data.made import Made

if TYPE_CHECKING:
    from harness.data.ek100 import Ek100
    from harness.data.ek100.boxes import Boxes
    from harness.data.ek100.layout import Layout

GREY = 128
"""of a clip where nothing can be seen before the action"""
SHUFFLE_SEED = 0
SHUFFLED = ("shuffled", "shuffled_narration")
Draw = tuple[int, int]


@dataclass(frozen=True)
class Ek100Split:
    """The segments of a split, each `views` times, the views of one side by side."""

    config: Ek100.Config
    name: str
    segments: tuple[Segment, ...]
    annotations: Annotations
    """for its lists"""
    layout: Layout | None
    """None if the video is not used"""
    boxes: Boxes
    asked: Mapping[str, str] | None
    """narration id -> its questions; None if they are not used"""
    views: int

    def __len__(self) -> int:
        return len(self.seen) * self.views

    @cached_property
    def seen(self) -> tuple[Segment, ...]:
        """The segments that are samples: in training not those before which nothing is seen."""
        if self.name == "test":
            return self.segments
        return tuple(segment for segment in self.segments if not self.hidden(segment))

    def hidden(self, segment: Segment) -> bool:
        """Whether the video begins too late for anything to be seen before the action."""
        early = self.config.task == "anticipation" and self.config.sampling == "window"
        return early and segment.start <= self.config.ahead

    def windows(self) -> dict[str, tuple[float, float]]:
        """Narration id -> the first and the last second of its video that its views show."""
        found = {}
        for segment in self.seen:
            clips = [
                _Clip(self, segment, view, None)
                for view in range(0, self.views, self.config.test_crops)
            ]
            with contextlib.suppress(BadSample):
                seen = [clip.instants for clip in clips if clip.instants is not None]
                if seen:
                    whole = np.concatenate(seen)
                    found[segment.narration_id] = (float(whole.min()), float(whole.max()))
        return found

    def __getitem__(self, index: int) -> Sample:
        return self._sample(index, None)

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        return [self._sample(index, None) for index in indices]

    def drawn(self, indices: Sequence[int], seed: int, turn: int) -> list[Sample]:
        """Samples with random instants, crops and augmentation, settled by seed, turn and index."""
        return [self._sample(index, (seed, turn)) for index in indices]

    def _sample(self, index: int, draw: Draw | None) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of the {len(self)} of ek100's {self.name}")
        place, view = divmod(index, self.views)
        segment = self.seen[place]
        clip = _Clip(self, segment, view, (*draw, index) if draw else None)
        pair, targets = (segment.verb, segment.noun), {}
        if self.config.targets != "action":
            targets = {"verb": segment.verb, "noun": segment.noun}
        if self.config.targets != "pair":
            targets["action"] = self._action[pair]
        shares = [self.annotations.subset(segment)] if self.name == "test" else []
        shares += ["unobserved"] if self.hidden(segment) else []
        return Sample(
            id=segment.narration_id,
            streams=Made({"video": clip.pixels, "text": lambda: self._text(segment)}),
            targets=targets,
            group=segment.video,
            subset=" ".join(filter(None, shares)),
            side=Made({"video": lambda: {"boxes": clip.boxes()}}),
        )

    @cached_property
    def _action(self) -> dict[tuple[int, int], int]:
        return {pair: number for number, pair in enumerate(self.annotations.actions)}

    @cached_property
    def _other(self) -> dict[str, str]:
        return questions.shuffled([s.narration_id for s in self.segments], SHUFFLE_SEED)

    def _text(self, segment: Segment) -> str:
        if self.asked is None:
            raise ValueError("the questions were not asked for")
        name = segment.narration_id
        return self.asked[self._other[name] if self.config.questions in SHUFFLED else name]


class _Clip:
    """One view of a segment."""

    def __init__(
        self, split: Ek100Split, segment: Segment, view: int, key: tuple[int, ...] | None
    ) -> None:
        self.split, self.segment, self.config = split, segment, split.config
        self.clip, self.crop = divmod(view, split.config.test_crops)
        self.rng = None if key is None else np.random.default_rng(key)

    @cached_property
    def instants(self) -> sampling.Instants | None:
        """(T,) seconds; None where nothing can be seen."""
        config = self.config
        if config.task == "anticipation" and config.sampling == "window":
            return sampling.anticipation(self.segment, config.frames, config.ahead)
        if self.segment.stop <= self.segment.start:
            raise self.bad(f"ends at {self.segment.stop} s, begins at {self.segment.start} s")
        clips = config.test_clips if self.split.views > 1 else 1
        return sampling.recognition(
            self.segment, config.frames, config.sampling, self.rng, self.clip, clips
        )

    @cached_property
    def footage(self) -> Any:
        if self.split.layout is None:
            raise ValueError("the video was not asked for")
        return self.split.layout.open(self.segment.video)

    @cached_property
    def view(self) -> Any:
        from harness.data.ek100 import transforms

        crops = self.config.test_crops if self.split.views > 1 else 1
        recipe = self.config.transform
        self.instants  # drawn before the view, whichever is asked for first  # noqa: B018
        size = self.footage.size
        return transforms.draw(recipe, size, self.config.size, self.rng, (self.crop, crops))

    def pixels(self) -> Tensor:
        """uint8 (T, size, size, 3)."""
        from harness.data.ek100.footage import BadFootage

        size, instants = self.config.size, self.instants
        if instants is None:
            return torch.full((self.config.frames, size, size, 3), GREY, dtype=torch.uint8)
        try:
            frames = self.footage.clip(instants, self.view.crop, (size, size))
        except BadFootage as error:
            first, last = instants[[0, -1]].tolist()
            why = f"{error}; the clip is of {first:.3f} to {last:.3f} s"
            raise self.bad(why) from None
        return torch.as_tensor(self.view.pixels(torch.from_numpy(frames)))

    def boxes(self) -> Tensor:
        """(T, O, 4), of the clip's frame."""
        if self.instants is None:
            return torch.zeros(self.config.frames, self.config.slots, 4)
        try:
            whole = self.split.boxes.clip(self.segment.video, self.instants, self.config.slots)
            return torch.from_numpy(self.view.boxes(whole, self.config.boxes))
        except BadSample:
            raise
        except ValueError as error:  # of footage or boxes, with their path
            raise self.bad(str(error)) from None

    def bad(self, why: str) -> BadSample:
        return BadSample(f"{self.segment.narration_id}: {why}")
