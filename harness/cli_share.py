"""The commands `export` and `import`: a sweep's results from one lab to another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

sharing = typer.Typer()


@sharing.command("export")
def export_sweep(
    sweep: Annotated[str, typer.Argument(help="Name of a sweep that was run, e.g. table3.")],
    preset: Annotated[str | None, typer.Option(help="If it was run with several.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write; SWEEP-PRESET.tar.gz by default.")
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Of all runs, not only of those that others need.")
    ] = False,
    diff: Annotated[
        bool, typer.Option("--diff", help="With what differed from the commit, as text.")
    ] = False,
) -> None:
    """Write what is done of SWEEP into one file that others can import, without paths or hosts.

    Example: harness export table3 --preset demo
    """
    from harness.sharing.exporting import export, in_words
    from harness.site import read_site
    from harness.store import Store

    done = export(Store(read_site().runs), sweep, preset, out, weights, diff)
    print(f"{sweep}: {done.done} runs exported", file=sys.stderr)
    if done.left:
        print(f"left out, for they have no result: {in_words(done.left)}", file=sys.stderr)
    if done.named_by_path:
        print(
            f"{done.named_by_path} names of test samples are absolute paths, and stand in the "
            f"predictions as they are",
            file=sys.stderr,
        )
    print(done.file)


@sharing.command("import")
def import_sweep(
    file: Annotated[Path, typer.Argument(help="Archive that `harness export` wrote.")],
    name: Annotated[
        str | None, typer.Option("--as", help="What its sweep is to be called here.")
    ] = None,
) -> None:
    """Take in the runs of FILE, and join its sweep with the one of that name. Overwrites no result.

    Example: harness import table3-demo.tar.gz
    """
    from harness.sharing.importing import import_sweep as take_in
    from harness.site import read_site
    from harness.store import Store

    done = take_in(Store(read_site().runs), file, name)
    for line in done.told:
        print(f"{line}; ours stays", file=sys.stderr)
    for run_id, why in done.kept.items():
        print(f"KEPT  {run_id}  {why}", file=sys.stderr)
    for run_id, label in done.running.items():
        print(f"RUNNING  {run_id}  {label}: not imported; again when it is over", file=sys.stderr)
    print(f"{done.title}: {len(done.added)} runs imported, {len(done.known)} known before")
    if done.kept or done.running:
        raise typer.Exit(1)
