"""What stands under a table: findings first, then how to read it, then where it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.costing import parts as parts_of
from harness.reportspec import ReportSpec
from harness.store import Store
from reports.hits import accuracy_by_group
from reports.numbers import MINUS, heading, points, share, target_of
from reports.protocol import protocol
from reports.published import published
from reports.results import TOO_GOOD, above_ceiling, subset_metrics
from reports.rows import Row
from reports.statistics import t_interval
from reports.table import STALE

PAPER = (
    "Paper: its printed numbers. Ours are set against them only where the data and the protocol "
    "agree; else the cell says what differs."
)


def results_footnotes(
    report: ReportSpec, preset: str, store: Store, rows: Sequence[Row], stamps: Sequence[str] = ()
) -> list[str]:
    """Under a table of scores; `stamps` say whether its encoders passed their baselines."""
    done = [row for row in rows if row.done]
    if not done:
        return list(report.notes)
    return [
        *_too_good(report, done),
        *_gains(report, store, done),
        *_perception(store, done),
        *stamps,
        *report.notes,
        *_reading(report, done),
        *protocol(report.metrics, done),
        *_unreadable(store, done),
        *origin(preset, store, done),
    ]


def cost_footnotes(preset: str, store: Store, rows: Sequence[Row]) -> list[str]:
    """Under a table of costs: the parts, the second count, and how both are made."""
    done = [row for row in rows if row.done and not row.is_reference]
    counts = [(row, (store.run(row.runs[0].run_id).result() or {})["cost"]) for row in done]
    told = [(row.label, parts_of(counted)) for row, counted in counts]
    parts = [f"{label}: {line}." for label, line in told if line]
    return [
        *([f"{PAPER} Ours are the sizes of preset {preset}."] if counts else []),
        *_recounted(counts),
        *parts,
        *origin(preset, store, rows),
    ]


def _recounted(counts: Sequence[tuple[Row, Mapping[str, Any]]]) -> Iterator[str]:
    told = [
        f"{row.label} {counted['gflops_recounted']:.5g} "
        f"({100 * (counted['gflops_recounted'] / counted['gflops'] - 1):+.2f} %)"
        for row, counted in counts
        if counted.get("gflops_recounted") and counted["gflops"]
    ]
    if told:
        yield (
            f"A second count, by torch's own flop counter with attention as matrix products and "
            f"without norms, GFLOPs: {'; '.join(told)}."
        )


def origin(preset: str, store: Store, rows: Sequence[Row]) -> list[str]:
    """The last lines under every table."""
    done = [row for row in rows if row.done]
    if not done:
        return []
    lines = [f"Cost: {line}." for line in _conventions(store, done)]
    if any(row.is_reference for row in done):
        lines.append(
            "Reference rows: logistic regression on the mean tokens; their parameters are the "
            "fitted coefficients, their GFLOPs are not counted."
        )
    return [*lines, *_data(preset, done), *_encoders(done), *_stale(done), *_provenance(done)]


def _too_good(report: ReportSpec, rows: Sequence[Row]) -> Iterator[str]:
    places = [(metric, "") for metric in report.metrics]
    places += [(m, subset) for subset in report.subsets for m in subset_metrics(report)]
    for row in rows:
        for metric, subset in places:
            if above_ceiling(row, metric, subset):
                name = f"{metric}[{subset}]" if subset else metric
                found, ceiling = row.summary(name), row.ceiling(name)
                assert found is not None
                where = f", {subset.replace('_', ' ')}" if subset else ""
                yield (
                    f"{TOO_GOOD} {row.label} is above its ceiling! {heading(metric)}{where}: "
                    f"{share(found.mean)} where {share(ceiling)} ({row.ceiling_name}) bounds it, "
                    f"more than 3 binomial standard errors of {row.count(metric, subset)} samples. "
                    f"Something leaks, {_otherwise(row)}."
                )


def _otherwise(row: Row) -> str:
    if row.ceiling_name == "joint":
        return "or the ceiling is wrong"
    return "or its verb and noun break ties together, which the ceiling does not expect"


def _gains(report: ReportSpec, store: Store, rows: Sequence[Row]) -> Iterator[str]:
    """Fused against single, and single against its reference."""
    metric = report.metrics[0]
    models = [row for row in rows if not row.is_reference]
    single = best_on_select([row for row in models if len(row.streams) == 1], metric)
    fused = best_on_select([row for row in models if len(row.streams) > 1], metric)
    if single and fused:
        told = _by_group(store, fused, single, metric)
        if told:
            yield (
                f"Fusion gain, {heading(metric)}: {fused.label} {MINUS} {single.label}, each the "
                f"best of its kind on the select split: {told}."
            )
    for row in models:
        for reference in rows:
            alike = reference.is_reference and reference.streams == row.streams
            if alike and (len(row.streams) == 1 or row is fused):
                told = _by_group(store, row, reference, metric) or _by_mean(row, reference, metric)
                if told:
                    yield f"{row.label} against its logistic reference ({reference.label}): {told}."


def best_on_select(rows: Sequence[Row], metric: str) -> Row | None:
    """The best on the split that choices are made on; the test split has no say."""
    scored = [(value, row) for row in rows if (value := row.select(metric)) is not None]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def _by_group(store: Store, first: Row, second: Row, metric: str) -> str | None:
    """The difference with an interval over groups; None where samples have none."""
    left, right = (accuracy_by_group(store, row, metric) for row in (first, second))
    shared = sorted(set(left) & set(right))
    differences = [100 * (left[group] - right[group]) for group in shared]
    interval = t_interval(differences)
    if interval is None:
        return None
    mean = sum(differences) / len(differences)
    low, high = (points(bound) for bound in interval)
    return (
        f"{points(mean)} points, 95 % t interval [{low}, {high}] over {len(shared)} groups "
        f"(accuracy per group, mean over seeds)"
    )


def _by_mean(first: Row, second: Row, metric: str) -> str | None:
    left, right = first.summary(metric), second.summary(metric)
    return f"{points(100 * (left.mean - right.mean))} points" if left and right else None


def _reading(report: ReportSpec, rows: Sequence[Row]) -> Iterator[str]:
    seeds = sorted({seed.seed for row in rows for seed in row.done})
    if any(published(report.table, row.paper) for row in rows):
        yield PAPER
    yield (
        f"Scores in % on the test split, {samples_of(rows)} samples; ± is the sample standard "
        f"deviation over seeds ({', '.join(map(str, seeds))}), n=1 has none. Bold: better than "
        f"every other row, as far as other seeds and other {_clusters(rows)} of the test split "
        f"go (at least 3 seeds, p < 0.05 each). Underlined: leads, or is not set apart from the "
        f"row that leads; that does not make them equal (docs/statistics.md)."
    )
    if len({tuple(seed.seed for seed in row.done) for row in rows}) > 1:
        yield "Rows have other seeds: differences and marks are over the seeds that both rows have."
    best = {row.params.get("train.choose_by") for row in rows if _chose(row)}
    for metric in sorted(best, key=str):
        what = "mean top-1" if metric in (None, "None") else metric
        labels = [r.label for r in rows if _chose(r) and r.params.get("train.choose_by") == metric]
        yield f"{', '.join(labels)}: weights of the best epoch on the select split ({what})."
    if any(len(seed.runs) > 1 for row in rows for seed in row.done):
        yield "The runs of a seed (folds) are scored as one, on all their test samples together."
    base = next((row for row in rows if row.name == report.reference), None)
    if base is not None:
        yield (
            f"{MINUS} {base.label}: difference with a 95 % interval for other seeds and other "
            f"{_clusters(rows)}; * where p < 0.05, adjusted over the rows (Holm)."
        )
    if any(row.ceiling(metric) is not None for row in rows for metric in report.metrics):
        yield (
            "Ceiling: what perfect perception could reach with one stream alone (named after the "
            "stream), with the evidence of the streams only added and trained to the optimum of "
            "cross-entropy (additive), or with one stream selecting from another (joint). It "
            "follows from the tables the data are drawn from; for the action of a stream alone and "
            "of additive heads, verb and noun break ties independently."
        )
    if report.subsets:
        names = " and ".join(name.replace("_", " ") for name in report.subsets)
        one = len(report.subsets) == 1
        note = f"Column{'' if one else 's'} {names} {'holds' if one else 'are'} means over seeds."
        if report.fusion_score:
            first, second = (name.replace("_", " ") for name in report.subsets)
            note += (
                f" Fusion score: {second} score relative to the {first} score, mean over the "
                "metrics; 1 fuses, 0.5 adds. Read it beside the score: a model that ignores a "
                "stream can have 1 too."
            )
        yield note


def _chose(row: Row) -> bool:
    """Whether an epoch was chosen; else the last counts."""
    return row.params.get("train.choose") == "best"


def _unreadable(store: Store, rows: Sequence[Row]) -> Iterator[str]:
    """Samples that some run of a row could not read, and what became of them."""
    by_text: dict[str, list[str]] = {}
    for row in rows:
        found: dict[str, set[str]] = {"train": set(), "select": set(), "test": set()}
        for run in row.runs:
            bad = (store.run(run.run_id).result() or {}).get("bad_samples", {})
            for split, names in bad.items():
                found[split] |= set(names)
        policy = "repeated" if row.params.get("train.bad_samples") == "repeat" else "left out"
        told = [
            f"{len(names)} in {split} ({policy if split == 'train' else 'not scored'})"
            for split, names in found.items()
            if names
        ]
        if told:
            count = sum(map(len, found.values()))
            text = f"{count} sample{'s' * (count > 1)} could not be read: {', '.join(told)}"
            by_text.setdefault(text, []).append(row.label)
    for text, labels in by_text.items():
        yield f"{', '.join(labels)}: {text}."


def _perception(store: Store, rows: Sequence[Row]) -> Iterator[str]:
    """How good the encoders were that the rows started from; ceilings assume they are perfect."""
    params = [param for row in rows for run in row.runs for param in run.params.items()]
    needed = {value for name, value in params if name.startswith("needs.")}
    for run_id in sorted(needed):
        metrics = (store.run(run_id).result() or {}).get("metrics", {})
        tops = {k: v for k, v in metrics.items() if re.fullmatch(r"test/\w+_top1", k)}
        if tops:
            told = ", ".join(f"{target_of(k[5:])} {share(v)}" for k, v in sorted(tops.items()))
            yield f"Encoders were trained by run {run_id} before, whose test scores are: {told}."


def _clusters(rows: Sequence[Row]) -> str:
    return "groups (subjects, videos)" if any(row.grouped for row in rows) else "samples"


def samples_of(rows: Sequence[Row]) -> str:
    counts = sorted({row.samples for row in rows})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _data(preset: str, rows: Sequence[Row]) -> Iterator[str]:
    prints: dict[str, list[str]] = {}
    for run in (run for row in rows for run in row.runs):
        found = prints.setdefault(run.params.get("data.name", ""), [])
        digest = run.tags.get("harness.fingerprint", "")[:8]
        if digest not in found:
            found.append(digest)
    named = "; ".join(f"{name} ({', '.join(digests)})" for name, digests in prints.items())
    yield f"Data (fingerprint): {named}. Preset: {preset}."


def _encoders(rows: Sequence[Row]) -> Iterator[str]:
    used: dict[str, list[str]] = {}
    for row in rows:
        for stream in row.streams:
            text = _encoder(row, stream)
            if text not in used.setdefault(stream, []):
                used[stream].append(text)
    told = "; ".join(f"{stream}: {' or '.join(used[stream])}" for stream in sorted(used))
    yield f"Encoders: {told}."


def _encoder(row: Row, stream: str) -> str:
    prefix = f"encoders.{stream}"
    kind, _, digest = row.params.get(f"{prefix}.init", "").partition(":sha256:")
    about = row.tokens(stream)
    if not about or about[0].endswith(" tokens"):  # not stored
        about.append("frozen" if row.params.get(f"{prefix}.frozen") == "True" else "trained")
    if digest:
        about.append(f"{kind} {digest[:8]}")
    return f"{row.params[f'{prefix}.name']} ({', '.join(about)})"


def _stale(rows: Sequence[Row]) -> Iterator[str]:
    """Rows with the same changed files share a line."""
    by_files: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if row.stale:
            by_files.setdefault(row.stale, []).append(row.label)
    for files, labels in by_files.items():
        yield f"{STALE} {', '.join(labels)}: run before {', '.join(files)} changed."


def _provenance(rows: Sequence[Row]) -> Iterator[str]:
    runs = [run for row in rows for run in row.runs]
    commits = sorted({run.tags.get("harness.commit", "")[:10] for run in runs} - {""})
    told = f"commit {', '.join(commits)}" if commits else "no commit recorded"
    dirty = sum(run.tags.get("harness.dirty") == "True" for run in runs)
    changed = f"; {dirty} of them with uncommitted changes, kept in their folders" if dirty else ""
    yield f"{len(runs)} runs, {told}{changed}."


def _conventions(store: Store, rows: Sequence[Row]) -> Iterator[str]:
    """How the costs of the rows were counted: one line, unless they were counted differently."""
    told = set()
    for run in (run for row in rows for run in row.runs):
        line = ((store.run(run.run_id).result() or {}).get("cost") or {}).get("convention")
        if line and line not in told:
            told.add(line)
            yield line
