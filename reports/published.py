"""The paper's numbers, and when ours may be set against them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from harness.config import Config, ConfigError, validate
from harness.yamlfile import read_yaml
from reports.rows import Row

FILE = Path(__file__).parent / "paper_tables.yaml"


class PaperRow(Config):
    model: str
    """the row's name in print"""
    pretrain: str = ""
    """what its encoder was trained on before"""
    scores: list[float]
    """in the order of the table's metrics"""
    ours: bool = False
    """whether the harness can run it"""
    information: str = "none"
    """what the model is told beside the clip when it is tested"""
    known_as: list[str] = []
    """names of the same model in other tables"""
    protocol: dict[str, str] = {}
    """parameter of a run -> value it must have, on top of the table's"""


class PaperTable(Config):
    metrics: list[str]
    """what the scores are, by the names of this harness"""
    protocol: dict[str, str] = {}
    """parameter of a run -> value it must have to be comparable"""
    rows: list[PaperRow]


class PaperTables(Config):
    table1: PaperTable
    table2: PaperTable
    table3: PaperTable
    table4: PaperTable


@dataclass(frozen=True)
class Published:
    """A row of the paper."""

    model: str
    names: tuple[str, ...]
    """its own name and those it has in other tables"""
    ours: bool
    scores: Mapping[str, float]
    """metric -> number as printed: % or GFLOPs or millions"""
    protocol: Mapping[str, str]
    information: str


@lru_cache(maxsize=1)
def paper_tables() -> dict[str, tuple[Published, ...]]:
    """Table name -> its rows, in print order."""
    tables, messages = validate(PaperTables, read_yaml(FILE))
    if messages:
        raise ConfigError(*messages)
    named = {name: getattr(tables, name) for name in PaperTables.model_fields}
    return {
        name: tuple(
            Published(
                row.model,
                (row.model, *row.known_as),
                row.ours,
                dict(zip(table.metrics, row.scores, strict=True)),
                {**table.protocol, **row.protocol},
                row.information,
            )
            for row in table.rows
        )
        for name, table in named.items()
    }


def published(table: str, name: str | None) -> Published | None:
    """The row called `name` in a table of the paper.

    For a table that the paper lacks: the row of that name, if just one table of results has it.
    """
    tables = paper_tables()
    searched = [table] if table in tables else ["table1", "table2", "table3"]
    found = [row for place in searched for row in tables[place] if name in row.names]
    return found[0] if len(found) == 1 else None


def comparable(row: Row, paper: Published) -> str | None:
    """None if the row was run as the paper ran its own, else what differs."""
    data = row.params.get("data.name", "")
    if data != paper.protocol.get("data.name", "ek100"):
        return f"other data: {data}"
    if not paper.protocol:
        return "the paper's protocol is not settled"
    differ = [
        f"{name} is {row.params.get(name, 'not recorded')}, not {wanted}"
        for name, wanted in paper.protocol.items()
        if row.params.get(name) != wanted
    ]
    if "text" in row.streams and ("template" in row.asked or "leak allowed" in row.asked):
        differ.append(row.asked)
    return "; ".join(differ) or None
