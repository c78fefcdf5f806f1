"""The collector, against a real MLflow on SQLite."""

import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from harness import track
from harness.config import ConfigError
from harness.launch import launch
from harness.plan import plan
from harness.store import Store


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A finished tiny sweep and its store, collected once."""
    from conftest import TINY

    folder = tmp_path_factory.mktemp("collected")
    (folder / "tiny.yaml").write_text(TINY + "runs: {a: {label: Row A}}\n")
    store, sweep = Store(folder / "runs"), plan(folder / "tiny.yaml")
    store.write_sweep(sweep.record())
    launch(store, sweep, "inline", 1, 1)
    track.prepare(store)
    track.collect(store)
    return store, sweep.runs[0]


def points(store: Store, run_id: str, metric: str) -> list[tuple[int, float]]:
    found = track.tracked(track.uri(store))[run_id]
    return track.history(track.uri(store), found, metric)


def test_a_runs_settings_scores_and_origin_are_in_mlflow(collected):
    store, run = collected
    found = track.tracked(track.uri(store))[run.run_id]
    result = store.run(run.run_id).result()
    assert found.metrics["test/verb_top1"] == result["metrics"]["test/verb_top1"]
    two_handed = result["metrics"]["test/noun_top1[two_handed]"]
    assert found.metrics["test/noun_top1/two_handed"] == two_handed
    assert found.metrics["ceiling/joint/verb_top1"] == result["ceilings"]["joint"]["verb_top1"]
    assert found.metrics["cost/params_m"] == result["cost"]["params_m"]
    assert found.params["fusion.name"] == "single"
    assert found.params["train.peak_lr.fusion"] == "0.001"
    assert found.tags["harness.fingerprint"] == run.spec.fingerprint
    assert found.tags["harness.sweeps"] == "tiny-plain"
    assert found.tags["harness.ceiling"] == "text"
    assert found.tags["harness.dirty"] in ("True", "False")


def test_every_epoch_is_there_once_however_often_it_is_collected(collected):
    store, run = collected
    for _ in range(3):
        track.collect(store)
    rows = store.run(run.run_id).metrics()
    expected = [(row["epoch"], row["train/loss"]) for row in rows]
    assert points(store, run.run_id, "train/loss") == expected
    assert len(MlflowClient(track.uri(store)).search_runs(["1"])) == 1


def test_a_run_that_went_back_to_a_checkpoint_replaces_its_record(store):
    folder = store.run("abc")
    folder.write_spec(
        {"fusion": {"name": "f"}, "seed": 0, "fingerprint": "", "train": {"method": "gradient"}}, {}
    )
    with folder.lease():
        for epoch in (1, 2, 3):
            folder.append_metrics({"epoch": epoch, "time": time.time(), "train/loss": 1.0 * epoch})
    track.prepare(store)
    track.collect(store)
    assert [value for _, value in points(store, "abc", "train/loss")] == [1.0, 2.0, 3.0]
    with folder.lease():
        folder.cut_metrics(2)
        for epoch in (3, 4):
            folder.append_metrics({"epoch": epoch, "time": time.time(), "train/loss": 10.0 * epoch})
    track.collect(store)
    assert [value for _, value in points(store, "abc", "train/loss")] == [1.0, 2.0, 30.0, 40.0]
    runs = MlflowClient(track.uri(store)).search_runs(["1"])
    assert sorted("harness.superseded" in run.data.tags for run in runs) == [False, True]


def test_an_export_that_is_cut_short_is_completed_by_the_next(collected, tmp_path, monkeypatch):
    """Cut after every call it makes to the server, one after the other."""
    store, run = collected
    whole = track.tracked(track.uri(store))[run.run_id]
    address = f"sqlite:///{tmp_path / 'cut.db'}"
    track.prepare(store, address)
    real, calls, refused, allowed = MlflowClient.log_batch, [], [], 0

    def fails_at_last(client, *args, **kwargs):
        if len(calls) == allowed:
            raise MlflowException("database is locked")
        calls.append(1)
        real(client, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", fails_at_last)
    for attempt in range(20):
        allowed = attempt
        calls.clear()
        try:
            track.collect(store, address)
            break
        except ConfigError as error:
            refused.append(str(error))
    assert len(refused) == allowed > 1
    assert all("database is locked" in text for text in refused)
    found = track.tracked(address)[run.run_id]
    assert found.metrics == whole.metrics
    assert found.params == whole.params
    assert {k: v for k, v in found.tags.items() if k.startswith("harness")} == {
        k: v for k, v in whole.tags.items() if k.startswith("harness")
    }
    rows = store.run(run.run_id).metrics()
    losses = track.history(address, found, "train/loss")
    assert losses == [(row["epoch"], row["train/loss"]) for row in rows]


def test_a_process_killed_while_it_makes_the_database_leaves_none(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from harness import track\n"
        "from harness.store import Store\n"
        "track._experiment = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "track.prepare(Store(Path(sys.argv[1])))"
    )
    store = Store(tmp_path / "runs")
    words = [sys.executable, "-W", "ignore", "-c", code, str(store.root)]
    assert subprocess.run(words, check=False).returncode == -9
    assert not store.mlflow_file.exists()
    (store.root / ".mlflow.db.partial").write_text("half")
    track.prepare(store)
    track.collect(store)
    assert track.tracked(track.uri(store)) == {}


def test_a_damaged_database_is_named_with_what_to_do(store):
    store.root.mkdir(parents=True)
    store.mlflow_file.write_text("garbage" * 100)
    with pytest.raises(ConfigError, match=r"mlflow\.db: MLflow: .*delete it"):
        track.prepare(store)


def test_a_new_database_survives_being_prepared_by_many_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from harness import track\n"
        "from harness.store import Store; track.prepare(Store(Path(sys.argv[1])))"
    )
    all_at_once = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "runs")])
        for _ in range(3)
    ]
    assert [process.wait(120) for process in all_at_once] == [0, 0, 0]
    store = Store(tmp_path / "runs")
    assert MlflowClient(track.uri(store)).get_experiment_by_name(track.EXPERIMENT) is not None


def test_the_uri_does_not_depend_on_where_one_stands(store):
    assert track.uri(store) == f"sqlite:///{store.mlflow_file.resolve()}"
    assert track.uri(store, "http://localhost:5000") == "http://localhost:5000"


def test_metric_names_hold_only_what_mlflow_takes():
    assert track.key("verb_top1[two_handed]") == "verb_top1/two_handed"
    assert track.key("odd, name[x]") == "odd_ name/x"


def test_a_database_is_read_as_mlflows_client_reads_it(tmp_path, monkeypatch):
    from mlflow import MlflowClient
    from report_bench import written

    from harness import database, record

    made = written(tmp_path)
    client = MlflowClient(made.uri)
    experiment = client.get_experiment_by_name("harness").experiment_id
    run = next(iter(track.tracked(made.uri).values()))
    client.log_metric(run.mlflow_id, "loss", float("nan"), step=1)
    client.log_metric(run.mlflow_id, "loss", 0.5, step=2)
    gone = client.create_run(experiment, tags={"harness.run_id": "gone"})
    client.delete_run(gone.info.run_id)
    assert database.is_database(made.uri)
    assert not database.is_database("http://127.0.0.1:5000")
    held = record.current(client, experiment)
    histories = track.histories(made.uri, [run], "select/verb_top1")
    loss = track.histories(made.uri, [run], "loss")[run.run_id]
    assert str(loss) == "[(1, nan), (2, 0.5)]"
    monkeypatch.setattr(database, "DATABASE_ENGINES", ())
    assert record.current(client, experiment) == held
    assert track.histories(made.uri, [run], "select/verb_top1") == histories
    assert len(histories[run.run_id]) == 3
