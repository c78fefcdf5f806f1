"""One request to a server that speaks OpenAI's chat protocol, tried again where that can help.

Works with OpenAI and with what serves local models by the same protocol (`--base-url`): vLLM,
llama.cpp, Ollama, LiteLLM. The key is read from the environment, is sent to the server and goes
nowhere else: what the server says is cleaned of it before anything is stored or shown.

Source: the package `openai`.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from harness.config import ConfigError
from harness.questions.journal import Answer
from harness.questions.local import warmer
from harness.questions.prompts import readable

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""seconds before a request is tried again, doubled each time"""
LONGEST_ASKED = 900.0
"""seconds that are waited where the server asks for it"""
SHORTEST_KEY = 12
"""a shorter one (`none`, `x`) is no secret, and its letters are in usual words"""
OPENAI = "https://api.openai.com/v1"
UNKNOWN = ("unsupported", "not support", "unrecognized", "unknown", "unexpected", "not permitted",
           "not allowed", "extra inputs", "invalid parameter")  # fmt: skip
"""words of a message that refuses a setting"""
OPTIONAL = (
    "response_format",
    "seed",
    "top_p",
    "temperature",
    "max_tokens",
    "max_completion_tokens",
)
"""settings that some servers refuse; the request is then made without them, and that is recorded"""
HIDDEN = "[key]"
REFUSALS = ("content_filter", "refusal")


NO_ANSWER = (ValueError, KeyError, IndexError, TypeError, AttributeError)
"""what reading a reply raises that is none: a page of a proxy, an error with status 200"""


class Unanswered(Exception):
    """The server gave no answer, however often it was asked."""


@dataclass(frozen=True)
class ChatSettings:
    model: str
    base_url: str | None = None
    """None: OpenAI's"""
    key_env: str = "OPENAI_API_KEY"
    """environment variable that holds the key"""
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 300
    """of an answer"""
    timeout: float = 60.0
    """seconds until a request counts as lost"""
    retries: int = 6
    """of a request that got no answer"""
    rate: float | None = None
    """requests a minute, at most"""


def host_of(address: str) -> str:
    """`api.openai.com`, `localhost:8000`. Raises ConfigError, which does not repeat the address."""
    try:
        parts = urlsplit(address)
        known = parts.scheme in ("http", "https") and parts.hostname
        port = f":{parts.port}" if parts.port else ""
        secret = bool(parts.username or parts.password or "@" in address)
    except ValueError:
        known, port, secret = None, "", False
    if secret:
        raise ConfigError("--base-url: holds a password; put it into the environment instead")
    if not known:
        raise ConfigError("--base-url: not an address such as http://localhost:8000/v1")
    return f"{known}{port}"


@dataclass
class Chat:
    """A server and a model. Used by many threads at once."""

    settings: ChatSettings
    wait: Callable[[float], None] = time.sleep
    _refused: set[str] = field(default_factory=set)
    """settings that the server does not take"""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _next: float = 0.0

    backend = "openai"

    def __post_init__(self) -> None:
        try:
            import openai
        except ImportError:
            raise ConfigError(
                "--backend openai: needs the package openai: pip install 'mambavl-bench[openai]'"
            ) from None
        self._openai = openai
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.settings.key_env):
            raise ConfigError("--key-env: the name of an environment variable, not a key itself")
        self._key = os.environ.get(self.settings.key_env, "").strip()
        address = self.settings.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI
        if not self._key and address == OPENAI:
            raise ConfigError(
                f"--backend openai: no key in the environment variable {self.settings.key_env}; "
                f"set it, or give the --base-url of a server that needs none"
            )
        if not re.fullmatch(r"[!-~]*", self._key):
            raise ConfigError(
                f"{self.settings.key_env}: holds what no key has: a space, a line end"
            )
        self.host = host_of(address)
        self.client = openai.OpenAI(
            api_key=self._key or "none",
            base_url=address,
            timeout=self.settings.timeout,
            max_retries=0,
        )

    def clean(self, said: object) -> str:
        """Text without the key."""
        text = readable(str(said))
        return text.replace(self._key, HIDDEN) if len(self._key) >= SHORTEST_KEY else text

    def ask(
        self, messages: Sequence[Mapping[str, str]], schema: dict[str, Any], seed: int, again: bool
    ) -> Answer:
        """The answer to a conversation; `again`: it was asked before, other words are wanted.

        Raises Unanswered where the server stays busy, broken or silent, and ConfigError where it
        will never answer: a wrong key, or a model that it does not have.
        """
        lasting = (
            self._openai.AuthenticationError,
            self._openai.PermissionDeniedError,
            self._openai.NotFoundError,
        )
        tries = 0
        while True:
            self._take_turn()
            given = self._settings(schema, seed, again)
            try:
                said = self.client.chat.completions.create(
                    model=self.settings.model,
                    messages=[dict(message) for message in messages],  # type: ignore[misc]
                    **given,
                )
                return self._answer(said, given)
            except lasting as error:
                where = f"{self.host}, model {self.settings.model}"
                raise ConfigError(f"--backend openai: {where}: {self.clean(error)}") from None
            except (self._openai.BadRequestError, self._openai.UnprocessableEntityError) as error:
                if not self._leave_out(error, given):
                    raise Unanswered(f"refused the request: {self.clean(error)}"[:500]) from None
            except (self._openai.APIError, *NO_ANSWER) as error:
                if getattr(error, "code", None) == "insufficient_quota":
                    raise ConfigError(f"--backend openai: {self.clean(error)}"[:500]) from None
                tries += 1
                if tries > self.settings.retries:
                    why = f"{type(error).__name__}: {self.clean(error)}"[:500]
                    raise Unanswered(f"{tries} tries, the last: {why}") from None
                self.wait(self._pause(error, tries))

    def _settings(self, schema: dict[str, Any], seed: int, again: bool) -> dict[str, Any]:
        own = self.settings
        given: dict[str, Any] = {
            "temperature": warmer(own.temperature, again),
            "top_p": own.top_p,
            "seed": seed,
            "max_tokens": own.max_tokens,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema, "strict": True},
            },
        }
        with self._lock:
            if "max_tokens" in self._refused:
                given["max_completion_tokens"] = own.max_tokens
            return {name: value for name, value in given.items() if name not in self._refused}

    def _leave_out(self, error: Any, given: Mapping[str, Any]) -> bool:
        """Note the setting that a server refuses; whether the request can be made without."""
        why, param = self.clean(error).lower(), str(getattr(error, "param", None) or "")
        named = {name for name in OPTIONAL if name in given and param.split(".")[0] == name}
        if not named and any(word in why for word in UNKNOWN):
            named = {name for name in OPTIONAL if name in given and re.search(rf"\b{name}\b", why)}
        if "max_tokens" in named:
            named.discard("max_completion_tokens")
        if not named and "json" in why and "response_format" in given:
            named = {"response_format"}
        with self._lock:
            self._refused |= named
        return bool(named)

    def _answer(self, said: Any, given: Mapping[str, Any]) -> Answer:
        choice = said.choices[0]
        refusal = getattr(choice.message, "refusal", None)
        usage = getattr(said, "usage", None)
        left_out = sorted(set(OPTIONAL[:-1]) - set(given))
        return Answer(
            text=self.clean(refusal or choice.message.content or ""),
            tokens_in=int(getattr(usage, "prompt_tokens", 0) or 0),
            tokens_out=int(getattr(usage, "completion_tokens", 0) or 0),
            response_id=self.clean(said.id or ""),
            host=self.host,
            model_revision=self.clean(
                " ".join(filter(None, (said.model, getattr(said, "system_fingerprint", None))))
            ),
            refused=bool(refusal) or choice.finish_reason in REFUSALS,
            cut=choice.finish_reason == "length",
            created=time.time(),
            settings={"settings_left_out": left_out} if left_out else {},
        )

    def _pause(self, error: Exception, tries: int) -> float:
        """Seconds: what the server asks for, else twice as long each time, and never in step."""
        response = getattr(error, "response", None)
        asked = response.headers.get("retry-after", "") if response is not None else ""
        try:
            return min(LONGEST_ASKED, max(0.0, float(asked)))
        except ValueError:
            longest = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (tries - 1))
            return longest * random.uniform(0.5, 1.0)

    def _take_turn(self) -> None:
        """Wait until the rate allows another request."""
        if self.settings.rate is None:
            return
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + 60 / self.settings.rate
        self.wait(max(0.0, turn - now))
