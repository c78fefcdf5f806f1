"""What a text alone gives away: a linear probe on its words, against the commonest class.

    probe    logistic regression on runs of one to three words, each question's own
    table    for every text of train the class it most often has there, of actions the pair: what a
             reader could do who knows these very texts; of a text that is new, the commonest
    leak     the probe's score above the commonest class, in points, with a 95 % t interval over
             groups (videos), or over samples where there are none

Source: none, ours. Where a dataset knows what its text can tell, that stands beside it.
"""

from __future__ import annotations

import csv
import inspect
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from harness.clusters import clustered_mean
from harness.config import ConfigError
from harness.contracts import Dataset
from harness.splits import fetch

CHUNK = 1024
RUNS = (1, 3)
"""words of a run"""
STRENGTH = 1.0
"""C of the logistic regression"""
ITERATIONS = 300
ACTION = ("verb", "noun")
Hits = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Texts:
    """A split without anything but its texts."""

    texts: list[str]
    targets: dict[str, npt.NDArray[np.int64]]
    groups: list[str]


@dataclass(frozen=True)
class Leak:
    """What one source of questions gives away of one target."""

    source: str
    target: str
    told: str
    """what the dataset says of the questions"""
    train: int
    test: int
    different: int
    """texts of train that differ"""
    probe: float
    table: float
    commonest: float
    leak: float
    """probe - commonest, shares"""
    low: float
    high: float
    known: float | None
    """the leak that follows from how the data are made"""


def audited(
    make: Callable[[Sequence[str]], Dataset], wanted: Sequence[str], say: Callable[[str], None]
) -> Iterator[Leak]:
    """The leaks of each source of questions. `make` gives the dataset with more `key=value`.

    Sources that cannot be had here are named by `say` and left out, unless they were asked for.
    Raises ConfigError.
    """
    for source in wanted or sources_of(make([])):
        try:
            dataset = make([f"questions={source}"] if source else [])
            dataset.used = frozenset(("text",))
            if dataset.streams.get("text") is None:
                raise ConfigError("the dataset has no stream `text`")
            train, test = (_read(dataset, split) for split in ("train", "test"))
        except ValueError as error:
            if wanted:
                raise ConfigError(f"{source}: {error}") from None
            say(f"{source}: left out: {error}")
            continue
        say(f"{source or 'text'}: {len(train.texts):,} texts to learn from, {len(test.texts):,}")
        yield from _leaks(source, dataset, train, test)


def sources_of(dataset: Dataset) -> list[str]:
    """The values that the option `questions` may have; one without a name where there is none."""
    field = type(dataset.config).model_fields.get("questions")
    return list(get_args(field.annotation)) if field is not None else [""]


def _read(dataset: Dataset, split: str) -> Texts:
    items, views = dataset.split(split), dataset.views if split == "test" else 1
    texts: list[str] = []
    groups: list[str] = []
    targets: dict[str, list[int]] = {name: [] for name in dataset.targets}
    places = range(0, len(items), views)  # the text of all views of a sample is the same
    for start in range(0, len(places), CHUNK):
        for sample in fetch(items, places[start : start + CHUNK]):
            texts.append(sample.streams["text"])
            groups.append(sample.group)
            for name, values in targets.items():
                values.append(sample.targets[name])
    return Texts(texts, {k: np.array(v, np.int64) for k, v in targets.items()}, groups)


def _leaks(source: str, dataset: Dataset, train: Texts, test: Texts) -> Iterator[Leak]:
    hits = {target: _hits(train, test, target) for target in train.targets}
    if set(ACTION) <= set(hits):
        seen, truth = _pairs(train), _pairs(test)
        commonest = np.asarray(truth == _commonest(Counter(seen.tolist())), np.float64)
        same = len(set(train.texts)) == 1  # nothing is said: no pair is a better guess
        probe = commonest if same else np.prod([hits[side][0] for side in ACTION], axis=0)
        hits["action"] = probe, _looked_up(train, test, seen, truth), commonest
    known = dataset.ceilings()
    for target, (probe, table, commonest) in hits.items():
        leak, reach = clustered_mean(probe - commonest, test.groups)
        ceiling = known.get("text", {}).get(f"{target}_top1")
        chance = _chance(dataset, target)
        yield Leak(
            source,
            target,
            dataset.told().get("questions", ""),
            len(train.texts),
            len(test.texts),
            len(set(train.texts)),
            float(probe.mean()),
            float(table.mean()),
            float(commonest.mean()),
            leak,
            leak - reach,
            leak + reach,
            None if ceiling is None or chance is None else ceiling - chance,
        )


def _chance(dataset: Dataset, target: str) -> float | None:
    """Of classes that are equally frequent, which is so where a ceiling is known."""
    names = ACTION if target == "action" else (target,)
    counts = [dataset.targets.get(name) for name in names]
    return None if None in counts else 1 / math.prod(counts)  # type: ignore[arg-type]


def _hits(train: Texts, test: Texts, target: str) -> tuple[Hits, Hits, Hits]:
    """Per test sample whether the probe, the table and the commonest class are right."""
    truth, labels = test.targets[target], train.targets[target]
    looked = _looked_up(train, test, labels, truth)
    said = _probe(train, labels, test.texts)
    return (said == truth) * 1.0, looked, (truth == _commonest(Counter(labels.tolist()))) * 1.0


def _looked_up(train: Texts, test: Texts, labels: Ints, truth: Ints) -> Hits:
    """Whether the commonest label of a test sample's text in train is its own."""
    votes: dict[str, Counter[int]] = {}
    for text, label in zip(train.texts, labels.tolist(), strict=True):
        votes.setdefault(text, Counter())[label] += 1
    best = {text: _commonest(count) for text, count in votes.items()}
    top = _commonest(Counter(labels.tolist()))
    looked = np.array([best.get(text, top) for text in test.texts])
    return np.asarray(looked == truth, np.float64)


def _pairs(split: Texts) -> Ints:
    """A number for each pair of verb and noun."""
    verb, noun = (split.targets[side] for side in ACTION)
    return np.asarray(10_000 * verb + noun, np.int64)


def _commonest(counts: Counter[int]) -> int:
    return min(counts, key=lambda label: (-counts[label], label))


def _probe(train: Texts, labels: npt.NDArray[np.int64], asked: Sequence[str]) -> npt.NDArray[Any]:
    """What a logistic regression says of the texts `asked`."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    pairs = Counter(zip(train.texts, labels.tolist(), strict=True))  # many texts are the same
    texts, classes = zip(*pairs, strict=True)
    if len(set(train.texts)) == 1 or len(set(classes)) == 1:
        return np.full(len(asked), _commonest(Counter(labels.tolist())))
    words = CountVectorizer(analyzer=runs_of_words, binary=True)
    features = words.fit_transform(texts)
    probe = LogisticRegression(C=STRENGTH, max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is near enough
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        probe.fit(features, classes, sample_weight=list(pairs.values()))
    distinct = sorted(set(asked))
    said = dict(zip(distinct, probe.predict(words.transform(distinct)), strict=True))
    return np.array([said[text] for text in asked])


def runs_of_words(text: str) -> Iterator[str]:
    """`a b </s> c` -> 0:a, 0:b, 0:a b, 1:c, each with the number of its question."""
    for number, question in enumerate(text.split("</s>")):
        words = question.split()
        for length in range(RUNS[0], RUNS[1] + 1):
            for start in range(len(words) - length + 1):
                yield f"{number}:{' '.join(words[start : start + length])}"


def table(found: Sequence[Leak], name: str) -> str:
    """The leaks in words and columns, %."""
    head = ("questions", "target", "probe", "table", "commonest", "leak, points", "known")
    lines: list[tuple[str, ...]] = [head]
    for one in found:
        interval = f"{100 * one.leak:+.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]"
        known = "" if one.known is None else f"{100 * one.known:+.1f}"
        shares = (f"{100 * value:.1f}" for value in (one.probe, one.table, one.commonest))
        lines.append((one.source or "text", one.target, *shares, interval, known))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = (
        [*map(str.ljust, line[:2], widths), *map(str.rjust, line[2:], widths[2:])] for line in lines
    )
    text = ["  ".join(line).rstrip() for line in cells]
    told = [f"{s}: {t}" for s, t in dict.fromkeys((one.source, one.told) for one in found) if t]
    sizes = dict.fromkeys((one.train, one.test) for one in found)
    counts = "; ".join(f"{a:,} texts to learn from, {b:,} to test" for a, b in sizes)
    note = inspect.cleandoc(str(__doc__)).split("\n\n")[1]
    return "\n".join(
        [f"What the text alone tells on {name}, %", "", *text, "", counts, *told, note]
    )


def write_csv(found: Sequence[Leak], file: Path) -> None:
    """The numbers, not rounded. Raises ConfigError if the file is there."""
    try:
        out = open(file, "x", newline="")  # noqa: SIM115  closed below
    except FileExistsError:
        raise ConfigError(f"--out: {file} is there already; take another name") from None
    with out:
        writer = csv.DictWriter(out, list(Leak.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(one) for one in found)
