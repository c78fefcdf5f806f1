"""Values that remember their file and line; the base of every typed config; ConfigError."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError


class Config(BaseModel):
    """Base of every typed config: frozen, unknown keys refused, docstrings are descriptions."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class ConfigError(Exception):
    """A mistake in what the user wrote; `str()` is one line per mistake, `where: what`."""

    def __init__(self, *messages: str) -> None:
        self.messages = tuple(dict.fromkeys(messages))
        super().__init__("\n".join(self.messages))


@dataclass(frozen=True, slots=True)
class Node:
    """A value of a YAML file and where it stands (`file:line`)."""

    value: Any
    """scalar, tuple of Nodes, or dict of str -> Node"""
    where: str

    def plain(self) -> Any:
        """The value without positions."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, tuple):
            return [child.plain() for child in self.value]
        return self.value

    def at(self, path: Sequence[Any]) -> Node:
        """The node at `path`, or its nearest ancestor that was written."""
        node = self
        for key in path:
            inside = node.value
            if isinstance(inside, dict):
                known = key in inside
            else:
                known = isinstance(inside, tuple) and isinstance(key, int) and key < len(inside)
            if not known:
                break
            node = inside[key]
        return node

    def get(self, key: str) -> Node | None:
        """The child `key` of a mapping."""
        return self.value.get(key) if isinstance(self.value, dict) else None


def node_of(value: Any, where: str) -> Node:
    """Plain value -> Node, every part of it standing at `where`."""
    if isinstance(value, Mapping):
        return Node({str(k): node_of(v, where) for k, v in value.items()}, where)
    if isinstance(value, list | tuple):
        return Node(tuple(node_of(v, where) for v in value), where)
    return Node(value, where)


def overlay(below: Node | None, above: Node) -> Node:
    """`above` laid over `below`: mappings are merged, everything else is replaced.

    A plugin's `{name: ..., options: ...}` with another name replaces the one below as a whole, for
    the options of one plugin mean nothing to another.
    """
    if below is None or not (isinstance(below.value, dict) and isinstance(above.value, dict)):
        return above
    name, former = above.value.get("name"), below.value.get("name")
    if name is not None and former is not None and name.value != former.value:
        return above
    merged = dict(below.value)
    for key, child in above.value.items():
        merged[key] = overlay(merged.get(key), child)
    return Node(merged, above.where)


def undot(node: Node) -> Node:
    """`{a.b: 1}` -> `{a: {b: 1}}`, at every level; raises ConfigError where two keys collide."""
    if isinstance(node.value, tuple):
        return Node(tuple(undot(child) for child in node.value), node.where)
    if not isinstance(node.value, dict):
        return node
    result: dict[str, Node] = {}
    for key, child in node.value.items():
        if not all(key.split(".")):
            raise ConfigError(f"{child.where}: {key}: an empty word in a dotted key")
        head, *rest = key.split(".")
        nested = undot(child)
        for part in reversed(rest):
            nested = Node({part: nested}, child.where)
        if head in result:
            nested = _join(result[head], nested, key)
        result[head] = nested
    return Node(result, node.where)


def _join(first: Node, second: Node, key: str) -> Node:
    """Two mappings that have no value in common."""
    if not (isinstance(first.value, dict) and isinstance(second.value, dict)):
        raise ConfigError(f"{second.where}: {key}: set twice; {first.where} has it")
    merged = dict(first.value)
    for name, child in second.value.items():
        merged[name] = _join(merged[name], child, key) if name in merged else child
    return Node(merged, second.where)


def validate(
    model: type[Config], node: Node, prefix: str = "", value: Any = None
) -> tuple[Any, list[str]]:
    """(`model` built from `node`, no messages), or (None, one message per mistake).

    With `value`, that is what is checked, and `node` only tells where it was written.
    """
    written = node.plain() if value is None else value
    loose = list(_loose(model, written, node, prefix))
    try:
        made = model.model_validate(written)
    except ValidationError as error:
        return None, [*loose, *_messages(error, model, node, prefix)]
    return (None, loose) if loose else (made, [])


def _loose(model: type[BaseModel], value: Any, node: Node, prefix: str) -> Iterator[str]:
    """What pydantic would take for a number, and nobody meant as one."""
    if not isinstance(value, Mapping):
        return
    for name, kinds, parts in _number_fields(model):
        inner = value.get(name)
        if isinstance(inner, Mapping):
            for part in parts:
                yield from _loose(part, inner, node.get(name) or node, f"{prefix}{name}.")
        elif isinstance(inner, bool) and bool not in kinds and kinds & {int, float}:
            where = node.at([name]).where
            yield f"{where}: {prefix}{name}: a number is needed, got {str(inner).lower()}"
        elif isinstance(inner, str) and int in kinds and not kinds & {str, float}:
            where = node.at([name]).where
            yield f"{where}: {prefix}{name}: a whole number is needed, got the text {inner!r}"


@lru_cache(maxsize=256)
def _number_fields(model: type[BaseModel]) -> list[tuple[str, set[Any], list[type[BaseModel]]]]:
    """Name, types and inner models of the fields that are numbers or hold models."""
    found = []
    for name, info in model.model_fields.items():
        kinds, parts = _kinds(info.annotation), list(_models(info.annotation))
        if parts or kinds & {int, float}:
            found.append((name, kinds, parts))
    return found


def _kinds(annotation: Any) -> set[Any]:
    """The types an annotation is made of; those of a Literal's values too."""
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    inner = get_args(annotation)
    return set().union(*map(_kinds, inner)) if inner else {annotation}


def _messages(
    error: ValidationError, model: type[BaseModel], node: Node, prefix: str
) -> Iterator[str]:
    for item in error.errors():
        loc = [part for part in item["loc"] if part != "[key]"]
        key = (prefix + dotted(loc)).rstrip(".")
        where = node.at(loc).where
        if item["type"] == "extra_forbidden":
            yield f"{where}: {key}: {no_such_key(str(loc[-1]), _fields(model, loc[:-1]))}"
        elif item["type"] == "missing":
            yield f"{where}: {key}: is missing"
        else:
            what = item["msg"][0].lower() + item["msg"][1:]
            got = repr(item["input"])
            yield f"{where}: {key}: {what}, got {got if len(got) < 80 else got[:77] + '...'}"


def no_such_key(key: str, known: Sequence[str]) -> str:
    """The wording of every unknown-key error."""
    near = get_close_matches(key, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no such key.{hint} Known keys: {', '.join(sorted(known)) or 'none'}"


def _fields(model: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    """Field names of the model at `loc` below `model`."""
    for part in loc:
        info = model.model_fields.get(str(part))
        if info is None:  # the key of a mapping of models
            continue
        inner = next(_models(info.annotation), None)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)


def dotted(loc: Sequence[Any]) -> str:
    """`("runs", 1, "fusion")` -> `runs[1].fusion`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def kind_of(value: Any) -> str:
    """`a list`, `a number`: how messages name what was found."""
    names = {dict: "a mapping", tuple: "a list", list: "a list", str: "text", bool: "true or false"}
    if value is None:
        return "empty"
    return names.get(type(value), "a number")


def is_file(path: Path) -> bool:
    """Whether there is such a file; no for a name that cannot be one."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def near_files(path: Path) -> str:
    """A hint naming files that may have been meant."""
    folder = path.parent
    names = [p.name for p in folder.iterdir() if p.is_file()] if folder.is_dir() else []
    near = get_close_matches(path.name, names, n=1)
    if near:
        return f". Did you mean {folder / near[0]}?"
    return "" if folder.is_dir() else f" (nor a folder {folder})"
