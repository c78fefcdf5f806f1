"""`harness power`: how many seeds the claims of a sweep need, and what these cost, before any run.

What a claim needs follows from how far seeds and samples move the difference of its two rows. Where
at least two seeds of both have been run that is measured; else it is assumed, and said to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from harness.claimspec import Claim
from harness.config import ConfigError
from harness.hours import expected, how_estimated, unit_of
from harness.plan import Sweep
from harness.slurm import SlurmSettings
from harness.spec import dataset_of
from harness.store import Store
from harness.track import tracked
from reports.differences import Difference, Parts
from reports.hits import difference
from reports.numbers import MINUS, NONE, heading, points
from reports.render import markdown
from reports.rows import collect
from reports.statistics import MIN_SEEDS
from reports.table import Cell, Table
from reports.verdicts import LEVEL, MOST_SEEDS, below, settled

HEADER = (
    "Claim", "Contrast", "Metric", "Margin, points", "Variance", "Seeds planned",
    "Finds, points", "Seeds to find the margin", "Seeds to show it equal",
    "Seeds if it is what it seems",
)  # fmt: skip


ASSUMED = "assumed"


@dataclass(frozen=True)
class Assumed:
    """What is taken for true where nothing was run."""

    seed_std: float
    """points, of one row over its seeds"""
    flips: float
    """% of test samples that only one of two rows has right"""
    samples: int | None
    """of the test split, or groups of them; None: as many as the data have"""

    def difference(self, samples: int, seeds: int) -> Difference:
        """Of two rows of which nothing is known but that."""
        of_seeds = 2 * (self.seed_std / 100) ** 2 / seeds
        parts = Parts(of_seeds, self.flips / 100 / samples, 0.0)
        variance, freedom = parts.combined(max(2, seeds), samples)
        spread = math.sqrt(of_seeds * seeds)
        return Difference(0.0, math.sqrt(variance), freedom, seeds, samples, spread, parts)


def power_of(
    store: Store, uri: str, planned: Sweep, settings: SlurmSettings, assumed: Assumed
) -> str:
    """A table of the claims, and the hours. Raises ConfigError where there are no claims."""
    if not planned.claims:
        raise ConfigError(
            f"{planned.file}: declares no claims; docs/statistics.md has an example of `claims`"
        )
    known = {row.name: row for row in collect(store, tracked(uri), planned.record())}
    lines, most = [], 0
    for claim in planned.claims.values():
        row, than = known[claim.row], known[claim.than]
        seeds = min(len(row.seeds), len(than.seeds))
        pilot = difference(store, row, than, str(claim.metric)) if row.done and than.done else None
        how = ""
        if pilot is None or pilot.parts is None:
            samples = assumed.samples or _samples(planned, claim)
            pilot, how = assumed.difference(samples, max(2, seeds)), ASSUMED
        else:
            each = ", each on its own" if pilot.folds else ""
            how = f"of {pilot.seeds} seeds, {pilot.clusters} groups or samples{each}"
        line, needed = _line(claim, (row.label, than.label), pilot, seeds, how, planned.claims)
        lines.append(line)
        most = max(most, needed or 0)
    notes = [*_reading(assumed, lines), *_hours(store, planned, settings, most)]
    where = f"sweep {planned.name}, preset {planned.preset or 'plain'}"
    return markdown(Table("What the claims need", where, HEADER, tuple(lines), tuple(notes)))


def _line(
    claim: Claim, labels: tuple[str, str], pilot: Difference, seeds: int, how: str,
    claims: Mapping[str, Claim],
) -> tuple[tuple[Cell, ...], int | None]:  # fmt: skip
    margin, count = claim.margin / 100, len(claims)
    planned = pilot.with_seeds(seeds) if seeds >= MIN_SEEDS else None
    finds = NONE if planned is None else f"{100 * planned.reach(LEVEL / 2 / count):.2f}"
    to_find = _least(pilot, lambda then: margin >= then.reach(LEVEL / 2 / count))
    to_equal = _least(pilot, lambda then: margin >= below(then, count))
    seems = None
    if how != ASSUMED:
        seems = _least(pilot, lambda then: settled(then, abs(then.mean), margin, count))
    texts = [
        *(claim.says, f"{labels[0]} {MINUS} {labels[1]}", heading(str(claim.metric))),
        *(f"{claim.margin:g}", how, str(seeds), finds, _seeds(to_find), _seeds(to_equal)),
        NONE if how == ASSUMED else f"{_seeds(seems)} ({points(100 * pilot.mean)})",
    ]
    return tuple(map(Cell, texts)), to_find if how == ASSUMED else seems


def _least(pilot: Difference, enough: Callable[[Difference], bool]) -> int | None:
    for seeds in range(MIN_SEEDS, MOST_SEEDS + 1):
        then = pilot.with_seeds(seeds)
        if then is not None and enough(then):
            return seeds
    return None


def _seeds(count: int | None) -> str:
    return f"more than {MOST_SEEDS}: too few samples" if count is None else str(count)


def _samples(planned: Sweep, claim: Claim) -> int:
    """Test samples of a seed, of all its runs together."""
    runs = [run for run in planned.runs if run.row == claim.row and run.in_table]
    first = [run for run in runs if run.spec.seed == runs[0].spec.seed]
    try:
        datasets = [dataset_of(run.spec, planned.paths) for run in first]
        return sum(len(dataset.split("test")) // dataset.views for dataset in datasets)
    except ValueError as error:
        raise ConfigError(f"{error}; or say how many with --samples") from None


def _reading(assumed: Assumed, lines: list[tuple[Cell, ...]]) -> Iterator[str]:
    yield (
        "Finds: the smallest true difference that the planned seeds would find four times in five "
        f"(p < {LEVEL} over all claims; at least {MIN_SEEDS} seeds). To find the margin: seeds for "
        "a true difference of the margin; to show it equal: if there is none."
    )
    if any(line[4].text == ASSUMED for line in lines):
        yield (
            f"Assumed: rows vary by {assumed.seed_std:g} points over seeds (--seed-std), and "
            f"{assumed.flips:g} % of samples are right in one row alone (--flips), each a draw of "
            f"its own. Samples of one video or subject are not: give --samples the number of those "
            f"for the worst case. Two seeds of the sweep replace all of this by what is measured."
        )


def _hours(store: Store, planned: Sweep, settings: SlurmSettings, most: int) -> Iterator[str]:
    unit, each = unit_of(settings)
    total, estimated = 0.0, False
    by_seed: dict[str, dict[int, float]] = {}  # row -> seed -> hours, of all its runs
    for run, seconds, how in expected(store, planned.runs, settings, planned.paths):
        hours = seconds / 3600 * each
        total += hours
        estimated |= how == "estimated"
        if run.in_table:
            seeds = by_seed.setdefault(run.row, {})
            seeds[run.spec.seed] = seeds.get(run.spec.seed, 0.0) + hours
    yield f"As planned: {len(planned.run_ids)} runs, {total:.3g} {unit} of training."
    one = {row: sum(seeds.values()) / len(seeds) for row, seeds in by_seed.items()}
    further = sum(max(0, most - len(seeds)) * one[row] for row, seeds in by_seed.items())
    if most:
        yield (
            f"{most} seeds of every row, for the claim that needs most (to find its margin, or "
            f"what it seems): {total + further:.3g} {unit}. "
            f"A further seed of all {len(one)} rows: {sum(one.values()):.3g} {unit}."
        )
    if estimated:
        told = how_estimated(settings)
        yield f"{told[0].upper()}{told[1:]}."
