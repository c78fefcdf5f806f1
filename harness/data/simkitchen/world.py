"""The world of SimKitchen: what is done to what, drawn per item from a counter-based hash.

A verb is a motion (seen) and a manner (worded); a noun is a sprite (seen) and a domain (worded).
Every random number is a hash of (seed, item index, field), so that an item is the same in any
worker, batch or order.

Source: none, ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from harness.contracts import PluginConfig

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Share = Annotated[float, Field(ge=0, le=1)]

FRAMES = 8
MOTIONS = ("up", "down", "side to side", "circles")
SPRITES = ("ring", "bar", "box", "wedge")
MANNERS = ("gentle", "firm")
DOMAINS = ("table", "stove", "sink")
VERBS = ("lift", "pull", "put", "press", "wipe", "cut", "stir", "scrub")
"""verb 2 * motion + manner"""
NOUNS = (
    *("plate", "pan", "scourer", "fork", "spatula", "brush"),
    *("bread", "tray", "sponge", "cup", "kettle", "soap"),
)
"""noun 3 * sprite + domain"""
NO_MOTION = len(MOTIONS)
"""motion of a half without a hand"""
LEFT, RIGHT, NO_SIDE = 0, 1, 2


class WorldConfig(PluginConfig):
    """What items are made of; together with an item's index it determines the item."""

    task: Literal["recognition", "anticipation"] = "recognition"
    """the targets are the action seen, or the one that follows it"""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """data seed; each split derives its own from it"""
    rho: Share = 0.5
    """share of two-handed clips: each half acts, and the question says which half is meant"""
    cue_dropped: Share = 0.1
    """share of questions that leave out the manner or the domain"""
    contrast: Share = 0.5
    """share of cues said by contrast, `A rather than B` or `not B but A`"""
    label_noise: Share = 0.0
    """share of targets replaced by a uniformly drawn class, in every split"""
    questions: Literal["ground_truth", "shuffled", "constant", "none", "predicted", "category"] = (
        "ground_truth"
    )
    """worded for the item's own action, for another item's, the same for all, empty, worded by an
    imperfect recogniser, or for the own action without the side"""
    q_v: Share = 0.8
    """share of `predicted` questions with the right manner, else that of the look-alike"""
    q_n: Share = 0.8
    """share of `predicted` questions with the right domain, else that of a look-alike"""
    q_p: Share = 1.0
    """share of `predicted` two-handed questions that name the right side"""
    mask: bool = True
    """`<mask>` stands for the noun in the verb question and for the verb in the noun question;
    false writes these words out, so that text alone gives the action away. Without effect on
    `constant` and `none` questions"""
    cue_window: tuple[int, int] = (0, FRAMES)
    """first frame, and frame after the last, that show what a hand holds; a neutral shape else"""

    @model_validator(mode="after")
    def _window_within_clip(self) -> WorldConfig:
        first, end = self.cue_window
        if not 0 <= first < end <= FRAMES:
            raise ValueError(f"cue_window must be 0 <= first < end <= {FRAMES}: {first}, {end}")
        return self


@dataclass(frozen=True)
class Items:
    """What happens in n items. Column 0 of `motion` and `sprite` is the left half, 1 the right."""

    seed: int
    index: Ints
    """(n,)"""
    two: NDArray[np.bool_]
    """(n,), two-handed"""
    side: Ints
    """(n,), the half that is asked about"""
    motion: Ints
    """(n, 2), NO_MOTION where no hand is"""
    sprite: Ints
    """(n, 2)"""
    manner: Ints
    """(n,)"""
    domain: Ints
    """(n,)"""

    @property
    def verb(self) -> Ints:
        """(n,), of the half that is asked about."""
        return 2 * self.motion[np.arange(len(self.side)), self.side] + self.manner

    @property
    def noun(self) -> Ints:
        """(n,), of the half that is asked about."""
        return 3 * self.sprite[np.arange(len(self.side)), self.side] + self.domain


def bits(seed: int, index: Ints, field: str, count: int) -> NDArray[np.uint64]:
    """(n, count) random 64-bit words, a function of their arguments' values alone."""
    key = (seed << 32 | crc32(field.encode())) & (2**64 - 1)
    start = _mix(_mix(np.array([key], np.uint64)) + index.astype(np.uint64))
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return _mix(start[:, None] + steps)


def _mix(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64: every input bit changes every output bit."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def uniform(seed: int, index: Ints, field: str, count: int) -> Floats:
    """(n, count) numbers in [0, 1)."""
    return (bits(seed, index, field, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def choice(seed: int, index: Ints, field: str, options: int) -> Ints:
    """(n,) numbers in 0 .. options - 1."""
    return (uniform(seed, index, field, 1)[:, 0] * options).astype(np.int64)


def chance(seed: int, index: Ints, field: str, share: float) -> NDArray[np.bool_]:
    """(n,) True with probability `share`."""
    return uniform(seed, index, field, 1)[:, 0] < share


def split_seed(config: WorldConfig, split: str) -> int:
    """The seed of a split, below 2**32."""
    return int(bits(config.seed, np.zeros(1, np.int64), "split " + split, 1)[0, 0] >> np.uint64(32))


def draw(config: WorldConfig, seed: int, index: Ints) -> Items:
    """The items `index` (n,) of the split with this seed."""
    n = len(index)
    two = chance(seed, index, "two", config.rho)
    side = choice(seed, index, "side", 2)
    motion, sprite = np.empty((n, 2), np.int64), np.empty((n, 2), np.int64)
    for name, column in (("motion", motion), ("sprite", sprite)):
        answer = choice(seed, index, name, 4)
        column[np.arange(n), side] = answer
        column[np.arange(n), 1 - side] = (answer + 1 + choice(seed, index, "other " + name, 3)) % 4
    motion[np.arange(n)[~two], 1 - side[~two]] = NO_MOTION
    manner, domain = choice(seed, index, "manner", 2), choice(seed, index, "domain", 3)
    return Items(seed, index, two, side, motion, sprite, manner, domain)


def next_action() -> tuple[Floats, Floats]:
    """Probabilities (8, 8) of the next verb and (12, 12) of the next noun, rows: the current one.

    The likely successors of look-alikes are in different groups, so that a clip stays ambiguous.
    """
    verb, noun = np.full((8, 8), 0.3 / 7), np.full((12, 12), 0.1 / 10)
    verb[np.arange(8), (3 * np.arange(8) + 5) % 8] = 0.7
    noun[np.arange(12), np.arange(12)] = 0.6
    noun[np.arange(12), (5 * np.arange(12) + 1) % 12] = 0.3
    return verb, noun


def target_given_action(config: WorldConfig) -> tuple[Floats, Floats]:
    """Probabilities (8, 8) and (12, 12) of the target, label noise included; rows: the action."""
    tables = next_action() if config.task == "anticipation" else (np.eye(8), np.eye(12))
    eps = config.label_noise
    verb, noun = ((1 - eps) * table + eps / len(table) for table in tables)
    return verb, noun


def targets(config: WorldConfig, items: Items) -> dict[str, Ints]:
    """`verb` and `noun`, (n,) each."""
    result = {}
    tables = target_given_action(config)
    for name, now, table in zip(("verb", "noun"), (items.verb, items.noun), tables, strict=True):
        until = table.cumsum(axis=1)
        until[:, -1] = 1  # the sum may end a rounding error below 1
        point = uniform(items.seed, items.index, "target " + name, 1)
        result[name] = (point >= until[now]).sum(axis=1)
    return result
