"""Texts that leave a lab: without paths, passwords, and the names of its machines."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

URL = r"[A-Za-z][\w+.-]*://[^\s'\"`<>(){}\[\]|]+"
PATH = r"(?:/+[^/\s'\"`,;:|<>(){}\[\]]+)+"
PLACES = re.compile(
    rf"(?P<url>{URL})"
    r"|(?P<quote>['\"`])(?P<quoted>/[^\s/'\"`][^'\"`\n]*)(?P=quote)"
    rf"|(?<![\w./~°%)\]])(?!/dev/null\b)(?P<path>{PATH})"
)
"""a URL, a path in quotes, which may hold spaces, or another that begins like one"""
PASSWORD = re.compile(r"(://[^\s/:@]*):\S*@")
TOKEN = re.compile(r"(https?://)[^\s/@]+@")
SECRET = re.compile(r"(?i)([?&][\w-]*(?:token|key|secret|password|signature)[\w-]*=)[^&\s]+")


@dataclass(frozen=True)
class Private:
    """What is known of places that texts may name, beside how paths look."""

    folders: tuple[str, ...]
    """absolute paths with spaces in them"""
    hosts: tuple[str, ...]

    @classmethod
    def of(cls, folders: Iterable[object], hosts: Iterable[object]) -> Private:
        spaced = (folder for folder in map(str, folders) if " " in folder)
        return cls(_longest_first(spaced), _longest_first(str(host) for host in hosts if host))

    def text(self, text: str) -> str:
        """Every absolute path becomes `.../<its last part>`; URLs lose their passwords."""
        for folder in self.folders:  # else a path would seem to end at a space
            text = text.replace(folder, folder.replace(" ", "_"))
        return PLACES.sub(_shortened, text)

    def told(self, text: str) -> str:
        """The same for what was written to be read, such as a message: it names no host either."""
        for host in self.hosts:
            text = re.sub(rf"(?<![\w-]){re.escape(host)}(?![\w-])", "HOST", text)
        return self.text(text)

    def all(self, value: Any, free: bool = False) -> Any:
        """JSON with all its texts, keys too, so treated; `free`: as `told`."""
        if isinstance(value, str):
            return self.told(value) if free else self.text(value)
        if isinstance(value, list | tuple):
            return [self.all(inner, free) for inner in value]
        if not isinstance(value, dict):
            return value
        found: dict[str, Any] = {}
        for key, inner in value.items():
            name, number = self.text(key), 2
            while name in found:  # paths that end alike
                name, number = f"{self.text(key)} ({number})", number + 1
            found[name] = self.all(inner, free)
        return found


def _longest_first(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(texts), key=lambda text: (-len(text), text)))


def _shortened(found: re.Match[str]) -> str:
    if found["url"]:
        return _url(found["url"])
    if found["quoted"]:
        return f"{found['quote']}{_last(found['quoted'])}{found['quote']}"
    return _last(found["path"])


def _url(url: str) -> str:
    scheme, rest = url.split("://", 1)
    if rest.startswith("/") or scheme == "file":  # of this file system
        return f"{scheme}:///{_last(rest)}"
    url = SECRET.sub(r"\1***", TOKEN.sub(r"\1***@", PASSWORD.sub(r"\1:***@", url)))
    server, *parts = url.removeprefix(f"{scheme}://").split("/")
    if scheme in ("http", "https") or len(parts) < 2:
        return url
    return f"{scheme}://{server}/{_last(parts[-1])}"


def _last(path: str) -> str:
    return f".../{path.rstrip('/').rsplit('/', 1)[-1]}"
