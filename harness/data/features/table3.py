"""The sweep file that asks Table 3's question of someone's own features."""

from __future__ import annotations

import json
import os
from pathlib import Path

from harness.config import ConfigError
from harness.data.features import Features

WIDTH = 192
"""of the fused vector: 4 and 12 heads divide it"""
LARGEST_BATCH = 64

TEMPLATE = """\
# Which fusion? The rows of the paper's Table 3, on the features of {manifest}.
# Written by `harness data sweep`; yours to change: width, epochs, rows (docs/sweeps.md).
# Run: harness sweep {out} && harness report {name}
report:
  table: {name_}
  title: {title}
  metrics: [{metrics}]

base:
  data: {{name: features, options: {{manifest: {manifest_}}}}}
  encoders:
{encoders}
  width: {width}
  train: {{recipe: adamw, epochs: 30, batch_size: {batch}, clip_norm: 1.0}}

runs:
{singles}
  late_logits: {{label: Late logits, fusion: {{name: late_logits}}}}
  mlp: {{label: MLP, fusion: {{name: mlp}}}}
  transformer_6x4:
    label: Transformer (6x4)
    fusion: {{name: transformer, options: {{layers: 6, heads: 4}}}}
  transformer_12x12:
    label: Transformer (12x12)
    fusion: {{name: transformer, options: {{layers: 12, heads: 12}}}}
  mamba_shared: {{label: MambaVL (shared A), fusion: {{name: mamba_shared}}}}
  mamba_per_modality: {{label: Mamba per modality, fusion: {{name: mamba_per_modality}}}}
  mamba_joint: {{label: Mamba joint scan, fusion: {{name: mamba_joint}}}}

seeds: [0, 1, 2]
"""


def sweep_text(manifest: Path, out: Path) -> str:
    """The sweep file `out` for a manifest. Raises ConfigError where the manifest is wrong, or has
    one stream only."""
    dataset = Features(Features.Config(manifest=manifest))
    streams = sorted(dataset.streams)
    if len(streams) < 2:
        raise ConfigError(f"{manifest}: has one stream, {streams[0]}; there is nothing to fuse")
    rows = []
    for stream in streams:
        others = [json.dumps(f"encoders.{other}") for other in streams if other != stream]
        out_of = ", ".join(f"{other}: null" for other in others)
        name, label = json.dumps(f"only_{stream}"), stream.replace("_", " ").capitalize()
        label = json.dumps(f"{label} only")
        rows.append(f"  {name}: {{label: {label}, fusion: {{name: single}}, {out_of}}}")
    metrics = [f"{target}_top1" for target in dataset.targets]
    if {"verb", "noun"} <= dataset.targets.keys():
        metrics = ["verb_top1", "noun_top1", "action_top1"]
    place = Path(os.path.relpath(manifest, out.parent)).as_posix()
    return TEMPLATE.format(
        manifest=place,
        manifest_=json.dumps(place),
        title=json.dumps(f"Table 3. Fusion heads, on {place}"),
        out=out.as_posix(),
        name=out.stem,
        name_=json.dumps(out.stem),
        metrics=", ".join(map(json.dumps, metrics)),
        encoders="\n".join(f"    {json.dumps(s)}: {{name: precomputed}}" for s in streams),
        width=WIDTH,
        batch=min(LARGEST_BATCH, len(dataset.split("train"))),
        singles="\n".join(rows),
    )
