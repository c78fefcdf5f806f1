"""YAML -> values that remember their file and line; the base of every typed config; ConfigError."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

MAX_NODES = 200_000
"""values a file may hold once its aliases are written out: enough for any sweep, not for a bomb"""
MAX_DEPTH = 50
PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str")}


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
        head, *rest = key.split(".")
        nested = undot(child)
        for part in reversed(rest):
            nested = Node({part: nested}, child.where)
        if head in result:
            if not (isinstance(result[head].value, dict) and isinstance(nested.value, dict)):
                raise ConfigError(f"{child.where}: {key}: set twice; {result[head].where} has it")
            nested = overlay(result[head], nested)
        result[head] = nested
    return Node(result, node.where)


def read_yaml(path: Path) -> Node:
    """The one mapping in the YAML file `path`. Raises ConfigError saying what is wrong where."""
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; give a YAML file") from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{near_files(path)}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not text in UTF-8; is it a YAML file?") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Node:
    """Like `read_yaml`, of a string; `name` stands for the file in messages."""
    control = re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", text)
    if control:
        line = text[: control.start()].count("\n") + 1
        raise ConfigError(f"{name}:{line}: control character; is it a YAML file?")
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(io.StringIO(text))
        if root is None:
            raise ConfigError(f"{name}: is empty; a mapping with `base` and `runs` is needed")
        node = _Reader(name, yaml).node(root, 0)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        if "'\\t'" in problem:
            problem = "a tab; YAML indents with spaces"
        raise ConfigError(f"{where}: not valid YAML: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested more than {MAX_DEPTH} levels deep") from None
    if not isinstance(node.value, dict):
        raise ConfigError(f"{node.where}: a mapping is needed here, this is {kind_of(node.value)}")
    return node


class _Reader:
    """Composed YAML nodes -> Nodes, refusing what a config has no use for."""

    def __init__(self, name: str, yaml: Any) -> None:
        self.name, self.constructor, self.count = name, yaml.constructor, 0

    def node(self, raw: Any, depth: int) -> Node:
        where = f"{self.name}:{raw.start_mark.line + 1}"
        self.count += 1
        if self.count > MAX_NODES:
            raise ConfigError(f"{where}: more than {MAX_NODES} values once aliases are written out")
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where}: nested more than {MAX_DEPTH} levels deep")
        if isinstance(raw, ScalarNode):
            return Node(self.scalar(raw, where), where)
        if not str(raw.tag).startswith(("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")):
            raise ConfigError(f"{where}: tag {raw.tag} is not allowed here; write plain values")
        if isinstance(raw, SequenceNode):
            return Node(tuple(self.node(child, depth + 1) for child in raw.value), where)
        assert isinstance(raw, MappingNode)
        result: dict[str, Node] = {}
        for key, child in raw.value:
            line = f"{self.name}:{key.start_mark.line + 1}"
            if not isinstance(key, ScalarNode) or key.value == "<<":
                raise ConfigError(f"{line}: keys are plain words; merge keys and lists are not")
            if key.value in result:
                first = result[key.value].where.rsplit(":", 1)[1]
                raise ConfigError(f"{line}: {key.value}: key stands twice, first in line {first}")
            value = self.node(child, depth + 1)
            result[str(key.value)] = Node(value.value, line)
        return Node(result, where)

    def scalar(self, raw: Any, where: str) -> Any:
        if str(raw.tag) not in PLAIN_TAGS:
            raise ConfigError(f"{where}: tag {raw.tag} is not allowed here; write plain values")
        return self.constructor.construct_object(raw)


def validate(
    model: type[Config], node: Node, prefix: str = "", value: Any = None
) -> tuple[Any, list[str]]:
    """(`model` built from `node`, no messages), or (None, one message per mistake).

    With `value`, that is what is checked, and `node` only tells where it was written.
    """
    try:
        return model.model_validate(node.plain() if value is None else value), []
    except ValidationError as error:
        return None, list(_messages(error, model, node, prefix))


def _messages(
    error: ValidationError, model: type[BaseModel], node: Node, prefix: str
) -> Iterator[str]:
    for item in error.errors():
        loc = [part for part in item["loc"] if part != "[key]"]
        key = prefix + dotted(loc)
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


def near_files(path: Path) -> str:
    """A hint naming files that may have been meant."""
    folder = path.parent
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    near = get_close_matches(path.name, names, n=1)
    if near:
        return f". Did you mean {folder / near[0]}?"
    return "" if folder.is_dir() else f" (nor a folder {folder})"
