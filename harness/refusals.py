"""What is refused before anything is submitted to SLURM, and what to do instead."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from harness.config import ConfigError
from harness.slurm import SlurmError, SlurmSettings

if TYPE_CHECKING:
    from harness.plan import Sweep

SETUP_SECONDS = 120


def check_shares(sweep: Sweep, settings: SlurmSettings) -> None:
    """Raise ConfigError if a run has fewer samples in a batch than processes that share it."""
    sizes = {
        run.row: run.spec.train.batch_size
        for run in sweep.runs
        if run.spec.train.method == "gradient"
    }
    wrong = [
        f"{sweep.file}: {row}: train.batch_size is {size}, and slurm asks for {settings.nodes} "
        f"nodes of {settings.tasks} processes a run, each of which takes a share of every batch; "
        f"ask for fewer"
        for row, size in sizes.items()
        if size < settings.nodes * settings.tasks
    ]
    if wrong:
        raise ConfigError(*wrong)


ADVICE = {
    "partition": "`sinfo -s` lists the partitions there are; set slurm.partition",
    "account": "`sacctmgr show assoc user=$USER` lists your accounts; set slurm.account",
    "node configuration": "no node of the partition has that much: lower slurm.gpus_per_node, "
    "cpus_per_task, mem_gb or nodes (`sinfo -o '%P %c %m %G'` shows what nodes have)",
    "qos": "`sacctmgr show qos` lists them; set slurm.qos",
    "time limit": "`sinfo -o '%P %l'` shows the limits; lower slurm.time_minutes",
    "reservation": "`scontrol show reservation` lists them; set slurm.options.reservation",
    "feature": "`sinfo -o '%P %f'` lists features; set slurm.constraint",
    "gres": "`sinfo -o '%P %G'` lists what nodes have; set slurm.gpus_per_node or options.gres",
}


def advised(error: SlurmError, settings: SlurmSettings) -> SlurmError:
    """The same with what to do, and what was asked."""
    said = str(error).lower()
    found = next((text for word, text in ADVICE.items() if word in said), None)
    asked = ", ".join(
        f"{name} {value}"
        for name in (
            "partition", "account", "qos", "constraint", "nodes", "gpus_per_node", "cpus_per_task",
            "mem_gb", "time_minutes", "options",
        )
        if (value := getattr(settings, name))
    )  # fmt: skip
    return SlurmError(f"{error} (asked for: {asked}). {found or 'nothing was submitted'}")


def check_setup(settings: SlurmSettings) -> None:
    """Try the lines of `setup` here. Raises ConfigError with the shell's words."""
    if not settings.setup or not settings.check_setup:
        return
    lines = ["set -eE", "trap 'echo \"in: $BASH_COMMAND\" >&2' ERR", *settings.setup]
    try:
        tried = subprocess.run(
            ["bash", "-c", "\n".join(lines)],
            capture_output=True, text=True, timeout=SETUP_SECONDS, check=False,
        )  # fmt: skip
        said, failed = tried.stderr.strip(), tried.returncode != 0
    except subprocess.TimeoutExpired:
        said, failed = f"not over after {SETUP_SECONDS} s", True
    if failed:
        raise ConfigError(
            f"slurm.setup: fails here: {' '.join(said.split()) or 'without a word'}. If these "
            f"lines can only work on a node, set slurm.check_setup: false. Nothing was submitted"
        )
