"""SimKitchen: a rendered clip and two masked questions in, a verb and a noun out; ceilings known.

The clip shows motion and sprite, the questions tell manner and domain; all four make the action. In
two-handed clips the questions also say which half is meant, which no sum of evidence can use.

    world      what happens in an item         render     its clip and boxes
    questions  its text                        ceilings   best reachable scores

Source: none, ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from harness.contracts import Dataset, Sample, Stream
from harness.data.simkitchen import render
from harness.data.simkitchen.ceilings import ceilings_of
from harness.data.simkitchen.questions import MOST_WORDS, Wording, wording, write
from harness.data.simkitchen.world import (
    DOMAINS,
    FRAMES,
    MANNERS,
    MOTIONS,
    NOUNS,
    SPRITES,
    VERBS,
    Ints,
    Items,
    WorldConfig,
    draw,
    split_seed,
    targets,
)
from harness.registry import DATASETS

VERSION = 1
"""raise it when the same config gives other items"""
ACTION = {"verb": len(VERBS), "noun": len(NOUNS)}
SEEN = {
    "left_motion": len(MOTIONS) + 1,
    "right_motion": len(MOTIONS) + 1,
    "left_sprite": len(SPRITES),
    "right_sprite": len(SPRITES),
}
"""what the clip shows; the last motion is none"""
SAID = {"manner": len(MANNERS) + 1, "domain": len(DOMAINS) + 1, "side": 3}
"""what the questions say; the last class of each is nothing"""

Size = Annotated[int, Field(ge=2)]


@DATASETS.register("simkitchen")
class SimKitchen(Dataset):
    """8 verbs, 12 nouns, as many items as asked for; nothing is stored, items are drawn at need."""

    class Config(WorldConfig):
        targets: Literal["action", "perception"] = "action"
        """`action`: verb and noun. `perception`: what clip and questions show and say, to pre-train
        encoders on; never the action"""
        train_size: Size = 24576
        """items to train on"""
        select_size: Size = 2048
        """items for every choice"""
        test_size: Size = 8192
        """items for the table"""

    config: Config
    unseen = {
        "video": ("questions", "q_v", "q_n", "q_p", "mask", "contrast", "cue_dropped"),
    }

    @property
    def streams(self) -> Mapping[str, Stream]:
        clip = (FRAMES, render.SIZE, render.SIZE, 3)
        return {"video": Stream("video", clip), "text": Stream("text", (MOST_WORDS,))}

    @property
    def targets(self) -> Mapping[str, int]:
        return ACTION if self.config.targets == "action" else SEEN | SAID

    def class_names(self) -> Mapping[str, Sequence[str]]:
        return {"verb": VERBS, "noun": NOUNS} if self.config.targets == "action" else {}

    def split(self, name: str) -> SimKitchenSplit:
        sizes = {
            "train": self.config.train_size,
            "select": self.config.select_size,
            "test": self.config.test_size,
        }
        if name not in sizes:
            raise ValueError(f"simkitchen has the splits {', '.join(sizes)}, not {name!r}")
        return SimKitchenSplit(self.config, name, split_seed(self.config, name), sizes[name])

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{VERSION} {self.config.model_dump_json()}".encode())
        for name in ("train", "select", "test"):
            for sample in self.split(name).__getitems__([0, 1]):
                digest.update(sample.streams["video"].numpy().tobytes())
                digest.update(sample.side["video"]["boxes"].numpy().tobytes())
                digest.update(repr((sample.streams["text"], dict(sample.targets))).encode())
        return digest.hexdigest()

    def ceilings(self) -> Mapping[str, Mapping[str, float]]:
        if self.config.targets == "action":
            known = ceilings_of(self.config)
            # classes are equally frequent: the class-mean recall has the bound of the plain one
            recall = {
                name: {m.replace("_top5", "_recall5"): v for m, v in scores.items() if "_top5" in m}
                for name, scores in known.items()
            }
            return {name: scores | recall[name] for name, scores in known.items()}
        video = {f"{name}_top1": 1.0 for name in SEEN}
        text = {f"{name}_top1": 1.0 for name in SAID}
        return {"video": video, "text": text, "joint": video | text}


@dataclass(frozen=True)
class SimKitchenSplit:
    """The items 0 .. size - 1 of one seed."""

    config: SimKitchen.Config
    name: str
    seed: int
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """The samples at `indices`, made together."""
        index = np.asarray(indices, np.int64).reshape(-1)
        outside = index[(index < 0) | (index >= self.size)]
        if len(outside):
            raise IndexError(f"item {outside[0]} of the {self.size} of simkitchen's {self.name}")
        items = draw(self.config, self.seed, index)
        said = wording(self.config, items, self.size)
        texts = write(self.config, self.seed, said)
        labels = self._labels(items, said)
        clips = torch.from_numpy(render.clips(items, self.config.cue_window)).unbind()
        boxes = torch.from_numpy(render.boxes(items)).unbind()
        return [
            Sample(
                id=f"{self.name}-{number}",
                streams={"video": clips[row], "text": texts[row]},
                targets={name: int(values[row]) for name, values in labels.items()},
                subset="two_handed" if items.two[row] else "one_handed",
                side={"video": {"boxes": boxes[row]}},
            )
            for row, number in enumerate(index.tolist())
        ]

    def _labels(self, items: Items, said: Wording) -> dict[str, Ints]:
        """Target name -> (n,)."""
        if self.config.targets == "action":
            return targets(self.config, items)
        columns = (*items.motion.T, *items.sprite.T, said.manner, said.domain, said.side)
        return dict(zip(SEEN | SAID, columns, strict=True))
