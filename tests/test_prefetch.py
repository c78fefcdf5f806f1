"""`harness prefetch`: what a sweep needs is fetched once, from a hub on loopback."""

import os
import re
import subprocess
import sys
from pathlib import Path

import hub
import pytest
import tiny_roberta

ROOT = Path(__file__).resolve().parent.parent
NOWHERE = "http://127.0.0.1:9"
RUNS = """
runs:
  hub: {encoders.text: {name: roberta, init: "pretrained:someone/tiny"}}
"""
FILE = """
  file: {encoders.video: {name: orvit, init: "finetuned:orvit.pth"}}
"""


def prefetch(folder: Path, **env: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", "prefetch", "tiny.yaml"],
        cwd=folder,
        env={**clean, "HF_HOME": str(folder / "hf"), "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The files of a tiny RoBERTa."""
    folder = tmp_path_factory.mktemp("model")
    tiny_roberta.write(folder, ["what did the person do with the small bowl?"], positions=64)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_weights_and_tokenizer_are_fetched_once_and_then_there(tmp_path, model, sweep_file):
    sweep_file(RUNS)
    with hub.serving("someone/tiny", model) as endpoint:
        first = prefetch(tmp_path, HF_ENDPOINT=endpoint)
    assert first.returncode == 0, first.stderr
    fetched = r"fetched  encoders\.text\.init: someone/tiny\n +(\d\.\d) MB, in .*/hf/hub/models--"
    assert float(re.match(fetched, first.stdout)[1]) > 0
    again = prefetch(tmp_path, HF_ENDPOINT=NOWHERE)
    assert again.returncode == 0
    assert again.stdout.startswith("there    encoders.text.init: someone/tiny\n")


def test_without_internet_it_says_what_was_tried_and_what_would_help(tmp_path, sweep_file):
    sweep_file(RUNS)
    done = prefetch(tmp_path, HF_ENDPOINT=NOWHERE)
    assert done.returncode == 1
    assert done.stdout.startswith("missing  encoders.text.init: someone/tiny\n")
    assert f"not to be had from the hub {NOWHERE}" in done.stdout
    assert "On a machine with internet run `hf download someone/tiny" in done.stdout


def test_what_no_hub_has_is_named_with_its_place_and_the_rest_is_fetched(
    tmp_path, model, sweep_file
):
    sweep_file(RUNS + FILE.lstrip("\n"))
    with hub.serving("someone/tiny", model) as endpoint:
        done = prefetch(tmp_path, HF_ENDPOINT=endpoint)
    assert done.returncode == 1
    assert "fetched  encoders.text.init: someone/tiny" in done.stdout
    place = tmp_path / "orvit.pth"
    assert f"missing  encoders.video.init: orvit.pth\n         put it there by hand: {place}" in (
        done.stdout
    )
    assert "another reason" not in done.stdout


def test_a_mistake_in_the_file_is_named_with_its_line(tmp_path):
    (tmp_path / "tiny.yaml").write_text("report: {}\nruns: {}\n")
    done = prefetch(tmp_path)
    assert done.returncode == 2
    assert "tiny.yaml:" in done.stderr
