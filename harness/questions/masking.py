"""Which words of a question are hidden, and the question with `<MASK>` in their place.

    policy paper    the noun in the verb question, the verb in the noun question; a question's own
                    answer only where the model said it again after being asked anew
    policy strict   both in both

Source: paper sec. 3.1 for `paper`; `strict` is ours.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from harness.questions.lexicon import GAP, Lexicon, Vocabulary
from harness.questions.rows import Content

MASK = "<MASK>"
Policy = Literal["paper", "strict"]
POLICIES = ("paper", "strict")
_WORD = re.compile(r"<mask>|\[mask\]|[^\W\d_]+", re.IGNORECASE)
_MARK = re.compile(r"<mask>|\[mask\]", re.IGNORECASE)
_BETWEEN = re.compile(r"[\s\-]*")
_JOINED = 5
"""letters of a word from which it is also found written as two"""


class Span(NamedTuple):
    """Letters begin..end of a question."""

    begin: int
    end: int
    kind: str
    """`verb`, `noun`, or `both` where two of them met"""


class Word(NamedTuple):
    text: str
    begin: int
    end: int


class Masked(NamedTuple):
    """One question, masked."""

    text: str
    spans: tuple[Span, ...]
    """in the text as it was"""


def words_of(text: str) -> list[Word]:
    """Runs of letters, in lower case; a mark is a word of its own."""
    return [Word(m.group().lower(), m.start(), m.end()) for m in _WORD.finditer(text)]


def mentions(text: str, vocabulary: Vocabulary, kind: str) -> list[Span]:
    """Where the words of a class stand in a text."""
    words, found = words_of(text), list[Span]()
    for place, word in enumerate(words):
        for term in vocabulary.by_first.get(word.text, ()):
            if term.loose:
                found.append(Span(word.begin, word.end, kind))
                following = words[place + 1 : place + 1 + GAP]
                for particle in term.words[1:]:
                    near = next((other for other in following if other.text in particle), None)
                    found += [Span(near.begin, near.end, kind)] if near else []
            elif (last := _phrase(text, words, place, term.words)) is not None:
                found.append(Span(word.begin, last.end, kind))
        if place + 1 < len(words) and _as_one(text, word, words[place + 1], vocabulary):
            found.append(Span(word.begin, words[place + 1].end, kind))
    return found + [Span(*place, kind) for place in vocabulary.numbered_in(text)]


def _phrase(
    text: str, words: list[Word], place: int, wanted: tuple[frozenset[str], ...]
) -> Word | None:
    """The last word of a phrase that begins at `place`, if it stands there."""
    if place + len(wanted) > len(words):
        return None
    for offset, alternatives in enumerate(wanted):
        word = words[place + offset]
        if word.text not in alternatives:
            return None
        if offset and not _touch(text, words[place + offset - 1], word):
            return None
    return words[place + len(wanted) - 1]


def _as_one(text: str, first: Word, second: Word, vocabulary: Vocabulary) -> bool:
    """`sauce pan` for `saucepan`."""
    joined = first.text + second.text
    alone = joined in vocabulary.phrases and len(joined) >= _JOINED
    return alone and _touch(text, first, second)


def _touch(text: str, first: Word, second: Word) -> bool:
    return _BETWEEN.fullmatch(text, first.end, second.begin) is not None


def hide(text: str, spans: list[Span]) -> Masked:
    """`text` with a mark for each run of neighbouring spans, marks that it has included."""
    marks = [Span(m.start(), m.end(), "") for m in _MARK.finditer(text)]
    merged: list[Span] = []
    for span in sorted({*spans, *marks}):
        if merged and _BETWEEN.fullmatch(text, merged[-1].end, max(span.begin, merged[-1].end)):
            kinds = {merged[-1].kind, span.kind} - {""}
            kind = kinds.pop() if len(kinds) == 1 else "both" if kinds else ""
            merged[-1] = Span(merged[-1].begin, max(merged[-1].end, span.end), kind)
        else:
            merged.append(span)
    out, last = [], 0
    for begin, end, _ in merged:
        out += [text[last:begin], MASK]
        last = end
    return Masked("".join([*out, text[last:]]), tuple(span for span in merged if span.kind))


class Pair(NamedTuple):
    """The two questions of a row, masked, and what was found in them."""

    verb_question: Masked
    noun_question: Masked
    own_verb: int
    """times that the verb question says its own answer"""
    own_noun: int
    cross: int
    """times that one question says the other's answer"""


def mask_pair(
    verb_question: str, noun_question: str, content: Content, lexicon: Lexicon, own: bool
) -> Pair:
    """Both questions masked; `own`: a question's own answer too."""
    verb, noun = lexicon.verb(content), lexicon.noun(content)
    asks_verb = {kind: mentions(verb_question, v, kind) for kind, v in _of(verb, noun)}
    asks_noun = {kind: mentions(noun_question, v, kind) for kind, v in _of(verb, noun)}
    return Pair(
        hide(verb_question, asks_verb["noun"] + (asks_verb["verb"] if own else [])),
        hide(noun_question, asks_noun["verb"] + (asks_noun["noun"] if own else [])),
        len({span.begin for span in asks_verb["verb"]}),
        len({span.begin for span in asks_noun["noun"]}),
        len({s.begin for s in asks_verb["noun"]}) + len({s.begin for s in asks_noun["verb"]}),
    )


def _of(verb: Vocabulary, noun: Vocabulary) -> tuple[tuple[str, Vocabulary], ...]:
    return ("verb", verb), ("noun", noun)
