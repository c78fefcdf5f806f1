"""Every form of the words a class stands for: what a question must not say.

    verb `turn-on`          forms of `turn`; `on` too, where it follows within GAP words
    noun `board:chopping`   `chopping board(s)`, `board chopping`; the head `board(s)` alone too,
                            but not `chopping` alone
    a head of many classes  (`piece`, `top`, `water`) only where it is the row's own noun or the key

Inflections are those of `lemminflect`, of its tables where a word is in them, else of its rules.
No word of the dataset is part of this project: forms are made from the class files when needed.

Source: none, ours; the paper's sec. 3.1 masks words and does not say which forms.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from harness.data.ek100.classes import Classes, WordClass
from harness.questions.rows import NO_CLASS, Content

GAP = 4
"""words between a verb and its particle, the particle counted"""
MANY = 8
"""a noun that is the head of instances of more classes than these says little of any"""
KINDS = ("verb", "noun")
VERSION = 1
"""raised when the same class files give other forms"""


class Term(NamedTuple):
    """Words that mean a class together: alternatives for each place."""

    words: tuple[frozenset[str], ...]
    loose: bool
    """a verb: words after the first are particles, which may stand apart or lack"""


@dataclass(frozen=True)
class Vocabulary:
    """The terms of one verb, or one noun."""

    terms: tuple[Term, ...]

    @cached_property
    def by_first(self) -> dict[str, list[Term]]:
        """First word -> the terms that may begin with it."""
        found: dict[str, list[Term]] = {}
        for term in self.terms:
            for first in term.words[0]:
                found.setdefault(first, []).append(term)
        return found

    def numbered_in(self, text: str) -> list[tuple[int, int]]:
        """Where a text says one of the words that hold digits (`v60`), which are no run of
        letters."""
        found = self._numbered.finditer(text.lower()) if self._numbered else ()
        return [match.span() for match in found]

    @cached_property
    def _numbered(self) -> re.Pattern[str] | None:
        words = sorted(re.escape(one) for one in self.phrases if re.search(r"\d", one))
        return re.compile(rf"(?<![^\W_])(?:{'|'.join(words)})(?![^\W_])") if words else None

    @cached_property
    def phrases(self) -> frozenset[str]:
        """Texts that give the class away by themselves: particles are left out."""
        return frozenset(
            phrase
            for term in self.terms
            for phrase in _spelt(term.words[:1] if term.loose else term.words)
        )


def _spelt(words: tuple[frozenset[str], ...]) -> Iterator[str]:
    if not words:
        yield ""
        return
    for first in words[0]:
        for rest in _spelt(words[1:]):
            yield f"{first} {rest}".strip()


class Lexicon:
    """Vocabularies of rows, from the class files."""

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        heads: dict[str, set[int]] = {}
        for number, noun in enumerate(classes.nouns):
            for instance in noun.instances:
                heads.setdefault(parts(instance, "noun")[0], set()).add(number)
        self.shared = frozenset(head for head, of in heads.items() if len(of) > MANY)
        """heads that many noun classes have"""
        import lemminflect

        told = f"{VERSION} {classes.digest} {GAP} {MANY} lemminflect {lemminflect.__version__}"
        self.sha = hashlib.sha256(told.encode()).hexdigest()

    def verb(self, content: Content) -> Vocabulary:
        if content.verb_class == NO_CLASS:
            return Vocabulary(())
        return self._verb(content.verb_class, content.verb)

    def noun(self, content: Content) -> Vocabulary:
        if content.noun_class == NO_CLASS:
            return Vocabulary(())
        return self._noun(content.noun_class, content.noun)

    @lru_cache(maxsize=4096)  # noqa: B019  one lexicon lives as long as its process
    def _verb(self, number: int, own: str) -> Vocabulary:
        return Vocabulary(
            tuple(dict.fromkeys(_verb_terms(_names(self.classes.verbs[number], own))))
        )

    @lru_cache(maxsize=4096)  # noqa: B019
    def _noun(self, number: int, own: str) -> Vocabulary:
        one = self.classes.nouns[number]
        always = {parts(name, "noun")[0] for name in (one.key, own)}
        terms = _noun_terms(_names(one, own), self.shared - always)
        return Vocabulary(tuple(dict.fromkeys(terms)))


def _names(one: WordClass, own: str) -> list[str]:
    return list(dict.fromkeys((own, one.key, *one.instances)))


def parts(name: str, kind: str) -> list[str]:
    """`turn-on` -> turn, on; `board:chopping` -> board, chopping: the head first."""
    found = [part for part in re.split(r"[-:\s]+" if kind == "verb" else r"[:\s]+", name) if part]
    return found or [name]


def _verb_terms(names: Iterable[str]) -> Iterator[Term]:
    for name in names:
        head, *particles = parts(name, "verb")
        yield Term((forms(head, "VERB"), *(frozenset((one,)) for one in particles)), True)


def _noun_terms(names: Iterable[str], shared: frozenset[str]) -> Iterator[Term]:
    for name in names:
        pieces = [word for part in parts(name, "noun") for word in part.split("-") if word]
        if not pieces:
            continue
        head, *modifiers = (forms(word, "NOUN") for word in pieces)
        orders = ((*modifiers, head), (*modifiers[::-1], head), (head, *modifiers))
        yield from (Term(order, False) for order in dict.fromkeys(orders) if modifiers)
        if pieces[0] not in shared:
            yield Term((head,), False)


@lru_cache(maxsize=8192)
def forms(word: str, part_of_speech: str) -> frozenset[str]:
    """A word with all its inflections as VERB or NOUN, in lower case; of a plural the singular too.

    `take` -> take, takes, took, taken, taking.
    """
    import lemminflect

    found = {word}
    known = lemminflect.getAllLemmas(word, part_of_speech).get(part_of_speech, ())
    for base in (word, *known):
        tables = lemminflect.getAllInflections(base, part_of_speech)
        tables = tables or lemminflect.getAllInflectionsOOV(base, part_of_speech)
        found |= {base, *(form for inflected in tables.values() for form in inflected)}
    return frozenset(form.lower() for form in found)
