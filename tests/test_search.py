"""Searches: what is proposed, what is counted, and that no trial is lost."""

import json
import os
import random
import shutil
import subprocess
import time
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from search_bench import SEARCH, SPACE, check_whole, desk_of, play, play_together, search_file

from harness.config import ConfigError
from harness.lease import Lease, LeaseLost
from harness.search.planning import plan_search
from harness.search.spec import Parameter, grid_of
from harness.store import Store


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return search_file(tmp_path)


def changed(folder: Path, old: str, new: str, base: str = SEARCH) -> Path:
    assert old in SPACE
    return search_file(folder, SPACE.replace(old, new), base)


# what is wrong is said before anything runs

MISTAKES = {
    "unknown key": (
        "train.weight_decay:", "train.weight_decy:",
        r":17: train.weight_decy: no such key. Did you mean 'weight_decay'?",
    ),
    "unknown option": (
        "n_startup_trials: 3", "n_startup: 3",
        ":19: search.sampler.options.n_startup: no such key. Did you mean 'n_startup_trials'?",
    ),
    "unknown sampler": ("name: tpe", "name: tpee", ":19: search.sampler.name: input should be"),
    "low above high": (
        "[1e-4, 1e-1]", "[1e-1, 1e-4]",
        ":16: search.space.train.peak_lr.fusion: value error, log_uniform: 0.1 is more than 0.0001",
    ),
    "no logarithm": ("[1e-4, 1e-1]", "[0, 1e-1]", "log_uniform: 0 has no logarithm"),
    "one value": ("[1e-4, 1e-1]", "[1e-1, 1e-1]", "0.1 to 0.1 is one value; set it in `base`"),
    "no kind": ("log_uniform: [1e-4, 1e-1], ", "", "exactly one of uniform, log_uniform"),
    "unknown metric": (
        "metric: verb_top1", "metric: verb_topp1",
        ":18: search.objective.metric: unknown metric 'verb_topp1'. Did you mean 'verb_top1'?",
    ),
    "on test": (
        "metric: verb_top1", "metric: verb_top1, split: test",
        ":18: search.objective: value error, split: test is what the tables show",
    ),
    "pruned on test": (
        "metric: verb_top1", "metric: verb_top1, split: test, allow_test: true",
        ":20: search.pruner: median compares after each epoch, and test is only scored at the end",
    ),
    "a seed of the final runs": (
        "budget:", "seeds: [1]\n  budget:",
        "search.seeds: 1 is also a seed of the final runs of one; these must be fresh",
    ),
    "no budget": ("{trials: 6}", "{}", "name at least one of trials, epochs, minutes"),
    "unknown row": (
        "budget:", "rows: {tow: {}}\n  budget:", "search.rows: unknown row 'tow'. Did you mean",
    ),
    "unknown condition": (
        "{categorical: [0.0, 0.1]}", "{categorical: [0.0, 0.1], when: {train.optimizer: sgd}}",
        "when: no parameter above it is called 'train.optimizer'",
    ),
    "grid of a range": (
        "{name: tpe, options: {n_startup_trials: 3}}", "{name: grid}",
        "search.space.train.peak_lr.fusion: a grid needs `points` of log_uniform",
    ),
    "a seed is searched": (
        "train.weight_decay:", "seed:", "search.space.seed: seed is no setting of a run",
    ),
    "odd option": (
        "n_startup_trials: 2}", "n_startup_trials: -2}", ":20: search.pruner.options: ",
    ),
    "equal values": (
        "[0.0, 0.1]", "[0, false]", "categorical: False equals a value before it",
    ),
    "a step too far": (
        "{categorical: [0.0, 0.1]}", "{uniform: [0.0, 0.1], step: 0.04}",
        "steps of 0.04 from 0 end at 0.08, not",
    ),
    "an empty title": ("budget:", 'written: ""\n  budget:', "search.written: string should have"),
    "a seed without a number": (
        "budget:", "seeds: [{train.epochs: 2}]\n  budget:", "seeds: a mapping needs the key `seed`",
    ),
    "nobody asked for it": (
        "objective:", "objectives: {}\n  objective:", "search.objectives: no such key. Did you",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_in_a_search_is_told_by_name_when_it_is_planned(what, tmp_path):
    old, new, message = MISTAKES[what]
    with pytest.raises(ConfigError) as found:
        plan_search(changed(tmp_path, old, new))
    assert message in str(found.value), str(found.value)
    assert "tiny.yaml:" in str(found.value)


def test_a_pruner_needs_epochs_to_compare(tmp_path):
    with pytest.raises(ConfigError, match=r"tiny.yaml:20: search.pruner: median .* one has one"):
        plan_search(search_file(tmp_path, base=SEARCH.replace("epochs: 3", "epochs: 1")))


def test_a_row_that_has_no_score_cannot_be_searched(tmp_path):
    base = SEARCH.replace("fusion: {name: mean}}", "fusion: {name: mean}, train.method: cost}")
    with pytest.raises(ConfigError, match="two is not trained by epochs"):
        plan_search(search_file(tmp_path, base=base))


def test_what_set_has_the_last_word_on_is_not_searched(file):
    with pytest.raises(ConfigError, match="make the same run: --set"):
        plan_search(file, None, ["train.weight_decay=0.5"])


def test_what_is_searched_is_not_changed_by_set(file):
    with pytest.raises(ConfigError, match="is changed in the file, not here"):
        plan_search(file, None, ["search.space.train.weight_decay.categorical=[0.5, 0.6]"])


def test_a_preset_replaces_a_parameter_as_a_whole_and_keeps_the_others(tmp_path):
    presets = """
presets:
  wide:
    search: {space: {train.weight_decay: {uniform: [0.0, 0.5]}}, budget: {trials: 3}}
"""
    (row, _) = plan_search(search_file(tmp_path, presets + SPACE)).rows
    assert row.space["train.weight_decay"].uniform == (0.0, 0.5)
    assert row.space["train.peak_lr.fusion"].also == ["train.peak_lr.head"]
    assert row.trials == 3


def test_seeds_that_change_other_settings_do_so_in_trials_and_final_runs(tmp_path, store):
    base = SEARCH.replace(
        "seeds: [0, 1]",
        "seeds: [{seed: 0, data.options.seed: 5}, {seed: 1, data.options.seed: 6}]",
    )
    search = SPACE.replace("budget:", "seeds: [{seed: 9, data.options.seed: 7}]\n  budget:")
    desk = desk_of(search_file(tmp_path, search, base), store)
    claim = desk.claim("a")
    assert [run.spec.data.options["seed"] for run in claim.runs] == [7]
    best = desk.trials.best(claim.row, claim.trial.params)
    assert [run.spec.data.options["seed"] for run in best] == [5, 6]
    written = [run for run in desk.search.written.runs if run.row == "one"]
    assert [run.spec.data.options["seed"] for run in written] == [5, 6]


def test_rows_of_different_blocks_stay_apart(tmp_path, store):
    base = SEARCH.replace("{label: One,", "{label: One, block: frames,")
    desk = desk_of(search_file(tmp_path, SPACE, base), store)
    blocks = {run.row: run.block for run in desk.search.written.runs}
    assert blocks == {"one": "frames, as written", "two": "as written"}


def test_sweep_and_search_each_say_which_of_them_a_file_is_for(file, tmp_path, capsys):
    from harness.plan import plan

    with pytest.raises(ConfigError, match=r"tiny.yaml:14: search: .* `harness search"):
        plan(file)
    bare = search_file(tmp_path, "", SEARCH)
    with pytest.raises(ConfigError, match=r"no section `search`; `harness sweep"):
        plan_search(bare)


# proposals


@pytest.mark.parametrize("name", ["tpe", "gp", "random", "qmc", "grid"])
def test_one_worker_is_proposed_the_same_again_also_when_it_is_replaced_on_the_way(name, tmp_path):
    space = SPACE.replace("{name: tpe, options: {n_startup_trials: 3}}", f"{{name: {name}}}")
    space = space.replace("1e-1], also", "1e-1], points: 4, also")
    file = search_file(tmp_path, space)
    once = play(desk_of(file, Store(tmp_path / "once")), "a")
    first = play(desk_of(file, Store(tmp_path / "twice")), "b", most=3)
    second = play(desk_of(file, Store(tmp_path / "twice")), "c")
    assert first + second == once
    assert len(once) == 12
    other = play(desk_of(file, Store(tmp_path / "other"), "search.seed=1"), "a")
    if name != "qmc":  # Sobol's sequence is always the same
        assert other != once


def test_every_row_gets_the_same_first_proposals(file, store):
    given = play(desk_of(file, store), "a")
    rows = {row: [params for name, params in given if name == row] for row in ("one", "two")}
    assert rows["one"][:3] == rows["two"][:3]


def test_a_grid_ends_when_it_is_through(tmp_path, store):
    space = SPACE.replace("{name: tpe, options: {n_startup_trials: 3}}", "{name: grid}")
    space = space.replace("1e-1], also", "1e-1], points: 2, also").replace("trials: 6", "trials: 9")
    desk = desk_of(search_file(tmp_path, space), store)
    play(desk, "a")
    check_whole(desk, 4)


def test_a_grid_has_the_ends_of_a_range_and_even_steps_between():
    assert grid_of(Parameter(log_uniform=(1e-3, 1e-1), points=3)) == pytest.approx(
        [1e-3, 0.01, 0.1]
    )
    assert grid_of(Parameter(uniform=(0, 1), step=0.25)) == [0, 0.25, 0.5, 0.75, 1]
    assert grid_of(Parameter(integer=(4, 16), step=4)) == [4, 8, 12, 16]
    assert grid_of(Parameter(uniform=(0, 1))) is None


def test_a_condition_decides_whether_a_setting_is_tried(tmp_path, store):
    space = SPACE.replace(
        "    train.weight_decay: {categorical: [0.0, 0.1]}",
        "    train.optimiser: {categorical: [sgd, adamw]}\n"
        "    train.momentum: {uniform: [0.5, 0.9], when: {train.optimiser: sgd}}",
    ).replace("trials: 6", "trials: 12")
    desk = desk_of(search_file(tmp_path, space), store)
    given = [params for _, params in play(desk, "a")]
    assert {params["train.optimiser"] for params in given} == {"sgd", "adamw"}
    for params in given:
        assert ("train.momentum" in params) == (params["train.optimiser"] == "sgd")


def test_settings_that_follow_get_the_same_value(file, store):
    desk = desk_of(file, store)
    claim = desk.claim("a")
    rates = claim.runs[0].spec.train.peak_lr
    assert rates.fusion == rates.head == claim.trial.params["train.peak_lr.fusion"]
    assert rates.encoder == 1e-3


def test_a_row_may_search_what_others_do_not(tmp_path, store):
    space = SPACE.replace(
        "  objective",
        "  rows: {two: {train.weight_decay: null, width: {integer: [8, 9]}}}\n  objective",
    )
    desk = desk_of(search_file(tmp_path, space), store)
    given = play(desk, "a")
    assert all("width" not in params for row, params in given if row == "one")
    assert all(
        set(params) == {"train.peak_lr.fusion", "width"} for r, params in given if r == "two"
    )


def test_budgets_of_epochs_and_minutes_end_a_row_and_are_never_exceeded(tmp_path, store):
    file = search_file(tmp_path, SPACE.replace("{trials: 6}", "{epochs: 10}"))
    desk = desk_of(file, store, "search.pruner={name: none, options: {}}")
    play(desk, "a", seconds=1.0)
    check_whole(desk, 3)  # of 3 epochs each; a fourth could have made it 12
    other = Store(tmp_path / "other")
    unpruned = "search.pruner={name: none, options: {}}"
    file = search_file(tmp_path, SPACE.replace("{trials: 6}", "{minutes: 1}"))
    desk = desk_of(file, other, unpruned)
    play(desk, "a", seconds=40 / 3)
    check_whole(desk, 2)  # begun at 0 and at 40 seconds


@pytest.mark.parametrize(
    ("name", "options"), [("median", "{}"), ("asha", "{}"), ("hyperband", "{}")]
)
def test_each_pruner_ends_what_falls_behind(name, options, tmp_path, store):
    space = SPACE.replace(
        "{name: median, options: {n_startup_trials: 2}}", f"{{name: {name}, options: {options}}}"
    ).replace("trials: 6", "trials: 16")
    base = SEARCH.replace("epochs: 3", "epochs: 9")
    desk = desk_of(search_file(tmp_path, space, base), store)
    play(desk, "a", random.Random(0))
    states = [trial.state for trial in desk.all("one")]
    assert TrialState.PRUNED in states
    assert TrialState.COMPLETE in states


# what is lost when processes die


def test_the_trial_of_a_dead_worker_fails_and_is_tried_again_with_the_same_settings(file, store):
    desk = desk_of(file, store)
    claim = desk.claim("nobody")  # has no lease: as dead as can be
    again = desk.claim("nobody")
    assert desk.all("one")[0].state is TrialState.FAIL
    assert again.trial.params == claim.trial.params
    assert [run.run_id for run in again.runs] == [run.run_id for run in claim.runs]
    desk.complete(claim, 1.0)  # the dead one comes back: nobody listens
    assert desk.all("one")[0].state is TrialState.FAIL
    play(desk, "a")
    check_whole(desk, 6)


def test_a_worker_that_dies_before_its_trial_has_settings_changes_no_proposal(
    file, tmp_path, monkeypatch
):
    expected = play(desk_of(file, Store(tmp_path / "calm")), "a")
    store = Store(tmp_path / "stormy")
    desk = desk_of(file, store)

    def dies(*args, **kwargs):
        raise KeyboardInterrupt

    given = []
    for place in ("set_user_attr", "suggest_float", "suggest_categorical"):
        with monkeypatch.context() as patched:
            patched.setattr(optuna.Trial, place, dies)
            with pytest.raises(KeyboardInterrupt):
                desk.claim("a")
        given += play(desk_of(file, store), "b", most=2)
    given += play(desk, "c")
    assert given == expected
    check_whole(desk, 6)


def test_a_trial_whose_workers_die_again_and_again_is_given_up(file, store):
    desk = desk_of(file, store, "search.budget.trials=1", "search.failures=1")
    for _ in range(12):
        claim = desk.claim("nobody")
        if claim is None or claim.row.name == "two":
            break
    desk.reap()
    assert [t.user_attrs["failed"] for t in desk.failed(desk.search.rows[0])] == [
        "its worker died 11 times"
    ]


def test_failed_trials_end_a_row_and_are_tried_again_when_asked(file, store):
    desk = desk_of(file, store)
    for _ in range(6):
        claim = desk.claim("nobody")
        desk.fail(claim, "ValueError: no")
    assert desk.claim("nobody") is None
    assert desk.given_up(desk.search.rows[0])
    desk.retry()
    play(desk, "a")
    check_whole(desk, 6)


def test_a_budget_of_epochs_ends_also_where_few_settings_are_different(tmp_path, store):
    space = SPACE.replace("{log_uniform: [1e-4, 1e-1], also: [train.peak_lr.head]}",
                          "{categorical: [0.001, 0.01]}")  # fmt: skip
    desk = desk_of(search_file(tmp_path, space.replace("trials: 6", "epochs: 1000")), store)
    assert len(play(desk, "a", most=100)) == 8  # 4 of each row


def test_an_epoch_in_which_the_loss_diverged_is_paid_for(file, store):
    desk = desk_of(file, store, "search.budget={epochs: 6}")
    for _ in range(4):
        claim = desk.claim("nobody")
        folder = store.run(claim.runs[0].run_id)
        with folder.lease():
            folder.add_attempt({"time": time.time() - 5})
            folder.append_metrics({"epoch": 1, "step": 2, "time": time.time() - 4,
                                   "epoch_seconds": 1.0})  # fmt: skip
            folder.write_failure("FloatingPointError: the loss is nan")
        desk.prune(claim, "FloatingPointError: the loss is nan")
    (spent,) = {tuple(used[:1]) for used in desk.spent(desk.search.rows[0]).values()}
    assert spent == (2,)
    assert desk.claim("nobody") is None  # 4 of 6 epochs are spent, a trial may take 3
    seconds = [used[1] for used in desk.spent(desk.search.rows[0]).values()]
    assert all(4 < one < 8 for one in seconds)


def test_a_row_that_was_given_up_has_no_best_settings(file, store):
    desk = desk_of(file, store)
    for number in range(8):
        claim = desk.claim("nobody")
        if claim.row.name == "one" and number >= 2:
            desk.fail(claim, "ValueError: no")
        else:
            desk.complete(claim, 0.5)
    play(desk, "a")
    assert {row.name: desk.best(row) is None for row in desk.search.rows} == {
        "one": True,
        "two": False,
    }


def test_the_worker_of_another_version_of_the_file_does_not_write_the_record(file, store):
    old = desk_of(file, store)
    old.take_over()
    new = desk_of(file, store, "search.budget.trials=8")
    new.take_over()
    play(old, "a", most=2)
    stored = store.read_search("tiny", "")["search"]
    assert stored["digest"] == new.search.digest
    assert stored["budget"]["trials"] == 8


def test_processes_of_a_worker_that_die_are_no_fault_of_the_settings(file, store):
    from harness.job import Told
    from harness.peers import PeerLost
    from harness.search.shift import Shift
    from harness.search.worker import Worker, _ends

    desk = desk_of(file, store)
    worker = Worker(desk.search, str(store.root), None, 1)
    shift = Shift(worker, desk, "a", Told(), alone=False)
    with Lease(desk.workers / "a.json"):
        for error in (PeerLost("gone"), LeaseLost("taken over"), KeyboardInterrupt()):
            run_id = shift.next()
            with pytest.raises(type(error)), _ends(shift, ranks=2):
                raise error
            assert shift.claim is None
            again = [t for t in desk.all("one") if t.state is TrialState.WAITING]
            assert [t.user_attrs["retry_of"] for t in again] == [len(desk.all("one")) - 2]
        assert desk.failed(desk.search.rows[0]) == []
        assert shift.next() == run_id
        with _ends(shift, ranks=2):  # all of them raise it, and go on
            raise FloatingPointError("the loss is nan")
        assert desk.all("one")[-1].state is TrialState.PRUNED


def test_a_score_that_cannot_be_reported_does_not_end_the_run(file, store, monkeypatch, capsys):
    from harness.job import Told
    from harness.search.shift import Shift
    from harness.search.worker import Worker

    desk = desk_of(file, store)
    shift = Shift(Worker(desk.search, str(store.root), None, 1), desk, "a", Told(), alone=True)
    with Lease(desk.workers / "a.json"):
        shift.next()

        def away(*args):
            raise optuna.exceptions.StorageInternalError("no connection")

        monkeypatch.setattr(desk, "report", away)
        shift.on_step(3, 6, 0.5)
        assert not shift.stop()
    assert (
        "the studies cannot be reached, the run goes on: no connection" in capsys.readouterr().err
    )


@pytest.mark.parametrize("op", [4, 5, 6])
def test_a_journal_cut_at_any_kind_of_line_loses_no_trial(op, file, store):
    """4 makes a trial, 5 gives it a value, 6 ends it."""
    desk = desk_of(file, store)
    play(desk, "a")
    ended = {str(t.params): (t.state, t.value) for t in desk.all("one")}
    lines = desk.journal.read_bytes().splitlines(keepends=True)
    places = [n for n, line in enumerate(lines) if json.loads(line)["op_code"] == op]
    cut = places[len(places) // 2] + (op != 6)
    desk.journal.write_bytes(b"".join(lines[:cut]) + b"{torn\n" + b"".join(lines[cut:]))
    again = desk_of(file, store)
    play(again, "b")
    check_whole(again, 6)
    kept = {str(t.params): (t.state, t.value) for t in again.all("one") if t.value is not None}
    assert kept == ended


@pytest.mark.parametrize("damage", ["tail", "middle", "gone"])
def test_a_damaged_journal_is_brought_back_with_every_trial(damage, file, store, capsys):
    desk = desk_of(file, store, "search.budget.trials=4")
    play(desk, "a")
    before = [(t.number, t.state, t.params, t.value) for t in desk.all("one")]
    journal = desk.journal
    lines = journal.read_bytes().splitlines(keepends=True)
    if damage == "tail":
        journal.write_bytes(b"".join(lines) + lines[-1][:9])
    elif damage == "middle":
        half = len(lines) // 2
        journal.write_bytes(b"".join([*lines[:half], lines[half][:7], *lines[half:]]))
    else:
        journal.unlink()
    again = desk_of(file, store)
    assert [(t.number, t.state, t.params, t.value) for t in again.all("one")] == before
    if damage != "gone":
        assert len(list(journal.parent.glob("study.journal.damaged-*"))) == 1
        assert "a copy" in capsys.readouterr().err
    play(again, "b")
    check_whole(again, 6)


def test_a_line_cut_short_while_others_work_is_taken_away_before_the_next(file, store):
    desk, other = desk_of(file, store), desk_of(file, store)
    play(desk, "a", most=2)
    with open(desk.journal, "ab") as journal:
        journal.write(b'{"op_code": 4, "wor')  # its writer died, or the disk was full
    play(other, "b", most=2)
    play(desk, "a")
    check_whole(desk_of(file, store), 6)


# many at once


def postgres(folder: Path):
    """Debian's PostgreSQL, for this test alone, on loopback; (URL, how to stop it)."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL here (Debian: apt install postgresql)")
    pytest.importorskip("psycopg")
    here, data = found[-1].parent, folder / "pg"
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    as_user = user if os.geteuid() == 0 else []
    data.mkdir()
    if as_user:
        shutil.chown(data, "postgres", "postgres")
        for parent in (folder, *folder.parents):
            if parent.stat().st_uid == 0 and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o011)
    port = random.randrange(20_000, 30_000)
    made = [*as_user, str(here / "initdb"), "-D", str(data / "db"), "-U", "me", "-A", "trust"]
    subprocess.run(made, check=True, capture_output=True, cwd="/")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
    control = [*as_user, str(here / "pg_ctl"), "-D", str(data / "db"), "-w", "-o", options]
    log = ["-l", str(data / "log")]
    subprocess.run([*control, *log, "start"], check=True, capture_output=True, cwd="/")
    stop = [*as_user, str(here / "pg_ctl"), "-D", str(data / "db"), "-m", "immediate", "stop"]
    return f"postgresql+psycopg://me@127.0.0.1:{port}/postgres", stop


@pytest.mark.parametrize("kind", ["journal", "sqlite", "postgresql"])
def test_eight_workers_at_one_storage_make_no_error_and_no_trial_too_many(
    kind, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    file, root, stop = search_file(tmp_path), tmp_path / "runs", None
    url = {"journal": None, "sqlite": f"sqlite:///{tmp_path}/studies.db"}.get(kind)
    if kind == "postgresql":
        url, stop = postgres(tmp_path)
    try:
        assert play_together(file, root, url, workers=8) == []
        with closing(desk_of(file, Store(root), url=url)) as desk:
            check_whole(desk, 6)
    finally:
        if stop:
            subprocess.run(stop, check=True, capture_output=True, cwd="/")


def test_a_database_has_the_same_proposals_as_the_journal(file, tmp_path):
    url = f"sqlite:///{tmp_path}/studies.db"
    in_journal = play(desk_of(file, Store(tmp_path / "a")), "a")
    with closing(desk_of(file, Store(tmp_path / "b"), url=url)) as desk:
        assert play(desk, "a") == in_journal


def test_a_database_that_cannot_be_opened_is_named_without_its_password(file, store):
    with pytest.raises(ConfigError) as found:
        desk_of(file, store, url="sqlite:////no/such/folder/studies.db")
    assert "search storage sqlite" in str(found.value)
    with pytest.raises(ConfigError) as found:
        desk_of(file, store, url="nosuch://me:secret@host/db")
    assert "secret" not in str(found.value)


def test_a_password_is_not_handed_to_workers(file, run_here, tmp_path):
    from harness.search.worker import IN_SITE, storage_of

    url = "postgresql+psycopg://me:secret@127.0.0.1:9/studies"
    said = run_here("search", str(file), "--storage", url)
    assert said.exit_code == 2
    assert "me:***@127" in said.stderr
    assert "secret" not in said.stderr
    (tmp_path / "harness.site.yaml").write_text(f'search_storage: "{url}"\n')
    assert storage_of(IN_SITE) == url
