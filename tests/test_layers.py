"""Who imports whom, and what is packaged."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLUGIN_MAY_SEE = {"harness.contracts", "harness.registry", "harness.config"}
TOP = ("harness", "fusions", "backbones", "reports")


def modules(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def imports(file: Path) -> set[str]:
    """Dotted names a file imports from this project, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] in TOP}


@pytest.mark.parametrize("file", modules("fusions", "backbones"), ids=str)
def test_a_plugin_sees_only_the_contracts_and_its_own_package(file):
    own = file.relative_to(ROOT).parts[0]
    for name in imports(file):
        seen = name.split(".")[0] == own or any(
            name == known or name.startswith(known + ".") for known in PLUGIN_MAY_SEE
        )
        assert seen or name == "harness", f"{file} imports {name}"


@pytest.mark.parametrize("file", modules("harness"), ids=str)
def test_the_harness_imports_no_plugin_by_name(file):
    bad = {name for name in imports(file) if name.split(".")[0] in ("fusions", "backbones")}
    assert not bad


@pytest.mark.parametrize("file", modules("harness"), ids=str)
def test_only_the_command_line_calls_the_reports(file):
    assert file.name == "cli_report.py" or not any(n.startswith("reports") for n in imports(file))


def test_every_package_on_disk_is_listed_for_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    on_disk = {
        str(file.parent.relative_to(ROOT)).replace("/", ".")
        for file in modules(*TOP)
        if file.name == "__init__.py"
    }
    assert set(listed) == on_disk


def test_there_are_exactly_the_folders_the_readme_speaks_of():
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")}
    folders -= {"runs", "build", "dist", "mambavl_bench.egg-info", "__pycache__"}
    expected = {"harness", "fusions", "backbones", "sweeps", "reports", "tests"}
    assert folders == expected | {"benchmarks", "docs"}


LONGER = {"kernels.py": 340, "contracts.py": 330}
"""numba's cache sees changes in the file of a kernel only, so all that kernels call stands there;
what plugins promise is read in one place"""


@pytest.mark.parametrize("file", modules(*TOP), ids=str)
def test_no_file_grows_beyond_what_one_reads_at_once(file):
    assert len(file.read_text().splitlines()) <= LONGER.get(file.name, 320)
