"""Tokens of texts: computed once for each set of different texts, whatever samples have them.

runs/tokens/<key>/   of a split   index.npz: which text each sample has, and the samples' labels
runs/tokens/<key>/   of texts     their tokens, as `harness.cache` stores them; the key covers
                                  the texts and the encoder, and nothing of the dataset
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from harness.cache import BATCH, Wanted, frozen_tokens
from harness.contracts import Dataset
from harness.files import read_json, write_atomic, write_json
from harness.loader import Loader, Request
from harness.shards import note_user, open_tokens, read_index
from harness.splits import Labels, labels_of
from harness.tokens import TokenFile


def text_tokens(
    root: Path, want: Wanted, encoder: nn.Module, dataset: Dataset, loader: Loader
) -> TokenFile:
    """The stored tokens of the texts of a split; computed where texts are new."""
    folder = root / want.key
    folder.mkdir(parents=True, exist_ok=True)
    note_user(folder, want.run_id)
    done = read_json(folder / "done.json")
    if done is not None and (root / done["texts"] / "done.json").exists():
        note_user(root / done["texts"], want.run_id)
        file = open_tokens(root / done["texts"])
        arrays = read_index(folder)[1]
        rows = arrays.pop("rows")
        return replace(file, rows=rows, labels=Labels.of_arrays(arrays))
    texts, rows, labels = _read(want, dataset, loader)
    own = _of_texts(want, texts)
    file = frozen_tokens(root, own, encoder, dataset, loader, texts)
    write_json(folder / "about.json", want.about)
    arrays = {"rows": rows, **labels.arrays()}
    write_atomic(folder / "index.npz", lambda out: np.savez(out, **arrays))
    write_json(folder / "done.json", {"texts": own.key})
    return replace(file, rows=rows, labels=labels)


def _read(want: Wanted, dataset: Dataset, loader: Loader) -> tuple[list[str], np.ndarray, Labels]:
    """Each different text once, which of them each sample has, and the samples' labels."""
    known: dict[str, int] = {}
    rows: list[int] = []
    labels: list[Labels] = []
    starts = range(0, len(loader), BATCH)
    requests = (Request(tuple(range(s, min(s + BATCH, len(loader))))) for s in starts)
    for found in loader.read(requests):
        texts = [sample.streams[want.stream] for sample in found.samples]
        rows += [known.setdefault(text, len(known)) for text in texts]
        labels.append(labels_of(found.samples, dataset.targets))
    return list(known), np.array(rows, np.int64), Labels.join(labels)


def _of_texts(want: Wanted, texts: Sequence[str]) -> Wanted:
    """The tokens of the texts alone, by what they depend on."""
    kept = ("encoder", "stream", "numbers", "weights")
    code = {k: v for k, v in want.about["code"].items() if not k.startswith("harness.data.")}
    about = {
        **{name: want.about[name] for name in kept},
        "views": 0,
        "code": code,
        "texts": len(texts),
        "digest": hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest(),
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return replace(want, key=key, about=about, views=0)
