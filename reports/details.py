"""What a number of the page opens: its runs, the classes that changed, predictions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.store import Store
from harness.track import Tracked, histories, key
from reports.footnotes import best_on_select
from reports.gains import class_gains, class_names
from reports.numbers import heading, target_of
from reports.rows import Row, trained
from reports.samples import samples_of_section

if TYPE_CHECKING:
    from reports.build import Report
    from reports.sections import Section, Source

NOT_SHOWN = ("host", "pid", "command", "diff", "code", "commit", "dirty")
"""of an environment: whose machine it was, and what is shown apart"""
MOST_CLASSES = 10
MOST_DIFF = 20_000
"""characters of a change that was not committed"""


def details(report: Report) -> dict[str, Any]:
    """As JSON: `runs` by id, `diffs` by digest, `rows` by sweep and name, `samples` by section."""
    runs: dict[str, Any] = {}
    diffs: dict[str, str] = {}
    rows: dict[str, Any] = {}
    samples: dict[str, Any] = {}
    for source in report.sources:
        for row in source.rows:
            for seed in row.done:
                for run in seed.runs:
                    runs[run.run_id] = _run(source.store, run, row, seed.seed, diffs)
    for section, source in zip(report.sections, report.owners, strict=True):
        if section.figures == "results" and section.report is not None:
            _add_curves(runs, section, report.uri)
            for row in section.rows:
                if row.done:
                    rows[f"{source.stem}/{row.name}"] = _row(source, section, row)
            found = samples_of_section(source.store, section)
            if found:
                samples[section.stem] = found
    return {"runs": runs, "diffs": diffs, "rows": rows, "samples": samples}


def _run(store: Store, run: Tracked, row: Row, seed: int, diffs: dict[str, str]) -> dict[str, Any]:
    folder = store.run(run.run_id)
    env, result = folder.env(), folder.result() or {}
    diff = env.get("diff") or ""
    digest = hashlib.sha256(diff.encode()).hexdigest()[:12] if diff else ""
    if digest:
        cut = f"\n... cut here: {len(diff)} characters in all" if len(diff) > MOST_DIFF else ""
        diffs[digest] = diff[:MOST_DIFF] + cut
    cost = result.get("cost", {})
    return {
        "row": row.label,
        "seed": seed,
        "spec": folder.spec()["spec"],
        "env": {name: value for name, value in env.items() if name not in NOT_SHOWN},
        "commit": result.get("commit") or env.get("commit"),
        "dirty": result.get("dirty"),
        "diff": digest,
        "stale": run.tags.get("harness.stale", ""),
        "seconds": result.get("finished", 0) - result.get("started", 0),
        "scores": {n[5:]: v for n, v in sorted(run.metrics.items()) if n.startswith("test/")},
        "cost": {
            "GFLOPs": cost.get("gflops_by_part", {}),
            "Parameters, millions": cost.get("params_m_by_part", {}),
            "Tokens": cost.get("tokens", {}),
        },
        "implementations": result.get("implementations", {}),
        "curves": {},
    }


def _add_curves(runs: Mapping[str, Any], section: Section, uri: str) -> None:
    """By epoch: the section's metrics on the select split."""
    assert section.report is not None
    shown = trained(section.rows)
    for metric in section.report.metrics:
        for run_id, points in histories(uri, shown, f"select/{key(metric)}").items():
            if points:
                runs[run_id]["curves"][heading(metric)] = points


def _row(source: Source, section: Section, row: Row) -> dict[str, Any]:
    """Its runs, and the classes that it wins and loses most against what it is compared with."""
    assert section.report is not None
    other = compared_with(section, row)
    changed = []
    if other is not None:
        names = class_names(source.store, row)
        for metric in section.report.metrics:
            gains = class_gains(source.store, row, other, metric)
            most = sorted(gains, key=lambda one: (-abs(one[1]), one[0]))[:MOST_CLASSES]
            known = names.get(target_of(metric), ())
            named = [[known[c] if c < len(known) else str(c), gain, n] for c, gain, n in most]
            if named:
                changed.append({"metric": heading(metric), "classes": named})
    return {
        "label": row.label,
        "section": section.stem,
        "name": row.name,
        "runs": list(row.run_ids),
        "against": other.label if other else "",
        "beside": other.name if other else "",
        "changed": changed,
    }


def compared_with(section: Section, row: Row) -> Row | None:
    """The section's reference row; for that one, or without one, the best single stream."""
    assert section.report is not None
    base = next((one for one in section.rows if one.name == section.report.reference), None)
    if base is not None and base is not row and base.done:
        return base
    single = [r for r in section.rows if r.done and len(r.streams) == 1 and not r.is_reference]
    best = best_on_select(single, section.report.metrics[0])
    return best if best is not row else None
