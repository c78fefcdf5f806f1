"""Fixtures shared by the tests; importing this registers every plugin of the project."""

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
