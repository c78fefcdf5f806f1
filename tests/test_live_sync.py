"""Runs that send themselves to a real tracking server, which dies, comes back, or hangs."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import submitit
from conftest import TINY
from mlflow import MlflowClient
from mlflow.entities import ViewType

from harness import lease, live_sync, track
from harness.cli import main
from harness.files import write_json
from harness.launch import launch
from harness.lease import LeaseTaken, me
from harness.plan import plan
from harness.run import run as execute
from harness.store import RunFolder, Store

pytestmark = pytest.mark.alone  # a sender has seconds to bring a server up to date

EPOCHS, HALF = 12, 6
TEXT = TINY.replace("epochs: 3", f"epochs: {EPOCHS}") + "runs: {a: {}}\nseeds: [SEED]\n"
BEGIN = f"""
import sys, time
from pathlib import Path
from harness import live_sync
from harness.run import run
from harness.store import Store

live_sync.EVERY_SECONDS = 0.3
store = Store(Path(sys.argv[1]))
with live_sync.syncing(store, *sys.argv[2:]):
    run(store, sys.argv[2], lambda step, total, loss: time.sleep(1000 * (step > {4 * HALF})))
"""
"""a run that comes half way"""


class Server:
    """`mlflow server` on a database of its own; several processes, one group."""

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def begin(self) -> None:
        words = [
            "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}", "--workers", "1",
            "--default-artifact-root", str(self.folder), "--port", str(self.port),
        ]  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait(self) -> None:
        until(self.answers, 120)

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.uri}/health", timeout=1).status == 200
        return False

    def tell(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.tell(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def runs(self, run_id: str) -> list:
        """MLflow runs of a run that are not superseded."""
        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name(track.EXPERIMENT)
        if experiment is None:
            return []
        found = client.search_runs([experiment.experiment_id], "", ViewType.ACTIVE_ONLY)
        return [
            run
            for run in found
            if run.data.tags["harness.run_id"] == run_id
            and "harness.superseded" not in run.data.tags
        ]

    def rows(self, run_id: str) -> int:
        """Rows that the server says it has of a run."""
        tags = [run.data.tags for run in self.runs(run_id)]
        return int(tags[0].get("harness.history", "0:").split(":")[0]) if tags else 0


def until(true, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(live_sync, "EVERY_SECONDS", 0.3)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
        server = Server(tmp_path_factory.mktemp("server"))
        server.begin()
        yield server
        server.kill()


@pytest.fixture
def server(served):
    """The one server of these tests, up again if one of them killed it."""
    if served.process is None:
        served.begin()
    served.wait()
    return served


def planned(folder: Path, seed: int) -> tuple[Store, RunFolder]:
    """A run of its own for each test."""
    (folder / "tiny.yaml").write_text(TEXT.replace("SEED", str(seed)))
    sweep, store = plan(folder / "tiny.yaml"), Store(folder / "runs")
    run = store.run(sweep.runs[0].run_id)
    run.write_spec(sweep.runs[0].spec.model_dump(mode="json"), sweep.paths)
    return store, run


def trained(store: Store, run: RunFolder, uri: str, half_way) -> float:
    """Make the run here, and do something half way; seconds it took to end after its result."""

    def on_step(step: int, total: int, loss: float) -> None:
        if step == 4 * HALF + 1:
            half_way()

    with live_sync.syncing(store, run.run_id, uri):
        execute(store, run.run_id, on_step)
    return time.time() - run.result()["finished"]


def same_bits(run: RunFolder, folder: Path, seed: int) -> bool:
    """Whether the run came out as one that knows of no server."""
    (folder / "calm").mkdir()
    store, calm = planned(folder / "calm", seed)
    launch(store, plan(folder / "calm" / "tiny.yaml"), "inline", 1, 1)
    assert calm.run_id == run.run_id
    logits = calm.predictions().logits
    return run.result()["metrics"] == calm.result()["metrics"] and all(
        np.array_equal(value, logits[name]) for name, value in run.predictions().logits.items()
    )


def whole(server: Server, run: RunFolder) -> bool:
    """Whether the server has the run once, as its folder has it, each step once."""
    (found,) = server.runs(run.run_id)
    points = MlflowClient(server.uri).get_metric_history(found.info.run_id, "train/loss")
    expected = [(row["epoch"], row["train/loss"]) for row in run.metrics()]
    test = run.result()["metrics"]["test/verb_top1"]
    return (
        sorted((point.step, point.value) for point in points) == expected
        and len(expected) == EPOCHS
        and found.data.metrics["test/verb_top1"] == test
        and found.info.status == "FINISHED"
        and found.data.tags["harness.status"] == "done"
    )


def test_killed_resumed_and_collected_meanwhile_a_run_has_one_record(server, tmp_path):
    store, run = planned(tmp_path, 1)
    words = [sys.executable, "-c", BEGIN, str(store.root), run.run_id, server.uri]
    with subprocess.Popen(words) as process:
        until(lambda: server.rows(run.run_id) == HALF)
        assert run.state() == "running"
        assert server.runs(run.run_id)[0].info.status == "RUNNING"
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    until(lambda: not Path(f"/proc/{child}").exists())
    assert server.runs(run.run_id)[0].info.status == "KILLED"
    stop = threading.Event()

    def collector() -> None:
        while not stop.is_set():
            track.collect(store, server.uri)

    other = threading.Thread(target=collector)
    other.start()
    trained(store, run, server.uri, lambda: until(lambda: server.rows(run.run_id) >= HALF))
    stop.set()
    other.join()
    assert run.attempts() == 2
    assert whole(server, run)
    track.collect(store, server.uri)
    assert track.collect(store, server.uri).sent == 0


def test_a_server_killed_for_good_changes_nothing_and_sync_completes_the_record(
    server, tmp_path, monkeypatch, capfd
):
    store, run = planned(tmp_path, 3)

    def half_way() -> None:
        until(lambda: server.rows(run.run_id) == HALF)
        server.kill()
        time.sleep(1)  # it tries more than once

    assert trained(store, run, server.uri, half_way) < live_sync.END_SECONDS
    (line,) = [one for one in capfd.readouterr().err.splitlines() if "server" in one]
    assert "MLflow's server does not answer (Connection re" in line  # refused, or reset
    assert same_bits(run, tmp_path, 3)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "harness.site.yaml").write_text(f"mlflow_uri: {server.uri}\n")
    capfd.readouterr()
    command(monkeypatch, "sweep", "tiny.yaml", "--launcher", "inline")
    err = capfd.readouterr().err
    assert "`harness sync` completes the record when it is back; the sweep goes on" in err
    assert "1 done before" in err
    for name in ("report", "sync"):
        assert command(monkeypatch, name) == 2
        assert len(capfd.readouterr().err.strip().splitlines()) == 1

    server.begin()
    server.wait()
    command(monkeypatch, "sync")
    assert capfd.readouterr().out == f"{server.uri}: 1 runs, 1 brought up to date, 0 running\n"
    command(monkeypatch, "sync", "--follow", "1")
    assert "0 brought up to date" in capfd.readouterr().out
    assert whole(server, run)


def command(monkeypatch, *words: str) -> int:
    """Exit code of `harness WORDS`, in this process."""
    monkeypatch.setattr(sys, "argv", ["harness", *words])
    with pytest.raises(SystemExit) as told:
        main()
    return int(told.value.code or 0)


def test_a_server_that_accepts_and_never_answers_slows_nothing(server, tmp_path, capfd):
    store, run = planned(tmp_path, 4)

    def half_way() -> None:
        until(lambda: server.rows(run.run_id) == HALF)
        server.tell(signal.SIGSTOP)

    try:
        seconds = trained(store, run, server.uri, half_way)
        with pytest.raises(track.ServerAway, match="timed out"):
            track.collect(store, server.uri)
    finally:
        server.tell(signal.SIGCONT)
    assert seconds < 2 * live_sync.END_SECONDS
    assert capfd.readouterr().err.count("does not answer") <= 1
    assert same_bits(run, tmp_path, 4)
    track.collect(store, server.uri)
    assert whole(server, run)


def test_a_run_that_another_process_is_at_is_not_sent(tmp_path, capfd):
    store, run = planned(tmp_path, 5)
    first = {**me(), "pid": 1, "started": lease._start_time(1), "fence": 1, "released": False}
    write_json(run.path / "lease.json", first)
    with pytest.raises(LeaseTaken):
        trained(store, run, "http://127.0.0.1:9", lambda: None)
    assert "does not answer" not in capfd.readouterr().err


def test_without_a_collector_the_record_is_complete_when_the_run_ends(
    server, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(live_sync, "END_SECONDS", 60.0)  # else a busy machine fails here
    store, run = planned(tmp_path, 2)
    launch(store, plan(tmp_path / "tiny.yaml"), "inline", 1, 1, mlflow_uri=server.uri)
    assert whole(server, run)
    *groups, line = capfd.readouterr().err.splitlines()
    assert line.startswith("done ")
    assert groups[0].startswith("trained ")  # what every run prints, and nothing of the server
    assert not any("server" in one for one in groups)


def test_a_worker_of_the_local_launcher_is_told_the_server(tmp_path, monkeypatch):
    def submit(self, function, *words):
        raise ValueError(words)

    monkeypatch.setattr(submitit.LocalExecutor, "submit", submit)
    store, _ = planned(tmp_path, 6)
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:9"):
        launch(store, plan(tmp_path / "tiny.yaml"), "local", 1, 1, mlflow_uri="http://127.0.0.1:9")


def test_a_worker_opens_no_database_and_imports_no_mlflow(tmp_path):
    code = (
        "import sys\n"
        "seen = []\n"
        "sys.addaudithook(lambda name, args: seen.append((name, str(args))))\n"
        "from harness.launch import work\n"
        "work(*sys.argv[1:], 1, f'sqlite:///{sys.argv[1]}/mlflow.db')\n"
        "print([n for n, args in seen if n == 'subprocess.Popen' and 'live_sync' in args])\n"
        "print([name for name, _ in seen if name.startswith('sqlite3.')])\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'mlflow'])\n"
    )
    store, run = planned(tmp_path, 7)
    words = [sys.executable, "-W", "ignore", "-c", code, str(store.root), run.run_id]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]", "[]"]
    assert run.state() == "done"
    assert not store.mlflow_file.exists()
