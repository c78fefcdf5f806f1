"""Weights, tokenizers and data that a sweep needs: fetched where there is a hub, else asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from harness.config import ConfigError, Node
from harness.contracts import Encoder
from harness.inputs import weights_of
from harness.plan import plan
from harness.resolve import Resolver


@dataclass(frozen=True)
class Input:
    """One thing that a sweep names."""

    key: str
    """where, e.g. `encoders.text.init`"""
    text: str
    """as it is written"""
    state: Literal["there", "fetched", "missing"]
    told: str
    """where it is, or why it is not"""


@dataclass
class Brought:
    """What became of all that a sweep names."""

    inputs: list[Input] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    """what else keeps the sweep from being planned"""

    @property
    def lacking(self) -> bool:
        """Whether something has still to be got."""
        return any(one.state == "missing" for one in self.inputs)

    def __str__(self) -> str:
        lines = [
            f"{one.state:<8} {one.key}: {one.text}\n         {one.told}" for one in self.inputs
        ]
        if not self.inputs:
            lines.append("no run of this sweep starts from a file")
        if self.other:
            lines += ["", "the sweep cannot be planned yet for another reason:", *self.other]
        return "\n".join(lines)


class Fetching(Resolver):
    """Resolves a sweep, and notes what became of every file it names."""

    def __init__(self, base_dir: Path) -> None:
        super().__init__(base_dir)
        self.found: dict[tuple[str, str], Input] = {}
        self.said: set[str] = set()
        """messages about what is missing"""

    def _input(self, value: str, node: Node, key: str, encoder: type[Encoder] = Encoder) -> str:
        before = _cached()
        try:
            digest = super()._input(value, node, key, encoder)
        except ConfigError as error:
            self.said.update(error.messages)
            self.found[key, value] = Input(key, value, "missing", self._why(value, encoder))
            raise
        new = _cached() - before
        path = self.paths[digest]
        if new:
            size = sum(file.stat().st_size for file in new)
            one = Input(key, value, "fetched", f"{size / 1e6:,.1f} MB, in {path}")
        else:
            one = Input(key, value, "there", path)
        self.found.setdefault((key, value), one)
        return digest

    def _why(self, value: str, encoder: type[Encoder]) -> str:
        """Where something is expected, or what was tried to get it."""
        try:
            path = encoder.locate(value, weights_of(encoder) or self.base_dir).resolve()
        except (RuntimeError, ConfigError) as error:
            return str(error)
        return (
            f"put it there by hand: {path} (docs/weights.md says which published file is which; "
            f"none may be fetched without its publisher's page)"
        )


def prefetch(file: Path, preset: str | None, settings: Sequence[str]) -> Brought:
    """Fetch what the runs of `file` start from and a hub has; what was there, came, or is missing.

    Raises ConfigError if the file is no sweep.
    """
    resolver = Fetching(file.parent)
    other: list[str] = []
    try:
        plan(file, preset, settings, resolver)
    except ConfigError as error:
        if not resolver.found:
            raise
        other = [text for text in error.messages if text not in resolver.said]
    return Brought(list(resolver.found.values()), other)


def _cached() -> set[Path]:
    """Files in the cache of the hub."""
    from huggingface_hub import constants

    return {
        file
        for file in Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/**/*")
        if file.is_file()
    }
