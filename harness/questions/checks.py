"""What may be wrong with a question: it still tells, or it is none.

Literal leaks are looked for by other means than masking has: in the text without punctuation, as
whole phrases. One is a failure of the build. Near leaks, words that share a stem with the class
(`dishwasher` where the verb is `wash`), are counted.

Source: none, ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise

from harness.questions.lexicon import Lexicon, Vocabulary
from harness.questions.masking import MASK
from harness.questions.rows import Content

FEWEST, MOST = 3, 31
"""words of a question: two with the mark between them are at most the 64 of the dataset's stream"""
STEM = 4
"""letters that a stem has at least"""
ASKS = frozenset("what which how where why when who whose whom".split())  # noqa: SIM905
_USUAL = "the a an is are do does did to of in on with person this that"
ENGLISH = ASKS | frozenset(_USUAL.split())


def literal_leaks(text: str, vocabulary: Vocabulary) -> list[str]:
    """Forms of the class that the text says, also where it writes them as two words."""
    plain = re.sub(r"[^\w\s-]|[\d_]", " | ", text.replace(MASK, "|").lower())
    words = plain.replace("-", " ").split()
    running = f" {' '.join(words)} "
    found = {phrase for phrase in vocabulary.phrases if f" {phrase} " in running}
    pairs = {first + second: f"{first} {second}" for first, second in pairwise(words)}
    told = vocabulary.phrases
    found |= {said for one, said in pairs.items() if len(one) > STEM and one in told}
    found |= {text[begin:end] for begin, end in vocabulary.numbered_in(text)}
    return sorted(found)


def near_leaks(text: str, vocabulary: Vocabulary) -> list[str]:
    """Words of the text that hold a stem of the class, or that one begins with."""
    words = set(re.findall(r"[^\W\d_]+", text.replace(MASK, " ").lower())) - ENGLISH
    stems = _stems(vocabulary.phrases)
    return sorted(
        word
        for word in words
        if len(word) >= STEM and any(stem in word or stem.startswith(word) for stem in stems)
    )


@lru_cache(maxsize=8192)
def _stems(phrases: frozenset[str]) -> frozenset[str]:
    return frozenset(word for phrase in phrases for word in phrase.split() if len(word) >= STEM)


def form_problems(question: str) -> Iterator[str]:
    """Why a text is no English question of usual length."""
    words, count = re.findall(r"[^\W\d_]+", question.lower()), len(question.split())
    if not FEWEST <= count <= MOST:
        yield f"{count} words, not {FEWEST} to {MOST}"
    if not question.strip().endswith("?") or not ASKS & set(words):
        yield "not a question: no ? at its end, or no what, which, how, ..."
    letters = [letter for letter in question if letter.isalpha()]
    latin = sum(letter.isascii() for letter in letters)
    if (letters and latin < 0.9 * len(letters)) or (words and not ENGLISH & set(words)):
        yield "not English"


def leaks_of(
    questions: Iterable[str], content: Content, lexicon: Lexicon
) -> tuple[list[str], list[str]]:
    """(literal, near) leaks of both answers in all the questions of a row."""
    literal, near = [], []
    for vocabulary in (lexicon.verb(content), lexicon.noun(content)):
        for text in questions:
            literal += literal_leaks(text, vocabulary)
            near += near_leaks(text, vocabulary)
    return literal, near
