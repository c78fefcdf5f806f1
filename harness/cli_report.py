"""Commands that read what runs have left: report, compare, claims, power."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from harness.store import Store
    from harness.track import Tracked

reporting = typer.Typer()
Sweeps = Annotated[list[str] | None, typer.Argument(help="Names of sweeps; all if none.")]
Preset = Annotated[str | None, typer.Option(help="Only of sweeps run under this preset.")]


@reporting.command()
def report(
    sweeps: Sweeps = None,
    preset: Preset = None,
    tables: Annotated[str, typer.Option(help="Comma-separated, e.g. 3,4 or watch.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder; runs/report by default.")] = None,
    html: Annotated[bool, typer.Option("--html", help="Also one page with everything.")] = False,
    check: Annotated[
        Path | None, typer.Option(help="A report.json: derive its numbers again, and compare.")
    ] = None,
) -> None:
    """Print the tables of the sweeps that were run, and write them with their figures.

    Example: harness report table3 --html
    """
    from reports.build import Choice, gather, write

    wanted = Choice(sweeps or [], preset, [name for name in tables.split(",") if name])
    if check is not None:
        if wanted != Choice((sweeps or []), None, []) or sweeps or html or out:
            raise typer.BadParameter("--check takes what the file is of: give nothing else")
        _check(check)
        return
    with _collected() as (store, uri, known):
        folder = out or store.report_folder
        print(write(gather(store, uri, wanted, known), folder, html))
    print(f"written to {folder}", file=sys.stderr)


def _check(file: Path) -> None:
    from reports.build import Choice, gather
    from reports.provenance import check, choice_of

    wanted = Choice(**choice_of(file))
    with _collected() as (store, uri, known):
        made = gather(store, uri, wanted, known)
        differ = check(made, file)
    for line in differ:
        print(line)
    count = sum(len(section.table.rows) for section in made.sections)
    told = f"{len(made.sections)} tables, {count} rows"
    print(f"{file}: {f'{len(differ)} differences' if differ else 'all is so'} ({told})",
          file=sys.stderr)  # fmt: skip
    if differ:
        raise typer.Exit(1)


@reporting.command()
def compare(
    first: Annotated[str, typer.Argument(help="A row (mlp, table3/mlp), or a run's id.")],
    second: Annotated[str, typer.Argument(help="Another, which is subtracted.")],
    metric: Annotated[str | None, typer.Option(help="Only this one, e.g. action_top1.")] = None,
    preset: Annotated[str | None, typer.Option(help="Of the sweeps the rows are in.")] = None,
) -> None:
    """Print how two rows or runs differ, how sure that is, and in which samples.

    Example: harness compare table3/mlp table3/mamba_shared
    """
    from reports.compare import compare as told

    with _collected() as (store, uri, _):
        print(told(store, uri, (first, second), preset, metric))


@reporting.command()
def claims(sweeps: Sweeps = None, preset: Preset = None) -> None:
    """Print a verdict on each claim that sweeps have declared, or what is missing for one.

    Example: harness claims table3
    """
    from reports.build import Choice, gather
    from reports.render import markdown

    with _collected() as (store, uri, known):
        made = gather(store, uri, Choice(sweeps or [], preset), known)
    found = [section.table for section in made.sections if section.kind == "claims"]
    for table in found:
        print(markdown(table))
    if not found:
        print("no claims are declared; docs/statistics.md has an example", file=sys.stderr)


@reporting.command()
def power(
    file: Annotated[Path, typer.Argument(help="Sweep file with claims.")],
    preset: Annotated[str | None, typer.Option(help="Preset; its first one by default.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, as of `harness sweep`.")
    ] = None,
    seed_std: Annotated[
        float, typer.Option(help="Points by which seeds of a row vary, where none were run.", min=0)
    ] = 0.5,
    flips: Annotated[
        float,
        typer.Option(
            help="% of samples that only one of two rows has right, likewise.", min=0, max=100
        ),
    ] = 10.0,
    samples: Annotated[
        int | None, typer.Option(help="Test samples (or groups); else those of the data.", min=2)
    ] = None,
) -> None:
    """Estimate, before any is run, how many seeds FILE's claims need and what they cost.

    Example: harness power sweeps/table3.yaml --preset ek100
    """
    from harness.plan import plan
    from harness.site import read_site
    from reports.power import Assumed, power_of

    planned = plan(file, preset, set_ or [])
    with _collected() as (store, uri, _):
        settings = planned.slurm.over(read_site().slurm)
        print(power_of(store, uri, planned, settings, Assumed(seed_std, flips, samples)))


@contextlib.contextmanager
def _collected() -> Iterator[tuple[Store, str, Mapping[str, Tracked] | None]]:
    """The store, where MLflow is, brought up to date with it, and what that holds, if known."""
    from harness import track
    from harness.site import read_site
    from harness.store import Store

    site = read_site()
    store = Store(site.runs)
    track.prepare(store, site.mlflow_uri)
    found = track.collect(store, site.mlflow_uri)
    with track.answering(store, site.mlflow_uri):
        yield store, track.uri(store, site.mlflow_uri), found.known
