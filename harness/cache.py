"""The store of tokens of frozen encoders: computed once, by one process or by several at once.

    runs/tokens/<key>/  about.json    what they are of
                        0-0003.bin    tokens of the samples 3 * SHARD ... of view 0, one behind the
                                      other, (total, D), in the numbers asked for
                        0-0003.jsonl  a line for each batch in it: lengths, checksums, labels
                        index.npz     all of that for the whole split, once it is complete
                        done.json     written last

The key covers the dataset, the split, the encoder, its weights as they are, all their code, and how
the tokens are stored. Texts are stored once, however many samples have them. Each shard is filled
by who gets its lock; what a process that was killed has left is checked and gone on with, so that
the batch it was at is lost and no more.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from harness.batch import to_device
from harness.contracts import Dataset, PartedTokens, Sample, Tokens
from harness.files import write_atomic, write_json
from harness.loader import NEIGHBOURS, Loader, Request
from harness.provenance import seen_by, token_code
from harness.shards import SHARD, Shard, in_bytes, locked, note_user, open_tokens
from harness.spec import RunSpec
from harness.splits import Ints, Labels, labels_of, side_of
from harness.tokens import TokenFile, can_be_summed, sums_of

BATCH, SLOW_BATCH = 256, 32
"""samples that an encoder sees at once; where a sample is large"""
LOOK = 0.2
"""seconds between two looks at shards that others are at"""
VIEW_SEED = 0x76696577
"""of augmented views: those of all runs are the same"""

TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Wanted:
    """Which tokens, of what, and how they are stored."""

    key: str
    run_id: str
    """who wants them"""
    about: Mapping[str, Any]
    stream: str
    texts: bool
    views: int
    numbers: str


def wanted(spec: RunSpec, dataset: Dataset, stream: str, split: str, encoder: nn.Module) -> Wanted:
    """The tokens of a frozen encoder over a split. Augmented views are those of `train` alone."""
    chosen = spec.encoders[stream]
    texts = dataset.streams[stream].kind == "text"
    views = chosen.views if split == "train" else 0
    plain = chosen.model_dump(mode="json")
    data, fingerprint = seen_by(spec, dataset, stream)
    about = {
        "data": data,
        "fingerprint": fingerprint,
        "encoder": {name: plain[name] for name in ("name", "options", "init")},
        "stream": stream,
        "split": split,
        "views": views,
        "numbers": chosen.cache,
        "weights": _digest(encoder),
        "code": token_code(spec, stream),
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return Wanted(key, spec.run_id, about, stream, texts, views, chosen.cache)


def _digest(module: nn.Module) -> str:
    """SHA-256 of a state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@torch.no_grad()
def frozen_tokens(
    root: Path,
    want: Wanted,
    encoder: nn.Module,
    dataset: Dataset,
    loader: Loader,
    texts: Sequence[str] | None = None,
) -> TokenFile:
    """The stored tokens; what is missing of them is computed from what `loader` reads, or is that
    of `texts`.

    Raises OSError where the disk is full, or would be, and BadSample as the loader does.
    """
    folder = root / want.key
    folder.mkdir(parents=True, exist_ok=True)
    note_user(folder, want.run_id)
    if not (folder / "done.json").exists():
        write_json(folder / "about.json", want.about)
        _Builder(folder, want, encoder, dataset, loader, texts).build()
    return open_tokens(folder)


class _Builder:
    """One of the processes that fill a store."""

    def __init__(
        self,
        folder: Path,
        want: Wanted,
        encoder: nn.Module,
        dataset: Dataset,
        loader: Loader,
        texts: Sequence[str] | None,
    ) -> None:
        self.folder, self.want, self.encoder = folder, want, encoder
        self.dataset, self.loader, self.texts = dataset, loader, texts
        self.size = SLOW_BATCH if dataset.slow else BATCH
        held = next(iter([*encoder.parameters(), *encoder.buffers()]), torch.empty(0))
        self.device = held.device
        self.told = False

    def build(self) -> None:
        count = len(self.loader) if self.texts is None else len(self.texts)
        shards = [
            Shard(self.folder, view, number, min(SHARD, count - number * SHARD))
            for view in range(max(1, self.want.views))
            for number in range(max(1, -(-count // SHARD)))
        ]
        waiting = list(shards)
        while waiting:
            left = [shard for shard in waiting if not self._fill(shard, waiting)]
            if len(left) == len(waiting):
                time.sleep(LOOK)  # others are at them; a lock is free once its holder is dead
            waiting = left
        with locked(self.folder / ".lock", wait=True):
            if not (self.folder / "done.json").exists():
                self._finish(shards)

    def _fill(self, shard: Shard, waiting: Sequence[Shard]) -> bool:
        """Complete a shard, if nobody else is at it; whether it is complete."""
        if shard.complete():
            return True
        with locked(shard.file.with_suffix(".lock"), wait=False) as mine:
            if not mine:
                return False
            if shard.complete():  # by another, since it was looked at
                return True
            done = shard.resume()
            if done < shard.count:
                with open(shard.file, "ab") as out:
                    for tokens, line in self._encoded(shard, done):
                        data = self._bytes(tokens, line)
                        self._announce(data, line, waiting)
                        shard.append(out, data, line)
                    out.flush()
                    os.fsync(out.fileno())
        return True

    def _encoded(
        self, shard: Shard, done: int
    ) -> Iterator[tuple[Tokens | PartedTokens, dict[str, Any]]]:
        """Tokens of the rest of a shard, batch by batch, and what is known of their samples."""
        begin, end = shard.number * SHARD + done, shard.number * SHARD + shard.count
        if self.texts is not None:
            for start in range(begin, end, self.size):
                texts = self.texts[start : min(start + self.size, end)]
                samples = [Sample(text, {self.want.stream: text}, {}) for text in texts]
                yield encode(self.encoder, samples, self.want.stream, self.device), {}
            return
        draw = (VIEW_SEED, shard.view) if self.want.views else None
        for found in self.loader.read(_requests(begin, end, self.size, draw)):
            labels = labels_of(found.samples, self.dataset.targets)
            line = {name: value.tolist() for name, value in labels.arrays().items()}
            line |= {"places": found.indices.tolist(), "bad": found.bad}
            yield encode(self.encoder, found.samples, self.want.stream, self.device), line

    def _bytes(self, tokens: Tokens | PartedTokens, line: dict[str, Any]) -> npt.NDArray[Any]:
        """The real tokens as they are stored, (total, D); `line` gets lengths and checksums."""
        exact = tokens.features[tokens.mask]
        real = exact.to("cpu", TORCH[self.want.numbers]).contiguous()
        if self.want.numbers == "float16" and real.isinf().any() and not exact.isinf().any():
            raise ValueError(
                f"{self.want.stream}: a token holds {float(exact.abs().max()):g}, float16 ends at "
                f"65504; take `encoders.{self.want.stream}.cache: bfloat16`"
            )
        if self.want.numbers == "bfloat16":
            real = real.view(torch.uint16)
        data = real.numpy()
        lengths = tokens.mask.sum(dim=1).tolist()
        line["width"] = data.shape[1]
        ends = np.cumsum(lengths).tolist()
        line["lengths"] = lengths
        line["checksums"] = [
            zlib.crc32(data[end - length : end].data)
            for end, length in zip(ends, lengths, strict=True)
        ]
        if can_be_summed(data.shape[1], data.dtype):
            line["sums"] = [
                int(sums_of(data[None, end - length : end])[0])
                for end, length in zip(ends, lengths, strict=True)
            ]
        if isinstance(tokens, PartedTokens):
            line["parts"] = tokens.part[tokens.mask].tolist()
        return data

    def _announce(
        self, data: npt.NDArray[Any], line: Mapping[str, Any], waiting: Sequence[Shard]
    ) -> None:
        """Say once what comes, and refuse to begin what the disk has no room for."""
        if self.told:
            return
        self.told = True
        items = sum(shard.count - shard.stored() for shard in waiting)
        about = data.nbytes / max(1, len(line["lengths"])) * items
        free = shutil.disk_usage(self.folder).free
        what = self.want.about
        shape = f"{data.shape[1]} {self.want.numbers} numbers a token"
        text = (
            f"tokens of {self.want.stream} ({what['encoder']['name']}, {shape}), "
            f"{what.get('split', 'texts')}: {items:,} to compute, "
            f"about {in_bytes(about)}; {in_bytes(free)} are free"
        )
        print(text, file=sys.stderr, flush=True)
        if about > free:
            raise OSError(
                errno.ENOSPC,
                f"{text}. Free some, keep `runs` elsewhere (site file), or store less: "
                f"`encoders.{self.want.stream}.cache: float16`, or an encoder's `tokens: frame`",
                str(self.folder),
            )

    def _finish(self, shards: Sequence[Shard]) -> None:
        lines = [shard.lines() for shard in shards]
        arrays: dict[str, Any] = {
            "lengths": _joined(lines, "lengths", np.int64),
            "checksums": _joined(lines, "checksums", np.uint32),
            "shard": np.repeat(np.arange(len(shards)), [shard.count for shard in shards]),
        }
        if all("sums" in line for of_shard in lines for line in of_shard):
            arrays["sums"] = _joined(lines, "sums", np.uint64)
        if any("parts" in line for of_shard in lines for line in of_shard):
            arrays["parts"] = _joined(lines, "parts", np.uint8)
        bad: dict[str, str] = {}
        if self.texts is None:
            labels = _labels(lines[: len(shards) // max(1, self.want.views)])
            arrays |= labels.arrays()
            bad = {k: v for of_shard in lines for line in of_shard for k, v in line["bad"].items()}
            if bad:
                places = _joined(lines, "places", np.int64)
                arrays["places"] = settled(places.reshape(max(1, self.want.views), -1))
        write_atomic(self.folder / "index.npz", lambda out: np.savez(out, **arrays))
        width = next(line["width"] for of_shard in lines for line in of_shard)
        names = [shard.file.name for shard in shards]
        done = {"width": width, "files": names, "bad": bad, "views": max(1, self.want.views)}
        write_json(self.folder / "done.json", {**done, "numbers": self.want.numbers})
        for shard in shards:
            shard.file.with_suffix(".jsonl").unlink()
            shard.file.with_suffix(".lock").unlink(missing_ok=True)


def settled(places: Ints) -> Ints:
    """(views, samples) -> (samples,): the sample whose tokens and labels each one has, readable in
    all views. A sample that one of them could not read has another's in all."""
    found = np.arange(places.shape[1])
    for view in places:
        found = np.where(view != np.arange(len(view)), view, found)
    for _ in range(NEIGHBOURS):
        found = found[found]
    return found


def _requests(begin: int, end: int, size: int, draw: tuple[int, int] | None) -> Iterator[Request]:
    for start in range(begin, end, size):
        yield Request(tuple(range(start, min(start + size, end))), draw)


def _joined(lines: Sequence[Sequence[Mapping[str, Any]]], name: str, dtype: Any) -> Any:
    return np.array([value for one in lines for line in one for value in line[name]], dtype)


def _labels(lines: Sequence[Sequence[Mapping[str, Any]]]) -> Labels:
    names = [n for n in lines[0][0] if n in ("ids", "groups", "subsets") or n.startswith("target/")]
    kinds = {name: np.int64 if name.startswith("target/") else np.str_ for name in names}
    return Labels.of_arrays({name: _joined(lines, name, kinds[name]) for name in names})


def encode(
    encoder: nn.Module, samples: Sequence[Sample], stream: str, device: torch.device
) -> Tokens | PartedTokens:
    """Tokens of the samples' raw values of a stream."""
    raws = [sample.streams[stream] for sample in samples]
    inputs = to_device(encoder.collate(raws), device)  # type: ignore[operator]
    side = side_of(samples, stream, encoder.takes)  # type: ignore[arg-type]
    tokens: Tokens | PartedTokens = encoder(inputs, **to_device(side, device))
    return tokens
