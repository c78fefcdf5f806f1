"""Questions without a language model: always the same words, and as much of the label as asked for.

    level 0    the same two questions to all             no label information
    level 1    which category verb and noun are of       13 of verbs, 21 of nouns, as numbers
    level 2    the narration, for masking to hide        what the masked words leave: other things,
               verb and noun in                          prepositions, the length

Categories are numbers because their names (`clean`, `hand`) are words of classes. No fixed word
here is a form of any class, so that masking changes nothing but the narration.

Source: none, ours.
"""

from __future__ import annotations

from typing import NamedTuple

from harness.data.ek100.annotations import NOUNS, VERBS
from harness.data.ek100.classes import Classes
from harness.questions.rows import NO_CLASS, Content

LEVELS = (0, 1, 2)
TOLD = (
    "template questions: no label information",
    "template questions: categories of the label",
    "template questions: masked narration",
)
"""what is said of results made with each level"""
VERSION = 1
MOST_SAID = 20
"""words of a narration"""


class Questions(NamedTuple):
    """Before masking."""

    verb_question: str
    noun_question: str
    description: str = ""


def questions(content: Content, level: int, classes: Classes) -> Questions:
    """The questions to a row at a level."""
    if level == 0 or content.verb_class == NO_CLASS:
        return Questions("What is done here?", "Which object is meant here?")
    if level == 1:
        return categories(content, classes)
    if not content.narration:
        return questions(content, 0, classes)
    words = content.narration.split()
    said = " ".join(words[:MOST_SAID]) + (" ..." if len(words) > MOST_SAID else "")
    return Questions(
        f'What is done here, where someone says: "{said}"?',
        f'Which object is meant here, where someone says: "{said}"?',
    )


def categories(
    content: Content, classes: Classes, verb: bool = True, noun: bool = True
) -> Questions:
    """Level 1, or only the category of the verb, or of the noun."""
    none = questions(content, 0, classes)
    of_verb = _group(classes, "verb", classes.verbs[content.verb_class].category)
    of_noun = _group(classes, "noun", classes.nouns[content.noun_class].category)
    return Questions(
        f"What is done here, if it is of group {of_verb}?" if verb else none.verb_question,
        f"Which object is meant here, if it is of group {of_noun}?" if noun else none.noun_question,
    )


def named(content: Content, verb: bool) -> Questions:
    """One question without its mask: the noun question says the verb (as a number), or the verb
    question says the noun."""
    if verb:
        told = f"Which object is meant here, if what is done is A{content.verb_class} of {VERBS}?"
        return Questions("What is done here?", told)
    told = f"What is done here, if the object is B{content.noun_class} of {NOUNS}?"
    return Questions(told, "Which object is meant here?")


def _group(classes: Classes, kind: str, category: str) -> str:
    """`A3 of 13`: the number among the sorted categories; A of verbs, B of nouns."""
    known = classes.categories(kind)
    return f"{'AB'[kind == 'noun']}{known.index(category) + 1} of {len(known)}"
