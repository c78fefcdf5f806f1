"""The command's side of `harness doctor`: who is asked, what was found, and what to do about it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from subprocess import DEVNULL
from typing import Any, NamedTuple

from harness.config import ConfigError
from harness.doctor.files import Partner, there
from harness.doctor.machine import versions, words
from harness.doctor.visit import MEETING, REQUEST, examine
from harness.files import read_json, write_json
from harness.finding import Finding
from harness.plan import Sweep
from harness.refusals import advised, check_setup
from harness.slurm import Queued, SlurmError, SlurmSettings, cancel, queue
from harness.store import Store
from harness.submit import How, asked_for, check_request, prepare_code, send

LOCAL_TASKS = 2
LOOK_SECONDS = 2.0
LATE_SECONDS = 10.0
"""that what a job wrote may be seen after its end"""
CRASHED_SECONDS = 5.0
"""that tasks of this machine have left when one has crashed"""
JOB_MINUTES = 15
"""of the job, or less where runs ask for less"""
NAME = "doctor"


class Row(NamedTuple):
    """A line of the table."""

    check: str
    finding: Finding


@dataclass
class Report:
    """What is known of a machine."""

    title: str
    rows: list[Row]
    later: str = ""
    """how to see the rest, if the answer is not there yet"""

    @property
    def failed(self) -> bool:
        """Whether runs cannot work, or it is not known whether they can."""
        return bool(self.later) or any(row.finding.state == "fail" for row in self.rows)

    def __str__(self) -> str:
        if not self.rows:
            return f"{self.title}\n{self.later}"
        width = max(5, *(len(row.check) for row in self.rows))
        lines = [self.title, "", f"{'check':{width}}  {'result':<7}  found"]
        lines += [f"{name:{width}}  {found.state:<7}  {found.found}" for name, found in self.rows]
        fixes = [f"  {name}: {found.fix}" for name, found in self.rows if found.fix]
        lines += ["", "what to fix", *fixes] if fixes else ["", "nothing to fix"]
        return "\n".join([*lines, *filter(None, [self.later])])


def ask_here(store: Store, how: How, sweep: Sweep | None, wait_seconds: float) -> Report:
    """Make the checks in two processes of this machine."""
    folder = _folder(store)
    _write_request(folder, "local", "two processes of this machine", how, sweep)
    command, env = words("harness.doctor.visit")
    env["OMP_NUM_THREADS"] = str(how.threads)
    tasks = []
    try:
        with Partner(folder):
            for rank in range(LOCAL_TASKS):
                with open(folder / f"{rank}.log", "w") as log:
                    who = [str(folder), str(rank), str(LOCAL_TASKS)]
                    tasks.append(
                        subprocess.Popen([*command, *who], env=env, stdout=DEVNULL, stderr=log)
                    )
            _let_work(tasks, wait_seconds)
        ends = {rank: _end_of(task) for rank, task in enumerate(tasks)}
        return Report("this machine", _rows(folder, ends, lambda n: folder / f"{n}.log"))
    finally:
        for task in tasks:
            if task.poll() is None:
                task.kill()
            task.wait()
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # there is what a job has found
            folder.parent.rmdir()


def _let_work(tasks: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Until all are over, or one has crashed, for which others would wait."""
    until = time.monotonic() + seconds
    while any(task.poll() is None for task in tasks) and time.monotonic() < until:
        if any(task.poll() for task in tasks):
            until = min(until, time.monotonic() + CRASHED_SECONDS)
        time.sleep(0.1)


def _end_of(task: subprocess.Popen[bytes]) -> str:
    if task.poll() is None:
        return "its process was not over in time"
    if task.returncode < 0:
        return f"its process was ended by signal {-task.returncode}"
    return f"its process ended with exit code {task.returncode}"


def ask_cluster(store: Store, how: How, sweep: Sweep | None, wait_seconds: float) -> Report:
    """Make the checks in one job that asks for what a run asks for.

    Raises SlurmError with SLURM's own words if it is refused.
    """
    check_setup(how.settings)
    check_request(NAME, how)
    folder = _folder(store)
    _write_request(folder, "slurm", "the node and the machine that submits", how, sweep)
    minutes = min(JOB_MINUTES, how.settings.time_minutes)
    brief = how.settings.model_copy(
        update={"time_minutes": minutes, "signal_delay_s": 0, "parallel": None}
    )
    asked = asked_for(NAME, replace(how, settings=brief), prepare_code(store))
    asked["additional_parameters"].pop("requeue", None)
    asked["additional_parameters"]["no-requeue"] = True
    with Partner(folder):
        try:
            [job] = send(folder, asked, [partial(examine, str(folder))])
        except SlurmError as error:
            raise advised(error, how.settings) from None
        try:
            return _await(folder, job, how.settings, wait_seconds)
        except KeyboardInterrupt:
            cancel([job])
            print(f"job {job} was cancelled", file=sys.stderr)
            raise


def _await(folder: Path, job: str, settings: SlurmSettings, wait_seconds: float) -> Report:
    """Follow the job to its end, or to the end of patience."""
    tasks = range(settings.nodes * settings.tasks)
    print(f"job {job} is submitted; Ctrl-C cancels it", file=sys.stderr)
    until, said = time.monotonic() + wait_seconds, ""
    while True:
        over = all(_found(folder, rank).get("over") for rank in tasks)
        state = _state(job)
        if over or time.monotonic() > until:
            break
        if state is None or state.over:
            until = min(until, time.monotonic() + LATE_SECONDS)
        elif said != (said := _in_words(state)):
            print(f"job {job}: {said}", file=sys.stderr)
        time.sleep(LOOK_SECONDS)
    nodes = {_found(folder, rank).get("node", "") for rank in tasks} - {""}
    report = Report(f"job {job}{' on ' * bool(nodes)}{', '.join(sorted(nodes))}", [])
    ends = {}
    if state is None or state.over:
        ends = dict.fromkeys(tasks, f"the job is over ({state.state if state else 'forgotten'})")
    elif not over:
        report.later = (
            f"job {job} has not answered in {wait_seconds / 60:g} minutes; squeue says "
            f"{_in_words(state)}. What it finds will be in {folder / f'{job}_0_log.out'}; "
            f"`scancel {job}` ends it"
        )
    report.rows = _rows(folder, ends, lambda n: folder / f"{job}_{n}_log.err", tasks)
    return report


def _state(job: str) -> Queued | None:
    try:
        return queue([job]).get(job)
    except SlurmError as error:  # it will be back
        print(error, file=sys.stderr)
        return Queued("UNKNOWN", str(error), "", None)


def _in_words(state: Queued) -> str:
    reason = f" ({state.reason})" if state.reason not in ("", "None") else ""
    return f"{state.state}{reason}"


def _folder(store: Store) -> Path:
    """A new one, that all nodes are to see."""
    folder = store.doctor.resolve() / datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    folder.mkdir(parents=True)
    return folder


def _write_request(
    folder: Path, launcher: str, between: str, how: How, sweep: Sweep | None
) -> None:
    settings = how.settings
    local = launcher == "local"
    run = None
    if sweep is not None:
        trained = [one for one in sweep.runs if one.spec.train.method == "gradient"]
        first = [one for one in trained if one.in_table]
        run = (first or trained or list(sweep.runs))[0]
    write_json(
        folder / REQUEST,
        {
            "launcher": launcher,
            "between": f"between {between}",
            "versions": versions(),
            "threads": how.threads,
            "gpus": 0 if local else settings.gpus_per_node,
            "tasks_per_node": 1 if local else settings.tasks,
            "mem_gb": None if local else settings.mem_gb,
            "time_minutes": settings.time_minutes,
            "requeues": settings.requeues,
            "spec": run.spec.model_dump(mode="json") if run else None,
            "label": run.label if run else "",
            "trained": run is not None and run.spec.train.method == "gradient",
            "paths": dict(sweep.paths) if sweep else {},
        },
    )


def _found(folder: Path, rank: int) -> dict[str, Any]:
    """What a task has written down; empty if nothing yet."""
    if not there(folder, f"found-{rank}.json"):
        return {}
    try:
        return dict(read_json(folder / f"found-{rank}.json") or {})
    except (ConfigError, OSError):  # in pieces, where the file system cannot rename
        return {}


def _rows(
    folder: Path, ends: Mapping[int, str], log: Callable[[int], Path], tasks: Iterable[int] = ()
) -> list[Row]:
    """What the first task found, what others found that is worse, and who did not get to the end.

    `ends` says of each task that is over what became of it, `log` where it wrote its errors.
    """
    rows: list[Row] = []
    shown: dict[str, Finding] = {}
    every = {rank: _found(folder, rank) for rank in tasks or ends}
    for rank, found in every.items():
        for made in found.get("made", []):
            name, finding = made["check"], Finding(made["state"], made["found"], made["fix"])
            if rank == 0 or (finding.state in ("warn", "fail") and shown.get(name) != finding):
                rows.append(Row(_named(name, rank), finding))
            shown.setdefault(name, finding)
    stopped = {n: one.get("at") for n, one in every.items() if n in ends and not one.get("over")}
    waited = any(at != MEETING for at in stopped.values())
    for rank, at in stopped.items():
        if not (waited and at == MEETING):  # that one only waited for the others
            rows.append(Row(_named(at or "start", rank), _stopped(at, ends[rank], log(rank))))
    return rows


def _named(check: str, rank: int) -> str:
    return f"{check} (task {rank})" if rank else check


def _stopped(at: str | None, end: str, log: Path) -> Finding:
    """Of a task that did not get beyond a check."""
    words = _last_words(log)
    found = f"no further than this: {end}{f'; {words}' if words else ''}"
    if at is None:
        return Finding("fail", found, "see the last words above; a line of slurm.setup may fail")
    return Finding("fail", found, "it crashed here, or was killed: for want of memory, perhaps")


def _last_words(file: Path) -> str:
    try:
        lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return lines[-1].strip()[:200] if lines else ""
