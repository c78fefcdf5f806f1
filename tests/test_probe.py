"""What training would take, and where its time goes: measured on real steps."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.costing import training_costs
from harness.plan import plan
from harness.probe import probe
from harness.profiling import profile, table

ROOT = Path(__file__).resolve().parent.parent
ROWS = """
runs:
  mlp: {label: MLP, fusion: {name: mlp}, encoders.video: &video {name: video_transformer}}
  mamba: {label: Mamba, fusion: {name: mamba_shared}, encoders.video: *video, train.ema: 0.9}
  many: {label: Many, fusion: {name: mlp}, encoders.video: *video, train.batch_size: 96}
"""
MEMORY = """
import json, sys, torch
from harness.plan import plan
from harness.probe import _example, _repeated
from harness.distributed import Group
from harness.learner import Learner
from harness.model import Model
from harness.spec import dataset_of

def status(name):
    return next(int(s.split()[1]) for s in open("/proc/self/status") if s.startswith(name)) * 1024

torch.set_num_threads(1)
planned = plan(__import__("pathlib").Path(sys.argv[1]))
spec = next(run.spec for run in planned.runs if run.row == "many")
dataset = dataset_of(spec, planned.paths)
one = Model(spec, dataset, planned.paths).train()
warm = Learner(spec, one, dataset, Group(), torch.device("cpu"))
warm.step(_repeated(_example(spec, one, dataset, torch.device("cpu")), 2), 0)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
batch = _repeated(_example(spec, one, dataset, torch.device("cpu")), spec.train.batch_size)
warm.step(batch, 1)
print(status("VmHWM") - before)
"""


@pytest.fixture
def wide(sweep_file):
    """The tiny sweep with clips: most of the memory is activations."""
    return sweep_file(ROWS)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for the peak")
def test_memory_and_time_are_those_of_real_steps(wide):
    planned = plan(wide)
    spec = next(run.spec for run in planned.runs if run.row == "many")
    found = probe(spec, planned.paths, 1, 1)
    assert (found.batch, found.measured) == (96, True)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(wide)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    held = int(done.stdout.split()[-1]) / 1e9
    # the process holds what the allocator keeps beside: tensors are most of it, and no more
    assert 0.5 * held < found.gb < 1.2 * held
    half = probe(spec, planned.paths, 2, 1)
    assert half.batch == 48
    assert 0.35 * found.gb < half.gb < 0.75 * found.gb
    steps = spec.train.epochs * spec.train.steps_per_epoch
    assert found.hours == pytest.approx(steps * found.step_seconds / 3600)


def test_what_was_not_tried_follows_from_the_last_two_batches(wide, monkeypatch):
    from harness import probe as module

    planned = plan(wide)
    spec = next(run.spec for run in planned.runs if run.row == "many")
    whole = probe(spec, planned.paths, 1, 1)
    monkeypatch.setattr(module, "LONG_SECONDS", 0.0)
    monkeypatch.setattr(module, "_first_sizes", lambda share: [12, 24, 96])
    foretold = probe(spec, planned.paths, 1, 1)
    assert not foretold.measured
    assert foretold.sizes == (12, 24)
    assert foretold.gb == pytest.approx(whole.gb, rel=0.2)


def test_each_row_has_a_line(wide):
    lines = list(training_costs(wide, None, [], 1, 1))
    assert re.search(r"^MLP +16 +[\d.e-]+ GB +[\d.e-]+ s +[\d.e-]+ h +[\d.e-]+  measured", lines[1])
    assert [line.split()[0] for line in lines[1:4]] == ["MLP", "Mamba", "Many"]
    assert "of one process" in lines[-1]


def test_the_parts_of_a_step_are_told_apart_and_traced(store, sweep_file):
    rows = """
runs:
  a: {fusion: {name: mamba_shared}, encoders.video: {name: video_transformer, frozen: true}}
"""
    run = plan(sweep_file(rows)).runs[0]
    folder = store.run(run.run_id)
    folder.write_spec(run.spec.model_dump(mode="json"), {})
    told = profile(store, run.run_id, 1)
    shares = {
        line.rsplit(None, 3)[0].strip(): float(line.split()[-2])
        for line in told.splitlines()
        if line.endswith("%")
    }
    parts = [v for k, v in shares.items() if k not in ("step", "of it the scan")]
    assert sum(parts) == pytest.approx(100, abs=0.5)
    assert 0 < shares["of it the scan"] < shares["fusion"]
    assert shares["encoders"] > 5  # the text encoder is trained
    trace = json.loads(gzip.decompress(folder.trace_file.read_bytes()))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert any("selective_scan" in str(name) for name in names)
    assert folder.state() == "new"  # nothing of the run was made
    assert not folder.metrics()


def test_the_table_adds_up():
    seconds = dict.fromkeys(("data", "encoders", "fusion", "heads and loss", "optimiser"), 0.2)
    told = table({**seconds, "other": 0.0}, 0.1, 10, Path("trace"))
    assert "waiting for data            20.000   20.0 %" in told
    assert "  of it the scan            10.000   10.0 %" in told
    assert torch.get_num_threads() == 1
