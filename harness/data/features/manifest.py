"""The manifest of someone's own features: a YAML file that names arrays and labels.

    streams:
      video: {file: video.npy}                                         # (N, L, D), or (N, D)
      audio: {file: audio.h5, key: tokens, offsets: {file: audio.h5, key: offsets}}
    labels: {file: labels.csv, targets: [verb, noun], group: video, split: split}

Paths are relative to the manifest. Everything that is wrong is found at once, before any run.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from torch import nn

from harness.config import Config, ConfigError, Node, near_files, validate
from harness.data.features.arrays import Opened, Ragged, Wrong, open_array, ragged, seen
from harness.data.features.labels import Labelled, LabelsEntry, SplitsEntry, read_labels
from harness.yamlfile import read_yaml


class ArrayEntry(Config):
    file: Path
    """.npy, .safetensors, .h5 or .hdf5"""
    key: str | None = None
    """which array of the file, if it holds several"""


class StreamEntry(ArrayEntry):
    offsets: ArrayEntry | None = None
    """integers (N + 1,): sample n has the rows offsets[n] .. offsets[n + 1] of (total, D)"""


class Manifest(Config):
    streams: dict[str, StreamEntry] = Field(min_length=1)
    """modality -> its tokens"""
    labels: LabelsEntry
    splits: SplitsEntry | None = None
    """shares of select and test that are drawn, where the CSV file does not say"""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.splits is not None and self.labels.split is not None:
            raise ValueError("`splits` draws what the column `labels.split` says; take one of them")
        odd = [
            name
            for name in (*self.streams, *self.labels.targets)
            if not re.fullmatch(r"[A-Za-z_][\w ()-]*", name) or hasattr(nn.ModuleDict(), name)
        ]
        if odd:
            raise ValueError(
                f"{odd[0]!r} cannot be the name of a stream or a target: letters, digits, spaces, "
                f"_, - and () are taken, and words that torch has for itself are not; rename it"
            )
        return self


@dataclass(frozen=True)
class Content:
    """What a manifest leads to."""

    file: Path
    streams: dict[str, Ragged]
    labels: Labelled


def read_manifest(file: Path) -> Content:
    """The content of a manifest. Raises ConfigError with everything that is wrong in it."""
    node = read_yaml(file)
    manifest, messages = validate(Manifest, node)
    if messages:
        raise ConfigError(*messages)
    wrong: list[str] = []
    at = node.at(["labels", "file"]).where
    table = _found(file.parent, manifest.labels.file, at, "labels.file", wrong)
    labels = table and read_labels(
        table, manifest.labels, manifest.splits, lambda what: wrong.append(f"{table}: {what}")
    )
    streams: dict[str, Ragged] = {}
    for name, entry in manifest.streams.items():
        where = node.at(["streams", name])
        opened = _opened(file.parent, entry, where, f"streams.{name}", wrong)
        offsets = None
        if entry.offsets is not None:
            inner = where.at(["offsets"])
            offsets = _opened(file.parent, entry.offsets, inner, f"streams.{name}.offsets", wrong)
            if offsets is None:
                continue
        if opened is None or not labels:
            continue
        try:
            streams[name] = ragged(opened, offsets, len(labels.ids))
            bad = seen(opened)["bad"]
        except (Wrong, OSError) as error:
            wrong.append(f"{where.where}: streams.{name}: {opened.file}: {error}")
            continue
        if bad >= 0:
            what = "sample" if entry.offsets is None else "row"
            wrong.append(
                f"{where.where}: streams.{name}: {opened.file}: {what} {bad} holds a number that "
                f"is infinite or none (NaN)"
            )
    if wrong or not labels:
        raise ConfigError(*wrong)
    return Content(file, streams, labels)


def _opened(
    folder: Path, entry: ArrayEntry, node: Node, key: str, wrong: list[str]
) -> Opened | None:
    path = _found(folder, entry.file, node.at(["file"]).where, f"{key}.file", wrong)
    if path is None:
        return None
    try:
        return open_array(path, entry.key)
    except (Wrong, OSError) as error:
        wrong.append(f"{node.where}: {key}: {path}: {error}")
        return None


def _found(folder: Path, name: Path, where: str, key: str, wrong: list[str]) -> Path | None:
    try:
        path = folder / name.expanduser()
    except RuntimeError as error:  # ~nobody
        wrong.append(f"{where}: {key}: {name}: {error}")
        return None
    if path.is_file() and os.access(path, os.R_OK):
        return path
    wrong.append(f"{where}: {key}: no such file: {path}{near_files(path)}")
    return None
