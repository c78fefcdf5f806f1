"""One table of models by source of their questions: what each gains, and what of it survives.

The gain of a source is a model's score with its questions less that of the same model with the
constant question, sample by sample. What survives is the gain from questions that were made from
predictions, as a share of the gain from those that were made from the truth: the rest was told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.clusters import clustered_mean
from harness.reportspec import ReportSpec
from harness.store import Store
from reports.hits import difference_by_sample
from reports.numbers import MINUS, NONE, heading, points, share
from reports.rows import Row
from reports.statistics import t_interval
from reports.table import Cell, Table, empty_cells

SOURCE = "data.options.questions"
NOTHING, TRUE, PREDICTED = "constant", "ground_truth", "predicted"
ORDER = (
    "none", NOTHING, "shuffled", "shuffled_narration", "verb_category", "noun_category", "category",
    "masked_narration", PREDICTED, TRUE, "verb_named", "noun_named", "narration",
)  # fmt: skip
"""sources by what they may tell"""
IN_WORDS = {TRUE: "ground truth"}
Gain = tuple[float, tuple[float, float] | None]
"""points, and their 95 % interval"""


def by_model(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """Label -> source of questions -> the row of it that is done."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.done:
            source = row.params.get(SOURCE, "text")
            label = row.head
            if source in found.get(label, {}):  # another model of that name
                label = f"{label} ({row.name})"
            found.setdefault(label, {})[source] = row
    return found


def gain(store: Store, row: Row | None, base: Row | None, metric: str) -> Gain | None:
    """What a row has over another; None where one is not done, or has not the metric."""
    if row is None or base is None:
        return None
    found = difference_by_sample(store, row, base, metric)
    if found is None:
        more, less = row.summary(metric), base.summary(metric)
        return None if more is None or less is None else (100 * (more.mean - less.mean), None)
    mean, reach = clustered_mean(found.values, found.groups.tolist())
    both = math.hypot(reach, _over_seeds(row.values(metric), base.values(metric)))
    interval = None if math.isnan(both) else (100 * (mean - both), 100 * (mean + both))
    return 100 * mean, interval


def _over_seeds(more: Mapping[int, float], less: Mapping[int, float]) -> float:
    """How far the interval of the difference reaches for other seeds; 0 where one says nothing."""
    interval = t_interval([more[seed] - less[seed] for seed in sorted(set(more) & set(less))])
    return 0.0 if interval is None else (interval[1] - interval[0]) / 2


def survives(true: Gain | None, predicted: Gain | None) -> float | None:
    """Share of the gain that is left; None unless the gain from the truth is above 0 for sure."""
    if true is None or predicted is None or true[1] is None or true[1][0] <= 0:
        return None
    return predicted[0] / true[0]


def leakage_table(
    report: ReportSpec, where: str, store: Store, rows: Sequence[Row], told: Sequence[str]
) -> Table:
    """Scores of each model by source, the gains by the last of the metrics, and what survives."""
    models, metric = by_model(rows), report.metrics[-1]
    sources = [s for s in ORDER if any(s in found for found in models.values())]
    header = ["Model", *(f"{IN_WORDS.get(s, s.replace('_', ' '))} questions" for s in sources)]
    gained = [s for s in sources if s not in (NOTHING, "none")]
    compared = NOTHING in sources and TRUE in sources and PREDICTED in sources
    header += [f"Gain, {IN_WORDS.get(s, s.replace('_', ' '))}" for s in gained]
    header += ["Survives"] if compared else []
    lines = [
        (
            Cell(label, {"model": label}),
            *(_scores(found.get(source), report.metrics, source) for source in sources),
            *_gains(store, found, gained, metric, compared),
        )
        for label, found in models.items()
    ]
    notes = [*_headline(store, models, metric), *_reading(report, rows, metric, gained), *told]
    return Table(
        f"{report.title}: what the questions give away",
        where,
        tuple(header),
        tuple(lines),
        (*notes, *empty_cells(lines)),
    )


def _scores(row: Row | None, metrics: Sequence[str], source: str) -> Cell:
    if row is None:
        return Cell(NONE, why=f"not run with {source.replace('_', ' ')} questions")
    found = {metric: row.summary(metric) for metric in metrics}
    text = " / ".join(share(value.mean if value else None) for value in found.values())
    raw = {f"{metric}_{source}": value.mean if value else None for metric, value in found.items()}
    return Cell(text, raw, runs=row.run_ids)


def _gains(
    store: Store, found: Mapping[str, Row], sources: Sequence[str], metric: str, compared: bool
) -> Iterator[Cell]:
    gains = {s: gain(store, found.get(s), found.get(NOTHING), metric) for s in sources}
    base = found[NOTHING].run_ids if NOTHING in found else ()
    for source, one in gains.items():
        runs = (*found[source].run_ids, *base) if one else ()
        why = f"one of the two is not run: {NOTHING}, {source}"
        yield Cell(_in_words(one), {f"gain_{source}": one[0] if one else None}, why=why, runs=runs)
    if compared:
        left = survives(gains.get(TRUE), gains.get(PREDICTED))
        text = NONE if left is None else f"{100 * left:.0f} %"
        yield Cell(text, {"survives": left}, why="no gain that is above 0 for sure")


def _in_words(one: Gain | None) -> str:
    if one is None:
        return NONE
    value, interval = one
    if interval is None:
        return points(value)
    return f"{points(value)} [{points(interval[0])}, {points(interval[1])}]"


def _headline(store: Store, models: Mapping[str, Mapping[str, Row]], metric: str) -> Iterator[str]:
    for label, found in models.items():
        base = found.get(NOTHING)
        true, said = (gain(store, found.get(s), base, metric) for s in (TRUE, PREDICTED))
        left = survives(true, said)
        if left is not None and true is not None and said is not None:
            yield (
                f"{label}, {heading(metric)}: {points(true[0])} points over the constant question "
                f"where questions are made from the truth, {points(said[0])} where they are made "
                f"from predictions: {100 * left:.0f} % of the gain survives"
                f"{_by_ceilings(found, metric)}."
            )


def _by_ceilings(found: Mapping[str, Row], metric: str) -> str:
    """What would survive of a perfect model's gain, where ceilings are known."""
    known = [found[source].ceiling(metric) for source in (NOTHING, TRUE, PREDICTED)]
    none, true, said = known
    if none is None or true is None or said is None or true <= none:
        return ""
    return f" (of its ceilings': {100 * (said - none) / (true - none):.0f} %)"


def _reading(
    report: ReportSpec, rows: Sequence[Row], metric: str, gained: Sequence[str]
) -> Iterator[str]:
    names = " / ".join(heading(one) for one in report.metrics)
    seeds = sorted({seed.seed for row in rows for seed in row.done})
    told = ", ".join(map(str, seeds))
    yield f"Columns of questions: {names}, % on the test split, means over seeds ({told})."
    if gained:
        yield (
            f"Gain: {heading(metric)} {MINUS} that of the same model with the constant question, "
            f"points, with a 95 % t interval for other test samples (or groups of them) and, "
            f"where there are several seeds, for other seeds."
        )
    if TRUE in gained and PREDICTED in gained:
        yield (
            "Survives: the gain from predicted questions as a share of that from true ones, where "
            "that is above 0 for sure. The rest is what questions from the truth told."
        )


def leakage_bars(report: ReportSpec, rows: Sequence[Row]) -> Figure | None:
    """The last metric of each model, a bar for each source of questions."""
    models, metric = by_model(rows), report.metrics[-1]
    sources = [s for s in ORDER if any(s in found for found in models.values())]
    if not models or len(sources) < 2:
        return None
    figure = Figure(figsize=(max(6.4, 0.32 * len(models) * len(sources) + 2.6), 3.6))
    panel: Axes = figure.subplots()
    width = 0.8 / len(sources)
    for place, source in enumerate(sources):
        heights = [found[source].summary(metric) if source in found else None
                   for found in models.values()]  # fmt: skip
        places = [
            number + (place - (len(sources) - 1) / 2) * width for number in range(len(models))
        ]
        drawn = [(x, value) for x, value in zip(places, heights, strict=True) if value]
        panel.bar(
            [x for x, _ in drawn], [100 * value.mean for _, value in drawn], 0.9 * width,
            yerr=[math.nan if value.std is None else 100 * value.std for _, value in drawn],
            error_kw={"elinewidth": 1, "capsize": 2},
            label=IN_WORDS.get(source, source.replace("_", " ")),
            zorder=2,
        )  # fmt: skip
    panel.set_xticks(range(len(models)), [_folded(label) for label in models])
    panel.grid(axis="x", visible=False)
    panel.set(ylabel=f"{heading(metric)}, test split (%)")
    figure.legend(title="questions", loc="outside right center")
    return figure


def _folded(label: str) -> str:
    """A label in lines of a word or two."""
    return label.replace(" (", "\n(")
