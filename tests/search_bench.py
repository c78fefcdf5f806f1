"""Small searches for the tests, workers that train nothing, and what must be true at the end."""

import json
import multiprocessing
import random
from collections import Counter
from contextlib import closing
from pathlib import Path

from optuna.trial import TrialState

from harness.lease import Lease
from harness.search.desk import Desk
from harness.search.planning import plan_search
from harness.store import Store

SEARCH = """
report: {table: tiny, title: "A tiny search", metrics: [verb_top1, noun_top1]}
base:
  data: {name: simkitchen, options: {train_size: 96, select_size: 32, test_size: 64}}
  encoders:
    text: {name: word_transformer, options: {width: 16, depth: 1}}
  width: 16
  train: {epochs: 3, batch_size: 16, steps_per_epoch: 2, optimiser: adamw, warmup_epochs: 1}
runs:
  one: {label: One, fusion: {name: single}}
  two: {label: Two, fusion: {name: mean}}
seeds: [0, 1]
"""
SPACE = """
search:
  space:
    train.peak_lr.fusion: {log_uniform: [1e-4, 1e-1], also: [train.peak_lr.head]}
    train.weight_decay: {categorical: [0.0, 0.1]}
  objective: {metric: verb_top1}
  sampler: {name: tpe, options: {n_startup_trials: 3}}
  pruner: {name: median, options: {n_startup_trials: 2}}
  budget: {trials: 6}
"""


def search_file(folder: Path, search: str = SPACE, base: str = SEARCH) -> Path:
    file = folder / "tiny.yaml"
    file.write_text(base + search)
    return file


def desk_of(file: Path, store: Store, *settings: str, url: str | None = None) -> Desk:
    return Desk(plan_search(file, None, settings), store, url)


def play(
    desk: Desk,
    name: str,
    rng: random.Random | None = None,
    most: int = 10_000,
    seconds: float | None = None,
) -> list:
    """Be the worker `name`, without training: a value from the parameters, pruned by the pruner;
    with `seconds` its runs have lines of metrics, as if an epoch had taken so long.

    What it was given, in order, as (row, parameters)."""
    given = []
    with Lease(desk.workers / f"{name}.json"):
        while len(given) < most and (claim := desk.claim(name)) is not None:
            values = dict(claim.trial.params)
            given.append((claim.row.name, values))
            noise = rng.uniform(0, 0.01) if rng else 0.0
            score = 1 / (1 + abs(values.get("train.peak_lr.fusion", 1) - 0.01)) + noise
            for epoch in range(1, claim.row.steps + 1):
                if seconds is not None:
                    line = {"epoch": epoch, "step": epoch, "time": 0.0, "epoch_seconds": seconds}
                    desk.store.run(claim.runs[0].run_id).append_metrics(line)
                if desk.report(claim, {epoch: score * epoch / claim.row.steps}) == "prune":
                    desk.prune(claim, "others did better")
                    break
            else:
                desk.complete(claim, score)
    return given


def _play(file: Path, root: Path, url: str | None, number: int, failed) -> None:
    try:
        with closing(desk_of(file, Store(root), url=url)) as desk:
            play(desk, f"worker-{number}", random.Random(number))
    except BaseException as error:
        failed.put(f"worker {number}: {type(error).__name__}: {error}")
        raise


def play_together(file: Path, root: Path, url: str | None, workers: int) -> list[str]:
    """So many processes at one storage; what went wrong."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["search_bench"])
    failed = processes.Queue()
    made = [
        processes.Process(target=_play, args=(file, root, url, number, failed))
        for number in range(workers)
    ]
    for one in made:
        one.start()
    for one in made:
        one.join(240)
    told = [failed.get() for _ in range(failed.qsize())]
    return [*told, *(f"exit code {one.exitcode}" for one in made if one.exitcode)]


def check_whole(desk: Desk, trials: int) -> None:
    """Every row has exactly so many complete or pruned trials, no other is open, and nothing was
    lost or made twice."""
    for row in desk.search.rows:
        every = desk.all(row.name)
        states = Counter(trial.state for trial in every)
        assert states[TrialState.COMPLETE] + states[TrialState.PRUNED] == trials, states
        assert not states[TrialState.RUNNING], states
        assert not states[TrialState.WAITING], states
        again = {t.user_attrs.get("retry_of") for t in every}
        for trial in every:
            if trial.state is TrialState.FAIL:  # its settings, if it had any, are in another trial
                assert trial.number in again or "void" in trial.user_attrs, trial
        ended = [t for t in every if t.state is not TrialState.FAIL]
        different = {json.dumps(trial.params, sort_keys=True) for trial in ended}
        assert len(different) == len(ended), "settings were tried twice"
