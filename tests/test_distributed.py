"""Several processes that do one run. Every process is a real one, on one machine, with Gloo."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from submitit import LocalExecutor

from harness.distributed import Group, World, find_world
from harness.launch import work
from harness.plan import PlannedRun, plan
from harness.run import run as execute
from harness.store import RunFolder, Store

UNEVEN = """
report: {table: tiny, title: "Tiny", metrics: [verb_top1]}
base:
  data: {name: simkitchen, options: {train_size: 97, select_size: 33, test_size: 65}}
  encoders: {text: {name: word_transformer, options: {width: 16}}}
  width: 16
  fusion: {name: single, options: {project: false}}
  train:
    {epochs: 2, batch_size: 7, steps_per_epoch: 4, warmup_epochs: 1, peak_lr.encoder: 0.1,
     peak_lr.fusion: 0.1, peak_lr.head: 0.1}
runs:
"""
ROWS = """
  plain: {}
  clipped: {fusion: {name: mamba_shared}, train.clip_norm: 0.5}
  adamw: {train.optimiser: adamw}
  frozen: {encoders.text.frozen: true, head: pre_logits}
  few: {data.options.select_size: 2, data.options.test_size: 2}
  small: {train.batch_size: 1}
  regression: {train.method: logistic_regression}
"""
"""sizes that neither two nor three divide"""
NOISY = """
report: {table: watch, title: "Sensors", metrics: [label_top1]}
base:
  data: {name: watch}
  encoders: {accel: {name: sensor_conv, options: {width: 8, rotation: 0.2, dropout: 0.3}}}
  fusion: {name: single}
  width: 8
  train: {epochs: 3, steps_per_epoch: 5, batch_size: 15, optimiser: adamw, warmup_epochs: 1}
runs: {a: {}, b: {head: pre_logits}, c: {width: 9}, d: {width: 10}}
"""
"""random numbers in every step: dropout, and rotated inputs"""


def torchrun(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    told = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in told.items()}}


def slurm(rank: int, size: int, port: int) -> dict[str, str]:
    """What SLURM and submitit tell the only task on each of `size` nodes, played by one machine."""
    told = {"SLURM_PROCID": rank, "SLURM_NODEID": rank, "SLURM_LOCALID": 0, "MASTER_PORT": port}
    told |= {"SLURM_NTASKS": size, "SLURM_JOB_NUM_NODES": size, "SLURM_JOB_ID": 7}
    nodes = {"SLURM_JOB_NODELIST": f"nowhere-[1-{size}]", "SUBMITIT_EXECUTOR": "slurm"}
    return nodes | {name: str(value) for name, value in told.items()}


def together(
    size: int, tasks: list[dict[str, Any]], expected: int = 0, told=torchrun, frozen: int = -1
) -> list[list[dict]]:
    """Do the tasks in `size` processes; what each said of each task, by rank.

    `expected` of them end with an error. `frozen`: the rank to be killed once the others ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("one_rank.py")), json.dumps(tasks)],
            env={**os.environ, **told(rank, size, port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    for rank in sorted(range(size), key=lambda rank: rank == frozen):
        if rank == frozen:
            processes[rank].kill()
        processes[rank].wait(240)
    said = [process.communicate() for process in processes]
    errors = "\n".join(err for _, err in said)
    assert sum(process.returncode != 0 for process in processes) == expected, errors
    for rank, (out, err) in enumerate(said):
        print(f"rank {rank}\n{out}\n{err}")
    return [[json.loads(line) for line in out.splitlines()] for out, _ in said]


def planned(file: Path, text: str) -> tuple[dict[str, PlannedRun], Store]:
    """The runs of a sweep file by row, and the store `one` beside it that has their specs."""
    file.write_text(text)
    sweep, store = plan(file), Store(file.parent / "one")
    for run in sweep.runs:
        store.run(run.run_id).write_spec(run.spec.model_dump(mode="json"), sweep.paths)
    return {run.row: run for run in sweep.runs}, store


def copied(store: Store, name: str) -> Store:
    """Another store with the specs of the first."""
    other = Store(store.root.parent / name)
    for run in store.runs():
        other.run(run.run_id).write_spec(**run.spec())
    return other


def curve(run: RunFolder) -> list[dict[str, float]]:
    seconds = ("time", "epoch_seconds")
    return [{k: v for k, v in row.items() if k not in seconds} for row in run.metrics()]


def assert_equal(one: RunFolder, many: RunFolder, exact: bool = False) -> None:
    """Losses, weights and predictions of a run that was done in two ways."""
    near = dict(rtol=0, atol=0) if exact else dict(rtol=1e-5, atol=1e-5)
    assert [row["epoch"] for row in one.metrics()] == [row["epoch"] for row in many.metrics()]
    for a, b in zip(one.metrics(), many.metrics(), strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], abs=near["atol"], rel=near["rtol"])
    weights = [load_file(run.weights_file) for run in (one, many)]
    if not exact and "adamw" in str(one.spec()):
        for state in weights:  # AdamW divides the bias of keys, which changes nothing, by rounding
            state.pop("encoders.text.blocks.0.qkv.bias")
    torch.testing.assert_close(*weights, **near)
    said = [run.predictions() for run in (one, many)]
    assert said[0].ids.tolist() == said[1].ids.tolist()
    for name, logits in said[0].logits.items():
        np.testing.assert_allclose(logits, said[1].logits[name], **near)
        assert said[0].targets[name].tolist() == said[1].targets[name].tolist()
    assert one.result()["samples"] == many.result()["samples"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Runs by row, and the store in which one process has done those that it can."""
    folder = tmp_path_factory.mktemp("runs")
    rows, store = planned(folder / "tiny.yaml", UNEVEN + ROWS)
    for run in rows.values():
        execute(store, run.run_id, lambda *_: None)
    init = f"finetuned:{store.run(rows['plain'].run_id).weights_file}"
    scored = f"  scored: {{train.method: evaluate, encoders.text.init: '{init}'}}\n"
    more, _ = planned(folder / "more.yaml", UNEVEN + scored)
    execute(store, more["scored"].run_id, lambda *_: None)
    return rows | more, store


def test_two_processes_compute_what_one_does(alone):
    """Uneven batches and splits, frozen encoders, every method."""
    rows, one = alone
    two = copied(one, "two")
    tasks = [{"root": str(two.root), "run_id": run.run_id} for run in rows.values()]
    ranks = together(2, tasks)
    for (row, run), *said in zip(rows.items(), *ranks, strict=True):
        ended = [each["ended"] for each in said]
        folder = two.run(run.run_id)
        if row == "small":
            assert all("train.batch_size is 1, too few for 2 processes" in each for each in ended)
            assert folder.state() == "failed"
            assert folder.metrics() == []
            continue
        assert ended == ["returned", "returned"], row
        assert_equal(one.run(run.run_id), folder)
        assert folder.env()["world"] == (1 if row == "regression" else 2)
        assert folder.attempts() == 1
    assert len(list(two.tokens.glob("*/done.json"))) == 6  # each split, and the texts of each


def test_three_nodes_of_one_process_share_batches_of_seven_and_splits_of_two(alone):
    rows, one = alone
    three = copied(one, "three")
    named = [rows[row] for row in ("plain", "few", "frozen", "clipped")]
    tasks = [{"root": str(three.root), "run_id": run.run_id} for run in named]
    tasks[-1]["kill"] = [2, 3]
    ranks = together(3, tasks, expected=1, told=slurm)
    for run in named[:-1]:
        assert_equal(one.run(run.run_id), three.run(run.run_id))
    for said in ranks[:2]:  # one was ended from outside: the others do not wait
        assert said[-1]["ended"].startswith("PeerLost")
        assert said[-1]["seconds"] < 20
        assert "ended it" in said[-1]["notes"][0]
    killed = three.run(named[-1].run_id)
    assert killed.failure() is None
    assert killed.state() == "interrupted"


def test_two_processes_stop_in_the_middle_of_an_epoch_and_go_on_with_the_same_bits(
    tmp_path, capsys
):
    rows, calm = planned(tmp_path / "noisy.yaml", NOISY)
    stormy = copied(calm, "stormy")
    a, b, c, d = (run.run_id for run in rows.values())
    first = together(
        2,
        [
            {"root": str(calm.root), "run_id": a},
            {"root": str(stormy.root), "run_id": a, "stop": [1, 8]},
            {"root": str(stormy.root), "run_id": b, "stop": [0, 7]},
            {"root": str(calm.root), "run_id": d, "freeze": [1, 7], "beats": 2, "grace": 0.1},
        ],
        expected=2,
        frozen=1,
    )
    for rank in first:  # the last run's ranks were ended: one was silent, one waited for it
        assert [said["ended"].split(":")[0] for said in rank] == ["returned", "Stopped", "Stopped"]
    assert calm.run(d).state() == "interrupted"
    assert [row["epoch"] for row in stormy.run(a).metrics()] == [1]
    assert [stormy.run(each).state() for each in (a, b)] == ["interrupted", "interrupted"]
    random = torch.load(stormy.run(a).checkpoints()[0], weights_only=True)["random"]
    assert not torch.equal(random[0]["rng"], random[1]["rng"])  # each drops others

    with stormy.run(d).lease():
        second = together(
            2,
            [
                {"root": str(stormy.root), "run_id": a},
                {"root": str(stormy.root), "run_id": d},
                {"root": str(calm.root), "run_id": b, "overtaken": [0, 7]},
                {"root": str(stormy.root), "run_id": c, "fail": [1, 7]},
                {"root": str(calm.root), "run_id": c, "fail": [1, 7], "sleep": [0, 7], "grace": 1},
            ],
            expected=1,
        )
    assert_equal(calm.run(a), stormy.run(a), exact=True)
    assert curve(calm.run(a)) == curve(stormy.run(a))
    for rank in second:
        assert rank[1]["ended"].startswith("LeaseTaken: process")
    assert stormy.run(d).attempts() == 0

    assert second[0][2]["ended"].startswith("LeaseLost")
    assert second[1][2]["ended"].startswith("PeerLost")
    assert "LeaseLost" in second[1][2]["notes"][0]
    assert calm.run(b).failure() is None

    upset, waiting = second[1][3], second[0][3]
    assert upset["ended"] == "ValueError: an upset rank"
    assert waiting["ended"].startswith("PeerLost")
    assert waiting["seconds"] < 20
    assert "ValueError: an upset rank (rank 1)" in waiting["notes"][0]
    assert "in on_step" in stormy.run(c).failure()
    assert stormy.run(c).failure().endswith("ValueError: an upset rank (rank 1)\n")
    assert stormy.run(c).state() == "failed"
    # rank 0 was busy, did not notice, and was ended: what failed is stored all the same
    assert len(second[0]) == 4
    assert calm.run(c).failure().endswith("ValueError: an upset rank (rank 1)\n")
    assert calm.run(c).state() == "failed"

    execute(stormy, b, lambda *_: None)
    assert "begun by 2 processes and resumed by 1" in capsys.readouterr().err
    assert [row["epoch"] for row in stormy.run(b).metrics()] == [1, 2, 3]


def test_the_tasks_of_a_submitit_job_are_the_processes_of_a_run(alone, tmp_path):
    rows, one = alone
    store = copied(one, "submitit")
    executor = LocalExecutor(folder=tmp_path / "log")
    executor.update_parameters(tasks_per_node=2, timeout_min=5)
    run_id = rows["plain"].run_id
    executor.submit(work, str(store.root), run_id, 1).results()
    assert_equal(one.run(run_id), store.run(run_id))
    assert store.run(run_id).env()["world"] == 2


def test_who_is_who_is_what_the_launcher_says(monkeypatch):
    for name in (*torchrun(0, 1, 0), *slurm(0, 1, 0)):
        monkeypatch.delenv(name, raising=False)
    assert find_world() == World()
    for name, value in torchrun(1, 3, 29000).items():
        monkeypatch.setenv(name, value)
    assert find_world() == World(1, 3, 1, "127.0.0.1", 29000, one_machine=True)
    for name, value in slurm(1, 2, 29001).items():
        monkeypatch.setenv(name, value)
    assert find_world() == World(1, 2, 0, "127.0.0.1", 29001, one_machine=True)
    monkeypatch.setattr("harness.distributed._resolves", lambda host: True)
    assert find_world() == World(1, 2, 0, "nowhere-1", 29001, one_machine=False)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert find_world() == World()


def test_one_process_opens_no_connection(alone):
    assert not torch.distributed.is_initialized()


def test_shares_are_all_of_a_batch_in_order():
    for size in (1, 2, 3, 5):
        for number in (0, 1, 2, 7, 16):
            shares = [Group(World(rank, size)).share(number) for rank in range(size)]
            assert [index for share in shares for index in share] == list(range(number))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
