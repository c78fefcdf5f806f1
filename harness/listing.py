"""What `harness list` prints: every plugin with its options, defaults and source; recipes."""

from __future__ import annotations

import inspect
import sys
import textwrap
from typing import Any

from harness.recipe import MAMBA, RECIPES, Recipe
from harness.registry import DATASETS, ENCODERS, FUSIONS, Registry, load_plugins, place


def listing(part: str = "") -> str:
    """Plugins and recipes whose name contains `part`; `recipes`: all of those."""
    load_plugins()
    registries: tuple[tuple[str, Registry[Any]], ...] = (
        ("Fusions", FUSIONS),
        ("Encoders", ENCODERS),
        ("Datasets", DATASETS),
    )
    blocks = []
    for title, registry in registries:
        entries = [_entry(name, registry[name]) for name in registry if part in name]
        if entries:
            blocks.append(f"{title}\n" + "\n".join(entries))
    recipes = [_recipe(name) for name in RECIPES if part in name or part == "recipes"]
    if recipes:
        blocks.append("Recipes of training\n" + "\n".join(recipes))
    return "\n\n".join(blocks) or f"no plugin's name contains {part!r}"


def _entry(name: str, cls: type) -> str:
    module = sys.modules[cls.__module__]
    about = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    summary = about or (module.__doc__ or "").strip().splitlines()[0]
    lines = [f"  {name}", f"      {summary}"]
    source = _source(cls.__doc__) or _source(module.__doc__)
    if source:
        lines.append(f"      {source}")
    lines.append(f"      {place(cls)}")
    for option, info in cls.Config.model_fields.items():  # type: ignore[attr-defined]
        default = (
            "required"
            if info.is_required()
            else f"= {info.get_default(call_default_factory=True)!r}"
        )
        kind = inspect.formatannotation(info.annotation).replace("typing.", "")
        about = " ".join((info.description or "").split())
        lines.append(f"      {option}: {kind} {default}")
        lines += textwrap.wrap(about, 88, initial_indent=" " * 10, subsequent_indent=" " * 10)
    return "\n".join(lines)


def _recipe(name: Recipe) -> str:
    """What it sets, and what else it sets for a head of Mamba blocks."""
    texts = [", ".join(f"{key} {value}" for key, value in RECIPES[name].items())]
    if name in MAMBA:
        own = ", ".join(f"{key} {value}" for key, value in MAMBA[name].items())
        texts.append(f"heads of Mamba blocks: {own}")
    lines = [f"  {name}"]
    for text in texts:
        lines += textwrap.wrap(text, 88, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _source(doc: str | None) -> str:
    """The paragraph of a docstring that starts with `Source:`."""
    for block in inspect.cleandoc(doc or "").split("\n\n"):
        if block.startswith("Source:"):
            return " ".join(block.split())
    return ""
