"""A causal language model of `transformers` on this machine, asked one conversation at a time.

Source: the package `transformers`; a conversation is written by the tokenizer's own chat template,
where it has one, else as plain lines.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.config import ConfigError
from harness.files import content_digest
from harness.questions.journal import Answer

LATER_TEMPERATURE = 0.7
"""of a request that is made again, at least: the same words would come where it is greedy"""


def warmer(temperature: float, again: bool) -> float:
    """The temperature of a request."""
    return max(temperature, LATER_TEMPERATURE) if again else temperature


class Local:
    """A model in a folder, or by its name on the hub, from the cache if it is there."""

    backend = "hf"

    def __init__(self, model: str, temperature: float, top_p: float, max_tokens: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(model)
            self.model = AutoModelForCausalLM.from_pretrained(model).eval()
        except (OSError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise ConfigError(
                f"--backend hf: --model {model}: {why}; give a folder with a causal language "
                f"model, or its name on the hub where that can be reached"
            ) from None
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device)
        self.temperature, self.top_p, self.max_tokens = temperature, top_p, max_tokens
        folder = Path(model)
        revision = getattr(self.model.config, "_commit_hash", None)
        self.revision = f"sha256:{content_digest(folder)}" if folder.is_dir() else revision or ""
        self.most = getattr(self.model.config, "max_position_embeddings", None)

    def ask(
        self, messages: Sequence[Mapping[str, str]], schema: dict[str, Any], seed: int, again: bool
    ) -> Answer:
        """The answer to a conversation; the same for the same seed on the same machine."""
        import torch

        marks = not self.tokenizer.chat_template  # else the template has written them
        told = self.tokenizer(
            self._written(messages), add_special_tokens=marks, return_tensors="pt"
        )
        ids = told.input_ids.to(self.device)
        if self.most is not None and ids.shape[1] + self.max_tokens > self.most:
            raise ConfigError(
                f"--backend hf: a request has {ids.shape[1]} tokens and its answer up to "
                f"{self.max_tokens}, the model has {self.most} positions; take another, or fewer "
                f"--max-tokens"
            )
        torch.manual_seed(seed)
        temperature = warmer(self.temperature, again)
        how: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            how = {"do_sample": True, "temperature": temperature, "top_p": self.top_p}
        with torch.no_grad():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.max_tokens,
                pad_token_id=self._padding(),
                **how,
            )
        new = out[0, ids.shape[1] :]
        return Answer(
            text=str(self.tokenizer.decode(new, skip_special_tokens=True)),
            tokens_in=ids.shape[1],
            tokens_out=len(new),
            model_revision=self.revision,
            cut=len(new) == self.max_tokens,
            created=time.time(),
        )

    def _written(self, messages: Sequence[Mapping[str, str]]) -> str:
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
            return str(text)
        lines = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
        return "\n".join([*lines, "Assistant:"])

    def _padding(self) -> int:
        known = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id or 0) if known is None else int(known)
