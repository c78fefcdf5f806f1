"""Plugins: names, strangers' packages, clashes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.contracts import Fusion
from harness.listing import listing
from harness.registry import DATASETS, ENCODERS, FUSIONS, Registry

ROOT = Path(__file__).resolve().parent.parent


def python(code: str, *paths: Path, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=cwd, capture_output=True, text=True, check=False
    )


def test_a_name_registered_twice_names_both_places():
    registry = Registry("fusion", Fusion)

    @registry.register("same")
    class First(Fusion): ...

    with pytest.raises(
        ValueError, match=r"'same'.*test_registry.py:\d+ and .*test_registry.py:\d+"
    ):

        @registry.register("same")
        class Second(Fusion): ...


def test_what_is_no_fusion_cannot_be_registered_as_one():
    with pytest.raises(TypeError, match="is not a Fusion"):
        Registry("fusion", Fusion).register("x")(dict)


def test_an_unknown_name_says_what_was_meant():
    with pytest.raises(KeyError, match="Did you mean 'mamba_shared'"):
        FUSIONS["mamba_shred"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """Where the toy package was installed, by pip, as a distribution of its own."""
    source = tmp_path_factory.mktemp("source") / "toy"
    target = tmp_path_factory.mktemp("site")
    source.mkdir()
    for file in (ROOT / "tests" / "toy_package").glob("*.*"):
        (source / file.name).write_text(file.read_text())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*pip, "--no-build-isolation", "--target", str(target), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


def test_an_installed_package_adds_a_fusion_with_no_change_here(toy):
    done = python("from harness.listing import listing; print(listing('toy'))", toy)
    assert "toy_sum" in done.stdout, done.stderr
    assert "whether the projections have a bias" in done.stdout


def test_the_registrys_tests_cover_a_strangers_fusion(toy):
    env = {**os.environ, "PYTHONPATH": str(toy)}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "tests/test_fusions.py",
            "-k",
            "toy_sum",
            "-p",
            "no:cacheprovider",
        ],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_a_broken_plugin_is_named_with_its_distribution(toy, tmp_path):
    broken = tmp_path / "site"
    info = broken / "broken_fusion-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-fusion\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[harness.plugins]\nbroken = broken_fusion\n")
    (broken / "broken_fusion.py").write_text("import nothing_like_this\n")
    done = python("from harness.registry import load_plugins; load_plugins()", broken)
    assert "plugin 'broken' (broken_fusion) of broken-fusion cannot be imported" in done.stderr


@pytest.mark.parametrize("name", ["fusions", "backbones"])
def test_a_foreign_package_of_the_same_name_is_refused(tmp_path, name):
    foreign = tmp_path / "elsewhere" / name
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").write_text("")
    done = python(
        "from harness.registry import load_plugins; load_plugins()", foreign.parent, cwd=tmp_path
    )
    assert f"'{name}' was imported from {foreign}" in done.stderr
    assert "another installed distribution uses the same name" in done.stderr


def test_every_plugin_is_listed_with_source_options_and_defaults():
    text = listing()
    for registry in (FUSIONS, ENCODERS, DATASETS):
        for name in registry:
            assert f"\n  {name}\n" in text
            entry = listing(name)
            assert "Source:" in entry, name
            for option in registry[name].Config.model_fields:
                assert f"      {option}: " in entry


@pytest.mark.parametrize("registry", [FUSIONS, ENCODERS, DATASETS], ids=lambda r: r.kind)
def test_every_option_is_documented_and_has_a_default(registry):
    for name in registry:
        for option, info in registry[name].Config.model_fields.items():
            assert info.description, f"{name}.{option}"
            assert not info.is_required(), f"{name}.{option}"
