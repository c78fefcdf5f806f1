"""The command `compare`: two rows or runs, with a test and the samples that they differ in."""

from __future__ import annotations

from typing import Annotated

import typer

comparing = typer.Typer()


@comparing.command()
def compare(
    first: Annotated[str, typer.Argument(help="A row (mlp, table3/mlp), or a run's id.")],
    second: Annotated[str, typer.Argument(help="Another, which is subtracted.")],
    metric: Annotated[str | None, typer.Option(help="Only this one, e.g. action_top1.")] = None,
    preset: Annotated[str | None, typer.Option(help="Of the sweeps the rows are in.")] = None,
) -> None:
    """Print how two rows or runs differ, how sure that is, and in which samples.

    Example: harness compare table3/mlp table3/mamba_shared
    """
    from harness import track
    from harness.site import read_site
    from harness.store import Store
    from reports.compare import compare as told

    site = read_site()
    store = Store(site.runs)
    track.prepare(store, site.mlflow_uri)
    track.collect(store, site.mlflow_uri)
    with track.answering(store, site.mlflow_uri):
        print(told(store, track.uri(store, site.mlflow_uri), (first, second), preset, metric))
