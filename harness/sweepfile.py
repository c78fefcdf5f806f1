"""The sweep file as written: its sections, with a preset and `--set` settings laid over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from harness.config import (
    ConfigError,
    Node,
    is_file,
    kind_of,
    near_files,
    no_such_key,
    node_of,
    overlay,
    undot,
)
from harness.yamlfile import parse_yaml, read_yaml

SWEEP_KEYS = (
    "base", "runs", "axes", "seeds", "needs", "report", "claims", "slurm", "search", "presets",
)  # fmt: skip
TAKEN_OUT = ("runs", "claims")
"""sections whose entries a preset may take out"""


@dataclass
class SweepFile:
    """A sweep file with everything that lies over it; its values are not checked yet."""

    file: Path
    preset: str
    sections: dict[str, Node]
    settings: Node
    """those that go to every run"""

    @staticmethod
    def read(file: Path, preset: str | None, settings: Sequence[str]) -> SweepFile:
        root = read_yaml(file)
        _check_keys(root, SWEEP_KEYS)
        presets = root.get("presets") or Node({}, root.where)
        if not isinstance(presets.value, dict):
            what = kind_of(presets.value)
            raise ConfigError(f"{presets.where}: presets: a mapping by name is needed, not {what}")
        names = list(presets.value)
        name = preset or (names[0] if names else "")
        if preset and preset not in names:
            near = get_close_matches(preset, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            known = ", ".join(names) or "none"
            raise ConfigError(
                f"{presets.where}: presets: no preset {preset!r}.{hint} Known: {known}"
            )
        if name:
            chosen = presets.value[name]
            for layer in chosen.value if isinstance(chosen.value, tuple) else (chosen,):
                root = _lay(root, _preset(layer, name, file))
        for_all = Node({}, "--set")
        for text in settings:
            node = setting(text)
            if next(iter(node.value)) in SWEEP_KEYS:
                root = _lay(root, node)
            else:
                for_all = overlay(for_all, node)
        sections = {key: child for key, child in root.value.items() if key != "presets"}
        if "report" not in sections:
            raise ConfigError(f"{root.where}: report: is missing; say which table the sweep feeds")
        for key in ("base", "runs", "axes", "needs", "claims", "slurm", "search"):
            if key in sections and not isinstance(sections[key].value, dict):
                what = kind_of(sections[key].value)
                raise ConfigError(f"{sections[key].where}: {key}: a mapping is needed, not {what}")
        return SweepFile(file, name, sections, for_all)


def _preset(layer: Node, name: str, file: Path) -> Node:
    """One layer of a preset: sections written in place, or in a file named beside the sweep."""
    if isinstance(layer.value, str):
        path = file.parent / layer.value
        if not is_file(path):
            raise ConfigError(
                f"{layer.where}: presets.{name}: no such file: {path}{near_files(path)}"
            )
        layer = read_yaml(path)
    if not isinstance(layer.value, dict):
        what = kind_of(layer.value)
        raise ConfigError(f"{layer.where}: presets.{name}: a file or a mapping, not {what}")
    _check_keys(layer, [key for key in SWEEP_KEYS if key != "presets"])
    return layer


def _lay(root: Node, over: Node) -> Node:
    """`over` laid over a sweep: lists and `axes` are replaced, other sections are merged."""
    merged = dict(root.value)
    for section in TAKEN_OUT:
        out = over.get(section)
        if out is not None and isinstance(out.value, dict):
            over = Node({**over.value, section: _taken_out(merged, out, section)}, over.where)
    for key, child in over.value.items():
        if key == "search" and key in merged:
            merged[key] = _lay_search(merged[key], child)
        elif key in ("base", "runs", "needs", "report", "claims", "slurm") and key in merged:
            merged[key] = overlay(undot(merged[key]), undot(child))
        else:
            merged[key] = child
    return Node(merged, root.where)


def _lay_search(below: Node, above: Node) -> Node:
    """As `overlay`; the settings in `space` are names, dots and all, and replaced as a whole."""
    merged = overlay(below, above)
    parts = [node.get("space") for node in (below, above)]
    if any(part is not None and not isinstance(part.value, dict) for part in parts):
        return merged
    space = {k: v for part in parts if part is not None for k, v in part.value.items()}
    where = next((part.where for part in reversed(parts) if part is not None), above.where)
    return Node({**merged.value, "space": Node(space, where)}, merged.where) if space else merged


def _taken_out(merged: dict[str, Node], over: Node, section: str) -> Node:
    """`over` without the rows or claims that it takes out (`NAME: null`); `merged` loses these."""
    named = [name for name, child in over.value.items() if child.value is None]
    known = merged[section].value if section in merged else {}
    for name in named:
        if not isinstance(known, dict) or name not in known:
            what = no_such_key(name, list(known) if isinstance(known, dict) else [])
            raise ConfigError(f"{over.value[name].where}: {section}.{name}: {what}")
    if named:
        kept = {name: child for name, child in known.items() if name not in named}
        merged[section] = Node(kept, merged[section].where)
    return Node({k: v for k, v in over.value.items() if v.value is not None}, over.where)


def _check_keys(root: Node, known: Sequence[str]) -> None:
    messages = [
        f"{child.where}: {key}: {no_such_key(key, list(known))}"
        for key, child in root.value.items()
        if key not in known
    ]
    if messages:
        raise ConfigError(*messages)


def setting(text: str) -> Node:
    """`key.path=value` -> nested Node; the value is read as YAML."""
    key, equals, value = text.partition("=")
    where = f"--set {text}"
    if not equals or not all(key.split(".")) or "\n" in text or key.split(".")[0] == "presets":
        raise ConfigError(f"{where}: write key=value, e.g. --set train.epochs=3")
    node = parse_yaml(f"value: {value}\n", where).value["value"]
    return undot(Node({key: node_of(node.plain(), where)}, where))
