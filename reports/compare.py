"""`harness compare`: two rows or two runs by each metric, and the samples that they differ in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from harness.config import ConfigError
from harness.registry import unknown
from harness.store import Store
from harness.track import Tracked, tracked
from reports.differences import Difference, cohens_h, holm, mcnemar
from reports.hits import difference, scored
from reports.numbers import heading, in_order, percent, points, target_of
from reports.rows import Row, collect, predictions

DRAWS = 10_000
SHOWN = 10
"""classes, and samples, that are named"""


def compare(
    store: Store,
    uri: str,
    names: Sequence[str],
    preset: str | None = None,
    metric: str | None = None,
) -> str:
    """Two rows (`mlp`, `table3/mlp`) or runs (the beginning of an id), in words and a table.

    Raises ConfigError for what is not there, or cannot be compared.
    """
    runs, rows = tracked(uri), []
    for name in names:
        rows.append(_found(store, runs, name, preset))
    first, second = rows
    shared = [one for one in _metrics(store, first) if one in _metrics(store, second)]
    if metric is not None and metric not in shared:
        raise ConfigError(unknown(metric, shared, "metric of both"))
    wanted = [metric] if metric is not None else in_order(shared)
    found = {one: difference(store, first, second, one) for one in wanted}
    told = {one: each for one, each in found.items() if each is not None}
    if not told:
        raise ConfigError(
            f"{names[0]} and {names[1]} were not tested on the same samples with a seed in common"
        )
    lines = [f"{_title(first)}  minus  {_title(second)}", "", *_table(first, second, told), ""]
    main = [*told, *(one for one in told if one.endswith("_top1"))][-1]
    lines += _reading(told)
    lines += _single(store, first, second, main)
    lines += _flips(store, first, second, main)
    return "\n".join(lines)


def _found(store: Store, runs: Mapping[str, Tracked], name: str, preset: str | None) -> Row:
    """The row or run called `name`."""
    sweep, _, row = name.rpartition("/")
    chosen = []
    known = []
    for record in store.sweeps():
        if preset not in (None, record["preset"]):
            continue
        rows = dict.fromkeys(run["row"] for run in record["runs"] if run["in_table"])
        known += [f"{record['name']}/{one}" for one in rows]
        if row in rows and sweep in ("", record["name"]):
            chosen.append({**record, "runs": [r for r in record["runs"] if r["row"] == row]})
    if len(chosen) > 1:
        told = ", ".join(f"{r['name']}/{row} (preset {r['preset'] or 'none'})" for r in chosen)
        raise ConfigError(f"{name}: several rows are called so: {told}; say which, and --preset")
    begin = [one for one in store.runs() if len(name) >= 4 and one.run_id.startswith(name)]
    if not chosen and len(begin) == 1:
        chosen = [{"runs": [_as_row(begin[0].run_id, begin[0].spec()["spec"]["seed"])]}]
    if not chosen:
        names = [*known, *dict.fromkeys(one.split("/")[1] for one in known)]
        raise ConfigError(unknown(name, names, "row or run"))
    (found,) = collect(store, runs, chosen[0])
    if not found.done:
        raise ConfigError(f"{name}: has no result yet ({found.state()})")
    return found


def _as_row(run_id: str, seed: int) -> dict[str, Any]:
    shown: dict[str, Any] = {"label": run_id, "paper": None, "published": {}, "in_table": True}
    return {"row": run_id, "seed": seed, "run_id": run_id, **shown}


def _metrics(store: Store, row: Row) -> list[str]:
    """Those that a single sample has right or wrong."""
    return list(scored(store, row.done[0])[2])


def _title(row: Row) -> str:
    seeds = ", ".join(str(seed.seed) for seed in row.done)
    block = f", {row.block}" if row.block else ""
    return f"{row.label}{block} (seeds {seeds})"


def _table(first: Row, second: Row, told: Mapping[str, Difference]) -> Iterator[str]:
    adjusted = holm([each.p for each in told.values()])
    header = ["Metric", "First", "Second", "Difference, points", "95 % interval", "p", "p, Holm"]
    header += ["Effect h", "Detectable"]
    yield f"| {' | '.join(header)} |"
    yield f"| --- {'| ---: ' * (len(header) - 1)}|"
    for (metric, each), p in zip(told.items(), adjusted, strict=True):
        left, right = first.summary(metric), second.summary(metric)
        effect = cohens_h(left.mean, right.mean) if left and right else 0.0
        low, high = (points(100 * bound) for bound in each.interval)
        cells = [
            heading(metric), percent(left), percent(right), points(100 * each.mean),
            f"[{low}, {high}]", f"{each.p:.2g}", f"{p:.2g}", f"{effect:+.2f}",
            f"{100 * each.detectable:.1f}",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _reading(told: Mapping[str, Difference]) -> Iterator[str]:
    one = next(iter(told.values()))
    yield (
        f"{one.seeds} {'seed' if one.seeds == 1 else 'seeds in common'}, {one.clusters} groups or "
        f"single samples. Interval and p ask for other seeds and other samples at once "
        f"(docs/statistics.md); Detectable: the smallest true difference that this many would "
        f"find four times in five, points."
    )
    if one.seeds == 1:
        yield "ONE SEED: nothing is known of how far another would end from it."
    open_ = [heading(metric) for metric, each in told.items() if each.p >= 0.05]
    if open_:
        yield f"Undecided, which is not equal: {', '.join(open_)}."


def _single(store: Store, first: Row, second: Row, metric: str) -> Iterator[str]:
    """McNemar's test and a clustered bootstrap, of two single runs."""
    if len(first.done) > 1 or len(second.done) > 1:
        return
    _, groups, left = scored(store, first.done[0])
    right = scored(store, second.done[0])[2]
    only, other, p = mcnemar(left[metric] > 0, right[metric] > 0)
    yield (
        f"{heading(metric)}: right in the first alone {only}, in the second alone {other} "
        f"(McNemar, exact: p = {p:.2g}, samples taken as independent)."
    )
    if (groups != "").any():
        told = ", ".join(points(100 * b) for b in bootstrap(left[metric] - right[metric], groups))
        yield f"Bootstrap over {len(set(groups.tolist()))} groups: 95 % [{told}] points."


def bootstrap(values: Any, groups: Any, draws: int = DRAWS) -> tuple[float, float]:
    """95 % percentile interval of the mean, whole groups drawn with replacement."""
    _, place = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(place, weights=values), np.bincount(place)
    drawn = np.random.default_rng(0).integers(0, len(sizes), (draws, len(sizes)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _flips(store: Store, first: Row, second: Row, metric: str) -> Iterator[str]:
    """Which classes changed most, and which samples, for the first seed that both have."""
    by_seed = {seed.seed: seed for seed in second.done}
    mine = next(seed for seed in first.done if seed.seed in by_seed)
    ids, _, left = scored(store, mine)
    right = scored(store, by_seed[mine.seed])[2]
    change = np.sign(left[metric] - right[metric])  # a sample is won or lost, whatever it weighs
    yield (
        f"Seed {mine.seed}, {heading(metric)}: {int((change > 0).sum())} samples right in the "
        f"first alone, {int((change < 0).sum())} in the second alone."
    )
    said = predictions(store, mine.run_ids)
    targets = said.targets.get(target_of(metric))
    if targets is not None:
        order = np.argsort(said.ids, kind="stable")
        net = np.bincount(targets[order], weights=change)
        most = sorted(np.flatnonzero(net), key=lambda one: (-abs(net[one]), one))[:SHOWN]
        named = ", ".join(f"{one}: {net[one]:+.0f}" for one in most)
        yield f"Classes that changed most (class: samples won): {named or 'none'}."
    for sign, where in ((1, "first"), (-1, "second")):
        names = ids[change * sign > 0][:SHOWN].tolist()
        if names:
            yield f"Right in the {where} alone, for example: {', '.join(names)}."


__all__ = ["bootstrap", "compare"]
