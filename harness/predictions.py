"""The file of a run's predictions: arrays in numpy's zip, no pickles.

    ids, groups, subsets   (samples,) strings
    target/<name>          (samples,) int64
    logits/<name>          (samples, classes) float32
    actions                (A, 2) int64, where it is known which pairs of verb and noun exist
    windows                (samples, 2) float64, where it is known what was seen of a recording
    made_by                a JSON text: the run, the digest of its weights, its data and encoders

Source: none, ours.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.config import ConfigError
from harness.evaluate import Predictions
from harness.files import write_atomic
from harness.spec import RunSpec


def write_predictions(file: Path, predictions: Predictions) -> None:
    """Write `file`, as a whole or not at all."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "ids": predictions.ids,
        "groups": predictions.groups,
        "subsets": predictions.subsets,
    }
    arrays |= {f"target/{name}": value for name, value in predictions.targets.items()}
    arrays |= {f"logits/{name}": value for name, value in predictions.logits.items()}
    if predictions.actions is not None:
        arrays["actions"] = predictions.actions
    if predictions.windows is not None:
        arrays["windows"] = predictions.windows
    if predictions.made_by:
        arrays["made_by"] = np.array(json.dumps(predictions.made_by, sort_keys=True))
    write_atomic(file, lambda out: np.savez_compressed(out, **arrays))  # type: ignore[arg-type]


def signed(
    said: Predictions,
    spec: RunSpec,
    seen: Mapping[str, tuple[float, float]],
    weights: str,
    loaded: Mapping[str, Any],
) -> Predictions:
    """Predictions of the test split with what made them, and what it saw of each recording;
    `weights` is the digest of the run's, `loaded` what its encoders started from."""
    nothing = (float("nan"), float("nan"))
    windows = np.array([seen.get(name, nothing) for name in said.ids.tolist()], np.float64)
    made_by = {
        "run": spec.run_id,
        "weights": weights,
        "data": spec.data.model_dump(mode="json"),
        "fingerprint": spec.fingerprint,
        "method": spec.train.method,
        "starts": {stream: one.init for stream, one in spec.encoders.items()},
        "classifiers": {
            stream: sorted([*told.get("heads", ()), *told.get("heads_left", ())])
            for stream, told in loaded.items()
        },
        "needs": dict(spec.needs),
    }
    return replace(said, windows=windows if seen else None, made_by=made_by)


def read_predictions(file: Path) -> Predictions:
    """What `write_predictions` wrote; ConfigError if `file` is something else, or damaged."""
    try:
        # in one piece: numpy reads a file in thousands of small ones
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        return Predictions(
            ids=arrays["ids"],
            groups=arrays["groups"],
            subsets=arrays["subsets"],
            targets={k[7:]: v for k, v in arrays.items() if k.startswith("target/")},
            logits={k[7:]: v for k, v in arrays.items() if k.startswith("logits/")},
            actions=arrays.get("actions"),
            windows=arrays.get("windows"),
            made_by=json.loads(str(arrays["made_by"])) if "made_by" in arrays else {},
        )
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{file}: cannot be read as predictions ({error})") from None
