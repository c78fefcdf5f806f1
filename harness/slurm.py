"""SLURM: what a run asks for, and the few commands with which the harness talks to it.

`sacct` is never used: many clusters have no accounting, and it lags where there is. `squeue` knows
every job that is not over, and those that are for some minutes; the rest is on disk.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from pydantic import Field

from harness.config import Config, ConfigError

COMMAND_SECONDS = 60
IDS_PER_CALL = 200
OVER = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "TIMEOUT",
        "REVOKED",
    ]
)
"""states in which a job does not come back by itself, except as `Queued.over` says"""
RETURNS = frozenset({"NODE_FAIL", "PREEMPTED"})
"""states that a job passes through on its way back into the queue"""
RETURN_SECONDS = 180


PYTHON = f"{quote(sys.executable)} -P"
"""-P: the working folder, which may be the checkout, does not come before the frozen code"""


class SlurmSettings(Config):
    """What a run asks SLURM for; one key is one option of sbatch."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = Field(default=1, gt=0)
    """nodes of each run"""
    gpus_per_node: int = Field(default=0, ge=0)
    tasks_per_node: int | None = Field(default=None, gt=0)
    """processes of a run on each node; None: one per GPU, and one without"""
    cpus_per_task: int | None = Field(default=None, gt=0)
    """None: the threads of a run"""
    mem_gb: float | None = Field(default=None, gt=0)
    """of a node; None: the partition's default"""
    time_minutes: int = Field(default=240, gt=0)
    """a run that needs longer is requeued, and goes on"""
    signal_delay_s: int = Field(default=120, ge=0)
    """how long before the time limit a run is told to write its checkpoint and leave"""
    setup: list[str] = []
    """lines of shell before the run starts, e.g. `module load cuda`; the first to fail ends it"""
    check_setup: bool = True
    """try the lines of `setup` where the sweep is submitted, before it is"""
    parallel: int | None = Field(default=None, gt=0)
    """runs of an array at once"""
    requeues: int = Field(default=20, ge=0)
    """how often a run may come back after a time-out, a preemption or a lost node"""
    max_submitted: int | None = Field(default=None, gt=0)
    """jobs one may have in the queue at once here; the rest is submitted by the next command"""
    options: dict[str, str | int | bool] = {}
    """further options of sbatch, e.g. `{reservation: spring, gres: "gpu:a100:1"}`"""

    @property
    def tasks(self) -> int:
        """Processes of a run on each node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    def over(self, other: SlurmSettings) -> SlurmSettings:
        """These settings where they are given, else the other's."""
        return other.model_copy(
            update={name: getattr(self, name) for name in self.model_fields_set}
        )


class SlurmError(ConfigError):
    """SLURM refused, or does not answer; in its own words, and what to do."""


@dataclass(frozen=True)
class Queued:
    """What squeue says of a job."""

    state: str
    """e.g. PENDING, RUNNING, NODE_FAIL"""
    reason: str
    node: str
    ended: float | None
    """Unix seconds; None while it is not over"""

    @property
    def over(self) -> bool:
        """Whether the job will not run again.

        A lost node is not an end: with `--requeue` the job is pending again a moment later.
        """
        if self.state in RETURNS and (
            self.ended is None or time.time() - self.ended < RETURN_SECONDS
        ):
            return False
        return self.state in OVER


def available() -> bool:
    """Whether SLURM's commands are here."""
    return shutil.which("sbatch") is not None


def command(*words: str) -> str:
    """Output of one of SLURM's commands. Raises SlurmError with its own words."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
        )
    except FileNotFoundError:
        raise SlurmError(
            f"{words[0]}: not found; this is no machine of a SLURM cluster. Log in to one that "
            f"submits jobs, or take --launcher local"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]}: no answer in {COMMAND_SECONDS} s; try again later") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        said = (line.removeprefix(f"{words[0]}: ").removeprefix("error: ") for line in lines)
        raise SlurmError(f"{words[0]}: {'; '.join(said)}")
    return done.stdout


def queue(ids: Iterable[str]) -> dict[str, Queued]:
    """Job id (`12` or `12_3`) -> what squeue knows of it; those it has forgotten are left out."""
    whole = sorted({name.split("_")[0] for name in ids}, key=int)
    found: dict[str, Queued] = {}
    for place in range(0, len(whole), IDS_PER_CALL):
        listed = ",".join(whole[place : place + IDS_PER_CALL])
        form = "--format=%i|%T|%r|%N|%e"
        try:
            said = command(
                "squeue", "--noheader", "--array", "--states=all", form, "--jobs", listed
            )
        except SlurmError as error:
            if "Invalid job id" in str(error):  # one job, and forgotten
                continue
            raise
        for line in said.splitlines():
            name, state, reason, node, end = line.split("|")
            found[name] = Queued(state, reason, node, _ended(state, end))
    return found


def _ended(state: str, end: str) -> float | None:
    """When a job that is over ended; of one that runs squeue tells when it must."""
    if state not in OVER:
        return None
    try:
        return time.mktime(time.strptime(end, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def mine() -> int:
    """How many jobs this user has in the queue, each element of an array counted."""
    return len(command("squeue", "--noheader", "--array", "--me", "--format=%i").splitlines())


def max_array() -> int:
    """Jobs that one array may have here."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", command("scontrol", "show", "config"), re.M)
    return int(found[1]) if found else 1001


def cancel(ids: Iterable[str]) -> None:
    """End jobs; those that are over already are no error."""
    wanted = list(ids)
    for place in range(0, len(wanted), IDS_PER_CALL):
        try:
            command("scancel", *wanted[place : place + IDS_PER_CALL])
        except SlurmError as error:
            if "Invalid job id" not in str(error):
                raise


def this_job() -> tuple[str, int] | None:
    """(id, how often it was requeued) of the job that this process belongs to."""
    name = os.environ.get("SLURM_JOB_ID")
    if not name:
        return None
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        name = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return name, int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def parameters(settings: SlurmSettings, name: str, threads: int) -> dict[str, Any]:
    """The settings in submitit's words."""
    cpus = settings.cpus_per_task or threads
    asked = {
        "job_name": name,
        "time": settings.time_minutes,
        "nodes": settings.nodes,
        "ntasks_per_node": settings.tasks,
        "cpus_per_task": cpus,
        "mem": f"{round(settings.mem_gb * 1024)}M" if settings.mem_gb else None,
        "gpus_per_node": settings.gpus_per_node or None,
        "signal_delay_s": settings.signal_delay_s,
        "array_parallelism": settings.parallel or 10_000,
        # a step does not inherit the processors of its job since SLURM 22.05
        "srun_args": [f"--cpus-per-task={cpus}", "--kill-on-bad-exit=1"],
        "additional_parameters": {"requeue": True, **settings.options},
        **{key: getattr(settings, key) for key in ("partition", "account", "qos", "constraint")},
    }
    given = {key: value for key, value in asked.items() if value is not None}
    return {**given, "wckey": None}  # submitit's own is refused where such keys are checked


def executor(folder: Path, asked: Mapping[str, Any]) -> Any:
    """submitit's executor. Raises SlurmError where SLURM is not installed."""
    from submitit import SlurmExecutor

    if shutil.which("srun") is None:
        command("srun", "--version")
    made = SlurmExecutor(folder, max_num_timeout=10**6, python=PYTHON)
    made.update_parameters(**asked)
    return made


def script(folder: Path, asked: Mapping[str, Any], count: int) -> str:
    """The batch script that `executor` would submit for `count` runs."""
    from submitit.slurm.slurm import _make_sbatch_string

    what = f"{PYTHON} -u -m submitit.core._submit {quote(str(folder))}"
    several: dict[str, Any] = {"map_count": count} if count > 1 else {}
    return str(_make_sbatch_string(command=what, folder=folder, **asked, **several))
