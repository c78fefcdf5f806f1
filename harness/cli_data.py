"""The commands about data sets: `harness data doctor`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from harness.contracts import Dataset

data = typer.Typer(name="data", help="Look at the files of a dataset.", no_args_is_help=True)


@data.callback()
def group() -> None:
    """Look at the files of a dataset."""


@data.command()
def doctor(
    name: Annotated[str, typer.Argument(help="Dataset, e.g. ek100.")] = "ek100",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE, an option of the dataset: size=336. Repeatable."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that read samples; one per core.", min=0)
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long speed is measured.", min=1)] = 10.0,
    list_: Annotated[
        Path | None,
        typer.Option("--list", help="Write here every video, segment or clip that is counted."),
    ] = None,
) -> None:
    """Check the files of a dataset on this machine, and say what to fix. Exit code 1: something.

    Example: harness data doctor ek100 --set size=336 --set sampling=segment --workers 8
    """
    from harness.doctor.ask import Report, Row

    dataset = dataset_named(name, set_ or [])
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    looks = dataset.doctor(usable or 1 if workers is None else workers, seconds)
    if looks is None:
        print(f"{name}: this dataset offers nothing to look at; ek100 does", file=sys.stderr)
        raise typer.Exit(2)
    report, lines = Report(f"{name} on this machine", []), []
    for check, finding, every in looks:
        print(f"{check}: {finding.state}", file=sys.stderr, flush=True)
        report.rows.append(Row(check, finding))
        lines += [f"{check}\t{one}\n" for one in every]
    print(report)
    if list_ is not None:
        list_.write_text("".join(lines))
        print(f"{list_}: {len(lines)} lines, a check and what it counts in each")
    if report.failed:
        raise typer.Exit(1)


@data.command()
def sweep(
    manifest: Annotated[Path, typer.Argument(help="Manifest of your features.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The sweep file to write.")],
) -> None:
    """Write a sweep file with the rows of Table 3 on your own features. Nothing is overwritten.

    Example: harness data sweep mine/data.yaml --out mine/fusions.yaml
    """
    from harness.config import ConfigError
    from harness.data.features.table3 import sweep_text
    from harness.plan import plan
    from harness.registry import load_plugins

    load_plugins()
    text = sweep_text(manifest, out)
    try:
        with open(out, "x") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{out}: is there already; take another name, or delete it") from None
    try:
        plan(out)
    except ConfigError:
        out.unlink()
        raise
    print(f"{out} written; next: harness sweep {out}")


def dataset_named(name: str, settings: list[str]) -> Dataset:
    """The dataset with its options, and where the site file says its files lie."""
    from harness.config import ConfigError, Node, overlay, validate
    from harness.registry import DATASETS, load_plugins, unknown
    from harness.site import places
    from harness.sweepfile import setting

    load_plugins()
    if name not in DATASETS:
        raise ConfigError(unknown(name, DATASETS.names(), DATASETS.kind))
    cls, options = DATASETS[name], Node({}, "--set")
    for text in settings:
        options = overlay(options, setting(text))
    config, messages = validate(cls.Config, options)
    if messages:
        raise ConfigError(*messages)
    dataset: Dataset = cls(config)
    dataset.places = cls.Places(**places(name, cls.Places))
    return dataset
