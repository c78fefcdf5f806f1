"""Samples of the test split to look at: what they show and ask, and what each row said of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.config import ConfigError
from harness.registry import load_plugins
from harness.spec import RunSpec, dataset_of
from harness.store import Store
from reports.gains import class_names
from reports.hits import scored
from reports.rows import Row, predictions

if TYPE_CHECKING:
    from harness.contracts import Sample
    from harness.evaluate import Predictions
    from reports.sections import Section

SHOWN = 40
"""samples of a section"""
FRAMES, HEIGHT = 8, 112
"""frames of a clip, and their height in pixels, at most"""
POINTS = 120
"""of a sensor's channel"""


def samples_of_section(store: Store, section: Section) -> dict[str, Any] | None:
    """Samples that the rows disagree on most, then others; None where rows share none.

    `note` says what keeps their contents from being shown.
    """
    assert section.report is not None
    done = [row for row in section.rows if row.done and not row.is_reference]
    rows = [row for row in done if row.samples]
    metric = section.report.metrics[-1]
    said = {row.name: predictions(store, row.done[0].run_ids) for row in rows}
    first = next(iter(said.values()), None)
    if first is None:
        return None
    alike = [row for row in rows if _alike(said[row.name], first)]
    chosen = _chosen(store, alike, metric)
    if not len(chosen):
        return None
    order = np.argsort(first.ids, kind="stable")
    places = order[chosen]
    contents, note = _contents(store, max(alike, key=lambda row: len(row.streams)), places)
    names = class_names(store, alike[0])
    found = []
    for place in places.tolist():
        found.append(
            {
                "id": str(first.ids[place]),
                "group": str(first.groups[place]),
                "truth": {t: _name(names, t, int(of[place])) for t, of in first.targets.items()},
                "shown": contents.get(place, {}),
                "said": {
                    row.name: {
                        target: _answer(names, target, said[row.name].logits[target][place])
                        for target in first.targets
                    }
                    for row in alike
                },
            }
        )
    return {"samples": found, "note": note, "rows": {row.name: row.label for row in alike}}


def _alike(said: Predictions, first: Predictions) -> bool:
    """Whether it is of the same samples, with the same truth."""
    return said.targets.keys() == first.targets.keys() and all(
        np.array_equal(one, other)
        for one, other in (
            (said.ids, first.ids),
            *((of, first.targets[target]) for target, of in said.targets.items()),
        )
    )


def _chosen(store: Store, rows: Sequence[Row], metric: str) -> Any:
    """Places in the order of the ids: half of them where rows differ most, half at even steps."""
    hits = []
    for row in rows:
        by_metric = scored(store, row.done[0], [metric])[2]
        if metric in by_metric:
            hits.append(by_metric[metric] > 0)
    if not hits:
        return np.zeros(0, np.int64)
    differ = np.var(np.stack(hits).astype(float), axis=0)
    most = np.argsort(-differ, kind="stable")[: SHOWN // 2]
    most = most[differ[most] > 0]
    even = np.linspace(0, len(differ) - 1, min(len(differ), SHOWN)).astype(np.int64)
    rest = [place for place in even if place not in set(most.tolist())]
    return np.array([*most, *rest], np.int64)[:SHOWN]


def _name(names: Mapping[str, Sequence[str]], target: str, one: int) -> str:
    known = names.get(target, ())
    return known[one] if one < len(known) else str(one)


def _answer(names: Mapping[str, Sequence[str]], target: str, logits: Any) -> list[Any]:
    """[class with the largest logit, its probability]."""
    best = int(np.argmax(logits))
    share = 1 / float(np.exp(logits.astype(float) - float(logits[best])).sum())
    return [_name(names, target, best), round(share, 3)]


def _contents(store: Store, row: Row, places: Any) -> tuple[dict[int, Any], str]:
    """Place -> stream -> what can be shown of it; and why something cannot."""
    from harness.splits import fetch

    load_plugins()
    stored = store.run(row.run_ids[0]).spec()
    spec = RunSpec(**stored["spec"])
    found: dict[int, Any] = {}
    try:
        dataset = dataset_of(spec, stored["paths"])
        items = dataset.split("test")
        ids = predictions(store, row.done[0].run_ids[:1]).ids
        for place in places.tolist():
            at = place * dataset.views
            if at >= len(items) or place >= len(ids):
                continue
            (sample,) = fetch(items, [at])
            if sample.id == str(ids[place]):  # else some samples could not be read
                found[place] = {
                    name: shown
                    for name, stream in dataset.streams.items()
                    if name in spec.encoders and (shown := _shown(sample, name, stream.kind))
                }
    except (ConfigError, ValueError, OSError, LookupError) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        return found, f"what samples show cannot be had here: {told}"
    return found, ""


def _shown(sample: Sample, name: str, kind: str) -> dict[str, Any] | None:
    raw = sample.streams[name]
    if kind == "text":
        return {"kind": "text", "text": str(raw)}
    if kind == "video":
        boxes = sample.side.get(name, {}).get("boxes")
        return _strip(raw.numpy(), None if boxes is None else boxes.numpy())
    if kind == "sensor":
        values = raw.numpy()
        step = max(1, len(values) // POINTS)
        return {"kind": "series", "values": np.round(values[::step].T, 3).tolist()}
    return None


def _strip(clip: Any, boxes: Any) -> dict[str, Any]:
    """Frames (T, H, W, 3) side by side as one JPEG, and boxes (T, O, 4) of each."""
    from PIL import Image  # comes with matplotlib

    which = np.unique(np.linspace(0, len(clip) - 1, min(FRAMES, len(clip))).astype(int))
    frames = [Image.fromarray(clip[place]) for place in which]
    height = min(HEIGHT, frames[0].height)
    width = round(frames[0].width * height / frames[0].height)
    strip = Image.new("RGB", (width * len(frames), height))
    for place, frame in enumerate(frames):
        strip.paste(frame.resize((width, height)), (place * width, 0))
    out = io.BytesIO()
    strip.save(out, "JPEG", quality=88, subsampling=0)
    drawn = [[] for _ in which] if boxes is None else [
        [np.round(box, 3).tolist() for box in boxes[place] if box.any()]
        for place in which if place < len(boxes)
    ]  # fmt: skip
    uri = f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
    size = {"frames": len(frames), "width": width, "height": height}
    return {"kind": "frames", "src": uri, **size, "boxes": drawn}
