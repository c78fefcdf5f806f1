"""`report.json`: every number of a report with the runs it is of, and if they still give it."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import ConfigError
from harness.evaluate import scores
from harness.files import read_json, write_json
from harness.spec import RunSpec
from harness.store import Store
from harness.track import Tracked, key
from reports.table import STALE

if TYPE_CHECKING:
    from reports.build import Report

FORMAT = 1
PASSING = ("stale",)
"""of a cell: what is true of the code here, and no number"""
ROUNDING = 1e-12


def write_record(report: Report, file: Path) -> None:
    """Write what `check` derives again."""
    write_json(file, {"made": time.time(), **record_of(report)})


def record_of(report: Report) -> dict[str, Any]:
    """All tables, cell by cell, and every run that is in them."""
    choice = report.choice
    runs = {
        run.run_id: _run(report.store, run)
        for source in report.sources
        for row in source.rows
        for run in row.runs
    }
    return {
        "format": FORMAT,
        "sweeps": list(choice.sweeps),
        "preset": choice.preset,
        "tables": list(choice.tables),
        "sections": [
            {
                "name": section.stem,
                "title": section.table.title,
                "header": list(section.table.header),
                "rows": [
                    [
                        {"text": cell.text, "values": dict(cell.raw), "runs": list(cell.runs)}
                        for cell in line
                    ]
                    for line in section.table.rows
                ],
                "notes": list(section.table.footnotes),
            }
            for section in report.sections
        ],
        "runs": runs,
    }


def _run(store: Store, run: Tracked) -> dict[str, Any]:
    folder = store.run(run.run_id)
    spec = folder.spec()["spec"]
    result = folder.result() or {}
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    said = folder.predictions_file
    return {
        "spec": hashlib.sha256(text.encode()).hexdigest(),
        "data": spec["data"]["name"],
        "fingerprint": spec["fingerprint"],
        "predictions": _digest(said) if said.is_file() else None,
        "commit": result.get("commit"),
        "dirty": result.get("dirty"),
        "code": result.get("code", {}),
        "mlflow": run.mlflow_id,
    }


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def choice_of(file: Path) -> dict[str, Any]:
    """The arguments of the report that a file is of. Raises ConfigError."""
    stored = read_json(file)
    known = {"sweeps", "preset", "tables", "sections", "runs"}
    if not isinstance(stored, dict) or stored.get("format") != FORMAT or not known <= set(stored):
        raise ConfigError(f"{file}: not a report.json of this version; `harness report` writes one")
    return {name: stored[name] for name in ("sweeps", "preset", "tables")}


def check(report: Report, file: Path) -> list[str]:
    """What of `file` is not so any more; `report` is the same choice, made anew.

    Numbers are derived again from MLflow; each run's scores also from its predictions, and its id
    from its spec.
    """
    stored, now = dict(read_json(file) or {}), json.loads(json.dumps(record_of(report)))
    runs = {run.run_id: run for source in report.sources for row in source.rows for run in row.runs}
    return [
        *_sections(stored, now),
        *_runs(stored["runs"], now["runs"]),
        *(line for run in runs.values() for line in _rescored(report.store, run)),
    ]


def _sections(stored: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    known = {section["name"]: section for section in now["sections"]}
    for section in stored["sections"]:
        other = known.pop(section["name"], None)
        if other is None:
            yield f"{section['name']}: this table is not there now"
        elif (section["header"], len(section["rows"])) != (other["header"], len(other["rows"])):
            yield f"{section['name']}: other columns, or rows, than the table has now"
        else:
            if section["title"] != other["title"]:
                yield f"{section['name']}: called {section['title']!r} in the file"
            for note in _differ(section["notes"], other["notes"]):
                yield f"{section['name']}: not a note of it now: {note}"
            for line, others in zip(section["rows"], other["rows"], strict=True):
                for title, cell, new in zip(section["header"], line, others, strict=True):
                    where = f"{section['name']}: {line[0]['text']}: {title}"
                    yield from (f"{where}: {told}" for told in _cell(cell, new))
    yield from (f"{name}: this table is new" for name in known)


def _differ(stored: Sequence[str], now: Sequence[str]) -> list[str]:
    """Notes of the file that the table has not now; of stale code is none."""
    known = {_fresh(note) for note in now}
    return [note for note in stored if not note.startswith(STALE) and _fresh(note) not in known]


def _cell(stored: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    before, after = stored["values"], now["values"]
    for name in dict.fromkeys([*before, *after]):
        if name not in PASSING and not _same(before.get(name), after.get(name)):
            yield f"{name} is {before.get(name)} in the file, {after.get(name)} now"
    if sorted(stored["runs"]) != sorted(now["runs"]):
        yield f"of runs {', '.join(stored['runs'])} in the file, {', '.join(now['runs'])} now"
    if _fresh(stored["text"]) != _fresh(now["text"]):
        yield f"{stored['text']!r} in the file, {now['text']!r} now"


def _fresh(text: str) -> str:
    """Without the mark of code that has changed since."""
    return text.replace(STALE, "").strip()


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, float) and isinstance(second, float):
        both_nan = math.isnan(first) and math.isnan(second)
        return both_nan or math.isclose(first, second, rel_tol=ROUNDING, abs_tol=ROUNDING)
    return bool(first == second)


def _runs(stored: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for run_id, before in stored.items():
        after = now.get(run_id)
        if after is None:
            yield f"run {run_id}: is not in the report now"
            continue
        for name in sorted({*before, *after} - {"mlflow"}):  # which is another in each database
            if before.get(name) != after.get(name):
                what = f"{before.get(name)} in the file, {after.get(name)} now"
                yield f"run {run_id}: its {name} is another: {what}"


def _rescored(store: Store, run: Tracked) -> Iterator[str]:
    """Whether what MLflow has of a run follows from its spec and predictions."""
    folder = store.run(run.run_id)
    if RunSpec(**folder.spec()["spec"]).run_id != run.run_id:
        yield f"run {run.run_id}: its spec is that of another run"
    if not folder.predictions_file.is_file():
        return
    for name, value in scores(folder.predictions()).items():
        known = run.metrics.get(key(f"test/{name}"))
        if known is None or not math.isclose(known, value, abs_tol=1e-9):
            yield f"run {run.run_id}: {name} is {value} by its predictions, {known} in MLflow"
