"""The run folder and its lease."""

import errno
import json
import os
import re
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from harness import lease as lease_module
from harness.config import ConfigError
from harness.evaluate import Predictions
from harness.files import write_atomic, write_json
from harness.lease import Lease, LeaseLost, LeaseTaken, me


def test_a_run_goes_from_new_to_running_to_interrupted_to_done(store):
    folder = store.run("abc")
    assert folder.state() == "new"
    folder.write_spec({"seed": 1}, {})
    assert folder.state() == "new"
    with folder.lease():
        assert folder.state() == "running"
    assert folder.state() == "interrupted"
    folder.write_failure("Traceback\nValueError: no")
    assert folder.state() == "failed"
    folder.add_attempt({})
    assert folder.failure() is None  # a new attempt that is killed is to be resumed
    assert folder.state() == "interrupted"
    folder.write_result({"metrics": {}})
    assert folder.state() == "done"


@pytest.mark.parametrize("name", ["result.json", "spec.json", "metrics.jsonl", "predictions.npz"])
@pytest.mark.parametrize("content", ["{", "{}\n{\n", "garbage\n"])
def test_a_damaged_file_is_named_with_what_to_do(store, name, content):
    folder = store.run("abc")
    folder.write_spec({}, {})
    (folder.path / name).write_text(content)
    read = {
        "result.json": folder.result,
        "spec.json": folder.spec,
        "metrics.jsonl": folder.metrics,
        "predictions.npz": folder.predictions,
    }
    if name == "metrics.jsonl" and content == "{":
        assert folder.metrics() == []  # a line cut short by a crash
        return
    with pytest.raises(ConfigError, match=rf"abc/{re.escape(name)}: .*delete"):
        read[name]()


def test_a_damaged_lease_holds_nobody_up(store):
    folder = store.run("abc")
    folder.write_spec({}, {})
    (folder.path / "lease.json").write_text("")
    assert folder.state() == "interrupted"
    with folder.lease():
        assert folder.state() == "running"


def test_a_damaged_record_of_a_sweep_is_named_and_healed_by_the_sweep(store):
    record = {"name": "t", "preset": "demo", "runs": []}
    file = store.write_sweep(record)
    file.write_text("{}")
    with pytest.raises(ConfigError, match="damaged"):
        store.sweeps()
    store.write_sweep(record)
    assert store.sweeps() == [record]


def test_reading_a_run_creates_nothing(store):
    folder = store.run("abc")
    assert folder.metrics() == []
    assert folder.result() is None
    assert folder.failure() is None
    assert not store.root.exists()


def test_a_line_cut_short_by_a_crash_is_left_out_and_then_removed(store):
    folder = store.run("abc")
    folder.write_spec({}, {})
    for epoch in (1, 2, 3):
        folder.append_metrics({"epoch": epoch})
    with open(folder.path / "metrics.jsonl", "a") as out:
        out.write('{"epoch": 4, "tr')
    assert [row["epoch"] for row in folder.metrics()] == [1, 2, 3]
    folder.cut_metrics(2)
    folder.append_metrics({"epoch": 3})
    assert [row["epoch"] for row in folder.metrics()] == [1, 2, 3]


def test_two_checkpoints_are_kept_newest_first(store):
    folder = store.run("abc")
    folder.write_spec({}, {})
    for epoch in (1, 2, 3):
        state = {"epoch": epoch}
        folder.save_checkpoint(lambda out, state=state: torch.save(state, out))
    assert [torch.load(file)["epoch"] for file in folder.checkpoints()] == [3, 2]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})

    def fail(out):
        out.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomic(file, fail)
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_predictions_come_back_as_they_were_written(store):
    folder = store.run("abc")
    folder.write_spec({}, {})
    said = Predictions(
        np.array(["x", "longer"]),
        np.array(["g", "g"]),
        np.array(["", "one"]),
        {"verb": np.array([1, 0])},
        {"verb": np.array([[0.5, 1], [2, 3]], np.float32)},
    )
    folder.write_predictions(said)
    read = folder.predictions()
    assert read.ids.tolist() == ["x", "longer"]
    assert read.subsets.tolist() == ["", "one"]
    assert (read.targets["verb"] == said.targets["verb"]).all()
    assert (read.logits["verb"] == said.logits["verb"]).all()


def test_a_result_set_aside_is_kept_and_the_run_can_be_made_again(store):
    folder = store.run("abc")
    folder.write_spec({}, {})
    for value in (1, 2):
        folder.write_result({"metrics": {}, "value": value})
        with folder.lease():
            folder.set_aside()
    assert folder.state() == "interrupted"
    kept = sorted((folder.path / "stale").glob("*/result.json"))
    assert [json.loads(file.read_text())["value"] for file in kept] == [1, 2]


def test_the_same_sweep_is_stored_once_and_a_changed_one_beside_it(store):
    record = {"name": "t", "preset": "demo", "runs": []}
    store.write_sweep(record)
    store.write_sweep(record)
    assert len(list((store.root / "sweeps").iterdir())) == 1
    time.sleep(0.02)
    store.write_sweep({**record, "runs": [1]})
    assert len(list((store.root / "sweeps").iterdir())) == 2
    assert store.sweeps() == [{**record, "runs": [1]}]
    time.sleep(0.02)
    store.write_sweep(record)
    assert store.sweeps() == [record]


def test_a_lease_is_held_by_one(tmp_path):
    with Lease(tmp_path / "lease.json"), pytest.raises(LeaseTaken, match=str(os.getpid())):
        Lease(tmp_path / "lease.json").__enter__()
    with Lease(tmp_path / "lease.json") as again:
        assert again.fence == 2


def test_a_killed_holder_on_this_host_frees_its_lease_at_once(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from harness.lease import Lease\n"
        "Lease(Path(sys.argv[1])).__enter__(); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lease.json")], stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LeaseTaken):
            Lease(tmp_path / "lease.json").__enter__()
        holder.kill()
        holder.wait()
    with Lease(tmp_path / "lease.json") as taken:
        assert taken.fence == 2


def test_a_pid_used_again_by_another_process_does_not_hold_the_lease(tmp_path):
    file = tmp_path / "lease.json"
    write_json(file, {**me(), "started": "1", "fence": 7, "released": False})
    with Lease(file) as taken:
        assert taken.fence == 8


def test_a_lease_of_another_host_holds_until_it_expires(tmp_path):
    file = tmp_path / "lease.json"
    write_json(file, {**me(), "host": socket.gethostname() + "-2", "fence": 1, "released": False})
    with pytest.raises(LeaseTaken):
        Lease(file).__enter__()
    past = time.time() - lease_module.EXPIRES_SECONDS - 1
    os.utime(file, (past, past))
    with Lease(file) as taken:
        assert taken.fence == 2


def test_an_old_writer_notices_that_it_was_replaced(tmp_path):
    file = tmp_path / "lease.json"
    with Lease(file) as old:
        old.check()
        write_json(file, {**me(), "host": "elsewhere", "fence": old.fence + 1, "released": False})
        with pytest.raises(LeaseLost):
            old.check()
    assert json.loads(file.read_text())["released"] is False


def test_a_write_that_finds_the_disk_full_says_which_file_and_leaves_no_part(tmp_path):
    def full(out):
        out.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.json").write_text("whole")
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.json'"):
        write_atomic(tmp_path / "a.json", full)
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "whole"
