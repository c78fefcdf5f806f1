"""`harness report`: stored sweeps -> tables, figures, the record of every number, and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import ConfigError
from harness.registry import unknown
from harness.store import Store
from harness.track import Tracked, tracked
from reports.gate import gated_rows
from reports.provenance import write_record
from reports.render import comma_separated, latex, markdown
from reports.sections import Record, Section, Source, preset_of, views

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Choice:
    """Which of what is stored a report is about; empty means all."""

    sweeps: Sequence[str] = ()
    preset: str | None = None
    tables: Sequence[str] = ()
    """`3`, `table3`, `watch`"""


@dataclass(frozen=True)
class Report:
    """Everything that a report says."""

    store: Store
    uri: str
    choice: Choice
    sources: tuple[Source, ...]
    sections: tuple[Section, ...]
    owners: tuple[Source, ...]
    """of each section, the sweep that it is of"""


def gather(
    store: Store, uri: str, choice: Choice, known: Mapping[str, Tracked] | None = None
) -> Report:
    """The tables of a choice; `known` is what MLflow holds, if it was asked already.

    Raises ConfigError for names that nothing stored has.
    """
    stored = store.sweeps()
    records = _chosen(stored, choice, store)
    by_record = {id(record): views(record, stored) for record in records}
    tables = sorted({name for names in by_record.values() for name in names})
    wanted = _wanted_tables(tables, choice.tables)
    runs = tracked(uri) if known is None else known
    gated = gated_rows(store, runs, stored)
    sources = [Source(store, runs, record, gated) for record in records]
    made = [
        (source, section)
        for source in sources
        for section in source.sections(by_record[id(source.record)], wanted)
    ]
    shown = tuple(source for source in sources if any(source is owner for owner, _ in made))
    sections, owners = _with_own_names([s for _, s in made]), tuple(owner for owner, _ in made)
    return Report(store, uri, choice, shown, sections, owners)


def _with_own_names(sections: Sequence[Section]) -> tuple[Section, ...]:
    """No two write the same files: a part of a table may be called `claims`."""
    found: dict[str, Section] = {}
    for section in sections:
        stem, number = section.stem, 2
        while stem in found:
            stem, number = f"{section.stem}-{number}", number + 1
        found[stem] = replace(section, stem=stem)
    return tuple(found.values())


def write(report: Report, out: Path, page: bool = False) -> str:
    """All of a report, as files in `out`; the Markdown of all tables.

    `page`: also `index.html`, with everything in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, Mapping[str, Figure]] = {}
    texts = []
    with ExitStack() as styled:
        for section, source in zip(report.sections, report.owners, strict=True):
            texts.append(_write_table(section, out))
            if section.figures:
                from reports.figures import save, style  # matplotlib; costs need none

                styled.enter_context(style())
                drawings[section.stem] = figures_of(section, source, report.uri)
                for name, figure in drawings[section.stem].items():
                    stem = section.stem.removesuffix("-search")
                    save(figure, out / f"{stem}-{name}")
        write_record(report, out / "report.json")
        if page:
            from reports.page import write_page

            write_page(report, drawings, out / "index.html")
    return "\n".join(texts)


def build(
    store: Store,
    uri: str,
    sweeps: Sequence[str],
    preset: str | None,
    tables: Sequence[str],
    out: Path,
) -> str:
    """`gather` and `write` in one."""
    return write(gather(store, uri, Choice(sweeps, preset, tables)), out)


def figures_of(section: Section, source: Source, uri: str) -> Mapping[str, Figure]:
    from reports.figures import drawn, responses

    if section.figures == "search":
        return responses(source.record, source.store)
    assert section.report is not None
    return drawn(section.report, source.store, section.rows, uri)


def _write_table(section: Section, out: Path) -> str:
    written: dict[str, Callable[[Any], str]] = {
        ".md": markdown, ".tex": latex, ".csv": comma_separated,
    }  # fmt: skip
    for suffix, render in written.items():
        (out / f"{section.stem}{suffix}").write_text(render(section.table))
    return markdown(section.table)


def _chosen(records: Sequence[Record], choice: Choice, store: Store) -> list[Record]:
    sweeps, preset = choice.sweeps, choice.preset
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
    presets = sorted({preset_of(record) for record in chosen})
    if preset is not None and preset not in presets:
        raise ConfigError(unknown(preset, presets, f"preset of {', '.join(sweeps) or 'any sweep'}"))
    return [record for record in chosen if preset in (None, preset_of(record))]


def _wanted_tables(known: list[str], tables: Sequence[str]) -> set[str]:
    named = [f"table{name}" if name.isdigit() else name for name in map(str.strip, tables)]
    wrong = [unknown(name, known, "table") for name in named if name not in known]
    if wrong:
        raise ConfigError(*wrong)
    return set(named) or set(known)


__all__ = ["Choice", "Report", "build", "gather", "write"]
