"""What a language model is told: one YAML file per step, with two worked examples each.

Its version is the SHA-256 of the file: an answer is kept under the prompt that it was given to.

Source: the steps are those of the paper's Figure 2; every word is ours.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.config import Config, ConfigError, validate
from harness.yamlfile import read_yaml

STEPS = ("describe", "ask")
INPUTS = {"describe": ("narration",), "ask": ("description", "verb", "noun")}
"""what the text of a step may hold, in braces"""
ANSWERS = {"describe": ("description",), "ask": ("verb_question", "noun_question")}


class _Shot(Config):
    user: str
    assistant: str


class _File(Config):
    version: int
    answer: list[str]
    system: str
    shots: list[_Shot]
    user: str


@dataclass(frozen=True)
class Prompt:
    name: str
    sha256: str
    answer: tuple[str, ...]
    """keys of the JSON object that is asked for"""
    text: _File

    def messages(self, **inputs: str) -> list[dict[str, str]]:
        """The conversation up to the answer, as chat models take it."""
        told = [{"role": "system", "content": self.text.system}]
        for shot in self.text.shots:
            told.append({"role": "user", "content": shot.user})
            told.append({"role": "assistant", "content": shot.assistant})
        return [*told, {"role": "user", "content": self.text.user.format(**inputs)}]

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the answer."""
        return {
            "type": "object",
            "properties": {key: {"type": "string"} for key in self.answer},
            "required": list(self.answer),
            "additionalProperties": False,
        }

    def read(self, answer: str) -> dict[str, str] | None:
        """The texts in an answer, `{...}` anywhere in it; None if one is not there, or empty."""
        answer = readable(answer)
        for part in (answer, *re.findall(r"\{[^{}]*\}", answer)):
            try:
                found = json.loads(part)
            except ValueError:
                continue
            if isinstance(found, dict) and set(self.answer) <= set(found):
                texts = {key: found[key] for key in self.answer}
                if all(isinstance(text, str) and text.strip() for text in texts.values()):
                    return {key: readable(" ".join(text.split())) for key, text in texts.items()}
        return None


def readable(text: str) -> str:
    """Text that can be written: halves of letters replaced, invisible letters left out, letters of
    other widths made plain ones."""
    whole = unicodedata.normalize("NFKC", text.encode("utf-8", "replace").decode())
    return "".join(letter for letter in whole if unicodedata.category(letter) != "Cf")


@lru_cache(maxsize=8)
def prompt(name: str, folder: Path | None = None) -> Prompt:
    """The prompt of a step, of this project or from a folder of one's own. Raises ConfigError."""
    file = (folder or Path(__file__).parent) / f"{name}.yaml"
    if not file.is_file():
        raise ConfigError(f"{file}: no such prompt; {' and '.join(STEPS)} are needed")
    found, messages = validate(_File, read_yaml(file))
    if messages or found is None:
        raise ConfigError(*messages)
    if set(found.answer) != set(ANSWERS[name]):
        raise ConfigError(f"{file}: answer: {', '.join(ANSWERS[name])} are needed")
    try:
        found.user.format(**dict.fromkeys(INPUTS[name], ""))
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{one}}}" for one in INPUTS[name])
        raise ConfigError(f"{file}: user: {error} is not known; there are {known}") from None
    return Prompt(name, hashlib.sha256(file.read_bytes()).hexdigest(), tuple(found.answer), found)
