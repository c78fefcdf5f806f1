"""The numbers of a sweep's rows: finals from MLflow, per-sample files from the store.

Several runs with the same row and seed (the folds of a cross-validation) count as one: their
per-sample predictions are put together and scored once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from harness.evaluate import Predictions, scores, shares, targets_of
from harness.store import Store
from harness.track import Tracked, key
from reports.numbers import in_order, target_of
from reports.statistics import Summary, summary

WORST_FIRST = ("failed", "running", "interrupted", "pruned", "new")
QUESTIONS = {
    "ground_truth": "ground-truth question", "none": "none", "text": "text",
    "category": "category of the answer", "verb_category": "category of the verb",
    "noun_category": "category of the noun", "verb_named": "the verb", "noun_named": "the noun",
    "narration": "narration", "masked_narration": "masked narration",
    "shuffled_narration": "narration of another segment",
}  # fmt: skip
IN_WORDS = {"new": "not run", "pruned": "ended by a search"}


@dataclass(frozen=True)
class SeedResult:
    """One row with one seed."""

    seed: int
    run_ids: tuple[str, ...]
    state: str
    """`done` if all its runs are, else the worst state among them"""
    runs: tuple[Tracked, ...] = ()
    """its runs in MLflow; empty unless done"""
    metrics: Mapping[str, float] | None = None
    """of the test split, named as in MLflow, e.g. `verb_top1/two_handed`; None unless done"""


@dataclass(frozen=True)
class Row:
    """One row of a sweep with all its seeds."""

    name: str
    label: str
    paper: str | None
    seeds: tuple[SeedResult, ...]
    samples: int
    """test samples per seed"""
    shares: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """subset -> target -> how many of them are in it"""
    grouped: bool = False
    """whether its test samples come in groups: subjects, videos"""
    published: Mapping[str, float] = field(default_factory=dict)
    """metric -> what the authors of its checkpoint report, %"""
    block: str = ""
    """part of the table it stands in: rows of different blocks are not compared"""
    written: str = ""
    """its label in the sweep file, which others may share; empty if it is its label"""

    @property
    def head(self) -> str:
        """What rows that differ only in an axis have in common."""
        return self.written or self.label

    @property
    def done(self) -> tuple[SeedResult, ...]:
        return tuple(seed for seed in self.seeds if seed.state == "done")

    @property
    def runs(self) -> tuple[Tracked, ...]:
        """Runs of all finished seeds."""
        return tuple(run for seed in self.done for run in seed.runs)

    @property
    def params(self) -> Mapping[str, str]:
        """The flattened spec of its first run."""
        return self.runs[0].params if self.runs else {}

    @property
    def streams(self) -> tuple[str, ...]:
        parts = [name.split(".") for name in self.params]
        return tuple(sorted({p[1] for p in parts if p[0] == "encoders" and p[2:] == ["name"]}))

    @property
    def title(self) -> str:
        """Its label, with what its encoders hand on and start from, where there is a choice."""
        told = {stream: self._about(stream) for stream in self.streams if self._about(stream)}
        if len(told) == 1:
            return f"{self.label} [{next(iter(told.values()))}]"
        both = "; ".join(f"{stream}: {about}" for stream, about in told.items())
        return f"{self.label} [{both}]" if told else self.label

    def start(self, stream: str) -> str:
        """What the encoder started from: `random`, `pretrained`, `finetuned` or `a run`."""
        tags = (self.runs[0].tags.get("harness.starts", "") if self.runs else "").split(", ")
        found = dict(tag.split(": ") for tag in tags if tag)
        return {"run": "from a run"}.get(found.get(stream, ""), found.get(stream, "random"))

    def _about(self, stream: str) -> str:
        """`cached, tokens: patch, fp16, random`, or `patch tokens, random`; where only cost is
        counted `patch tokens`."""
        tokens = self.params.get(f"encoders.{stream}.options.tokens")
        start = self.start(stream)
        named = tokens or start in ("pretrained", "finetuned")
        told = [*self.tokens(stream), start] if named else []
        if self.params.get("train.method") == "cost":
            told = told[:-1]
        return ", ".join(told)

    def tokens(self, stream: str) -> list[str]:
        """What a stream's tokens are, in words: `cached`, `tokens: frame`, `fp16`, `4 views`."""
        kind = self.params.get(f"encoders.{stream}.options.tokens")
        tag = self.runs[0].tags.get("harness.stored", "") if self.runs else ""
        stored = dict(part.split(": ", 1) for part in tag.split(", ") if part)
        how, _, precision = stored.get(stream, "").partition(" ")
        if not how:
            return [f"{kind} tokens"] if kind else []
        views = int(self.params.get(f"encoders.{stream}.views", 0))
        told = [how, f"tokens: {kind}" if kind else "", precision]
        return [*filter(None, told), *([f"{views} views"] if views else [])]

    @property
    def information(self) -> str:
        """What the model is told beside the clip when it is tested."""
        if "text" not in self.streams:
            return "none"
        source = self.params.get("data.options.questions", "text")
        return QUESTIONS.get(source, f"{source} question")

    @property
    def asked(self) -> str:
        """How its questions were made, in the dataset's own words; empty where it has none."""
        return self.runs[0].tags.get("harness.questions", "") if self.runs else ""

    @property
    def is_reference(self) -> bool:
        """Not a model that is compared but a scale for those that are."""
        return self.params.get("train.method") == "logistic_regression"

    @property
    def ceiling_name(self) -> str:
        """The ceiling that bounds it."""
        return self.runs[0].tags.get("harness.ceiling", "") if self.runs else ""

    @property
    def stale(self) -> tuple[str, ...]:
        """Files that have changed since it was run."""
        named = (run.tags.get("harness.stale", "") for run in self.runs)
        return tuple(sorted({file for text in named for file in text.split(", ") if file}))

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Of all finished seeds."""
        return tuple(run_id for seed in self.done for run_id in seed.run_ids)

    @property
    def unfinished(self) -> str:
        """What is so of a row without a result: `not run`, `failed`."""
        return in_words(max((seed.state for seed in self.seeds), key=WORST_FIRST[::-1].index))

    def state(self) -> str:
        """`3`, `2 of 3 seeds`, `1 of 3 seeds, 2 failed`, `not run`."""
        if len(self.done) == len(self.seeds):
            return str(len(self.seeds))
        others = Counter(seed.state for seed in self.seeds if seed.state != "done")
        if not self.done and len(others) == 1:
            return in_words(next(iter(others)))
        text = f"{len(self.done)} of {len(self.seeds)} seeds"
        told = [f"{count} {in_words(state)}" for state, count in others.items() if state != "new"]
        return ", ".join([text, *told])

    def values(self, metric: str) -> dict[int, float]:
        """Seed -> share in [0, 1], for the finished seeds that have the metric."""
        name = key(metric)
        return {s.seed: s.metrics[name] for s in self.done if s.metrics and name in s.metrics}

    def summary(self, metric: str) -> Summary | None:
        return summary(list(self.values(metric).values()))

    def count(self, metric: str, subset: str = "") -> int:
        """Test samples per seed that a metric, or its value in a subset, is the mean of."""
        return self.shares.get(subset, {}).get(target_of(metric), 0) if subset else self.samples

    def ceiling(self, metric: str) -> float | None:
        """Its own ceiling of a metric, where it is known."""
        return self.final(f"ceiling/{self.ceiling_name}/{key(metric)}")

    def select(self, metric: str) -> float | None:
        """Score on the split that choices are made on."""
        return self.final(f"select/{key(metric)}")

    def final(self, name: str) -> float | None:
        """Mean over its runs of a final value in MLflow."""
        found = [run.metrics[name] for run in self.runs if name in run.metrics]
        return float(np.mean(found)) if found else None


def in_words(state: str) -> str:
    """A state of the store as the table says it."""
    return IN_WORDS.get(state, state)


def trained(rows: Sequence[Row]) -> list[Tracked]:
    """The runs that have epochs."""
    return [r for row in rows for r in row.runs if r.params.get("train.method") == "gradient"]


def collect(
    store: Store, tracked: Mapping[str, Tracked], record: Mapping[str, Any]
) -> tuple[Row, ...]:
    """The rows of a stored sweep that belong in its table, in the sweep's order."""
    planned: dict[str, list[Mapping[str, Any]]] = {}
    for run in record["runs"]:
        if run["in_table"]:
            planned.setdefault(run["row"], []).append(run)
    rows = [_row(store, tracked, name, runs) for name, runs in planned.items()]
    shared = Counter((row.block, row.label) for row in rows)
    return tuple(
        replace(row, label=_told_apart(row), written=row.label)
        if shared[row.block, row.label] > 1
        else row
        for row in rows
    )


def _told_apart(row: Row) -> str:
    """Its label with the axis that sets it apart: `MLP, tokens=patch` of the row `mlp
    tokens=patch`."""
    _, _, axis = row.name.partition(" ")
    return f"{row.label}, {axis or row.name}"


def _row(
    store: Store, tracked: Mapping[str, Tracked], name: str, runs: Sequence[Mapping[str, Any]]
) -> Row:
    by_seed: dict[int, list[str]] = {}
    for run in runs:
        by_seed.setdefault(run["seed"], []).append(run["run_id"])
    seeds = tuple(_seed(store, tracked, seed, ids) for seed, ids in by_seed.items())
    first = next((seed for seed in seeds if seed.state == "done"), None)
    samples, counts, grouped = 0, {}, False
    if first is not None and _have_predictions(store, first.run_ids):
        said = predictions(store, first.run_ids)
        samples = len(said.ids)
        found = shares(said.subsets, set(targets_of(said)))
        counts = {k: {t: int(rows.sum()) for t, rows in v.items()} for k, v in found.items()}
        grouped = bool((said.groups != "").any())
    told = runs[0].get("published", {})  # records of older versions have none
    told = {metric: told[metric] for metric in in_order(told)}
    label, paper, block = runs[0]["label"], runs[0]["paper"], runs[0].get("block", "")
    return Row(name, label, paper, seeds, samples, counts, grouped, told, block)


def _seed(
    store: Store, tracked: Mapping[str, Tracked], seed: int, run_ids: Sequence[str]
) -> SeedResult:
    states = {store.run(run_id).state() for run_id in run_ids}
    state = next((bad for bad in WORST_FIRST if bad in states), "done")
    found = SeedResult(seed, tuple(run_ids), state)
    if state != "done":
        return found
    missing = [run_id for run_id in run_ids if run_id not in tracked]
    if missing:
        raise ValueError(f"{missing} have results that were not collected into MLflow")
    mine = tuple(tracked[run_id] for run_id in run_ids)
    if len(mine) == 1:
        named = mine[0].metrics.items()
        metrics = {name[5:]: value for name, value in named if name.startswith("test/")}
    else:
        metrics = {key(name): value for name, value in scores(predictions(store, run_ids)).items()}
    return SeedResult(seed, tuple(run_ids), state, mine, metrics)


def _have_predictions(store: Store, run_ids: Sequence[str]) -> bool:
    """A run that counts cost has none, and files may have been deleted since."""
    return all(store.run(run_id).predictions_file.is_file() for run_id in run_ids)


def predictions(store: Store, run_ids: Sequence[str]) -> Predictions:
    """Of the test split; those of several runs one after the other."""
    parts = [store.run(run_id).predictions() for run_id in run_ids]
    if len(parts) == 1:
        return parts[0]
    return Predictions(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.groups for part in parts]),
        np.concatenate([part.subsets for part in parts]),
        {t: np.concatenate([part.targets[t] for part in parts]) for t in parts[0].targets},
        {t: np.concatenate([part.logits[t] for part in parts]) for t in parts[0].logits},
        parts[0].actions,
    )
