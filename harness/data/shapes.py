"""No samples, only the sizes of a clip, its question and its targets: for counting cost.

Defaults are those of EPIC-Kitchens-100 as the paper's Table 4 has it: 16 frames of 224 x 224, two
questions of 25 tokens each, 97 verbs, 300 nouns.

Source: MambaVL, sec. 4.1 and Table 4; the paper does not give the length of its questions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NoReturn

from pydantic import Field

from harness.contracts import Dataset, PluginConfig, Stream
from harness.registry import DATASETS


@DATASETS.register("shapes")
class Shapes(Dataset):
    """Streams `video` and `text`, targets `verb` and `noun`; for `train.method: cost` alone."""

    class Config(PluginConfig):
        frames: int = Field(default=16, gt=0)
        """T, frames of a clip"""
        image: int = Field(default=224, gt=0)
        """height and width of a frame, pixels"""
        words: int = Field(default=50, gt=0)
        """tokens of the text; not in the paper, whose numbers 6 to about 100 would fit"""
        verbs: int = Field(default=97, gt=0)
        """classes of the target `verb`"""
        nouns: int = Field(default=300, gt=0)
        """classes of the target `noun`"""

    config: Config

    @property
    def streams(self) -> Mapping[str, Stream]:
        clip = (self.config.frames, self.config.image, self.config.image, 3)
        return {"video": Stream("video", clip), "text": Stream("text", (self.config.words,))}

    @property
    def targets(self) -> Mapping[str, int]:
        return {"verb": self.config.verbs, "noun": self.config.nouns}

    def split(self, name: str) -> NoReturn:
        raise ValueError("shapes has no samples; only a run with `train.method: cost` can use it")

    def fingerprint(self) -> str:
        return hashlib.sha256(f"shapes {self.config.model_dump_json()}".encode()).hexdigest()
