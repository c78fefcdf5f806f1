"""RoBERTa: the tokens of one or more questions, from a folder of published weights.

Source: "RoBERTa: A Robustly Optimized BERT Pretraining Approach" (Liu et al. 2019), sec. 2 and
table 9 for the sizes; the modules, their weights and the tokenizer are those of `transformers`.

    text     questions set apart by `</s>`; `<mask>` or `<MASK>` is the word to be found
    ids      (Q, S) int64, one row per encoded sequence, -1 where there is nothing
    places   (B, L) int64, where each token of a text stands in the flattened (Q S), or -1
    tokens   (B, L, D), the last hidden states; zero where padded

`questions: apart` encodes each question by itself, `<s> question </s>`, and joins their tokens;
`pair` encodes two as one sequence, `<s> one </s></s> two </s>`; `per_head` is `apart`, but a head
sees its own question alone, the first head the first. A text without words has no tokens.

Departs from the paper: MambaVL names RoBERTa and does not say how a text of two questions is
encoded, or which tokens are kept; `apart`, and all tokens with their marks, are guesses.
The modules are called one by one instead of through their model: the attention mask is then plain,
and cost can be counted without weights. The results are the same.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.video import merge_heads, split_heads
from harness.config import ConfigError
from harness.contracts import Encoder, PartedTokens, PluginConfig, Stream, Tokens
from harness.registry import ENCODERS

HIDDEN = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
SIZES = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}
VOCABULARY, POSITIONS = 50265, 514
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""files a model's weights are in, the preferred first"""
TOKENIZER = ("tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json")
HUB_TIMEOUT_S = 5
QUESTIONS = 2
"""questions of a text where each is for a head of its own: verb and noun"""


@ENCODERS.register("roberta")
class Roberta(Encoder):
    """Texts -> the last hidden states of their tokens."""

    kinds = ("text",)
    default_init = "pretrained:FacebookAI/roberta-base"

    class Config(PluginConfig):
        size: Literal["base", "large"] = "base"
        """what `init: random` builds; a pretrained folder brings its own size"""
        questions: Literal["apart", "pair", "per_head"] = "apart"
        """each question by itself and their tokens joined; two questions as one sequence; or each
        question for one head alone"""

    def __init__(self, config: Any, stream: Stream, folder: Path | None = None) -> None:
        super().__init__(config, stream)
        from transformers import RobertaModel

        self.folder = folder
        self.network = RobertaModel(architecture(config.size, folder), add_pooling_layer=False)
        self.width: int = self.network.config.hidden_size
        self.padding: int = self.network.config.pad_token_id
        self.most_tokens: int = self.network.config.max_position_embeddings - self.padding - 1
        self.parts = QUESTIONS if config.questions == "per_head" else 0
        self._tokenizer: Any = None

    @classmethod
    def build(cls, config: Any, stream: Stream, source: Path | None) -> Self:
        """Of the sizes in `source`, a folder; without one of those of `size`."""
        return cls(config, stream, source)

    @classmethod
    def locate(cls, text: str, base_dir: Path) -> Path:
        """A folder as `transformers` saves it, or that of a name on the hub: from its cache, else
        downloaded there."""
        path = base_dir / Path(text).expanduser()
        if path.is_dir():
            if lacking := missing(path):
                raise ConfigError(f"{path} lacks {' and '.join(lacking)}")
            return path
        if path.exists():
            raise ConfigError(f"{path} is a file; give the folder it is in")
        return from_hub(text, path)

    def load(self, source: Path) -> bool:
        """Take the weights in the folder `source`; ValueError if any is missing."""
        from transformers import RobertaModel

        with quiet():
            try:
                model, found = RobertaModel.from_pretrained(
                    source, add_pooling_layer=False, local_files_only=True, output_loading_info=True
                )
            except RuntimeError as error:  # a tensor of another shape than config.json says
                raise ValueError(f"{source} does not fit its config.json: {error}") from None
        if absent := sorted(found["missing_keys"]):
            raise ValueError(f"{source} lacks {len(absent)} tensors: {', '.join(absent[:3])}, ...")
        self.network.load_state_dict(model.state_dict())
        self.folder, self._tokenizer = source, None
        return True

    def tokenizer(self) -> Any:
        """The tokenizer in the folder, read when it is first needed."""
        if self._tokenizer is None:
            if self.folder is None:
                raise ValueError(
                    "random weights have no tokenizer: give the encoder "
                    "`init: pretrained:<folder, or name on the hub>`"
                )
            from transformers import AutoTokenizer

            # One text at a time needs no threads, and with threads a later fork would warn.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            known = self.network.config.vocab_size
            if len(tokenizer) > known or tokenizer.mask_token is None:
                has = f"has {len(tokenizer)} tokens and the mask {tokenizer.mask_token}"
                raise ValueError(f"the tokenizer in {self.folder} {has}; the model has {known}")
            self._tokenizer = tokenizer
        return self._tokenizer

    def example(self) -> tuple[Any, dict[str, Tensor]]:
        """One sequence as long as the stream's texts, a token for each word and mark."""
        length = min(self.stream.shape[0], self.most_tokens)
        return self._batch([[[0] * length]]), {}

    def collate(self, raws: Sequence[str]) -> tuple[Tensor, ...]:
        """Texts -> ids (Q, S), places (B, L), and for `per_head` each token's question (B, L)."""
        return self._batch([self.sequences(text) for text in raws])

    def _batch(self, texts: Sequence[Sequence[Sequence[int]]]) -> tuple[Tensor, ...]:
        ids, places = joined(texts)
        if not self.parts:
            return ids, places
        numbers = [[n for n, one in enumerate(text) for _ in one] for text in texts]
        return ids, places, padded(numbers, places.shape[1])

    def sequences(self, text: str) -> list[list[int]]:
        """The ids of each sequence that is encoded for a text, marks included."""
        questions = [part.strip() for part in text.split("</s>") if part.strip()]
        if not questions:
            return []
        tokenizer = self.tokenizer()
        questions = [masked(question, tokenizer.mask_token) for question in questions]
        if self.parts and len(questions) != self.parts:
            raise ValueError(f"{len(questions)} questions in {start_of(text)}; `per_head` takes 2")
        if self.config.questions != "pair":
            inputs = [(question,) for question in questions]
        elif len(questions) <= 2:
            inputs = [tuple(questions)]
        else:
            raise ValueError(f"{len(questions)} questions in {start_of(text)}; `pair` takes two")
        rows = [tokenizer(*one, truncation=False, verbose=False)["input_ids"] for one in inputs]
        longest = max(map(len, rows))
        if longest > self.most_tokens:
            raise ValueError(
                f"{start_of(text)} has {longest} tokens, the model has {self.most_tokens} positions"
            )
        return rows

    def forward(self, inputs: tuple[Tensor, ...], **side: Tensor) -> Tokens | PartedTokens:
        """`inputs` as from `collate`."""
        ids, places, *part = inputs
        mask = places >= 0
        hidden = self.hidden(ids).flatten(0, 1)
        features = hidden.index_select(0, places.clamp_min(0).flatten()).view(*places.shape, -1)
        features = features * mask[:, :, None].to(features.dtype)
        return PartedTokens(features, mask, *part) if part else Tokens(features, mask)

    def hidden(self, ids: Tensor) -> Tensor:
        """(Q, S), -1 where padded -> (Q, S, D)."""
        real = ids >= 0
        x = self.network.embeddings(
            input_ids=ids.masked_fill(~real, self.padding),
            position_ids=real.long().cumsum(dim=1) * real + self.padding,
            token_type_ids=torch.zeros_like(ids),
        )
        # A row without tokens may look at its padding: a softmax over nothing would be NaN.
        attend = (real | ~real.any(dim=1, keepdim=True))[:, None, None]
        for layer in self.network.encoder.layer:
            x = run_layer(layer, x, attend)
        return x


def architecture(size: str, folder: Path | None) -> Any:
    """The RobertaConfig in a folder, or of a named size."""
    from transformers import RobertaConfig

    if folder is None:
        return RobertaConfig(
            vocab_size=VOCABULARY,
            max_position_embeddings=POSITIONS,
            layer_norm_eps=1e-5,
            type_vocab_size=1,
            **dict(zip(HIDDEN, SIZES[size], strict=True)),
        )
    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    if kind != "roberta":
        raise ValueError(f"{folder / 'config.json'} describes a {kind!r} model, not 'roberta'")
    return RobertaConfig.from_pretrained(folder, local_files_only=True)


def run_layer(layer: nn.Module, x: Tensor, attend: Tensor) -> Tensor:
    """x (Q, S, D) through one RobertaLayer; attend (Q, 1, 1, S), True for keys to be looked at."""
    own = layer.attention.self
    q, k, v = (
        split_heads(linear(x), own.num_attention_heads)
        for linear in (own.query, own.key, own.value)
    )
    dropout = own.dropout.p if own.training else 0.0
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attend, dropout_p=dropout)
    x = layer.attention.output(merge_heads(mixed), x)
    return layer.output(layer.intermediate(x), x)


def joined(texts: Sequence[Sequence[Sequence[int]]]) -> tuple[Tensor, Tensor]:
    """The sequences of each text -> ids (Q, S) and places (B, L), neither ever empty."""
    rows = [one for text in texts for one in text]
    longest = max([1, *map(len, rows)])
    places, row = [], 0
    for text in texts:
        starts = [(row + n) * longest for n in range(len(text))]
        places.append([s + n for s, one in zip(starts, text, strict=True) for n in range(len(one))])
        row += len(text)
    return padded(rows or [[]], longest), padded(places, max([1, *map(len, places)]))


def padded(rows: Sequence[Sequence[int]], length: int) -> Tensor:
    """(rows, length) int64, -1 behind the end of a row."""
    return torch.tensor([[*row, *[-1] * (length - len(row))] for row in rows])


def masked(question: str, mask: str) -> str:
    """The question with the tokenizer's own word for a hidden one."""
    return re.sub("<mask>", lambda _: mask, question, flags=re.IGNORECASE)


def start_of(text: str) -> str:
    """A text's first words, quoted."""
    words = text.split()
    return repr(" ".join(words[:6]) + (" ..." if len(words) > 6 else ""))


def missing(folder: Path) -> list[str]:
    """What a folder lacks to be a model, in words."""
    there = {file.name for file in folder.iterdir() if file.is_file()}
    lacking = [] if "config.json" in there else ["config.json"]
    if not there.intersection(WEIGHTS):
        lacking.append(f"weights ({' or '.join(WEIGHTS)})")
    if "tokenizer.json" not in there and not there.issuperset({"vocab.json", "merges.txt"}):
        lacking.append("a tokenizer (tokenizer.json, or vocab.json with merges.txt)")
    return lacking


def from_hub(name: str, path: Path) -> Path:
    """The folder of a name on the hub; ConfigError tells what was tried and what would help."""
    from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except ValueError:
        raise ConfigError(f"no such folder: {path}") from None
    tried, config = [f"no folder {path}"], try_to_load_from_cache(name, "config.json")
    if not isinstance(config, str):
        tried.append(f"not in the cache {constants.HF_HUB_CACHE} (set by HF_HOME)")
    elif lacking := missing(Path(config).parent):
        tried.append(f"{Path(config).parent} in the cache lacks {' and '.join(lacking)}")
    else:
        return Path(config).parent
    try:
        # Asked first, because unlike a download it gives up after one short attempt.
        about = HfApi().model_info(name, timeout=HUB_TIMEOUT_S)
        files = [file.rfilename for file in about.siblings or []]
        wanted = ["config.json", *TOKENIZER, *[file for file in WEIGHTS if file in files][:1]]
        folder = Path(snapshot_download(name, allow_patterns=wanted))
        if not (lacking := missing(folder)):
            return folder
        tried.append(f"{name} on the hub {constants.ENDPOINT} lacks {' and '.join(lacking)}")
    except Exception as error:  # each version of the library has another HTTP client's errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        tried.append(f"not to be had from the hub {constants.ENDPOINT} ({reason})")
    raise ConfigError(
        f"{'; '.join(tried)}. On a machine with internet run `hf download {name} --local-dir "
        f"FOLDER`, copy that folder here and write `init: pretrained:FOLDER`, or set HF_HOME to "
        f"where it was downloaded before"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without the reports and progress bars of `transformers`, for a while."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
