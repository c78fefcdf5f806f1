"""What a forward pass takes on the GPU at hand: time and memory. Nothing is measured on a CPU."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import nn

from harness.contracts import Dataset
from harness.cost import example, excluded_streams
from harness.model import Model
from harness.spec import Paths, RunSpec

WARM_UP, REPETITIONS = 5, 20


@torch.no_grad()
def measure(spec: RunSpec, dataset: Dataset, paths: Paths, device: torch.device) -> dict[str, Any]:
    """`latency_ms` (median) and `memory_gb` (peak) of batch 1 in evaluation mode; {} without a GPU.

    The weights are random: they change neither. Not run by us yet, for want of a GPU.
    """
    if device.type != "cuda":
        return {}
    with device:
        model = Model(spec, dataset, paths).eval()
    excluded = excluded_streams(model, dataset)
    inputs, side = example(spec, model, excluded, device)
    for stream in excluded:  # it comes as ready tokens, and its weights are not to be counted
        model.encoders[stream] = nn.Identity()
    torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(WARM_UP + REPETITIONS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        model(inputs, side)
        end.record()
        torch.cuda.synchronize(device)
        times.append(begin.elapsed_time(end))
    return {
        "latency_ms": statistics.median(times[WARM_UP:]),
        "memory_gb": torch.cuda.max_memory_allocated(device) / 1e9,
        "gpu": torch.cuda.get_device_name(device),
    }
