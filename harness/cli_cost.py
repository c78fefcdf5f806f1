"""The commands that tell what a model costs, and what a checkpoint is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

costs = typer.Typer()

Target = Annotated[Path, typer.Argument(help="Sweep file, or the spec.json of a run folder.")]
Preset = Annotated[str | None, typer.Option(help="Preset of the sweep; its first one by default.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE, as for a sweep. Repeatable."),
]


@costs.command()
def cost(
    file: Target,
    preset: Preset = None,
    set_: Set = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Try training steps: peak memory, and hours of a run.")
    ] = False,
    processes: Annotated[
        int, typer.Option(help="With --memory: GPUs that share a batch.", min=1)
    ] = 1,
    threads: Annotated[
        int | None, typer.Option(help="With --memory: CPU threads; all by default.", min=1)
    ] = None,
) -> None:
    """Count GFLOPs and parameters of every row of a sweep file, or of one run. Trains nothing.

    Example: harness cost sweeps/table4.yaml
    """
    if not memory:
        from harness.costing import costs_of

        print(costs_of(file, preset, set_ or []))
        return
    from harness.costing import training_costs

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for line in training_costs(file, preset, set_ or [], processes, threads or cores or 1):
        print(line)
        sys.stdout.flush()


@costs.command()
def weights(
    file: Annotated[Path, typer.Argument(help="A checkpoint: .pth, .pyth, .pt, .safetensors.")],
) -> None:
    """Say what a checkpoint is, and which encoder it fits. Executes nothing that is in it.

    Example: harness weights checkpoint_best.pt
    """
    from harness.weights import describe

    print(describe(file))
