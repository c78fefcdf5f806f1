"""Two records of one sweep -> one, if rows of the same name are the same thing in both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from harness.config import ConfigError
from harness.spec import RunSpec

Record = Mapping[str, Any]
SpecOf = Callable[[str], RunSpec | None]
"""run id -> its spec, None where nobody has it"""
Settings = dict[str, str]
"""dotted name -> value, as JSON"""
TITLES = ("label", "paper", "block", "published", "in_table")


def merged(ours: Record, theirs: Record, spec_of: SpecOf, where: str) -> tuple[Record, list[str]]:
    """Ours with the runs of theirs that it lacks, and what differs besides.

    Raises ConfigError with every setting in which rows of the same name differ.
    """
    here, there = _by_row(ours, spec_of), _by_row(theirs, spec_of)
    _refuse_others(here, there, where)
    first, known = _first_of_rows(ours), {_key(run) for run in ours["runs"]}
    new = [run for run in theirs["runs"] if _key(run) not in known]
    unsure = {
        (run["row"], run["seed"])
        for run in new
        if run["row"] in first and (spec_of(run["run_id"]) is None or run["row"] not in here)
    }  # all of a seed, for a part of it would count as all of it
    sure = [run for run in new if (run["row"], run["seed"]) not in unsure]
    told = list(_differences(ours, theirs))
    if len(sure) < len(new):
        count = len(new) - len(sure)
        told.append(f"{count} runs are left out: nothing is known of their settings")
    if not sure:
        return ours, told
    return {**ours, "runs": [*ours["runs"], *(_titled(run, first) for run in sure)]}, told


def _first_of_rows(record: Record) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for run in record["runs"]:
        found.setdefault(run["row"], run)
    return found


def _titled(run: Mapping[str, Any], first: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A run of theirs; in a row that is ours it has the titles of the row."""
    titles = first.get(run["row"], run)
    own = {key: value for key, value in run.items() if key not in TITLES}
    return {**{key: titles[key] for key in TITLES if key in titles}, **own}


def _key(run: Mapping[str, Any]) -> tuple[str, int, str]:
    return run["row"], run["seed"], run["run_id"]


def _differences(ours: Record, theirs: Record) -> Iterator[str]:
    """What is ours in the merged record and was otherwise in theirs."""
    parts = [(f"report.{key}", ours["report"], theirs["report"], key) for key in ours["report"]]
    parts += [(key, ours, theirs, key) for key in ("settings", "claims")]
    others = _first_of_rows(theirs)
    for row, run in _first_of_rows(ours).items():
        if row in others:
            parts += [(f"row {row!r}: {key}", run, others[row], key) for key in TITLES]
    for what, here, there, key in parts:
        if (here.get(key) or None) != (there.get(key) or None):
            yield f"{what} is {_said(here.get(key))} here, {_said(there.get(key))} in the archive"


def _said(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _refuse_others(
    here: Mapping[str, list[Settings]], there: Mapping[str, list[Settings]], where: str
) -> None:
    messages = [
        f"{where}: row {row!r}: {problem}"
        for row in here
        if row in there
        for problem in dict.fromkeys(_problems(here[row], there[row]))
    ]
    if messages:
        raise ConfigError(
            *messages, f"{where}: not the same rows as here; --as NAME stores them as another sweep"
        )


def _by_row(record: Record, spec_of: SpecOf) -> dict[str, list[Settings]]:
    found: dict[str, list[Settings]] = {}
    for run in record["runs"]:
        spec = spec_of(run["run_id"])
        if spec is not None:
            found.setdefault(run["row"], []).append(_settings(spec, spec_of))
    return found


def _settings(spec: RunSpec, spec_of: SpecOf) -> Settings:
    """All that is computed but the seed; in place of a run that is needed, the settings of that."""
    plain = json.loads(spec.canonical())
    del plain["seed"]
    needs = plain.pop("needs")
    found = dict(_flat(plain))
    for what, run_id in needs.items():
        needed = spec_of(run_id)
        inner = _settings(needed, spec_of) if needed else {"run": run_id}
        found |= {f"needs.{what}.{name}": value for name, value in inner.items()}
    return found


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, json.dumps(value, sort_keys=True)


def _problems(here: Sequence[Settings], there: Sequence[Settings]) -> Iterator[str]:
    """Settings in which a row differs, unless they vary among its seeds anyway, as folds do."""
    for name in sorted({name for settings in (*here, *there) for name in settings}):
        ours, theirs = ({settings.get(name) for settings in side} for side in (here, there))
        if len(ours) == len(theirs) == 1 and ours != theirs:
            yield f"{name} is {_one(ours)} here and {_one(theirs)} in the archive"
    data = {_but_data(settings): settings.get("fingerprint") for settings in here}
    for settings in there:  # with the same fold, the same data
        ours_is, theirs_is = data.get(_but_data(settings)), settings.get("fingerprint")
        if ours_is is not None and ours_is != theirs_is:
            yield f"fingerprint is {ours_is} here and {theirs_is} in the archive"


def _but_data(settings: Settings) -> frozenset[tuple[str, str]]:
    return frozenset((k, v) for k, v in settings.items() if not k.endswith("fingerprint"))


def _one(values: set[str | None]) -> str:
    (value,) = values
    return "not set" if value is None else value
