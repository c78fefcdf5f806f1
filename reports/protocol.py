"""How scores were made, in one line: what a reader must know before setting them beside others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from reports.numbers import target_of
from reports.rows import Row

HEADS = {"linear": "linear", "pre_logits": "a layer with tanh, then linear"}


def protocol(metrics: Sequence[str], rows: Sequence[Row]) -> Iterator[str]:
    """Each part once where all rows share it, else with the rows that it is so for."""
    told: list[str] = []
    rule = action_rule(metrics)
    if rule:
        told.append(f"action rule: {rule}")
    for name, of in PARTS.items():
        by_value: dict[str, list[str]] = {}
        for row in rows:
            value = of(row)
            if value:
                by_value.setdefault(value, []).append(row.label)
        if len(by_value) == 1:
            told.append(f"{name}: {next(iter(by_value))}")
        elif by_value:
            most = max(by_value, key=lambda value: len(by_value[value]))
            rest = [v for v in by_value if v != most]
            parts = [f"{value} ({', '.join(by_value[value])})" for value in rest]
            told.append(f"{name}: {'; '.join(parts)}; {most} (the others)")
    if told:
        yield f"Protocol. {'. '.join(part[0].upper() + part[1:] for part in told)}."


def action_rule(metrics: Sequence[str]) -> str:
    """How an action counts as right, by the metrics that are shown; empty without actions."""
    named = [metric for metric in metrics if target_of(metric) == "action"]
    rules = dict.fromkeys(_rule(metric) for metric in named)
    return " / ".join(rules)


def _rule(metric: str) -> str:
    if "_joint" in metric:
        return "a head over the actions that exist"
    if metric.endswith("_3806"):
        return "verb and noun of the best pair among those that exist"
    if metric.endswith("_each"):
        return "verb and noun each among their own top five"
    return "verb and noun both right, pairs ordered by p(verb) p(noun)"


def _clip(params: Mapping[str, str]) -> str:
    frames, size = (params.get(f"data.options.{name}") for name in ("frames", "size"))
    return f"{frames} frames of {size} x {size}" if frames and size else ""


def _views(params: Mapping[str, str]) -> str:
    clips, crops = (params.get(f"data.options.test_{name}") for name in ("clips", "crops"))
    return f"{clips} clips x {crops} crops" if clips and crops else ""


def _training(params: Mapping[str, str]) -> str:
    if params.get("train.method", "gradient") != "gradient":
        return str(params["train.method"]).replace("_", " ")
    return f"{params.get('train.epochs')} epochs, {params.get('train.optimiser')}"


PARTS: dict[str, Callable[[Row], str]] = {
    "task": lambda row: row.params.get("data.options.task", ""),
    "clip": lambda row: _clip(row.params) if "video" in row.streams else "",
    "views at test": lambda row: _views(row.params) if "video" in row.streams else "",
    "beside the clip at test": lambda row: ", ".join(filter(None, (row.information, row.asked))),
    "head": lambda row: HEADS.get(row.params.get("head", ""), ""),
    "training": lambda row: _training(row.params),
}
"""what it is called -> its value for a row, empty where there is none"""
