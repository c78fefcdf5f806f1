"""Whole searches, with real runs: how they end, and that nothing is lost when they are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from search_bench import SEARCH, SPACE, check_whole, desk_of, search_file

from harness.store import Store


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return search_file(tmp_path)


def test_a_search_ends_in_final_runs_does_nothing_again_and_goes_on_with_more_budget(
    file, run_here, tmp_path
):
    done = run_here("search", str(file), "--launcher", "inline")
    assert done.exit_code == 0, done.stderr
    assert "final runs: 8 of 8 done" in done.stdout
    store = Store(tmp_path / "runs")
    desk = desk_of(file, store)
    check_whole(desk, 6)
    stored = store.read_search("tiny", "")
    best = {name: row["trials"][row["best"]] for name, row in stored["search"]["rows"].items()}
    for name, trial in best.items():
        finals = [run for run in stored["runs"] if run["row"] == f"{name}, best"]
        assert [run["seed"] for run in finals] == [0, 1]
        for run in finals:
            spec = store.run(run["run_id"]).spec()["spec"]
            rate = trial["params"]["train.peak_lr.fusion"]
            assert spec["train"]["peak_lr"]["fusion"] == rate
            assert spec["train"]["peak_lr"]["head"] == rate
        scored = store.run(trial["attrs"]["runs"][0]).result()["metrics"]["select/verb_top1"]
        assert trial["value"] == scored
        assert trial["value"] == max(t["value"] for t in stored["search"]["rows"][name]["trials"]
                                     if t["state"] == "COMPLETE")  # fmt: skip
    pruned = [t for row in stored["search"]["rows"].values() for t in row["trials"]
              if t["state"] == "PRUNED"]  # fmt: skip
    for trial in pruned:
        folder = store.run(trial["attrs"]["runs"][0])
        assert folder.state() == "pruned"
        assert len(folder.metrics()) == trial["steps"][-1][0] < 3

    journal = desk.journal.read_bytes()
    again = run_here("search", str(file), "--launcher", "inline")
    assert again.exit_code == 0
    assert desk.journal.read_bytes() == journal

    more = run_here("search", str(file), "--launcher", "inline", "--set", "search.budget.trials=8")
    assert more.exit_code == 0, more.stderr
    check_whole(desk_of(file, store), 8)

    told = run_here("report", "tiny")
    assert told.exit_code == 0
    assert "Search. Settings of each row of: A tiny search" in told.stdout
    assert "A tiny search: as written" in told.stdout
    assert "A tiny search: at the best settings found" in told.stdout
    assert f"Optuna {optuna.__version__}" in told.stdout
    assert "tpe (n_startup_trials 3), pruned by median (n_startup_trials 2), seed 0" in told.stdout
    report = tmp_path / "runs" / "report"
    assert (report / "tiny-plain-response-train-peak_lr-fusion.png").stat().st_size > 10_000
    status = run_here("status", "tiny")
    assert "pruned after epoch" in status.stdout or not pruned
    begins = stored["search"]["rows"]["one"]["trials"][0]["attrs"]["runs"][0][:8]
    assert "peak rate" in run_here("logs", begins).stdout


def test_equal_settings_are_run_once_and_counted_as_often_as_they_come(tmp_path, run_here):
    space = SPACE.replace("{log_uniform: [1e-4, 1e-1], also: [train.peak_lr.head]}",
                          "{categorical: [0.001, 0.01]}")  # fmt: skip
    space = space.replace("    train.weight_decay: {categorical: [0.0, 0.1]}\n", "")
    space = space.replace("{name: tpe, options: {n_startup_trials: 3}}", "{name: random}")
    space = space.replace("median, options: {n_startup_trials: 2}", "none")
    file = search_file(
        tmp_path, space, SEARCH.replace("  two: {label: Two, fusion: {name: mean}}\n", "")
    )
    done = run_here("search", str(file), "--launcher", "inline")
    assert done.exit_code == 0, done.stderr
    store = Store(tmp_path / "runs")
    desk = desk_of(file, store)
    states = [trial.state for trial in desk.all("one")]
    assert states == [TrialState.COMPLETE] * 6
    runs = {trial.user_attrs["runs"][0] for trial in desk.all("one")}
    assert len(runs) == 2
    assert all(store.run(run_id).attempts() == 1 for run_id in runs)
    assert sum(epochs for epochs, _ in desk.spent(desk.search.rows[0]).values()) == 6


def test_choosing_on_test_is_printed_under_every_table(tmp_path, run_here):
    space = SPACE.replace("metric: verb_top1", "metric: verb_top1, split: test, allow_test: true")
    space = space.replace("median, options: {n_startup_trials: 2}", "none")
    file = search_file(tmp_path, space.replace("trials: 6", "trials: 2"))
    assert run_here("search", str(file), "--launcher", "inline").exit_code == 0
    assert run_here("report").stdout.count("CHOSEN ON TEST") == 3


def test_a_trial_is_worth_the_mean_over_its_seeds(tmp_path, run_here):
    file = search_file(tmp_path, SPACE.replace("{trials: 6}", "{trials: 2}\n  seeds: [50, 51]"))
    assert run_here("search", str(file), "--launcher", "inline").exit_code == 0
    store = Store(tmp_path / "runs")
    trial = desk_of(file, store).all("one")[0]
    scores = [
        store.run(run_id).result()["metrics"]["select/verb_top1"]
        for run_id in trial.user_attrs["runs"]
    ]
    assert len(scores) == 2
    assert trial.value == pytest.approx(sum(scores) / 2)
    assert sorted(trial.intermediate_values) == [1, 2, 3]  # of the first seed: others begin anew


def test_a_rate_at_which_the_loss_is_not_finite_is_an_outcome_and_no_failure(tmp_path, run_here):
    space = SPACE.replace("[1e-4, 1e-1], also: [", "[1e30, 1e35], also: [train.peak_lr.encoder, ")
    file = search_file(tmp_path, space.replace("trials: 6", "trials: 2"))
    done = run_here("search", str(file), "--launcher", "inline")
    assert done.exit_code == 1  # no trial was complete: nothing is best
    desk = desk_of(file, Store(tmp_path / "runs"))
    assert {trial.state for trial in desk.all("one")} == {TrialState.PRUNED}
    assert "no trial was complete" in done.stdout
    assert "diverged: the loss was not finite" in run_here("report").stdout


def test_what_cannot_be_trained_fails_by_name_and_the_rest_goes_on(tmp_path, run_here, monkeypatch):
    import harness.run

    real = harness.run.train

    def broken(spec, *args, **kwargs):
        if spec.fusion.name == "mean" and spec.seed == 1000:
            raise ValueError("this head is broken")
        return real(spec, *args, **kwargs)

    monkeypatch.setattr(harness.run, "train", broken)
    file = search_file(tmp_path)
    done = run_here("search", str(file), "--launcher", "inline")
    assert done.exit_code == 1
    assert "given up: ValueError: this head is broken" in done.stdout
    assert "Two: 3 trials failed, the last with: ValueError: this head is broken" in (
        run_here("report").stdout
    )
    monkeypatch.setattr(harness.run, "train", real)
    again = run_here("search", str(file), "--launcher", "inline", "--retry")
    assert again.exit_code == 0, again.stderr
    check_whole(desk_of(file, Store(tmp_path / "runs")), 6)


# kill -9


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for one in found:
        children = Path(f"/proc/{one}/task/{one}/children")
        if children.exists():
            found += [int(child) for child in children.read_text().split()]
    return found


def start(file: Path) -> subprocess.Popen:
    words = ["-m", "harness.cli", "search", str(file), "--jobs", "2", "--threads", "1"]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *words],
        cwd=file.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def workers_of(folder: Path) -> list[int]:
    found = []
    for lease in (folder / "runs" / "tiny-plain" / "workers").glob("*.json"):
        try:
            found.append(int(json.loads(lease.read_text())["pid"]))
        except (OSError, ValueError, KeyError):
            continue
    return [pid for pid in found if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
def test_killed_five_times_at_random_a_search_loses_nothing_and_runs_nothing_twice(tmp_path):
    space = SPACE.replace("trials: 6", "trials: 5")
    base = SEARCH.replace("steps_per_epoch: 2", "steps_per_epoch: 30")
    file = search_file(tmp_path, space, base)
    rng, killed = random.Random(time.time_ns()), []
    controller = start(file)
    deadline = time.monotonic() + 600
    while len(killed) < 5 and time.monotonic() < deadline:
        time.sleep(rng.uniform(0.5, 4))
        workers = workers_of(tmp_path)
        if not workers:
            continue
        if rng.random() < 0.3:
            for pid in family(controller.pid)[:1]:
                os.kill(pid, signal.SIGKILL)
            controller.wait()
            killed.append("controller")
        else:
            os.kill(rng.choice(workers), signal.SIGKILL)
            killed.append("worker")
        if controller.poll() is not None:
            controller = start(file)
    assert controller.wait(600) == 0, killed
    store = Store(tmp_path / "runs")
    desk = desk_of(file, store)
    check_whole(desk, 5)
    assert desk.over()
    for row in desk.search.rows:
        for trial in desk.all(row.name):
            for run_id in trial.user_attrs.get("runs", ()):
                rows = store.run(run_id).metrics()
                assert [r["epoch"] for r in rows] == list(range(1, len(rows) + 1))
