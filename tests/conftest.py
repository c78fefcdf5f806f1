"""Fixtures shared by the tests; importing this registers every plugin of the project."""

import os
import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.registry import load_plugins
from harness.store import Store

load_plugins()
torch.set_num_threads(1)

TINY = """
report: {table: tiny, title: "A tiny sweep", metrics: [verb_top1, noun_top1, action_top1]}
base:
  data:
    name: simkitchen
    options: {train_size: 96, select_size: 32, test_size: 64}
  encoders:
    text: {name: word_transformer, options: {width: 16}}
  width: 16
  fusion: {name: single}
  train:
    epochs: 3
    batch_size: 16
    steps_per_epoch: 4
    optimiser: adamw
    warmup_epochs: 1
"""


class Cluster:
    """A SLURM of the tests' own: two nodes, n1 and n2, each with 4 processors and 2 GPUs."""

    script = Path(__file__).parent / "slurm" / "cluster.sh"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`cluster.sh WORDS`, e.g. `crash n1`."""
        return subprocess.run(
            ["bash", str(self.script), *words], capture_output=True, text=True, timeout=300
        )

    def __call__(self, *words: str) -> None:
        """The same; it must succeed."""
        done = self.run(*words)
        assert done.returncode == 0, f"cluster.sh {' '.join(words)}: {done.stdout}{done.stderr}"


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    """Starts it for the tests that ask for it, and stops it behind them."""
    if os.geteuid() != 0:
        pytest.skip("a SLURM of our own is installed and started by root only")
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as lab:
        own = {
            "SLURM_LAB": lab,
            "SLURM_CONF": f"{lab}/slurm.conf",
            "SLURM_PORT": str(random.randrange(20_000, 30_000, 10)),
            "SLURM_MAX_ARRAY": "11",  # so that 16 runs take two arrays
        }
        os.environ.update(own)
        made = Cluster()
        done = made.run("install")
        if done.returncode:
            pytest.skip(f"SLURM's packages cannot be installed here: {done.stderr.strip()[-300:]}")
        try:
            made("start")
            yield made
        finally:
            made("stop")
            for name in own:
                del os.environ[name]


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """The same; what a test leaves in the queue is no matter for the next."""
    yield running_cluster
    running_cluster("clear")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


@pytest.fixture
def sweep_file(tmp_path: Path):
    """Writes a sweep file: the tiny base, with the text given laid behind it."""

    def write(text: str, name: str = "tiny.yaml", base: str = TINY) -> Path:
        file = tmp_path / name
        file.write_text(base + text)
        return file

    return write


@pytest.fixture
def run_here(tmp_path, monkeypatch):
    """`harness ...` in this process, in a folder of its own."""
    from typer.testing import CliRunner

    from harness.cli import app

    monkeypatch.chdir(tmp_path)

    def run(*words: str):
        return CliRunner().invoke(app, list(words), catch_exceptions=False)

    return run
