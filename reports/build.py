"""`harness report`: stored sweeps -> tables and figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.config import ConfigError
from harness.registry import unknown
from harness.reportspec import ReportSpec
from harness.store import Store
from harness.track import key, tracked
from reports.footnotes import cost_footnotes, results_footnotes
from reports.gate import gate_table, gated_rows, stamps
from reports.leakage import leakage_table
from reports.render import comma_separated, latex, markdown
from reports.rows import Row, collect
from reports.table import Table, cost_table, results_table

Record = Mapping[str, Any]


def build(
    store: Store,
    uri: str,
    sweeps: Sequence[str],
    preset: str | None,
    tables: Sequence[str],
    out: Path,
) -> str:
    """Write the wanted tables and figures into `out`; the Markdown of all tables.

    `sweeps`, `preset` and `tables` (`3`, `table3`, `watch`) narrow the choice; empty means all.
    Raises ConfigError for names that nothing stored has.
    """
    stored = store.sweeps()
    records = _chosen(stored, sweeps, preset, store)
    views = {id(record): _views(record, stored) for record in records}
    wanted = _wanted_tables(sorted({name for names in views.values() for name in names}), tables)
    runs = tracked(uri)
    out.mkdir(parents=True, exist_ok=True)
    gated = gated_rows(store, runs, stored)
    texts = []
    for record in records:
        report = ReportSpec(**record["report"])
        rows = collect(store, runs, record)
        _check_metrics(record, report, rows)
        where = f"sweep {record['name']}, preset {_preset(record)}"
        if record.get("settings"):
            where += f", changed by --set {', '.join(record['settings'])}"
        stem = f"{record['name']}-{_preset(record)}"
        if record.get("search") and views[id(record)][0] in wanted:
            from reports.figures import write_responses  # Optuna, which other tables do not need
            from reports.search import search_table, warning

            report = report.model_copy(
                update={"notes": [*warning(record["search"]), *report.notes]}
            )
            texts.append(_write(search_table(record, where, store, rows), out, f"{stem}-search"))
            write_responses(record, store, out, stem)
        for name in views[id(record)]:
            if name not in wanted:
                continue
            if report.gate is not None:
                table = gate_table(report, where, _preset(record), store, rows)
                texts.append(_write(table, out, stem))
            elif name == "table4" or not report.metrics:
                own = name == record["report"]["table"]
                notes = [
                    *(report.notes if own else ()),
                    *cost_footnotes(_preset(record), store, rows),
                ]
                title = report.title if own else "Table 4. Cost"
                table = cost_table(title, where, rows, notes)
                texts.append(_write(table, out, _cost_stem(record)))
            else:
                blocks = _blocks(rows)
                for number, (block, its) in enumerate(blocks.items()):
                    title, file = (report.title, stem)
                    if block:
                        slugs = [_slug(other) for other in blocks]
                        slug = slugs[number]
                        if not slug or slugs.count(slug) > 1:
                            slug = f"{slug}-{number + 1}".strip("-")
                        title, file = f"{title}: {block}", f"{stem}-{slug}"
                    part = report.model_copy(update={"title": title})
                    told = list(stamps(its, gated))
                    notes = results_footnotes(part, _preset(record), store, its, told)
                    if report.leakage:
                        leaks = leakage_table(part, where, store, its, list(report.notes))
                        texts.append(_write(leaks, out, f"{file}-leakage"))
                    table = results_table(part, where, store, its, notes)
                    texts.append(_write(table, out, file))
                    from reports.figures import write_figures  # matplotlib; costs need none

                    write_figures(part, its, uri, out, file)
    return "\n".join(texts)


def _preset(record: Record) -> str:
    return record["preset"] or "plain"


def _blocks(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by the part of the table they stand in, in order; each is a table and figures of its
    own."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.block, []).append(row)
    return found


def _slug(text: str) -> str:
    """For a file's name: `Paper cost: patch tokens` -> `paper-cost-patch-tokens`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _chosen(
    records: Sequence[Record], sweeps: Sequence[str], preset: str | None, store: Store
) -> list[Record]:
    if not records:
        raise ConfigError(
            f"{store.root}: no sweep has been run yet; run one first: "
            f"harness sweep sweeps/table3.yaml"
        )
    names = sorted({record["name"] for record in records})
    wrong = [unknown(name, names, "sweep") for name in sweeps if name not in names]
    if wrong:
        raise ConfigError(*wrong)
    chosen = [record for record in records if not sweeps or record["name"] in sweeps]
    presets = sorted({_preset(record) for record in chosen})
    if preset is not None and preset not in presets:
        raise ConfigError(unknown(preset, presets, f"preset of {', '.join(sweeps) or 'any sweep'}"))
    return [record for record in chosen if preset in (None, _preset(record))]


def _views(record: Record, records: Sequence[Record]) -> list[str]:
    """The tables that a sweep's runs give: its own, and the cost of Table 3's as Table 4."""
    own = record["report"]["table"]
    others = {r["report"]["table"] for r in records if _preset(r) == _preset(record)}
    costs = own == "table3" and "table4" not in others and not record.get("search")
    return [own, "table4"] if costs else [own]


def _wanted_tables(known: list[str], tables: Sequence[str]) -> set[str]:
    named = [f"table{name}" if name.isdigit() else name for name in map(str.strip, tables)]
    wrong = [unknown(name, known, "table") for name in named if name not in known]
    if wrong:
        raise ConfigError(*wrong)
    return set(named) or set(known)


def _cost_stem(record: Record) -> str:
    """`table4-demo` for the sweeps `table3` and `table4`; another sweep puts its name between."""
    between = "" if record["name"] in ("table3", "table4") else f"-{record['name']}"
    return f"table4{between}-{_preset(record)}"


def _check_metrics(record: Record, report: ReportSpec, rows: Sequence[Row]) -> None:
    """A metric that no finished run has is a mistake in the sweep file."""
    known = sorted({name for row in rows for seed in row.done for name in seed.metrics or ()})
    if not known:
        return
    first = report.metrics[:1]
    names = [*report.metrics, *(f"{m}[{subset}]" for m in first for subset in report.subsets)]
    wrong = [name for name in names if key(name) not in known]
    if wrong:
        where = f"sweep {record['name']}: report"
        raise ConfigError(*(f"{where}: {unknown(key(name), known, 'metric')}" for name in wrong))


def _write(table: Table, out: Path, stem: str) -> str:
    text = markdown(table)
    for suffix, content in (
        (".md", text),
        (".tex", latex(table)),
        (".csv", comma_separated(table)),
    ):
        (out / f"{stem}{suffix}").write_text(content)
    return text
