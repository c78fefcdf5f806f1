"""Names -> plugins: fusions, encoders and datasets.

A plugin is a class with a decorator::

    @FUSIONS.register("mlp")
    class Mlp(Fusion): ...

Packages outside this project add theirs through the entry-point group `harness.plugins`; the value
of each entry point is a module to import.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, TypeVar

from harness.config import ConfigError
from harness.contracts import Dataset, Encoder, Fusion
from harness.finding import Finding

T = TypeVar("T", bound=type)

OWN_PACKAGES = ("fusions", "backbones", "harness.data")


class Registry(Generic[T]):
    """The plugins of one kind, by name."""

    def __init__(self, kind: str, base: type) -> None:
        self.kind = kind
        self.base = base
        self._plugins: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator: make the class known as `name`."""

        def add(cls: T) -> T:
            if not (inspect.isclass(cls) and issubclass(cls, self.base)):
                raise TypeError(f"{self.kind} {name!r}: {cls!r} is not a {self.base.__name__}")
            known = self._plugins.get(name)
            if known is not None and place(known) != place(cls):
                raise ValueError(
                    f"two plugins are called {name!r} in {self.kind}: "
                    f"{place(known)} and {place(cls)}. Rename one of them"
                )
            self._plugins[name] = cls
            return cls

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._plugins:
            raise KeyError(unknown(name, self.names(), self.kind))
        return self._plugins[name]

    def __contains__(self, name: object) -> bool:
        return name in self._plugins

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._plugins)


def unknown(name: object, known: list[str], kind: str) -> str:
    """`unknown fusion 'x'. Did you mean 'y'? Known: ...`, the wording of every such error."""
    near = get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(known) or 'none'}"


def place(cls: type) -> str:
    """`file:line` of a class, or its module where the source is not at hand."""
    try:
        return f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        return f"{cls.__module__}.{cls.__qualname__}"


FUSIONS: Registry[type[Fusion]] = Registry("fusion", Fusion)
ENCODERS: Registry[type[Encoder]] = Registry("encoder", Encoder)
DATASETS: Registry[type[Dataset]] = Registry("dataset", Dataset)

OPERATOR_MACS: dict[str, Callable[[list[list[int]]], int]] = {}
"""operator, e.g. `harness::selective_scan` -> its multiply-adds, from the shapes of its tensors"""
IMPLEMENTATIONS: dict[str, str] = {}
"""what plugins chose on this machine, e.g. `selective_scan` -> `numba`; every run records it"""
CHECKS: dict[str, Callable[[], Finding]] = {}
"""what `harness doctor` is to look at for plugins, by name, e.g. whether a compiled kernel works"""

_loaded = False


def load_plugins() -> None:
    """Import every module of the own plugin packages, then those of other distributions.

    Raises ConfigError if `fusions` or `backbones` is another distribution's package, or if a plugin
    cannot be imported.
    """
    global _loaded
    if _loaded:
        return
    root = Path(__file__).resolve().parent.parent
    for package in OWN_PACKAGES:
        module = importlib.import_module(package)
        origin = Path(next(iter(module.__path__), "")).resolve()
        if origin != root.joinpath(*package.split(".")):
            raise ConfigError(
                f"{package!r} was imported from {origin}, not from {root}: another installed "
                f"distribution uses the same name. Install this project in an environment of its "
                f"own (pip install -e .)"
            )
        for info in pkgutil.iter_modules(module.__path__, package + "."):
            importlib.import_module(info.name)
    for point in entry_points(group="harness.plugins"):
        try:
            point.load()
        except Exception as error:
            distribution = point.dist.name if point.dist else "an unknown distribution"
            raise ConfigError(
                f"the plugin {point.name!r} ({point.value}) of {distribution} cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error
    _loaded = True
