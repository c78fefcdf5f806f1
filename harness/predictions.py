"""The file of a run's predictions: arrays in numpy's zip, no pickles.

    ids, groups, subsets   (samples,) strings
    target/<name>          (samples,) int64
    logits/<name>          (samples, classes) float32
    actions                (A, 2) int64, where it is known which pairs of verb and noun exist

Source: none, ours.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.config import ConfigError
from harness.evaluate import Predictions
from harness.files import write_atomic


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
    write_atomic(file, lambda out: np.savez_compressed(out, **arrays))  # type: ignore[arg-type]


def read_predictions(file: Path) -> Predictions:
    """What `write_predictions` wrote; ConfigError if `file` is something else, or damaged."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        return Predictions(
            ids=arrays["ids"],
            groups=arrays["groups"],
            subsets=arrays["subsets"],
            targets={k[7:]: v for k, v in arrays.items() if k.startswith("target/")},
            logits={k[7:]: v for k, v in arrays.items() if k.startswith("logits/")},
            actions=arrays.get("actions"),
        )
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{file}: cannot be read as predictions ({error})") from None
