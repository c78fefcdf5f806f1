"""The commands that look before sweeps are run: doctor, and prefetch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from harness.doctor.ask import Row
    from harness.plan import Sweep

checks = typer.Typer()

Preset = Annotated[str | None, typer.Option(help="Preset of the sweep; its first one by default.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE, as for a sweep. Repeatable."),
]


@checks.command()
def doctor(
    file: Annotated[Path | None, typer.Argument(help="Sweep file whose needs are tried.")] = None,
    preset: Preset = None,
    set_: Set = None,
    launcher: Annotated[str, typer.Option(help="local | slurm")] = "local",
    threads: Annotated[int | None, typer.Option(help="CPU threads of a run.", min=1)] = None,
    wait: Annotated[float, typer.Option(help="Minutes to wait for the answer.", min=0.1)] = 10.0,
) -> None:
    """Check what the machine that runs use really has, and say what to fix. Exit code 1: something.

    Example: harness doctor sweeps/table3.yaml --launcher slurm
    """
    if launcher not in ("local", "slurm"):
        print(f"--launcher: {launcher!r} is none of local, slurm", file=sys.stderr)
        raise typer.Exit(2)
    from harness.doctor.ask import ask_cluster, ask_here
    from harness.site import read_site
    from harness.store import Store
    from harness.submit import How

    site = read_site()
    sweep, rows = _planned(file, preset, set_ or []) if file else (None, [])
    settings = sweep.slurm.over(site.slurm) if sweep else site.slurm
    threads = threads or site.threads or settings.cpus_per_task or 1
    how = How(settings, threads, site.mlflow_uri)
    ask = ask_here if launcher == "local" else ask_cluster
    try:
        report = ask(Store(site.runs), how, sweep, 60 * wait)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    report.rows[:0] = rows
    print(report)
    if report.failed:
        raise typer.Exit(1)


def _planned(file: Path, preset: str | None, settings: list[str]) -> tuple[Sweep | None, list[Row]]:
    """The sweep, and what is to be said of it; None if it cannot be planned, which is a finding."""
    from harness.config import ConfigError
    from harness.doctor.ask import Row
    from harness.finding import Finding
    from harness.plan import plan

    try:
        sweep = plan(file, preset, settings)
    except ConfigError as error:
        fix = f"`harness prefetch {file}` fetches what a hub has, and says where the rest belongs"
        return None, [Row("sweep file", Finding("fail", str(error), fix))]
    told = f"{sweep.name}, preset {sweep.preset or 'none'}: {len(sweep.run_ids)} runs"
    return sweep, [Row("sweep file", Finding("ok", told))]


@checks.command()
def prefetch(
    file: Annotated[Path, typer.Argument(help="Sweep file, e.g. sweeps/table3.yaml.")],
    preset: Preset = None,
    set_: Set = None,
) -> None:
    """Bring weights and tokenizers that FILE needs into the cache, for nodes without internet.

    Example: harness prefetch sweeps/table3.yaml --preset ek100
    """
    from harness.prefetch import prefetch as bring

    found = bring(file, preset, set_ or [])
    print(found)
    if found.lacking:
        raise typer.Exit(1)
