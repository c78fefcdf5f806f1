"""What the documents say is so."""

import importlib
import os
import re
import shutil
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
GUIDES = ("docs/add-a-fusion.md", "docs/add-an-encoder.md", "docs/add-a-dataset.md")
DRIVER = """
import sys
from harness.cli import app
for words in sys.argv[1:]:
    if app(words.split(), standalone_mode=False):
        sys.exit(f"{words} failed")
"""
"""`harness ...` several times in one process"""


def files_of(guide: str) -> dict[str, str]:
    """What a guide says to write: file -> text. Such a block stands below "... `FILE`:"."""
    text = (ROOT / guide).read_text()
    return dict(re.findall(r"`([\w/-]+\.\w+)`:\n\n```\w+\n(.*?)```", text, re.S))


def commands_of(guide: str) -> list[str]:
    """The lines of its blocks that have no language."""
    found = re.findall(r"\n\n```\n(.*?)```", (ROOT / guide).read_text(), re.S)
    return [line for block in found for line in block.splitlines()]


def done(words: list[str], folder: Path, *paths: Path) -> str:
    """What a command prints that is run in `folder` by this Python; it must succeed."""
    ran = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT))),
            "XDG_CONFIG_HOME": str(folder / "no-site-file"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A folder in which the guides were followed, with their plugins as an installed package."""
    folder = tmp_path_factory.mktemp("followed")
    points = []
    for guide in GUIDES:
        for name, text in files_of(guide).items():
            if name.endswith("/mine.py"):  # in a package of one's own the same file is a module
                module = name.removesuffix(".py").replace("/", "_")
                points.append(f"{module} = {module}\n")
                name = f"{module}.py"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    info = folder / "mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[harness.plugins]\n" + "".join(points))
    shutil.copytree(ROOT / "sweeps" / "presets", folder / "sweeps" / "presets")
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "tests")
    return folder


def harness(folder: Path, *commands: str) -> str:
    return done(["-c", DRIVER, *commands], folder, folder)


def with_row(table: str) -> str:
    """The text of `sweeps/table3.yaml` with the row that the guide adds at the end of `runs`."""
    row = blocks(GUIDES[0], "yaml")[-1]
    assert row.startswith("  mlb: ")
    last = "  mamba_joint: {label: Mamba joint scan, fusion: {name: mamba_joint}}\n"
    assert table.count(last) == 1
    return table.replace(last, last + row)


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.S)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_in_a_document_exists(document):
    known = set(get_command(app).commands)
    used = set(re.findall(r"(?:^|`|&& )harness ([a-z]+)", document.read_text(), re.M))
    assert used <= known


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_a_document_names_is_there(document):
    folders = "harness|fusions|backbones|reports|sweeps|docs|tests|benchmarks"
    named = re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)`", document.read_text())
    to_write = {name for guide in GUIDES for name in files_of(guide)}
    assert [name for name in named if not (ROOT / name).exists() and name not in to_write] == []


def test_every_document_is_in_the_table_of_the_readme():
    text = (ROOT / "README.md").read_text()
    assert [
        d.name for d in DOCUMENTS[1:] if f"| [docs/{d.name}](docs/{d.name}) |" not in text
    ] == []


@pytest.mark.parametrize("guide", ["docs/architecture.md", *GUIDES])
def test_every_name_of_the_code_in_it_exists(guide):
    text = (ROOT / guide).read_text()
    dotted = set(re.findall(r"`((?:harness|fusions|backbones|reports)(?:\.\w+)+)", text))
    dotted -= {"harness.plugins", "harness.site.yaml"}  # the entry points, and a file
    assert dotted or guide in GUIDES
    assert [name for name in sorted(dotted) if not exists(name)] == []
    folders = re.findall(r"`((?:harness|fusions|backbones|reports|sweeps|tests)/[\w/]+)/?`", text)
    assert [name for name in folders if not (ROOT / name).is_dir()] == []


def exists(dotted: str) -> bool:
    """Whether a module, or something in one, is called that."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
        return found is not None
    return False


@pytest.mark.parametrize("guide", GUIDES[1:])
def test_its_tables_of_parts_name_what_the_contract_has(guide):
    contract = (ROOT / "harness" / "contracts.py").read_text()
    tables = (ROOT / guide).read_text().partition("is for\n\n`harness/contracts.py`")[2]
    cells = re.findall(r"^\| (`.*?) \|", tables, re.M)
    named = {word for cell in cells for word in re.findall(r"`(?:\w+\.)?(\w+)", cell)}
    assert len(named) > 10
    assert [name for name in sorted(named) if not re.search(rf"\b{name}\b", contract)] == []


def test_what_the_guides_add_passes_the_tests_that_they_name(followed):
    wanted = [line.split() for guide in GUIDES for line in commands_of(guide) if "pytest" in line]
    assert all(words[:3] == ["python", "-m", "pytest"] for words in wanted)
    own = [word for words in wanted for word in words if word in ("mlb", "patches")]
    assert own == ["mlb", "patches"]
    everything = ["python", "-m", "pytest", "tests/test_registry.py", "-k", "every"]
    assert wanted.count(everything) == 2
    files = {word for words in wanted for word in words if word.endswith(".py")}
    files |= {str(followed / name) for name in files if not (ROOT / name).exists()}
    there = sorted(name for name in files if (ROOT / name).exists())
    select = "mlb or patches or test_mine or every_plugin or every_option"
    options = ["-m", "pytest", "-p", "no:cacheprovider", "-k", select]
    told = done([*options, *there], ROOT, followed)
    assert int(re.search(r"(\d+) passed", told)[1]) >= 35 + 4, told


def test_the_sweep_files_of_the_guides_are_planned(followed):
    (followed / "sweeps" / "table3.yaml").write_text(
        with_row((ROOT / "sweeps" / "table3.yaml").read_text())
    )
    files = [n for guide in GUIDES for n in files_of(guide) if n.endswith(".yaml")]
    assert files == ["sweeps/mine.yaml", "sweeps/patches.yaml", "sweeps/same_beat.yaml"]
    told = harness(followed, *(f"plan {name}" for name in (*files, "sweeps/table3.yaml")))
    *plans, table3 = re.split(r"^(?=sweeps/)", told, flags=re.M)[1:]
    assert [int(re.search(r": (\d+) runs", text)[1]) for text in plans] == [3, 3, 12]
    ids = [set(re.findall(r"^[0-9a-f]{12}", text, re.M)) for text in (plans[0], table3)]
    assert ids[0] < ids[1], "what mine.yaml has made is to be done in Table 3"
    before = {run.run_id for run in plan(ROOT / "sweeps" / "table3.yaml").runs}
    assert len(ids[1] - before) == 3


def test_the_encoder_and_the_dataset_of_the_guides_run_and_are_reported(followed):
    few = "--launcher inline --threads 1 --set seeds=[0] --set train.epochs=1"
    sizes = " ".join(f"--set data.options.{split}_size=64" for split in ("train", "select", "test"))
    told = harness(
        followed,
        f"sweep sweeps/patches.yaml {few} --set train.steps_per_epoch=2"
        " --set encoders.gyro.frozen=true",
        f"sweep sweeps/same_beat.yaml {few} {sizes}",
        "cache ls",
        "report patches same_beat",
    )
    assert "watch train, gyro: patches, float32  1 runs" in told
    assert re.search(r"^\| Patches and MLP \| 1 \| \d", told, re.M)
    rows = re.findall(r"^\| (.*?) \| 1 \| [\d.]+ \(n=1\)[^|]*\| (.*?) \|", told, re.M)
    assert ("Late logits", "50.0 (additive)") in rows
    assert ("MLP", "95.0 (joint)") in rows


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_guide_to_a_fusion_leads_from_a_clone_to_its_row(tmp_path):
    """All but the last sweep, of the whole of Table 3: each line as it stands there."""
    clone = tmp_path / "clone"
    left = shutil.ignore_patterns(
        ".git", ".venv", "runs", "build", "*.egg-info", "__pycache__", ".*"
    )
    shutil.copytree(ROOT, clone, ignore=left)
    for name, text in files_of(GUIDES[0]).items():
        (clone / name).write_text(text)
    table3 = clone / "sweeps" / "table3.yaml"
    table3.write_text(with_row(table3.read_text()))
    for line in commands_of(GUIDES[0]):
        if line.startswith("harness sweep sweeps/table3.yaml"):
            continue
        program, *words = line.split()
        module = ["-m", "harness.cli"] if program == "harness" else []
        told = done([*module, *words], clone, clone)
        if line == "harness report mine":
            row = re.search(r"^\| MLB .*", told, re.M)[0].split(" | ")
            assert row[1] == "1"
            assert float(row[4].split()[0]) > 80  # action; a sum of the streams ends at 55.4
        if line == "harness plan sweeps/table3.yaml":
            assert len(re.findall(r"seed 0 +done ", told)) == 3
            break
    else:
        pytest.fail("the guide does not come to Table 3")


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
