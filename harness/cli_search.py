"""The command `search`: each row of a sweep at its own best settings, under an equal budget."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from harness.search.control import Ways
    from harness.search.desk import Desk
    from harness.search.rows import Search
    from harness.site import Site
    from harness.store import Store
    from harness.submit import How

searching = typer.Typer()
WATCH_SECONDS = 10.0


@searching.command()
def search(
    file: Annotated[Path, typer.Argument(help="Search file, e.g. sweeps/lr_search.yaml.")],
    preset: Annotated[
        str | None, typer.Option(help="Preset of the file; its first one by default.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE, e.g. search.budget.trials=20. Repeatable."),
    ] = None,
    launcher: Annotated[str, typer.Option(help="inline | local | slurm")] = "local",
    jobs: Annotated[
        int | None,
        typer.Option(help="Workers; local: one per GPU or core, slurm: one per row.", min=1),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of each.", min=1)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Try failed trials again.")] = False,
    storage: Annotated[
        str | None,
        typer.Option(help="URL of a database for the studies; a journal file by default."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the jobs to their end.")] = False,
    snapshot: Annotated[
        bool, typer.Option(help="Jobs run the code as it is now (slurm), or as it will be.")
    ] = True,
) -> None:
    """Try settings for each row of FILE, and make the final runs with the best of them.

    The same command again goes on where it was, and does nothing when all is done.

    Example: harness search sweeps/lr_search.yaml --jobs 2
    """
    if launcher not in ("inline", "local", "slurm"):
        from harness.registry import unknown

        _fail(f"--launcher: {unknown(launcher, ['inline', 'local', 'slurm'], 'value')}")
    from harness.search.planning import plan_search
    from harness.search.storage import has_password, masked
    from harness.search.worker import IN_SITE
    from harness.site import read_site
    from harness.store import Store

    planned = plan_search(file, preset, set_ or [])
    site = read_site()
    store = Store(site.runs)
    url, told = storage or site.search_storage, storage
    if storage is not None and has_password(storage):
        _fail(
            f"--storage {masked(storage)}: its password would be sent to workers in files; write "
            f"`search_storage` in the site file, or leave the password to ~/.pgpass"
        )
    if url is not None and storage is None:
        told = IN_SITE if has_password(url) else url
    if dry_run:
        print(plan_text(planned, store))
        return
    from harness import track
    from harness.search.control import Ways

    try:
        track.prepare(store, site.mlflow_uri)
    except track.ServerAway as error:
        print(f"{error}; the search goes on", file=sys.stderr)
    if launcher == "slurm":
        workers = jobs or site.jobs or len(planned.rows)
        ways = Ways(launcher, workers, 1, url, told, site.mlflow_uri)
        done = _on_cluster(planned, store, site, ways, threads, retry, wait, snapshot)
    else:
        from harness.cli import shares

        jobs, threads = shares(jobs or site.jobs, threads or site.threads, launcher)
        ways = Ways(launcher, jobs, threads, url, told, site.mlflow_uri)
        done = _here(planned, store, ways, retry)
    if not done:
        raise typer.Exit(1)


def _here(planned: Search, store: Store, ways: Ways, retry: bool) -> bool:
    from harness.cli import goes_on
    from harness.search.control import search_here

    with goes_on():
        done = search_here(planned, store, ways, retry)
    _collect(store, ways)
    _tell(planned, store, ways)
    return done


def _on_cluster(
    planned: Search,
    store: Store,
    site: Site,
    ways: Ways,
    threads: int | None,
    retry: bool,
    wait: bool,
    snapshot: bool,
) -> bool:
    from contextlib import closing

    from harness.search.cluster import submit_workers
    from harness.search.desk import Desk
    from harness.search.news import complete
    from harness.submit import How

    settings = planned.written.slurm.over(site.slurm)
    each = threads or site.threads or settings.cpus_per_task or 1
    how = How(settings, each, site.mlflow_uri, snapshot)
    print(submit_workers(planned, store, ways, how, retry), file=sys.stderr)
    if not wait:
        print(f"harness status {planned.name} shows its trials", file=sys.stderr)
        return True
    with closing(Desk(planned, store, ways.url)) as desk:
        _follow(planned, store, ways, how, desk)
        done = complete(desk)
    _collect(store, ways)
    _tell(planned, store, ways)
    return done


def _follow(planned: Search, store: Store, ways: Ways, how: How, desk: Desk) -> None:
    """Until the search is over; workers that are wanted again are submitted."""
    from harness.search.cluster import alive_jobs, submit_workers
    from harness.search.news import known, say_news
    from harness.slurm import SlurmError

    told, before = known(desk), 0
    while not desk.over():
        time.sleep(WATCH_SECONDS)
        desk.reap()
        say_news(desk, told)
        try:
            if alive_jobs(desk) or desk.over():
                before = 0
                continue
            before += 1
            if before > 2:  # twice they came back without an end
                break
            print(submit_workers(planned, store, ways, how, False), file=sys.stderr)
        except SlurmError as error:  # it will be back, and nobody waits for it but this command
            print(error, file=sys.stderr)
    say_news(desk, told)


def _collect(store: Store, ways: Ways) -> None:
    from harness import track
    from harness.config import ConfigError

    try:
        track.collect(store, ways.mlflow_uri)
    except ConfigError as error:
        print(f"{error}\nMLflow is not up to date; `harness sync` tries again", file=sys.stderr)


def _tell(planned: Search, store: Store, ways: Ways) -> None:
    from contextlib import closing

    from harness.search.desk import Desk
    from harness.search.news import summary

    with closing(Desk(planned, store, ways.url)) as desk:
        print(summary(desk))
    print(f"harness report {planned.name} prints its tables", file=sys.stderr)


def print_plan(file: Path, preset: str | None, settings: list[str], store: Store) -> bool:
    """Print the plan of a file that is a search; False if it is none."""
    from harness.sweepfile import SweepFile

    if "search" not in SweepFile.read(file, preset, settings).sections:
        return False
    from harness.search.planning import plan_search

    print(plan_text(plan_search(file, preset, settings), store))
    return True


def plan_text(planned: Search, store: Store) -> str:
    """What a search would do, from its file and its record. Changes nothing."""
    spec = planned.spec
    stored = store.read_search(planned.name, planned.preset).get("search", {}).get("rows", {})
    budget = ", ".join(
        f"{value:g} {name}" for name, value in spec.budget.model_dump().items() if value is not None
    )
    lines = [
        f"{planned.written.file}, preset {planned.preset or 'none'}: {len(planned.rows)} rows, "
        f"each {budget}; {spec.sampler.name} proposes, {spec.pruner.name} prunes, "
        f"{spec.objective.direction} {planned.metric}"
    ]
    for row in planned.rows:
        kept = stored.get(row.name, {})
        states = (
            [t["state"] for t in kept.get("trials", ())] if kept.get("study") == row.study else []
        )
        ended = states.count("COMPLETE") + states.count("PRUNED")
        tried = ", ".join(f"{key} {_values(one)}" for key, one in row.space.items())
        lines.append(f"{row.label:<28} {ended} trials ended; {row.epochs} epochs each; {tried}")
    finals = [run for run in planned.written.runs if run.in_table]
    done = sum(store.run(run.run_id).state() == "done" for run in finals)
    if finals:
        lines.append(f"final runs, {spec.written}: {done} of {len(finals)} done")
    lines.append(f"then final runs, {spec.best}")
    return "\n".join(lines)


def _values(one: Any) -> str:
    if one.categorical is not None:
        return "in " + ", ".join(map(str, one.categorical))
    return f"{one.kind.replace('_', '-')} {one.span[0]:g} to {one.span[1]:g}"


def _fail(message: str) -> Any:
    print(message, file=sys.stderr)
    raise typer.Exit(2)
