"""What a build may cost, what it will, and what it has.

Prices are given by who builds, for they change; without them only tokens are counted.

Source: none, ours; a token is taken as four letters where it must be guessed.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from harness.questions.journal import Answer

LETTERS_PER_TOKEN = 4
OUT_TOKENS = 70
"""of a usual answer, per request"""
MILLION = 1e6


class OutOfBudget(Exception):
    """The next request could cost more than is left."""


@dataclass(frozen=True)
class Prices:
    """US dollars per million tokens."""

    tokens_in: float | None = None
    tokens_out: float | None = None

    @property
    def known(self) -> bool:
        return self.tokens_in is not None and self.tokens_out is not None

    def of(self, tokens_in: float, tokens_out: float) -> float:
        return (tokens_in * (self.tokens_in or 0) + tokens_out * (self.tokens_out or 0)) / MILLION


class Promise(NamedTuple):
    """What is put aside for a request."""

    cost: float
    """dollars"""
    guessed: int
    """tokens sent"""


@dataclass
class Budget:
    """Dollars spent, by all sessions of a build, and promised to requests under way."""

    prices: Prices
    most: float | None = None
    spent: float = 0.0
    promised: float = 0.0
    longer: float = 1.0
    """how many times the tokens that were guessed a request had, at most so far"""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def promise(self, messages: Sequence[dict[str, str]], most_out: int) -> Promise:
        """Put aside what a request may cost; raises OutOfBudget if that is not left."""
        guessed = tokens_of(messages)
        with self._lock:
            cost = self.prices.of(self.longer * guessed, most_out)
            if self.most is not None and self.spent + self.promised + cost > self.most:
                raise OutOfBudget
            self.promised += cost
        return Promise(cost, guessed)

    def settle(self, promise: Promise, answer: Answer | None) -> None:
        """A request is over; None: it brought nothing."""
        with self._lock:
            self.promised -= promise.cost
            if answer is not None:
                self.longer = max(self.longer, answer.tokens_in / max(1, promise.guessed))
        if answer is not None:
            self.pay(answer)

    def pay(self, answer: Answer) -> None:
        """Of this or an earlier session."""
        with self._lock:
            self.spent += self.prices.of(answer.tokens_in, answer.tokens_out)


def tokens_of(messages: Sequence[dict[str, str]]) -> int:
    """About how many tokens a conversation has."""
    return -(-sum(len(message["content"]) for message in messages) // LETTERS_PER_TOKEN)


def estimate(tokens_in: float, requests: int, prices: Prices) -> str:
    """`about 1.2 M tokens in, 0.3 M out: $12.30` of requests with so many tokens in all."""
    tokens_out = requests * OUT_TOKENS
    told = (
        f"{requests:,} requests, about {_short(tokens_in)} tokens in and {_short(tokens_out)} out"
    )
    return f"{told}: ${prices.of(tokens_in, tokens_out):,.2f}" if prices.known else told


def _short(count: float) -> str:
    return f"{count / MILLION:.1f} M" if count >= MILLION / 10 else f"{count:,.0f}"
