"""YAML -> values that remember their file and line; what a config has no use for is refused."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from harness.config import ConfigError, Node, kind_of, near_files

MAX_NODES = 200_000
"""values a file may hold once its aliases are written out: enough for any sweep, not for a bomb"""
MAX_DEPTH = 50
PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str")}


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
            raise ConfigError(f"{name}: is empty; a mapping is needed, e.g. `key: value`")
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
        try:
            value = self.constructor.construct_object(raw)
        except (ValueError, KeyError, IndexError):
            shown = raw.value if len(raw.value) < 40 else raw.value[:37] + "..."
            raise ConfigError(f"{where}: {shown!r} is no value of its kind; quote text") from None
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            raise ConfigError(f"{where}: half a character (a surrogate) is no text")
        return value
