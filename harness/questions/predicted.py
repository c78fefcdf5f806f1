"""Rows from what a model predicted, for anticipation and for an honest recognition.

What may not be laundered through a model is refused: predictions whose window ends too late, those
of training segments by a model that was trained on them, and those of a model that was itself told
the truth by its questions.

Source: paper sec. 3.1, where the questions of anticipation come from recognised actions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from harness.config import ConfigError
from harness.data.ek100.asking import ABOUT_ITSELF, SLACK, in_time
from harness.data.ek100.classes import Classes
from harness.evaluate import Predictions
from harness.questions.rows import NO_CLASS, PREDICTED, Content, Row

Describe = Literal["target", "observed"]
"""whose prediction a segment's questions are made from: its own, or that of the last segment of its
video that was seen in time"""
NEEDED = ("run", "weights", "data")


@dataclass(frozen=True)
class Said:
    """What was predicted of a segment."""

    verb: int
    noun: int
    window: tuple[float, float] | None
    """first and last second that was seen"""
    origin: Mapping[str, Any]


def rows_from(
    rows: Sequence[Row],
    held_out: frozenset[str],
    predictions: Sequence[tuple[Predictions, str]],
    classes: Classes,
    ahead: float | None,
    describe: Describe,
) -> list[Row]:
    """`rows` with predicted words in place of their own. `held_out`: narration ids of segments that
    no model is trained on, the validation set; `predictions`: each with the name of its file;
    `ahead`: seconds before the action until which may be seen, None for recognition.

    Raises ConfigError where a segment has no prediction, or one that may not be used.
    """
    said: dict[str, Said] = {}
    for found, name in predictions:
        _check_origin(found, name, held_out)
        for narration_id, one in _said(found, name):
            if narration_id in said:
                raise ConfigError(f"{name}: {narration_id} is predicted in another file too")
            said[narration_id] = one
    missing = [row.narration_id for row in rows if row.narration_id not in said]
    if missing:
        raise ConfigError(
            f"--predictions: none of {len(missing):,} of {len(rows):,} segments, e.g. "
            f"{missing[0]}; training segments are predicted by the folds of sweeps/crossfit.yaml; "
            f"give all their runs, or name a file with fewer rows"
        )
    if ahead is not None and describe == "target":
        _check_windows(rows, said, ahead)
    chosen = _observed(rows, said, ahead) if describe == "observed" else said
    return [_row(row, chosen.get(row.narration_id), classes) for row in rows]


def _check_origin(found: Predictions, name: str, held_out: frozenset[str]) -> None:
    made_by = found.made_by
    lacking = [key for key in NEEDED if not made_by.get(key)]
    if lacking:
        raise ConfigError(
            f"{name}: does not say what made it ({', '.join(lacking)}); score the checkpoint in a "
            f"run of this harness, e.g. of sweeps/baselines.yaml: its predictions.npz does (one "
            f"made by an older version: `harness sweep FILE --stale rerun`)"
        )
    options = made_by["data"].get("options", {})
    if made_by["data"].get("name") != "ek100":
        raise ConfigError(f"{name}: predictions on {made_by['data'].get('name')}, not on ek100")
    told = options.get("questions")
    if "text" in made_by.get("starts", {}) and told in (*ABOUT_ITSELF, "shuffled_narration"):
        raise ConfigError(
            f"{name}: its model was told the truth by its own questions ({told}); take one that "
            f"reads none, or questions: predicted or constant"
        )
    if options.get("allow_leak"):
        raise ConfigError(
            f"{name}: its model was allowed to know what is to be foretold (allow_leak); take "
            f"predictions of one that was not"
        )
    trained_on = sorted(set(found.ids.tolist()) - held_out)
    if not trained_on:
        return
    starts = made_by.get("starts", {})
    finetuned = [s for s, i in starts.items() if str(i).startswith("finetuned")]
    finetuned += [s for s in starts if made_by.get("classifiers", {}).get(s)]
    if not options.get("folds"):
        raise ConfigError(
            f"{name}: predicts segments that its model may have been trained on, e.g. "
            f"{trained_on[0]}; take the folds of sweeps/crossfit.yaml, none of which has seen what "
            f"it predicts"
        )
    if finetuned or made_by.get("needs"):
        what = f"its {finetuned[0]} encoder" if finetuned else "a run that it needed"
        raise ConfigError(
            f"{name}: {what} may have been trained on the very segments it predicts, e.g. "
            f"{trained_on[0]}; let the folds start from weights that know no label of EK100"
        )


def _said(found: Predictions, name: str) -> Iterator[tuple[str, Said]]:
    """Narration id -> the best verb and noun."""
    verbs, nouns = _best(found, name)
    windows = np.full((len(found.ids), 2), np.nan) if found.windows is None else found.windows
    made_by = found.made_by
    options = made_by["data"].get("options", {})
    origin = {
        "run": made_by["run"],
        "checkpoint": made_by["weights"],
        "task": options.get("task", ""),
        "fold": f"{options['fold']} of {options['folds']}" if options.get("folds") else None,
    }
    for narration_id, verb, noun, (first, last) in zip(
        found.ids.tolist(), verbs, nouns, windows.tolist(), strict=True
    ):
        window = None if math.isnan(last) else (first, last)
        yield narration_id, Said(int(verb), int(noun), window, origin)


def _best(found: Predictions, name: str) -> tuple[Any, Any]:
    if {"verb", "noun"} <= found.logits.keys():
        return found.logits["verb"].argmax(axis=1), found.logits["noun"].argmax(axis=1)
    if "action" in found.logits and found.actions is not None:
        best = found.actions[found.logits["action"].argmax(axis=1)]
        return best[:, 0], best[:, 1]
    raise ConfigError(f"{name}: has no scores of verb and noun, nor of actions")


def _check_windows(rows: Iterable[Row], said: Mapping[str, Said], ahead: float) -> None:
    for row in rows:
        one, until = said[row.narration_id], row.start - ahead
        if not in_time(one.window, row.start, ahead):
            seen = "not known" if one.window is None else f"{one.window[1]:.2f} s"
            itself = one.origin["task"] == "recognition"
            raise ConfigError(
                f"--predictions: {row.narration_id} begins at {row.start:.2f} s, so that what is "
                f"after {until:.2f} s may not be known; run {one.origin['run']} saw its video "
                f"until: {seen}"
                + (
                    ". It describes the very action that is to be anticipated; `--describe "
                    "observed` takes what it said of the last action seen in time"
                    if itself
                    else ""
                )
            )


def _observed(
    rows: Sequence[Row], said: Mapping[str, Said], ahead: float | None
) -> dict[str, Said]:
    """Of each segment what was said of the last one of its video whose window ended in time."""
    if ahead is None:
        raise ConfigError("--describe observed: is for --task anticipation")
    by_video: dict[str, list[Row]] = {}
    for row in rows:
        by_video.setdefault(row.video, []).append(row)
    found: dict[str, Said] = {}
    for row in rows:
        in_time = [
            one
            for other in by_video[row.video]
            if (one := said[other.narration_id]).window is not None
            and one.window[1] <= row.start - ahead + SLACK
        ]
        if in_time:
            found[row.narration_id] = max(in_time, key=_end)
    return found


def _end(said: Said) -> float:
    return said.window[1] if said.window else -math.inf


def _row(row: Row, said: Said | None, classes: Classes) -> Row:
    """A row about what was predicted; about nothing where nothing was seen in time."""
    if said is None:
        nothing = Content("", "", NO_CLASS, "", NO_CLASS, PREDICTED)
        return row._replace(content=nothing, predicted_from={"window": (0.0, 0.0)})
    verb, noun = classes.verbs[said.verb].key, classes.nouns[said.noun].key
    content = Content("", verb, said.verb, noun, said.noun, PREDICTED)
    return row._replace(content=content, predicted_from={**said.origin, "window": said.window})
