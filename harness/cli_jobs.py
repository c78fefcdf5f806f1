"""The commands for runs at work: status, logs, cancel, sync; and what `sweep` does for SLURM."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from harness.plan import Sweep
    from harness.site import Site
    from harness.status import Status
    from harness.store import RunFolder, Store
    from harness.submit import How

jobs = typer.Typer()

WATCH_SECONDS = 10.0
FOLLOW_SECONDS = 1.0


@jobs.command()
def status(
    sweep: Annotated[str | None, typer.Argument(help="Name of a sweep; all if none.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again until all ended.")] = False,
) -> None:
    """Show where every run of a sweep is: queued, running, done, failed, stuck, and why.

    Example: harness status table3 --watch
    """
    from harness.status import ENDS, at_rest, table

    store = _store()
    if not watch:
        print("\n\n".join(table(title, found) for title, found in _statuses(store, sweep)))
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            found = _statuses(store, sweep)
            # a line per run, those at work or in trouble first: the screen may be too small for all
            texts = (table(title, sorted(group, key=at_rest)) for title, group in found)
            live.update(Text("\n\n".join(texts), no_wrap=True, overflow="ellipsis"), refresh=True)
            if all(one.state in ENDS for _, group in found for one in group):
                return
            time.sleep(WATCH_SECONDS)


@jobs.command()
def logs(
    run: Annotated[str, typer.Argument(help="Run id, or its beginning.")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as it grows.")] = False,
) -> None:
    """Print what the processes of a run wrote, of its latest job or start.

    Example: harness logs 430fc2 -f
    """
    from harness.status import log_files

    folder = _run(_store(), run)
    seen: dict[Path, int] = {}
    while True:
        for file in log_files(folder):
            with open(file, "rb") as source:
                source.seek(seen.get(file, 0))
                text = source.read()
            if file not in seen:
                print(f"==> {file} <==")
            seen[file] = seen.get(file, 0) + len(text)
            sys.stdout.write(text.decode(errors="replace"))
        sys.stdout.flush()
        if not follow:
            break
        time.sleep(FOLLOW_SECONDS)
    if not seen:
        _fail(f"{folder.run_id}: nothing was printed yet; its state is {folder.state()}")


@jobs.command()
def cancel(
    what: Annotated[str | None, typer.Argument(help="A sweep, or a run id.")] = None,
    state: Annotated[
        str | None, typer.Option(help="Only these: queued | waiting | running | stuck.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """End the jobs of a sweep or a run. What they have computed stays, and can be gone on with.

    Example: harness cancel table3 --state queued
    """
    from harness import slurm
    from harness.search.cluster import worker_jobs

    store = _store()
    known = ("queued", "waiting", "running", "stuck")
    if state not in (None, *known):
        _fail(f"--state: {state!r} is none of {', '.join(known)}")
    if what is None and state is None:
        _fail("name a sweep or a run, or give --state")
    chosen = [
        one
        for one in _chosen(store, what)
        if one.state in known and (state is None or one.state == state)
    ]
    in_slurm = {one.run_id: one for one in chosen if one.job}
    workers = worker_jobs(store, what) if state is None else []  # of a search: at a run, or waiting
    here = {one.run_id: one for one in chosen if not one.job and one.state == "running"}
    if not in_slurm and not here and not workers:
        print("nothing to cancel", file=sys.stderr)
        return
    for one in (*in_slurm.values(), *here.values()):
        print(
            f"{one.run_id}  {one.label}, seed {one.seed}  {one.state}  {one.note}", file=sys.stderr
        )
    count, too = len(in_slurm) + len(here), f", and {len(workers)} workers" if workers else ""
    if not yes and not typer.confirm(f"end these {count} runs{too}?", err=True):
        raise typer.Exit(1)
    slurm.cancel(dict.fromkeys([*workers, *(one.job for one in in_slurm.values())]))
    ended = len(in_slurm) + sum(_end_here(_store().run(run_id)) for run_id in here)
    print(f"{ended} of {count} runs ended", file=sys.stderr)


@jobs.command()
def sync(
    follow: Annotated[
        float | None, typer.Option(help="Again after so many seconds while runs go on.", min=1)
    ] = None,
) -> None:
    """Bring MLflow up to date with every run folder. Does no harm when repeated or run twice.

    Example: harness sync --follow 60
    """
    from harness import track
    from harness.site import read_site

    store, site = _store(), read_site()
    for line in track.sync(store, site.mlflow_uri, follow):
        print(line, flush=True)


def submit(
    planned: list[Sweep],
    store: Store,
    site: Site,
    threads: int | None,
    *,
    retry: bool,
    stale: bool,
    dry_run: bool,
    wait: bool,
    snapshot: bool,
) -> int:
    """Hand sweeps to SLURM and say what was done; the exit code."""
    from harness.submit import How

    def send(retry: bool, stale: bool) -> tuple[int, int]:
        """(exit code, runs that found no room)."""
        ends = []
        for sweep in planned:
            settings = sweep.slurm.over(site.slurm)
            each = threads or site.threads or settings.cpus_per_task or 1
            how = How(settings, each, site.mlflow_uri, snapshot)
            ends.append(_submit_one(sweep, store, how, retry, stale, dry_run))
        return max(code for code, _ in ends), sum(left for _, left in ends)

    code, left = send(retry, stale)
    if wait and not dry_run:
        code = max(code, _wait(planned, store, site, left, lambda: send(False, False)[1]))
    return code


def _submit_one(
    sweep: Sweep, store: Store, how: How, retry: bool, stale: bool, dry_run: bool
) -> tuple[int, int]:
    from harness import submit
    from harness.hours import hours
    from harness.launch import sort
    from harness.states import stale_runs

    if dry_run:
        rest = [run for run in sweep.runs if store.run(run.run_id).state() != "done"]
        print(submit.dry_run(store, sweep, rest, how))
        print(hours(store, rest, how.settings, sweep.paths))
        return 0, 0
    store.write_sweep(sweep.record())
    outcome, runs = sort(store, sweep, retry, stale_runs(sweep, store) if stale else [])
    done = submit.submit(store, sweep, submit.startable(runs, outcome), how)
    arrays: dict[str, int] = {}
    for job in done.jobs.values():
        arrays[job.split("_")[0]] = arrays.get(job.split("_")[0], 0) + 1
    told = ", ".join(f"job {job}: {count} runs" for job, count in arrays.items())
    failed = {k: v for k, v in outcome.failed.items() if k not in done.queued}
    print(
        f"{sweep.name}: {len(sweep.run_ids)} runs: {len(done.jobs)} submitted"
        f"{f' ({told})' if told else ''}, {len(done.queued)} in the queue before, "
        f"{len(outcome.skipped)} done before, {len(failed)} failed"
        f"{f', {len(done.elsewhere)} at work elsewhere' if done.elsewhere else ''}",
        file=sys.stderr,
    )
    for run_id, why in failed.items():
        print(f"FAILED  {run_id}: {why}", file=sys.stderr)
    if done.left:
        print(
            f"{len(done.left)} runs wait for room in the queue; this command, again, submits them",
            file=sys.stderr,
        )
    print(f"harness status {sweep.name} shows them", file=sys.stderr)
    return int(bool(failed)), len(done.left)


def _wait(
    planned: list[Sweep], store: Store, site: Site, left: int, submit_left: Callable[[], int]
) -> int:
    """Follow sweeps to their end, a line as each run ends; then bring MLflow up to date.

    When runs have ended, and some are `left`, these are submitted.
    """
    from harness import track
    from harness.config import ConfigError
    from harness.slurm import SlurmError
    from harness.status import ENDS, statuses

    told: set[str] = set()
    while True:
        try:
            found = [one for sweep in planned for one in statuses(store, sweep.record())]
        except SlurmError as error:  # it will be back, and nobody waits for it but this command
            print(error, file=sys.stderr)
            time.sleep(WATCH_SECONDS)
            continue
        ended = [one for one in found if one.state in ENDS and one.run_id not in told]
        told.update(one.run_id for one in ended)
        for one in ended:
            name = f"{one.label}, seed {one.seed}"
            print(f"{one.state:<7} {one.run_id}  {name:<40} {one.note}", file=sys.stderr)
        if left and (ended or all(one.state in (*ENDS, "new") for one in found)):
            left = submit_left()
        elif all(one.state in ENDS for one in found):
            break
        time.sleep(WATCH_SECONDS)
    try:
        track.collect(store, site.mlflow_uri)
    except ConfigError as error:
        print(f"{error}\nMLflow is not up to date; `harness report` tries again", file=sys.stderr)
    return 0 if all(one.state == "done" for one in found) else 1


def _statuses(store: Store, name: str | None) -> list[tuple[str, list[Status]]]:
    """(title, statuses) of each sweep that was run or submitted."""
    from harness.slurm import SlurmError
    from harness.status import statuses

    records = store.sweeps()
    chosen = [record for record in records if name in (None, record["name"])]
    if not chosen:
        from harness.registry import unknown

        names = sorted({record["name"] for record in records})
        if name is None:
            _fail(f"{store.root}: no sweep was run or submitted yet")
        _fail(unknown(name, names, "sweep"))
    titles = [f"{record['name']}, preset {record['preset'] or 'none'}" for record in chosen]
    try:
        return list(zip(titles, [statuses(store, record) for record in chosen], strict=True))
    except SlurmError as error:
        print(f"{error}; what follows is what the run folders say", file=sys.stderr)
    return list(zip(titles, [statuses(store, one, ask=False) for one in chosen], strict=True))


def _chosen(store: Store, what: str | None) -> list[Status]:
    """The runs of a sweep, or one run, or all."""
    names = {record["name"] for record in store.sweeps()}
    groups = _statuses(store, what if what in names else None)
    every = {one.run_id: one for _, found in groups for one in found}
    if what is None or what in names:
        return list(every.values())
    run_id = _run(store, what).run_id
    return [every[run_id]] if run_id in every else []


def _run(store: Store, begins: str) -> RunFolder:
    """The one run whose id begins so."""
    found = [folder for folder in store.runs() if folder.run_id.startswith(begins)]
    if len(found) != 1:
        many = ", ".join(folder.run_id for folder in found[:5])
        _fail(f"{begins}: {f'several runs begin so: {many}' if found else 'no run begins so'}")
    return found[0]


def _end_here(folder: RunFolder) -> bool:
    """Tell a process on this machine to end; False if it is on another."""
    import os
    import signal
    import socket

    holder: dict[str, Any] = folder.holder()
    if holder.get("host") != socket.gethostname() or folder.state() != "running":
        print(f"{folder.run_id}: runs on {holder.get('host')}; end it there", file=sys.stderr)
        return False
    os.kill(holder["pid"], signal.SIGTERM)
    return True


def _store() -> Store:
    from harness.site import read_site
    from harness.store import Store

    return Store(read_site().runs)


def _fail(message: str) -> Any:
    print(message, file=sys.stderr)
    raise typer.Exit(2)
