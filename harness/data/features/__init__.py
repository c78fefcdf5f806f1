"""Anyone's own features: arrays of tokens, labels in a CSV file, and a manifest that names them.

    manifest    the file a user writes, and all that can be wrong in it
    arrays      .npy, .safetensors and HDF5, read in place
    labels      the CSV file: targets, groups, splits
    doctor      what `harness data doctor` says
    table3      the sweep file that `harness data sweep` writes

Source: none, ours. docs/your-data.md leads from two arrays and a CSV file to a table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from harness.config import ConfigError
from harness.contracts import Dataset, PluginConfig, Sample, Split, StoredTokens, Stream
from harness.data.features.arrays import Ragged
from harness.data.features.manifest import Content, read_manifest
from harness.data.made import Made
from harness.finding import Look
from harness.registry import DATASETS
from harness.splits import Ints


@DATASETS.register("features")
class Features(Dataset):
    """Streams and targets as the manifest has them; encoder `precomputed` hands the tokens on."""

    class Config(PluginConfig):
        manifest: Path | None = Field(default=None, json_schema_extra={"input_file": True})
        """YAML file that names the arrays and the labels (docs/your-data.md); must be given"""

    config: Config
    manifests = ("manifest",)

    @cached_property
    def content(self) -> Content:
        """All that the manifest leads to. Raises ConfigError with everything that is wrong."""
        if self.config.manifest is None:
            raise ConfigError("features: options.manifest is missing; docs/your-data.md has one")
        return read_manifest(self.config.manifest)

    @property
    def streams(self) -> Mapping[str, Stream]:
        return {
            name: Stream("features", (int(array.lengths.max()), array.width))
            for name, array in self.content.streams.items()
        }

    @property
    def targets(self) -> Mapping[str, int]:
        return {name: len(classes) for name, classes in self.content.labels.classes.items()}

    def class_names(self) -> Mapping[str, Sequence[str]]:
        return {name: list(map(str, of)) for name, of in self.content.labels.classes.items()}

    def split(self, name: str) -> Split:
        return FeatureSplit(self.content, name, self.content.labels.rows_of(name))

    def stored(self, split: str, stream: str) -> StoredTokens | None:
        array, rows = self.content.streams[stream], self.content.labels.rows_of(split)
        return StoredTokens(array.name, array.rows, array.begins[rows], array.lengths[rows])

    def fingerprint(self) -> str:
        parts = {
            "arrays": {name: array.digest for name, array in self.content.streams.items()},
            "labels": self.content.labels.digest,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def doctor(self, workers: int, seconds: float) -> Iterator[Look]:
        from harness.data.features.doctor import examine

        return examine(self, seconds)


@dataclass(frozen=True)
class FeatureSplit:
    """Some rows of the CSV file, in its order."""

    content: Content
    name: str
    rows: Ints

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        return [self._sample(int(self.rows[index])) for index in indices]

    def _sample(self, row: int) -> Sample:
        labels = self.content.labels
        return Sample(
            id=labels.ids[row],
            streams=Made(
                {name: partial(_tokens, array, row) for name, array in self.content.streams.items()}
            ),
            targets={name: int(values[row]) for name, values in labels.targets.items()},
            group=labels.groups[row] if labels.groups else "",
        )


def _tokens(array: Ragged, row: int) -> Tensor:
    """(L, D), float32."""
    begin = int(array.begins[row])
    found = np.array(array.rows[begin : begin + int(array.lengths[row])])  # a copy of its own
    tokens = torch.from_numpy(found)
    return (tokens.view(torch.bfloat16) if found.dtype == np.uint16 else tokens).float()
