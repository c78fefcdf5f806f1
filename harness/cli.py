"""The command line: parse, call one function, print. Results on stdout, progress on stderr."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from harness.cli_cache import cache as cache_commands
from harness.cli_cost import costs as cost_commands
from harness.cli_data import data as data_commands
from harness.cli_doctor import checks as check_commands
from harness.cli_evaluate import scoring as score_commands
from harness.cli_jobs import jobs as job_commands
from harness.cli_jobs import submit
from harness.cli_questions import questions as question_commands
from harness.cli_report import reporting
from harness.cli_search import print_plan, searching
from harness.cli_share import sharing

if TYPE_CHECKING:
    from harness.launch import Outcome
    from harness.plan import Sweep
    from harness.site import Site
    from harness.store import Store

app = typer.Typer(
    name="harness",
    help="The bench on which multimodal fusion is settled: one YAML file in, tables out.",
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for commands in (
    job_commands,
    check_commands,
    cost_commands,
    score_commands,
    data_commands,
    cache_commands,
    question_commands,
    searching,
    reporting,
    sharing,
):
    app.add_typer(commands)

File = Annotated[Path, typer.Argument(help="Sweep file, e.g. sweeps/table3.yaml.")]
Preset = Annotated[str | None, typer.Option(help="Preset of the sweep; its first one by default.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE, e.g. train.epochs=3: change every run. Repeatable."),
]


@app.command("list")
def list_plugins(
    name: Annotated[str | None, typer.Argument(help="Only plugins whose name holds this.")] = None,
) -> None:
    """Show every fusion, encoder and dataset with its options, defaults and source.

    Example: harness list mamba
    """
    from harness.listing import listing

    print(listing(name or ""))


@app.command()
def plan(file: File, preset: Preset = None, set_: Set = None) -> None:
    """Show each run of FILE, its state, and why it would be run or skipped. Changes nothing.

    Example: harness plan sweeps/table3.yaml --preset demo
    """
    store = _store()[0]
    if not print_plan(file, preset, set_ or [], store):  # not a search
        _print_plan(_planned(file, preset, set_), store)


@app.command()
def sweep(
    files: Annotated[list[Path], typer.Argument(help="Sweep files, e.g. sweeps/table3.yaml.")],
    preset: Preset = None,
    set_: Set = None,
    launcher: Annotated[str, typer.Option(help="inline | local | slurm")] = "local",
    jobs: Annotated[int | None, typer.Option(help="Runs at once (local).", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of each run.", min=1)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Run again what failed before.")] = False,
    stale: Annotated[
        str, typer.Option(help="keep | rerun results made by code that has changed since.")
    ] = "keep",
    wait: Annotated[bool, typer.Option("--wait", help="Follow the jobs to their end.")] = False,
    snapshot: Annotated[
        bool, typer.Option(help="Jobs run the code as it is now (slurm), or as it will be.")
    ] = True,
) -> None:
    """Bring every run of FILES to a result: skip what is done, resume what was interrupted.

    Example: harness sweep sweeps/table3.yaml --jobs 2
    """
    _one_of("--launcher", launcher, ("inline", "local", "slurm"))
    _one_of("--stale", stale, ("keep", "rerun"))
    planned = [_planned(file, preset, set_) for file in files]
    store, site = _store()
    if launcher == "slurm" and any(r.spec.train.method != "cost" for p in planned for r in p.runs):
        again = {"retry": retry, "stale": stale == "rerun", "dry_run": dry_run}
        code = submit(planned, store, site, threads, **again, wait=wait, snapshot=snapshot)
        raise typer.Exit(code)
    if dry_run:
        for one in planned:
            _print_plan(one, store)
        return
    import harness.track as track
    from harness.config import ConfigError
    from harness.launch import launch
    from harness.plan import together
    from harness.states import stale_runs

    try:
        track.prepare(store, site.mlflow_uri)
    except track.ServerAway as error:
        print(f"{error}; the sweep goes on", file=sys.stderr)
    for one in planned:
        store.write_sweep(one.record())
    jobs, threads = shares(jobs or site.jobs, threads or site.threads, launcher)
    whole = together(planned)
    rerun = stale_runs(whole, store) if stale == "rerun" else []
    with goes_on():
        outcome = launch(store, whole, launcher, jobs, threads, retry, rerun, site.mlflow_uri)
    try:
        track.collect(store, site.mlflow_uri)
    except ConfigError as error:  # the run folders hold everything; only the export waits
        print(f"{error}\nMLflow is not up to date; `harness sync` tries again", file=sys.stderr)
    for one in planned:
        _print_outcome(outcome, one)
    if outcome.failed:
        raise typer.Exit(1)


def _print_outcome(outcome: Outcome, planned: Sweep) -> None:
    ids = set(planned.run_ids)
    now, before, failed = (
        len(ids.intersection(part)) for part in (outcome.done, outcome.skipped, outcome.failed)
    )
    print(
        f"{planned.name}: {len(ids)} runs: {now} done now, {before} done before, {failed} failed",
        file=sys.stderr,
    )
    names = {run.run_id: f"{run.label}, seed {run.spec.seed}" for run in planned.runs}
    for run_id, why in outcome.failed.items():
        if run_id in names:
            print(f"FAILED  {run_id}  {names[run_id]}: {why}", file=sys.stderr)


@app.command()
def run(
    spec: Annotated[Path, typer.Argument(help="spec.json of a run folder.")],
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 1,
    profile: Annotated[
        bool, typer.Option("--profile", help="Only time some steps, and write a trace of them.")
    ] = False,
) -> None:
    """Do one planned run in this process, exactly as a launcher would.

    Example: harness run runs/430fc231dd0a/spec.json
    """
    from harness.lease import LeaseTaken
    from harness.live_sync import syncing
    from harness.progress import Live
    from harness.run import run as execute
    from harness.store import Store

    if spec.name != "spec.json" or not spec.is_file():
        _fail(f"{spec}: give the spec.json of a run folder, e.g. runs/<run id>/spec.json")
    folder = spec.resolve().parent
    stored = Store(folder.parent).run(folder.name).spec()
    if not isinstance(stored.get("spec"), dict) or _run_id(stored["spec"]) != folder.name:
        _fail(f"{spec}: not the spec of a run called {folder.name}")
    if profile:
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else torch's profiler chats
        from harness.profiling import profile as timed

        print(timed(Store(folder.parent), folder.name, threads))
        return
    store, uri = Store(folder.parent), _store()[1].mlflow_uri
    with goes_on(), Live() as live, syncing(store, folder.name, uri):
        try:
            execute(
                Store(folder.parent),
                folder.name,
                lambda step, total, loss: live.update(
                    folder.name, folder.name, step, total, f"step {step}  loss {loss:.3f}"
                ),
                threads,
            )
        except LeaseTaken as error:
            _fail(f"{folder.name}: {error}")
    result = Store(folder.parent).run(folder.name).result() or {}
    for name, value in sorted(result.get("metrics", {}).items()):
        print(f"{name:<32} {100 * value:6.2f}")


def _run_id(spec: dict[str, Any]) -> str | None:
    from pydantic import ValidationError

    from harness.spec import RunSpec

    try:
        return RunSpec(**spec).run_id
    except (ValidationError, TypeError):
        return None


@contextlib.contextmanager
def goes_on() -> Iterator[None]:
    """Ctrl-C, and `kill`, end the workers too, and say how to go on."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None


def _planned(file: Path, preset: str | None, settings: list[str] | None) -> Sweep:
    from harness.plan import plan as make

    return make(file, preset, settings or [])


def _print_plan(planned: Sweep, store: Store) -> None:
    from harness.states import plan_table

    print(plan_table(planned, store))


def _store() -> tuple[Store, Site]:
    from harness.site import read_site
    from harness.store import Store

    site = read_site()
    return Store(site.runs), site


def shares(jobs: int | None, threads: int | None, launcher: str) -> tuple[int, int]:
    """Runs at once, and threads of each: a run per GPU, or without one a run per core."""
    from harness.launch import gpu_ids

    cores = os.cpu_count() or 1
    if launcher == "inline":
        return 1, threads or cores
    jobs = jobs or len(gpu_ids()) or max(1, cores // (threads or 1))
    return jobs, threads or max(1, cores // jobs)


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        from harness.registry import unknown

        _fail(f"{option}: {unknown(value, list(known), 'value')}")


def _fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise typer.Exit(2)


def main() -> None:
    """Entry point: user errors become one clear message and exit code 2."""
    atexit.register(gc.freeze)  # else the last look for garbage takes seconds after torch
    try:
        app()
    except OSError as error:  # a full disk, a folder that cannot be written to
        print(f"{error.filename or 'harness'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        names = {base.__name__ for base in type(error).__mro__}
        if "ConfigError" not in names:  # its module is only imported when needed
            raise
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
