"""Results on EK100 as published evaluations take them: verb and noun scores of each segment.

Source: github.com/epic-kitchens/C1-Action-Recognition, README: a `.pt` or `.pkl` file, either a
list of {verb_output (97), noun_output (300), narration_id} or a mapping from these names to arrays.

Nothing that is in a file is run (`harness.checkpoint.read_values`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.checkpoint import read_values
from harness.config import ConfigError
from harness.data.ek100.annotations import NOUNS, VERBS
from harness.data.ek100.truth import Truth, order_of
from harness.evaluate import Predictions

FIELDS = {"verb_output": VERBS, "noun_output": NOUNS}


def read_results(path: Path) -> Predictions:
    """Scores of verbs and nouns by narration id, without truth; ConfigError for other files."""
    whole = read_values(path)
    names = [*FIELDS, "narration_id"]
    if isinstance(whole, list) and whole and all(isinstance(one, dict) for one in whole):
        rows = [_found(path, f"entry {place}", one, names) for place, one in enumerate(whole)]
        fields = {name: [row[name] for row in rows] for name in names}
    elif isinstance(whole, dict):
        fields = _found(path, "the mapping", whole, names)
    else:
        raise ConfigError(
            f"{path}: holds a {type(whole).__name__}; results are a list of mappings, or one "
            f"mapping, with {', '.join(names)}"
        )
    ids = np.array([str(np.asarray(one).item()) for one in fields["narration_id"]], np.str_)
    verb, noun = (_scores(path, name, fields[name], len(ids)) for name in FIELDS)
    none = np.full(len(ids), "", np.str_)
    return Predictions(ids, none, none, {}, {"verb": verb, "noun": noun})


def against(said: Predictions, truth: Truth, path: Path) -> Predictions:
    """`said` in the order of the annotations, with their classes, shares and actions.

    Raises ConfigError unless it has exactly their segments, and of each 97 and 300 scores, or those
    of a head over actions.
    """
    alone = "action" in said.logits and not said.logits.keys() & {"verb", "noun"}
    for name, classes in () if alone else (("verb", VERBS), ("noun", NOUNS)):
        if name not in said.logits or said.logits[name].shape[1] != classes:
            found = {key: value.shape[1] for key, value in said.logits.items()}
            raise ConfigError(f"{path}: needs {classes} scores of {name}, has classes {found}")
    try:
        order = order_of(said.ids.tolist(), truth, str(path))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    actions = said.actions if said.actions is not None else truth.actions
    targets = dict(truth.targets)
    if alone and actions is None:
        raise ConfigError(f"{path}: a head over actions alone; which they are is not known")
    if "action" in said.logits and actions is not None:
        heads = said.logits["action"].shape[1]
        if heads != len(actions):
            raise ConfigError(f"{path}: a head over {heads} actions, where {len(actions)} exist")
        if targets:
            targets["action"] = _places(actions, targets["verb"], targets["noun"], truth, path)
    targets = {name: value for name, value in targets.items() if name in said.logits}
    logits = {name: value[order] for name, value in said.logits.items()}
    return Predictions(truth.ids, truth.groups, truth.subsets, targets, logits, actions)


def _places(
    actions: npt.NDArray[np.int64],
    verb: npt.NDArray[np.int64],
    noun: npt.NDArray[np.int64],
    truth: Truth,
    path: Path,
) -> npt.NDArray[np.int64]:
    """Where each segment's pair stands among the actions of the predictions."""
    place = {pair: number for number, pair in enumerate(map(tuple, actions.tolist()))}
    pairs = list(zip(verb.tolist(), noun.tolist(), strict=True))
    lost = [name for name, pair in zip(truth.ids, pairs, strict=True) if pair not in place]
    if lost:
        raise ConfigError(
            f"{path}: {len(lost)} segments have an action it does not know: {lost[0]}"
        )
    return np.array([place[pair] for pair in pairs], np.int64)


def _found(path: Path, where: str, one: Mapping[Any, Any], names: list[str]) -> dict[str, Any]:
    lacking = [name for name in names if name not in one]
    if lacking:
        held = ", ".join(map(str, list(one)[:8])) or "nothing"
        raise ConfigError(f"{path}: {where} has no {', '.join(lacking)}; it has {held}")
    return {name: one[name] for name in names}


def _scores(path: Path, name: str, values: Any, samples: int) -> npt.NDArray[np.float32]:
    """(samples, classes) as they are: of float64, nothing is rounded away that tells two apart."""
    try:
        array = np.stack([np.asarray(one) for one in values])
    except ValueError:
        array = np.empty(0)
    if array.shape != (samples, FIELDS[name]) or array.dtype.kind not in "fiu":
        raise ConfigError(
            f"{path}: {name} is not numbers for {samples} segments and {FIELDS[name]} classes "
            f"(found {array.dtype}, {array.shape})"
        )
    return array if array.dtype == np.float64 else array.astype(np.float32)
