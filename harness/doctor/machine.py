"""Checks of one process's surroundings: Python, processors, GPU, libraries, the hub."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
import sys
import urllib.error
import urllib.request
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from harness.finding import Finding

if TYPE_CHECKING:
    from harness.doctor.visit import Visit

HUB_SECONDS = 5
DECODERS = {"av": "av", "torchcodec": "torchcodec", "decord": "decord"}
"""module -> distribution; the first is the one a dataset of videos would use"""
BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}
"""of /proc/cpuinfo, where a processor computes with bfloat16 itself"""


def versions() -> dict[str, str]:
    """Of Python and of what a result depends on most, in this process."""
    return {"python": platform.python_version(), **{n: _version(n) for n in ("torch", "numpy")}}


def words(module: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment in which a module of this very code runs, wherever that is asked."""
    root = Path(__file__).resolve().parent.parent.parent
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return [sys.executable, "-P", "-m", module], {**os.environ, "PYTHONPATH": paths}


def python(visit: Visit) -> Finding:
    """Whether Python and torch work, and are those the sweep is submitted with."""
    import torch

    torch.ones(2).sum().item()
    here, there = versions(), visit.asked["versions"]
    found = ", ".join(f"{name} {number}" for name, number in here.items())
    if differ := [f"{name} {there[name]}" for name in here if here[name] != there[name]]:
        return Finding(
            "warn",
            f"{found}; where the command was given {', '.join(differ)}",
            "let a line of slurm.setup activate the same environment as here",
        )
    return Finding("ok", found)


def processors(visit: Visit) -> Finding:
    """Whether there is a processor for each thread that was asked for."""
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    wanted = visit.asked["threads"]
    found = f"{usable} usable of {os.cpu_count()}; threads of each task: {wanted}"
    if wanted <= usable:
        return Finding("ok", found)
    return Finding(
        "warn", found, f"set slurm.cpus_per_task: {wanted}, or --threads {usable}: more only wait"
    )


def gpu(visit: Visit) -> Finding:
    """Whether torch can use the GPUs that were asked for."""
    import torch

    wanted = visit.asked["gpus"]
    driver = _driver()
    build = f"torch is built for CUDA {torch.version.cuda}"
    if torch.version.cuda is None:
        build = "torch is built without CUDA"
    known = f"driver {driver}" if driver else "no NVIDIA driver answers"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        torch.ones(8, device="cuda").sum().item()
        every = [torch.cuda.get_device_properties(place) for place in range(count)]
        names = ", ".join(f"{one.name} {one.total_memory / 1e9:.0f} GB" for one in every)
        if count * visit.asked["tasks_per_node"] >= wanted:
            return Finding("ok", f"{names}; {build}, {known}")
        return Finding(
            "fail",
            f"{wanted} asked for, {count} seen: {names}",
            "look at CUDA_VISIBLE_DEVICES in slurm.setup and at --gpu-bind in slurm.options",
        )
    fix = "update the driver, or install a torch that is built for an older CUDA"
    if torch.version.cuda is None:
        fix = "install a torch with CUDA (https://pytorch.org/get-started)"
    elif not driver:
        fix = "ask for a partition with GPUs (`sinfo -o '%P %G'`); on the node, try `nvidia-smi`"
    if wanted:
        return Finding("fail", f"{wanted} asked for, torch sees none; {build}, {known}", fix)
    if driver:
        return Finding("warn", f"one is here, torch does not see it; {build}, {known}", fix)
    return Finding("skipped", f"none asked for, none here; {build}")


def _driver() -> str | None:
    """Version of NVIDIA's driver, if it answers."""
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=30, check=True,
        ).stdout.split()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return said[0] if said else None


def bfloat16(visit: Visit) -> Finding:
    """Whether `train.precision: bfloat16` works, and whether it is worth while."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    ones = torch.ones(64, 64, dtype=torch.bfloat16, device=device)
    if not bool(((ones @ ones) == 64).all()):
        return Finding("fail", f"wrong products on {device}", "leave train.precision at float32")
    if torch.cuda.is_available():
        native = torch.cuda.get_device_capability() >= (8, 0)
    else:
        native = not BFLOAT16_FLAGS.isdisjoint(_processor_flags())
    if native:
        return Finding("ok", f"works, in the hardware ({device})")
    spec = visit.asked["spec"]
    used = spec is not None and spec["train"]["precision"] == "bfloat16"
    return Finding(
        "warn" if used else "ok",
        f"works, not in the hardware ({device}): no faster than float32",
        "set train.precision: float32" if used else "",
    )


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {f for line in lines if line.startswith(("flags", "Features")) for f in line.split()}


def decoding(visit: Visit) -> Finding:
    """Whether videos can be read."""
    found = {}
    for module, distribution in DECODERS.items():
        try:
            importlib.import_module(module)
            found[module] = _version(distribution)
        except (ImportError, OSError, RuntimeError):  # not there, or not with this FFmpeg
            continue
    first, *others = DECODERS
    told = ", ".join(f"{name} {number}" for name, number in found.items())
    if first in found:
        return Finding("ok", told)
    return Finding(
        "warn", told or f"none of {first}, {', '.join(others)}", f"pip install {DECODERS[first]}"
    )


def hub(visit: Visit) -> Finding:
    """Whether weights could be fetched from here, or this is a place without internet."""
    from huggingface_hub import constants

    offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "HF_HUB_OFFLINE is not set"
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=HUB_SECONDS):
            reached = True
    except urllib.error.HTTPError:  # an answer, if not a kind one
        reached = True
    except (OSError, ValueError):
        reached = False
    found = f"{constants.ENDPOINT} {'answers' if reached else 'does not answer'}, {offline}"
    if reached or constants.HF_HUB_OFFLINE:
        return Finding("ok", found)
    place = "your shell" if visit.local else "slurm.setup"
    return Finding(
        "warn",
        found,
        "bring weights here (`harness prefetch FILE` where there is internet); `export "
        f"HF_HUB_OFFLINE=1` in {place}, so that nothing waits for an answer",
    )


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "(version unknown)"
