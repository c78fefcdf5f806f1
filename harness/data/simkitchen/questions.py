"""What SimKitchen asks: a verb question and a noun question about one action, as one string.

The verb question says the manner and masks the noun, the noun question says the domain and masks
the verb; both say which hand is meant. Nothing in them depends on motion or sprite.

Source: none, ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.data.simkitchen.world import (
    DOMAINS,
    MANNERS,
    NO_SIDE,
    NOUNS,
    VERBS,
    Ints,
    Items,
    WorldConfig,
    chance,
    choice,
    draw,
    uniform,
)

MASK, END = "<mask>", "</s>"
MANNER_DROPPED, DOMAIN_DROPPED = len(MANNERS), len(DOMAINS)
MOST_WORDS = 48

MANNER_WORDS = (("gently", "softly", "carefully"), ("firmly", "hard", "forcefully"))
DOMAIN_WORDS = (("eating", "serving"), ("cooking", "frying"), ("cleaning", "rinsing"))
SIDE_WORDS = (("left", "window"), ("right", "door"))
"""the window is on the left and the door on the right in every kitchen"""
ONE_HAND = ("with your hand", "here", "by hand")
VERB_QUESTIONS = (
    "what are you doing {cue} to the {word} {pointer} ?",
    "{pointer} , how do you handle the {word} {cue} ?",
    "what should you do to the {word} , {cue} , {pointer} ?",
    "which action do you perform {cue} on the {word} {pointer} ?",
)
NOUN_QUESTIONS = (
    "which thing {cue} do you {word} {pointer} ?",
    "what is the object {cue} that you {word} {pointer} ?",
    "{pointer} , what do you {word} that is {cue} ?",
    "what could you {word} {pointer} that is {cue} ?",
)
CONSTANT = (
    f"what are you doing somehow to the {MASK} here ? {END} "
    f"what is the object used here that you {MASK} here ?"
)


@dataclass(frozen=True)
class Wording:
    """What n questions say. Arrays are (n,)."""

    index: Ints
    """the items they were written for"""
    side: Ints
    """LEFT, RIGHT or NO_SIDE"""
    manner: Ints
    """MANNER_DROPPED where it is left out"""
    domain: Ints
    """DOMAIN_DROPPED where it is left out"""
    verb: Ints
    """the word that `mask: false` shows in the noun question"""
    noun: Ints
    """the word that `mask: false` shows in the verb question"""


def wording(config: WorldConfig, items: Items, size: int) -> Wording:
    """What the questions of `items` say; `size` is the number of items in their split."""
    if config.questions in ("constant", "none"):
        same = np.zeros_like(items.index)
        return Wording(
            *(same, same + NO_SIDE, same + MANNER_DROPPED, same + DOMAIN_DROPPED, same, same)
        )
    if config.questions == "shuffled":
        step = 1 + choice(items.seed, items.index, "shuffle", size - 1)
        items = draw(config, items.seed, (items.index + step) % size)
    seed, index = items.seed, items.index
    side, manner, domain = items.side, items.manner, items.domain
    if config.questions == "predicted":
        side = side ^ ~chance(seed, index, "pointer right", config.q_p)
        manner = manner ^ ~chance(seed, index, "verb right", config.q_v)
        wrong = ~chance(seed, index, "noun right", config.q_n)
        domain = (domain + wrong * (1 + choice(seed, index, "look-alike", 2))) % 3
    return Wording(
        index,
        np.where(items.two & (config.questions != "category"), side, NO_SIDE),
        np.where(chance(seed, index, "no manner", config.cue_dropped), MANNER_DROPPED, manner),
        np.where(chance(seed, index, "no domain", config.cue_dropped), DOMAIN_DROPPED, domain),
        items.verb - items.manner + manner,
        items.noun - items.domain + domain,
    )


def write(config: WorldConfig, seed: int, said: Wording) -> list[str]:
    """The n strings. How a thing is said depends on seed and index, not on what is said."""
    if config.questions == "none":
        return [""] * len(said.index)
    if config.questions == "constant":
        return [CONSTANT] * len(said.index)
    style = uniform(seed, said.index, "style", 2 + 4 * 5).tolist()
    rows = zip(
        *(values.tolist() for values in (said.side, said.manner, said.domain)),
        ([MASK] * len(style) if config.mask else [VERBS[verb] for verb in said.verb]),
        ([MASK] * len(style) if config.mask else [NOUNS[noun] for noun in said.noun]),
        style,
        strict=True,
    )
    return [_pair(config.contrast, *row) for row in rows]


def _pair(
    contrast: float, side: int, manner: int, domain: int, verb: str, noun: str, style: list[float]
) -> str:
    """The two questions about one item."""
    styles = [style[first : first + 5] for first in range(2, 22, 5)]
    how = "somehow"
    if manner != MANNER_DROPPED:
        how = _phrase(contrast, MANNER_WORDS, manner, styles[0])
    what_for = "used here"
    if domain != DOMAIN_DROPPED:
        what_for = "used for " + _phrase(contrast, DOMAIN_WORDS, domain, styles[1])
    verb_question = VERB_QUESTIONS[int(4 * style[0])].format(
        cue=how, word=noun, pointer=_pointer(contrast, side, styles[2])
    )
    noun_question = NOUN_QUESTIONS[int(4 * style[1])].format(
        cue=what_for, word=verb, pointer=_pointer(contrast, side, styles[3])
    )
    return f"{verb_question} {END} {noun_question}"


def _pointer(contrast: float, side: int, style: list[float]) -> str:
    if side == NO_SIDE:
        return ONE_HAND[int(len(ONE_HAND) * style[1])]
    return f"on the {_phrase(contrast, SIDE_WORDS, side, style)} side"


def _phrase(
    contrast: float, words: tuple[tuple[str, ...], ...], said: int, style: list[float]
) -> str:
    """A word of class `said`, alone or set against one of another class; `style` has 5 numbers."""
    word = words[said][int(len(words[said]) * style[1])]
    if style[0] >= contrast:
        return word
    others = words[(said + 1 + int((len(words) - 1) * style[2])) % len(words)]
    other = others[int(len(others) * style[3])]
    return f"{word} rather than {other}" if style[4] < 0.5 else f"not {other} but {word}"
