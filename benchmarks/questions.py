"""How well masking hides verb and noun in real narrations, what it hides beside them, how fast.

    python benchmarks/questions.py --annotations epic-kitchens-100-annotations

Narrations become questions (`What is it to ...?`), as they are and with their verbs and nouns in
another form. Whether a word is a form of the annotated verb or noun is told by lemmas and, for
words that no table has, by a common beginning: other means than masking itself has.

    recall         of rows whose question says the annotated verb (noun), those in which no form of
                   it is left
    over-masking   of all rows, those in which a word was hidden that belongs to neither annotation
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import lemminflect

from harness.data.ek100.classes import Classes
from harness.questions.lexicon import Lexicon, parts
from harness.questions.masking import mask_pair, words_of
from harness.questions.rows import Content, by_content, read_rows

SEED = 0
VERB_FORMS, NOUN_FORMS = ("VBD", "VBG", "VBN", "VBZ"), ("NNS", "NN")


def is_form(word: str, of: str, kind: str) -> bool:
    """Whether `word` is a form of the annotated word `of`."""
    if word == of:
        return True
    lemmas = lemminflect.getAllLemmas(word, kind).get(kind, ())
    known = lemminflect.getAllLemmas(of, kind).get(kind, (of,))
    if set(lemmas) & {of, *known}:
        return True
    begins = word.startswith(of[: max(3, len(of) - 1)]) and len(word) <= len(of) + 3
    return begins and not lemmas


def said(text: str, of: str, kind: str) -> bool:
    return any(is_form(word.text, of, kind) for word in words_of(text))


def inflected(content: Content, chance: random.Random) -> str:
    """The narration with its verb and its noun in another form."""
    verb, noun = parts(content.verb, "verb")[0], parts(content.noun, "noun")[0]
    words = []
    for word in content.narration.split():
        plain = word.strip(".,").lower()
        if is_form(plain, verb, "VERB"):
            other = lemminflect.getInflection(verb, chance.choice(VERB_FORMS))
        elif is_form(plain, noun, "NOUN"):
            other = lemminflect.getInflection(noun, chance.choice(NOUN_FORMS))
        else:
            other = ()
        words.append(other[0] if other else word)
    return " ".join(words)


def belongs(word: str, content: Content) -> bool:
    """Whether a hidden word is of the annotated verb, its particles, or the noun."""
    verbs, nouns = parts(content.verb, "verb"), parts(content.noun, "noun")
    return (
        is_form(word, verbs[0], "VERB")
        or word in verbs[1:]
        or any(is_form(word, part, "NOUN") for noun in nouns for part in noun.split("-"))
    )


def measure(contents: dict[Content, int], texts: dict[Content, str], lexicon: Lexicon) -> None:
    counts = dict.fromkeys(("rows", "verb", "noun", "verb left", "noun left", "over"), 0)
    for content, rows in contents.items():
        text = f"What is it to {texts[content]}?"
        pair = mask_pair(text, text, content, lexicon, True)
        hidden, spans = pair.verb_question.text, pair.verb_question.spans
        verb, noun = parts(content.verb, "verb")[0], parts(content.noun, "noun")[0]
        for kind, of, tag in (("verb", verb, "VERB"), ("noun", noun, "NOUN")):
            if said(text, of, tag):
                counts[kind] += rows
                counts[f"{kind} left"] += rows * said(hidden, of, tag)
        gone = (word.text for a, b, _ in spans for word in words_of(text[a:b]))
        counts["over"] += rows * any(not belongs(word, content) for word in gone)
        counts["rows"] += rows
    for kind in ("verb", "noun"):
        recall = 100 * (1 - counts[f"{kind} left"] / counts[kind])
        print(f"  {kind}: recall {recall:.2f} % of {counts[kind]:,} rows that say it")
    print(
        f"  over-masking {100 * counts['over'] / counts['rows']:.2f} % of {counts['rows']:,} rows"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", type=Path, required=True, help="folder of the CSV files")
    parser.add_argument("--rows", type=Path, nargs="*", help="the validation set by default")
    given = parser.parse_args()
    classes = Classes.read(given.annotations)
    files = given.rows or [given.annotations / "EPIC_100_validation.csv"]
    groups = by_content(row for file in files for row in read_rows(file))
    contents = {content: len(rows) for content, rows in groups.items()}
    lexicon, chance = Lexicon(classes), random.Random(SEED)
    started = time.perf_counter()
    print("as narrated")
    measure(contents, {content: content.narration for content in contents}, lexicon)
    print("verbs and nouns in another form")
    measure(contents, {content: inflected(content, chance) for content in contents}, lexicon)
    print(f"{len(contents):,} different rows, twice, in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
