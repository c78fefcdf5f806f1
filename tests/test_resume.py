"""Stopping in the middle of an epoch, and going on from there, in one process."""

import json
from itertools import count

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness import resume
from harness.files import read_json, write_json
from harness.lease import LeaseLost
from harness.plan import plan
from harness.resume import Stopped
from harness.run import run as execute
from harness.store import RunFolder, Store

NOISY = """
report: {table: watch, title: "Sensors", metrics: [label_top1]}
base:
  data: {name: watch}
  encoders: {accel: {name: sensor_conv, options: {width: 8, rotation: 0.2, dropout: 0.3}}}
  fusion: {name: single}
  width: 8
  train: {epochs: 3, steps_per_epoch: 5, batch_size: 16, optimiser: adamw, warmup_epochs: 1}
runs: {a: {}}
"""
"""random numbers in every step: dropout, and rotated inputs"""


def nothing(*_) -> None:
    pass


@pytest.fixture
def runs(sweep_file, tmp_path):
    """Two folders of the same run: one that is finished, one with its spec only."""
    planned = plan(sweep_file(NOISY, base="")).runs[0]
    stores = [Store(tmp_path / name) for name in ("calm", "stormy")]
    for store in stores:
        store.run(planned.run_id).write_spec(planned.spec.model_dump(mode="json"), {})
    execute(stores[0], planned.run_id, nothing)
    return [store.run(planned.run_id) for store in stores]


def go(run: RunFolder, on_step=nothing, stop=lambda: False) -> None:
    execute(Store(run.path.parent), run.run_id, on_step, 1, stop)


def stopped_at(run: RunFolder, step: int, behind: int = 0) -> None:
    """Ask the run, which has `behind` steps behind it, to stop after `step`."""
    steps = count(behind + 1)
    with pytest.raises(Stopped, match=f"after step {step}$"):
        go(run, stop=lambda: next(steps) == step)


def assert_same_bits(calm: RunFolder, stormy: RunFolder) -> None:
    seconds = ("time", "epoch_seconds")
    rows = [
        [{k: v for k, v in row.items() if k not in seconds} for row in run.metrics()]
        for run in (calm, stormy)
    ]
    assert rows[0] == rows[1]
    weights = [load_file(run.weights_file) for run in (calm, stormy)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    for name, logits in calm.predictions().logits.items():
        assert np.array_equal(logits, stormy.predictions().logits[name])


def test_a_run_stopped_at_any_step_goes_on_there_and_ends_with_the_same_bits(runs):
    calm, stormy = runs
    behind = 0
    for step, epochs in ((1, 0), (8, 1), (9, 1), (10, 1), (13, 2)):  # 10: the epoch's last step
        stopped_at(stormy, step, behind)
        behind = step
        assert stormy.state() == "interrupted"
        assert stormy.failure() is None
        assert len(stormy.metrics()) == epochs
        state = torch.load(stormy.checkpoints()[0], weights_only=True)
        assert 5 * state["epoch"] + state["step"] == step
    done: list[int] = []
    go(stormy, lambda step, *_: done.append(step))
    assert done == [14, 15]
    assert_same_bits(calm, stormy)


def test_a_checkpoint_is_written_by_the_clock_for_who_is_killed_without_warning(runs, monkeypatch):
    calm, stormy = runs
    monkeypatch.setattr(resume, "CHECKPOINT_SECONDS", 0.0)

    def killed(step: int, *_) -> None:
        if step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(stormy, killed)
    assert [torch.load(f, weights_only=True)["step"] for f in stormy.checkpoints()] == [3, 2]
    stormy.checkpoints()[0].write_bytes(b"torn")
    done: list[int] = []
    go(stormy, lambda step, *_: done.append(step))
    assert done == list(range(8, 16))
    assert_same_bits(calm, stormy)


def test_who_has_lost_the_lease_writes_no_checkpoint(runs, monkeypatch):
    _, stormy = runs
    monkeypatch.setattr(resume, "CHECKPOINT_SECONDS", 0.0)

    def overtaken(step: int, *_) -> None:
        if step == 4:
            file = stormy.path / "lease.json"
            write_json(file, {**read_json(file), "fence": 17})

    with pytest.raises(LeaseLost):
        go(stormy, overtaken)
    assert torch.load(stormy.checkpoints()[0], weights_only=True)["step"] == 3
    assert stormy.failure() is None
    assert json.loads((stormy.path / "lease.json").read_text())["released"] is False


def test_a_checkpoint_of_the_former_format_is_resumed(runs):
    calm, stormy = runs
    stopped_at(stormy, 6)
    before = torch.load(stormy.checkpoints()[1], weights_only=True)  # of the end of epoch 1
    former = {
        **{name: before[name] for name in ("epoch", "model", "optimiser")},
        "rng": before["random"][0]["rng"],
        "cuda_rng": before["random"][0]["cuda_rng"],
    }
    assert former["epoch"] == 1
    torch.save(former, stormy.path / "checkpoint.pt")
    go(stormy)
    assert_same_bits(calm, stormy)
