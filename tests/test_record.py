"""One run, one record in MLflow: what holds when several send it at once and no lock helps."""

import contextlib
import time

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from harness import record, track
from harness.store import RunFolder

SPEC = {"fusion": {"name": "f"}, "seed": 0, "fingerprint": "", "train": {"method": "gradient"}}
RESULT = {"metrics": {"test/top1": 0.5}, "cost": {}, "ceilings": {}, "started": 1.0}


def train(folder: RunFolder, epochs, factor: float = 1.0) -> None:
    """Write rows as a run does; `factor` tells one attempt's rows from another's."""
    for epoch in epochs:
        row = {"epoch": epoch, "step": epoch, "time": time.time(), "train/loss": factor * epoch}
        folder.append_metrics(row)


@pytest.fixture
def bench(store):
    """(store, folder of a run with three epochs, its client, id of the experiment)."""
    folder = store.run("abc")
    folder.write_spec(SPEC, {})
    with folder.lease():
        train(folder, (1, 2, 3))
    track.prepare(store)
    client = MlflowClient(track.uri(store))
    return store, folder, client, client.get_experiment_by_name("harness").experiment_id


@pytest.fixture
def no_locks(monkeypatch):
    """As on a file system whose locks do not reach other hosts."""
    monkeypatch.setattr(RunFolder, "exporting", lambda self: contextlib.nullcontext())


def active(client: MlflowClient, experiment: str) -> list:
    return client.search_runs([experiment], "", ViewType.ACTIVE_ONLY)


def losses(client: MlflowClient, mlflow_id: str) -> list[tuple[int, float]]:
    points = client.get_metric_history(mlflow_id, "train/loss")
    return sorted((point.step, point.value) for point in points)


@pytest.mark.parametrize("call", range(4))
def test_two_hosts_that_send_a_run_at_once_leave_one(bench, no_locks, monkeypatch, call):
    """The other host comes in before the first call to the server, the second, and so on."""
    _, folder, client, experiment = bench
    calls = []

    def interrupted(real):
        def method(self, *args, **kwargs):
            calls.append(real.__name__)
            if len(calls) == 1 + call:
                record.send(client, experiment, folder, [], None)
            return real(self, *args, **kwargs)

        return method

    for name in ("create_run", "log_batch", "delete_run"):
        monkeypatch.setattr(MlflowClient, name, interrupted(getattr(MlflowClient, name)))
    record.send(client, experiment, folder, [], None)
    assert len(calls) > call
    (run,) = active(client, experiment)
    assert losses(client, run.info.run_id) == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert not record.send(client, experiment, folder, [], None)


def test_a_run_deleted_under_ones_hands_is_written_to_the_one_that_stays(
    bench, no_locks, monkeypatch
):
    _, folder, client, experiment = bench
    real, calls = MlflowClient.log_batch, []

    def log_batch(self, mlflow_id, *args, **kwargs):
        calls.append(mlflow_id)
        if len(calls) == 2:  # another host had made its own, and keeps that
            client.delete_run(mlflow_id)
        real(self, mlflow_id, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    assert record.send(client, experiment, folder, [], None)
    (run,) = active(client, experiment)
    assert run.info.run_id not in calls[:2]
    assert losses(client, run.info.run_id) == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_several_records_that_a_race_has_left_become_one_at_the_next_collecting(bench):
    store, _, client, experiment = bench
    track.collect(store)
    client.create_run(experiment, tags={"harness.run_id": "abc"})
    track.collect(store)
    (run,) = active(client, experiment)
    assert losses(client, run.info.run_id) == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_an_old_view_of_the_folder_takes_nothing_back(bench):
    """As another host has it for a minute on a network file system."""
    store, folder, client, experiment = bench
    rows = folder.metrics()
    folder.write_result({**RESULT, "finished": time.time()})
    track.collect(store)
    before = client.search_runs([experiment])[0]
    (folder.path / "result.json").unlink()
    for seen in (3, 2):
        folder.cut_metrics(seen)
        track.collect(store)
    (after,) = active(client, experiment)
    assert after.data.tags == before.data.tags
    assert after.info.status == "FINISHED"
    assert losses(client, after.info.run_id) == [(row["epoch"], row["train/loss"]) for row in rows]


def test_rows_that_come_again_as_they_were_stay_and_others_replace_the_record(bench):
    """A run that was requeued, and is at its checkpoint again."""
    store, folder, client, experiment = bench
    track.collect(store)
    (before,) = active(client, experiment)
    folder.cut_metrics(2)
    track.collect(store)
    (cut,) = active(client, experiment)
    assert (cut.info.run_id, len(losses(client, cut.info.run_id))) == (before.info.run_id, 3)
    with folder.lease():
        train(folder, (3, 4), 10.0)
    track.collect(store)
    found = track.tracked(track.uri(store))["abc"]
    assert found.mlflow_id != before.info.run_id
    assert losses(client, found.mlflow_id) == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]


def test_rows_sent_just_before_the_server_died_are_not_there_twice(bench, monkeypatch):
    """Rows arrive, the note of them does not; then the run goes back to its checkpoint."""
    store, folder, client, experiment = bench
    track.collect(store)
    train(folder, (4, 5))
    real = MlflowClient.log_batch

    def dies(self, mlflow_id, metrics=(), params=(), tags=(), **kwargs):
        if tags:
            raise MlflowException("the server died")
        real(self, mlflow_id, metrics, params, tags, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_batch", dies)
        with pytest.raises(MlflowException):
            record.send(client, experiment, folder, [], None)
    folder.cut_metrics(4)
    record.send(client, experiment, folder, [], None)
    train(folder, (5,), 10.0)
    track.collect(store)
    found = track.tracked(track.uri(store))["abc"]
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 50.0)]
    assert losses(client, found.mlflow_id) == expected


def test_what_was_written_while_one_sent_is_sent_too(bench, monkeypatch):
    _, folder, client, experiment = bench
    real, calls = MlflowClient.log_batch, []

    def log_batch(self, *args, **kwargs):
        real(self, *args, **kwargs)
        if not calls:
            train(folder, (4,))
        calls.append(1)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    record.send(client, experiment, folder, [], None)
    (run,) = active(client, experiment)
    assert run.data.metrics["train/loss"] == 4.0
    assert run.data.tags["harness.history"].startswith("4:")
