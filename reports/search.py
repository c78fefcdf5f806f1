"""What a search found: best settings of each row, how sure they are, and what they cost to find."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from harness.search.engines import importances
from harness.search.spec import Parameter
from harness.store import Store
from reports.numbers import NONE, heading, percent
from reports.rows import Row
from reports.table import Cell, Table

EDGE = 0.05
"""share of a range at each end in which a best value says that the range is too small"""
MIN_TRIALS = 8
"""of fewer no importance is told"""
Trial = Mapping[str, Any]


class Found:
    """The search of one row, as its record has it."""

    def __init__(self, name: str, told: Mapping[str, Any], sign: int, store: Store) -> None:
        self.name, self.label = name, str(told["label"])
        self.trials: list[Trial] = told["trials"]
        self.space = {key: Parameter(**told["space"][key]) for key in told["order"]}
        self.left, self.given_up = told["left"], told["given_up"]
        self.optuna: list[str] = told["optuna"]
        self.written: Mapping[str, Any] = told["written"]
        self.best = None if told["best"] is None else self.trials[told["best"]]
        self.sign = sign
        self.direction: Literal["maximize", "minimize"] = "maximize" if sign > 0 else "minimize"
        self.samples = _samples(self.best, store)

    def of(self, state: str) -> list[Trial]:
        return [trial for trial in self.trials if trial["state"] == state]

    @property
    def spent(self) -> tuple[int, float]:
        """(epochs, minutes) of training in its trials; what several share is counted once."""
        runs: dict[str, Any] = {}
        for trial in self.trials:
            runs |= trial["attrs"].get("spent", {})
        return sum(e for e, _ in runs.values()), sum(s for _, s in runs.values()) / 60

    @property
    def error(self) -> float:
        """By how much the scores of two trials may differ by chance, as shares: 95 %, for two
        independent draws of as many samples."""
        if self.best is None or not self.samples:
            return 0.0
        share = min(1.0, max(0.0, float(self.best["value"])))
        return 1.96 * math.sqrt(2 * share * (1 - share) / self.samples)

    def as_good(self, key: str) -> list[Any]:
        """Values of a parameter next to the best, in order, whose trials are as good as the best
        within `error`, up to the first on each side that is worse."""
        if self.best is None or key not in self.best["params"]:
            return []
        tried = sorted(
            ((t["params"][key], t["value"]) for t in self.of("COMPLETE") if key in t["params"]),
            key=lambda pair: str(pair[0]) if self.space[key].kind == "categorical" else pair[0],
        )
        good = [self.sign * (value - self.best["value"]) >= -self.error for _, value in tried]
        values = [value for value, _ in tried]
        if self.space[key].kind == "categorical":
            return sorted({v for v, ok in zip(values, good, strict=True) if ok}, key=str)
        first = last = values.index(self.best["params"][key])
        while first > 0 and good[first - 1]:
            first -= 1
        while last + 1 < len(values) and good[last + 1]:
            last += 1
        return values[first : last + 1]

    def at_edge(self, key: str) -> bool:
        """Whether the best value lies at an end of what was tried."""
        one = self.space[key]
        if self.best is None or one.kind == "categorical" or key not in self.best["params"]:
            return False
        low, high, value = *one.span, self.best["params"][key]
        if one.log_uniform is not None:
            low, high, value = map(math.log, (low, high, value))
        return not EDGE <= (value - low) / (high - low) <= 1 - EDGE

    def importances(self) -> dict[str, float]:
        """Parameter -> share of what the score varies by, pruned trials as they ended; empty
        where too little is known."""
        ended = [*self.of("COMPLETE"), *self.of("PRUNED")]
        done = [(t["params"], t["value"]) for t in ended if t["value"] is not None]
        if len(done) < MIN_TRIALS or len({value for _, value in done}) < 2:
            return {}
        return importances(self.space, done, self.direction)


def _samples(best: Trial | None, store: Store) -> int:
    """On how many samples the trials were judged."""
    if best is None:
        return 0
    result = store.run(best["attrs"]["runs"][0]).result() or {}
    return int(result.get("samples", {}).get("select", 0))


def found(record: Mapping[str, Any], store: Store) -> list[Found]:
    """Of every row of a search's record."""
    told = record["search"]
    sign = 1 if told["objective"]["direction"] == "maximize" else -1
    return [Found(name, told["rows"][name], sign, store) for name in told["order"]]


def search_table(record: Mapping[str, Any], where: str, store: Store, rows: Sequence[Row]) -> Table:
    """A row for each row of the sweep: its trials, its best settings, what they bring on test."""
    told, every = record["search"], found(record, store)
    metric = told["objective"]["metric"]
    shown = metric if metric in record["report"]["metrics"] else record["report"]["metrics"][-1]
    keys = list(dict.fromkeys(key for one in every for key in one.space))
    by_name = {row.name: row for row in rows}
    header = [
        "Row", "Trials", "Epochs", "Minutes", f"Best {heading(metric)}, {_split(told)}",
        *(f"{key} (as good)" for key in keys),
    ]  # fmt: skip
    titles = [title for title in (told["written"], told["best"]) if title]
    header += [f"{heading(shown)} on test, {title}" for title in titles]
    cells = []
    for one in every:
        epochs, minutes = one.spent
        best = one.best
        line = [
            Cell(one.label, {"row": one.name, "label": one.label}),
            Cell(_trials(one), {state.lower(): len(one.of(state)) for state in STATES}),
            Cell(str(epochs), {"epochs": epochs}),
            Cell(f"{minutes:.1f}", {"minutes": minutes}),
            Cell(
                _nothing(one) if best is None else f"{100 * best['value']:.1f}",
                {"best_trial": best and best["number"], "best_value": best and best["value"]},
            ),
            *(_value_cell(one, key) for key in keys),
        ]
        for title in titles:
            row = by_name.get(one.name if title == told["written"] else f"{one.name}, best")
            summary = row.summary(shown) if row else None
            name = "written" if title == told["written"] else "best"
            raw = {f"{name}_{shown}": summary and summary.mean}
            runs = row.run_ids if row else ()
            line.append(Cell(percent(summary), raw, why="no final run is done", runs=runs))
        cells.append(tuple(line))
    notes = [*_findings(every), *_protocol(told, every), *_reading(told, every)]
    title = f"Search. Settings of each row of: {record['report']['title']}"
    return Table(title, where, tuple(header), tuple(cells), tuple(notes))


STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")


def _trials(one: Found) -> str:
    done, pruned = len(one.of("COMPLETE")), len(one.of("PRUNED"))
    text = f"{done + pruned} ({pruned} pruned)" if pruned else str(done)
    return f"{text}, not over" if one.left else text


def _nothing(one: Found) -> str:
    return "given up" if one.given_up else "not over" if one.left else "none was complete"


def _value_cell(one: Found, key: str) -> Cell:
    if one.best is None or key not in one.best["params"]:
        return Cell(NONE)
    value, good = one.best["params"][key], one.as_good(key)
    raw = {key: value, f"{key}_low": good[0], f"{key}_high": good[-1]}
    if one.space[key].kind == "categorical":
        others = [str(other) for other in good if other != value]
        return Cell(f"{value} (also {', '.join(others)})" if others else f"{value} (alone)", raw)
    mark = " (edge)" if one.at_edge(key) else ""
    if good[0] == good[-1]:
        return Cell(f"{value:.3g}{mark} (alone)", raw)
    return Cell(f"{value:.3g}{mark} ({good[0]:.2g} to {good[-1]:.2g})", raw)


def _split(told: Mapping[str, Any]) -> str:
    return str(told["objective"]["split"])


def warning(told: Mapping[str, Any]) -> list[str]:
    """What every table of a search says that chose on the test split."""
    if told["objective"]["split"] != "test":
        return []
    return [
        "CHOSEN ON TEST: the settings were chosen by the very samples that are scored here "
        "(allow_test: true). These scores are too good, and no evidence for a head."
    ]


def _findings(every: Sequence[Found]) -> Iterator[str]:
    for one in every:
        for key in one.space:
            if one.at_edge(key):
                value = one.best["params"][key] if one.best else 0
                yield (
                    f"{one.label}: the best {key}, {value:.3g}, lies at the edge of what was "
                    f"tried; widen the range before you trust it."
                )
    for one in every:
        ended = [str(t["attrs"].get("ended", "")) for t in one.trials if t["state"] == "PRUNED"]
        diverged = sum("FloatingPointError" in why for why in ended)
        if diverged:
            yield f"{one.label}: {diverged} of its pruned trials diverged: the loss was not finite."
        failed = [t["attrs"]["failed"] for t in one.of("FAIL") if "failed" in t["attrs"]]
        if failed:
            end = "; it was given up, and has no best settings" if one.given_up else ""
            yield f"{one.label}: {len(failed)} trials failed, the last with: {failed[-1]}{end}."
        again = sum("retry_of" in trial["attrs"] for trial in one.trials)
        if again:
            yield f"{one.label}: {again} trials were tried again with the same settings."
    told = {one.label: one.importances() for one in every}
    parts = [
        f"{label}: {', '.join(f'{key} {share:.2f}' for key, share in found.items())}"
        for label, found in told.items()
        if found
    ]
    if parts:
        yield (
            f"What the score varied with (fANOVA, shares of the variance, pruned trials as they "
            f"ended; of few trials no more than a hint): {'; '.join(parts)}."
        )


def _protocol(told: Mapping[str, Any], every: Sequence[Found]) -> Iterator[str]:
    yield from warning(told)
    budget = ", ".join(f"{value:g} {name}" for name, value in told["budget"].items() if value)
    seeds = ", ".join(map(str, told["seeds"]))
    test = "test had no say; " if _split(told) == "select" else ""
    yield (
        f"The budget of every row: {budget}. A trial is worth its {told['metric']} "
        f"({told['objective']['direction']}d), mean over seeds ({seeds}); {test}the scores on test "
        f"are of runs made anew with fresh seeds."
    )
    versions = sorted({version for one in every for version in one.optuna})
    yield (
        f"Proposed by {_named(told['sampler'])}, pruned by {_named(told['pruner'])}, seed "
        f"{told['seed']}, Optuna {', '.join(versions)}; studies in {told['storage']}."
    )


def _named(engine: Mapping[str, Any]) -> str:
    """`tpe (n_startup_trials 4)`."""
    options = ", ".join(f"{name} {value}" for name, value in engine["options"].items())
    return f"{engine['name']} ({options})" if options else str(engine["name"])


def _reading(told: Mapping[str, Any], every: Sequence[Found]) -> Iterator[str]:
    counts = sorted({one.samples for one in every if one.samples})
    if counts:
        yield (
            f"As good: from the best value to the first on each side whose complete trial was "
            f"worse by more than chance, 1.96 standard errors of a difference on "
            f"{', '.join(map(str, counts))} samples. Epochs and minutes are of training, pruned "
            f"trials included."
        )
