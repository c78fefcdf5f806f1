"""The command that scores saved predictions, and writes them as a challenge takes them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from harness.data.ek100.submission import Submission
    from harness.data.ek100.truth import Truth
    from harness.evaluate import Predictions

scoring = typer.Typer()


@scoring.command()
def evaluate(
    predictions: Annotated[
        str,
        typer.Argument(
            help="A run (id, folder or predictions.npz), or .pt or .pkl as the EK100 challenges "
            "take it."
        ),
    ],
    annotations: Annotated[
        Path | None,
        typer.Option(help="Folder of the EK100 annotations, or one CSV file of segments."),
    ] = None,
    submission: Annotated[Path | None, typer.Option(help="Write this zip file.")] = None,
    challenge: Annotated[
        str, typer.Option(help="action_recognition | action_anticipation")
    ] = "action_recognition",
    sls: Annotated[
        str | None,
        typer.Option(help="Supervision levels pt,tl,td; as the challenge's baseline by default."),
    ] = None,
    actions: Annotated[
        str | None,
        typer.Option(
            help="head | pair | none: which 100 best actions go with it; the head's by default, "
            "where there is one."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the zip file.")] = False,
) -> None:
    """Score saved predictions by every rule, overall and by share; write a challenge's file.

    Example: harness evaluate 430fc2 --annotations epic-kitchens-100-annotations
    """
    from harness.config import ConfigError
    from harness.scoretable import score_table

    if submission is not None and annotations is None:
        raise ConfigError("--submission: needs --annotations, the segments it must cover")
    if actions not in (None, "head", "pair", "none"):
        raise ConfigError(f"--actions: {actions!r} is none of head, pair, none")
    levels = _levels(sls)
    said, file = read_named(predictions)
    truth = _truth(annotations) if annotations is not None else None
    if truth is not None:
        from harness.data.ek100.results import against

        said = against(said, truth, file)
    elif not said.targets:
        raise ConfigError(f"{file}: holds no truth; give it by --annotations")
    if not said.targets and submission is None:
        raise ConfigError(f"{annotations}: has no classes; for a --submission that would do")
    if said.targets:
        print(score_table(said))
    if submission is not None and truth is not None:
        made = _submission(said, challenge, levels, actions)
        made.write(submission, truth, overwrite)
        print(f"{submission}: {len(said.ids):,} segments for {challenge}", file=sys.stderr)


def read_named(name: str) -> tuple[Predictions, Path]:
    """What was saved, and the file it is in."""
    from harness.config import ConfigError, near_files
    from harness.predictions import read_predictions
    from harness.site import read_site
    from harness.store import RunFolder, Store

    path = Path(name)
    if path.is_dir():
        if RunFolder(path).state() != "done":
            raise ConfigError(f"{path}: not the folder of a run that is done")
        return RunFolder(path).predictions(), path
    if path.suffix == ".npz":
        return read_predictions(path), path
    if path.is_file():
        from harness.data.ek100.results import read_results

        return read_results(path), path
    runs = [run for run in Store(read_site().runs).runs() if run.run_id.startswith(name)]
    if len(runs) == 1:
        return runs[0].predictions(), runs[0].path
    many = f"begins {len(runs)} run ids" if runs else "no such file, and no run begins so"
    raise ConfigError(f"{name}: {many}{'' if runs else near_files(path)}")


def runs_named(names: Sequence[str]) -> list[str]:
    """Runs and files as they are; in place of a sweep's name the runs of its table."""
    from harness.site import read_site
    from harness.store import Store

    stored = {record["name"]: record for record in Store(read_site().runs).sweeps()}
    found: list[str] = []
    for name in names:
        runs = stored[name]["runs"] if name in stored else ()
        found += [row["run_id"] for row in runs if row["in_table"]] or [name]
    return found


def _truth(path: Path) -> Truth:
    from harness.config import ConfigError
    from harness.data.ek100.truth import read_truth

    try:
        return read_truth(path)
    except ValueError as error:
        raise ConfigError(f"--annotations: {error}") from None


def _levels(text: str | None) -> tuple[int, int, int] | None:
    """`2,3,4` -> (2, 3, 4)."""
    from harness.config import ConfigError

    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(f"--sls: three levels of 0..5 are needed, e.g. 2,3,4, not {text!r}")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _submission(
    said: Predictions, challenge: str, levels: tuple[int, int, int] | None, actions: str | None
) -> Submission:
    from harness.config import ConfigError
    from harness.data.ek100.submission import Submission, best_of_head, best_of_pairs, summed

    if "verb" in said.logits or said.actions is None:
        verb, noun = said.logits["verb"], said.logits["noun"]
    else:
        verb, noun = summed(said.logits["action"], said.actions)
    has_head = "action" in said.logits and said.actions is not None
    if actions == "head" and not has_head:
        raise ConfigError("--actions: head: the predictions hold no head over actions")
    best = None
    if has_head and said.actions is not None and actions in (None, "head"):
        best = best_of_head(said.logits["action"], said.actions)
    elif actions == "pair":
        best = best_of_pairs(verb, noun)
    return Submission(challenge, said.ids, verb, noun, best, levels)
