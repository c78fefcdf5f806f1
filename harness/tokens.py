"""Tokens of frozen encoders, computed once per split and shared by every run that needs them.

    runs/tokens/<key>/features.bin   float32, all real tokens of all samples, (total, D)
                      labels.npz     token offsets, ids, groups, subsets, targets; the part of
                                     each token, where an encoder deals them to heads; and whose
                                     they are, where some are another sample's that can be read
                      done.json      written last; says which could not be read

The key covers the dataset, the split, the encoder, its weights as they are, and all their code.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from harness.contracts import Dataset, PartedTokens, Sample, Tokens
from harness.files import read_json, remove_partial, write_atomic, write_json
from harness.loader import Loader, Request
from harness.provenance import token_code
from harness.spec import RunSpec
from harness.splits import Labels, labels_of, side_of

BATCH = 256


@dataclass(frozen=True)
class TokenFile:
    """Tokens of one stream over one split, memory-mapped."""

    features: npt.NDArray[np.float32]
    """(total, D)"""
    offsets: npt.NDArray[np.int64]
    """(samples + 1,) where each sample's tokens begin"""
    labels: Labels
    parts: npt.NDArray[np.uint8] | None = None
    """(total,) the head that a token is for, if they are dealt to heads"""
    places: npt.NDArray[np.int64] | None = None
    """(samples,) of which sample each one's tokens and labels are: of another one's where it could
    not be read; None: each of its own"""
    bad: Mapping[str, str] = field(default_factory=dict)
    """id -> why, of the samples that could not be read"""

    def batch(self, indices: npt.NDArray[np.int64]) -> Tokens | PartedTokens:
        """Tokens (B, longest, D) of the samples at `indices`, zero where padded."""
        begins, ends = self.offsets[indices], self.offsets[indices + 1]
        lengths = ends - begins
        longest = max(1, int(lengths.max(initial=0)))
        features = np.zeros((len(indices), longest, self.features.shape[1]), np.float32)
        for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            features[row, : end - begin] = self.features[begin:end]
        mask = torch.from_numpy(np.arange(longest)[None, :] < lengths[:, None])
        if self.parts is None:
            return Tokens(torch.from_numpy(features), mask)
        part = np.zeros(mask.shape, np.uint8)
        for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            part[row, : end - begin] = self.parts[begin:end]
        return PartedTokens(torch.from_numpy(features), mask, torch.from_numpy(part))


def token_key(spec: RunSpec, stream: str, split: str, encoder: nn.Module) -> str:
    """Name of the folder."""
    parts = {
        "data": spec.data.model_dump(mode="json"),
        "fingerprint": spec.fingerprint,
        "encoder": spec.encoders[stream].model_dump(mode="json"),
        "stream": stream,
        "split": split,
        "weights": _digest(encoder),
        "code": token_code(spec, stream),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _digest(module: nn.Module) -> str:
    """SHA-256 of a state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@torch.no_grad()
def frozen_tokens(
    root: Path, key: str, encoder: nn.Module, dataset: Dataset, stream: str, loader: Loader
) -> TokenFile:
    """The stored tokens `key`; computed from what `loader` reads if nobody has. Never by two at
    once."""
    folder = root / key
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # freed by the system if its holder dies
        if not (folder / "done.json").exists():
            _compute(folder, encoder, dataset, stream, loader)
    return _open(folder)


def _compute(
    folder: Path, encoder: nn.Module, dataset: Dataset, stream: str, loader: Loader
) -> None:
    count = len(loader)
    device = next(iter([*encoder.parameters(), *encoder.buffers()]), torch.empty(0)).device
    remove_partial(folder)
    lengths: list[int] = []
    samples = []
    parts: list[npt.NDArray[np.uint8]] = []
    places: list[npt.NDArray[np.int64]] = []
    width = 0

    def write(out: Any) -> None:
        nonlocal width
        starts = range(0, count, BATCH)
        requests = (Request(tuple(range(s, min(s + BATCH, count)))) for s in starts)
        for found in loader.read(requests):
            batch = found.samples
            tokens = encode(encoder, batch, stream, device)
            width = tokens.features.shape[-1]
            lengths.extend(tokens.mask.sum(dim=1).tolist())
            samples.append(labels_of(batch, dataset.targets))
            places.append(found.indices)
            if isinstance(tokens, PartedTokens):
                parts.append(tokens.part[tokens.mask].to("cpu", torch.uint8).numpy())
            out.write(tokens.features[tokens.mask].float().cpu().numpy().tobytes())

    write_atomic(folder / "features.bin", write)
    labels = Labels.join(samples)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    arrays = {"offsets": offsets, **labels.arrays()}
    if parts:
        arrays["parts"] = np.concatenate(parts)
    if loader.bad:
        arrays["places"] = np.concatenate(places)
    write_atomic(
        folder / "labels.npz",
        lambda out: np.savez(out, **arrays),  # type: ignore[arg-type]
    )
    write_json(folder / "done.json", {"width": width, "samples": count, "bad": loader.bad})


def encode(
    encoder: nn.Module, samples: Sequence[Sample], stream: str, device: torch.device
) -> Tokens | PartedTokens:
    """Tokens of the samples' raw values of a stream."""
    raws = [sample.streams[stream] for sample in samples]
    inputs = to_device(encoder.collate(raws), device)  # type: ignore[operator]
    tokens: Tokens | PartedTokens = encoder(inputs, **to_device(side_of(samples, stream), device))
    return tokens


def to_device(value: Any, device: torch.device) -> Any:
    """A tensor, or a tuple or mapping of them, moved."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Tokens | PartedTokens):
        return type(value)(*(to_device(v, device) for v in value))
    if isinstance(value, tuple):
        return tuple(to_device(v, device) for v in value)
    if isinstance(value, Mapping):
        return {k: to_device(v, device) for k, v in value.items()}
    return value


def _open(folder: Path) -> TokenFile:
    done = read_json(folder / "done.json") or {}
    with np.load(folder / "labels.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    offsets, parts, places = (arrays.pop(name, None) for name in ("offsets", "parts", "places"))
    shape = (int(offsets[-1]), int(done["width"]))
    size = (folder / "features.bin").stat().st_size
    if size != shape[0] * shape[1] * 4:
        raise ValueError(
            f"{folder}/features.bin has {size} bytes, {shape} needs another size; "
            f"delete the folder to compute it again"
        )
    features: npt.NDArray[np.float32] = np.zeros(shape, np.float32)
    if shape[0]:
        features = np.memmap(folder / "features.bin", np.float32, "r", shape=shape)
    labels = Labels.of_arrays(arrays)
    return TokenFile(features, offsets, labels, parts, places, done.get("bad", {}))
