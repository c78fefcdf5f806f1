"""What the documents say is so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from harness.cli import app
from harness.plan import plan
from harness.registry import DATASETS, ENCODERS, FUSIONS
from harness.search.planning import plan_search
from harness.sweepfile import SWEEP_KEYS
from harness.yamlfile import parse_yaml

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.S)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_in_a_document_exists(document):
    known = set(get_command(app).commands)
    used = set(re.findall(r"(?:^|`|&& )harness ([a-z]+)", document.read_text(), re.M))
    assert used <= known


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_a_document_names_is_there(document):
    folders = "harness|fusions|backbones|sweeps|docs|tests|benchmarks"
    named = re.findall(rf"`((?:{folders})/[\w./]+\.\w+)`", document.read_text())
    missing = [name for name in named if not (ROOT / name).exists()]
    assert [name for name in missing if name != "fusions/mine.py"] == []


def test_the_fusion_of_the_guide_passes_the_tests_of_every_fusion(tmp_path):
    (tmp_path / "mine.py").write_text(blocks("docs/add-a-fusion.md", "python")[0])
    info = tmp_path / "mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[harness.plugins]\nmine = mine\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/test_fusions.py", "-k", "product", "-p",
         "no:cacheprovider"],
        cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ passed", done.stdout)


def test_the_sweep_file_of_the_guide_is_planned(tmp_path):
    (tmp_path / "s.yaml").write_text(blocks("docs/sweeps.md", "yaml")[0])
    assert len(plan(tmp_path / "s.yaml").runs) == 6
    table = (ROOT / "docs" / "sweeps.md").read_text()
    assert all(f"| `{key}` |" in table for key in SWEEP_KEYS)


@pytest.mark.parametrize("file", SWEEPS, ids=lambda path: path.name)
def test_every_sweep_of_the_project_is_planned_under_each_preset(file):
    written = parse_yaml(file.read_text(), file.name)
    presets = written.get("presets")
    for preset in presets.value if presets else [None]:
        if not str(preset).startswith("ek100"):  # test_ek100.py and others, where its data are
            searched = written.get("search") is not None
            assert plan_search(file, preset).rows if searched else plan(file, preset).runs


def test_the_readme_names_every_plugin():
    text = (ROOT / "README.md").read_text()
    for registry in (FUSIONS, ENCODERS, DATASETS):
        for name in registry:
            if (registry[name].__module__.split(".")[0]) in ("fusions", "backbones", "harness"):
                assert f"`{name}`" in text, name
