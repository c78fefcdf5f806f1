"""Where and with what a run was made: commit, environment, digests of the code it ran."""

from __future__ import annotations

import inspect
import os
import pkgutil
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.contracts import Dataset
from harness.files import file_digest
from harness.registry import DATASETS, ENCODERS, FUSIONS
from harness.snapshot import record_of
from harness.spec import RunSpec
from harness.store import Store

ROOT = Path(__file__).resolve().parent.parent
CORE = (
    "batch", "cache", "checkpoint", "contracts", "cost", "distributed", "evaluate", "feed",
    "learner", "measure", "mix", "model", "optimise", "recipe", "reference", "resume", "run",
    "shards", "spec", "splits", "texts", "tokens", "train", "unpickle", "weights",
)  # fmt: skip
"""modules of the harness that a result depends on"""
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "numba",
    "transformers",
    "scikit-learn",
    "fvcore",
    "mlflow",
    "submitit",
)
MAX_DIFF = 200_000
MIXED = "several versions"


def environment(threads: int, device: str) -> dict[str, Any]:
    """What is stored as env.json."""
    return {
        **source(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": device,
        "threads": threads,
        "pid": os.getpid(),
        "command": " ".join(sys.argv),
    }


def source() -> dict[str, Any]:
    """Commit of the code, whether it was edited since, and how; `snapshot` if it is frozen code."""
    frozen = record_of(ROOT)
    if frozen is not None:
        known = {name: frozen.get(name) for name in ("commit", "dirty", "diff")}
        return {**known, "snapshot": frozen["digest"]}
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "diff": (_git("diff", "HEAD") or "")[:MAX_DIFF],
    }


@lru_cache(maxsize=8)
def _git(*words: str) -> str | None:
    """Output of git in the project's folder, None outside a checkout."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def code_digests(spec: RunSpec) -> dict[str, str]:
    """Module name -> digest of its file, for all code that decides the result of `spec`."""
    plugins = [DATASETS[spec.data.name], FUSIONS[spec.fusion.name]]
    plugins += [ENCODERS[encoder.name] for encoder in spec.encoders.values()]
    names = {f"harness.{name}" for name in CORE}
    return _digests(plugins, names)


def token_code(spec: RunSpec, stream: str) -> dict[str, str]:
    """The same for the tokens of one stream."""
    plugins = [DATASETS[spec.data.name], ENCODERS[spec.encoders[stream].name]]
    return _digests(
        plugins, {f"harness.{name}" for name in ("cache", "contracts", "splits", "tokens")}
    )


def _digests(plugins: Sequence[type], names: set[str]) -> dict[str, str]:
    for plugin in plugins:
        names.update(_modules_of(sys.modules[plugin.__module__]))
    return {name: digest for name in sorted(names) if (digest := _loaded_digest(name))}


@cache
def _loaded_digest(module: str) -> str | None:
    """The digest when this process first asked: what it has in memory, whatever is edited later."""
    return digest_of(module)


def together(begun: Mapping[str, str], resumed: Mapping[str, str]) -> dict[str, str]:
    """Digests of a run that was begun with one code and resumed with another.

    Where they differ stands what no file's digest equals, so that the result is seen as stale.
    """
    return {
        name: digest if begun.get(name, digest) == digest else MIXED
        for name, digest in resumed.items()
    }


def changes(store: Store, run_id: str) -> list[str]:
    """What a finished run was made with that is another now.

    Files of its code, and runs whose weights it started from, if they were made anew since or are
    stale themselves.
    """
    result = store.run(run_id).result() or {}
    differ = [
        _file_name(n) for n, digest in result.get("code", {}).items() if digest_of(n) != digest
    ]
    for need, digest in result.get("needs", {}).items():
        weights = store.run(need).weights_file
        if not weights.is_file() or file_digest(weights) != digest or changes(store, need):
            differ.append(f"run {need}")
    return differ


def digest_of(module: str) -> str | None:
    """Digest of a module's file as it is on disk now; None if it is gone."""
    file = _file(module)
    return file_digest(file)[:16] if file and file.is_file() else None


def _file(module: str) -> Path | None:
    loaded = sys.modules.get(module)
    if loaded is not None and getattr(loaded, "__file__", None):
        return Path(str(loaded.__file__))
    file = ROOT / (module.replace(".", "/") + ".py")
    return file if file.is_file() else None


def _file_name(module: str) -> str:
    file = _file(module)
    if file is None:
        return module
    return str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else str(file)


def _modules_of(module: ModuleType) -> Iterator[str]:
    """A plugin's module and every module of its own package that it uses.

    Of a package inside that package all modules, for it may import some only when they are needed.
    """
    waiting, seen = [module], {module.__name__}
    package = _plugin_package(module.__name__)
    while waiting:
        current = waiting.pop()
        yield current.__name__
        for found in pkgutil.iter_modules(getattr(current, "__path__", ())):
            yield f"{current.__name__}.{found.name}"
        for value in vars(current).values():
            used = value if isinstance(value, ModuleType) else inspect.getmodule(value)
            if used is not None and used.__name__ not in seen:
                seen.add(used.__name__)
                if _plugin_package(used.__name__) == package:
                    waiting.append(used)


def _plugin_package(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "harness" else parts[0]


def seen_by(spec: RunSpec, dataset: Dataset, stream: str) -> tuple[dict[str, Any], str]:
    """The dataset's options and fingerprint as far as a stream depends on them."""
    data, unseen = spec.data.model_dump(mode="json"), dataset.unseen.get(stream, ())
    if not unseen:
        return data, spec.fingerprint
    known = dataset.__dict__.setdefault("_seen_by", {})  # asked for each split
    fields = type(dataset.config).model_fields
    usual = {name: fields[name].default for name in unseen}
    other = type(dataset)(dataset.config.model_copy(update=usual))
    other.places, other.used = dataset.places, frozenset((stream,))
    data["options"] |= usual
    if stream not in known:
        known[stream] = other.fingerprint()
    return data, known[stream]
