"""The scores of saved predictions as a table: a line per metric, a column per share.

Source: none, ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from harness.evaluate import Predictions, scores, shares, targets_of

RULES: Mapping[str, str] = {
    "": "pair: best verb with best noun",
    "_3806": "pair_3806: only actions that exist",
    "_joint": "joint3806: one head over actions",
    "_marginal": "joint3806, summed over actions",
    "_each": "verb and noun each in its top 5",
}
"""part of a metric's name -> the rule it is counted by; the first is that of actions alone"""
KINDS: Mapping[str, str] = {"top": "top-{}", "recall": "class-mean recall@{}"}


def score_table(said: Predictions) -> str:
    """Percent with one decimal, rules in words, and how many samples each column holds."""
    found = scores(said)
    named = {name.partition("[")[2][:-1] for name in found} - {""}
    columns = ["", *sorted(named, key=lambda share: (share == "tail", share))]  # as in print
    lines = [("metric", "rule", *(share or "overall" for share in columns))]
    for metric in dict.fromkeys(name.partition("[")[0] for name in found):
        names = [f"{metric}[{share}]" if share else metric for share in columns]
        values = (f"{100 * found[name]:.1f}" if name in found else "-" for name in names)
        lines.append((*_in_words(metric), *values))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = (
        "  ".join([*map(str.ljust, line[:2], widths), *map(str.rjust, line[2:], widths[2:])])
        for line in lines
    )
    return "\n".join([*(line.rstrip() for line in table), "", *_counts(said)])


def _in_words(metric: str) -> tuple[str, str]:
    """`verb_marginal_recall5` -> (`verb class-mean recall@5`, the rule)."""
    match = re.fullmatch(r"(.+?)(_joint|_marginal)?_(top|recall)(\d+)(_each|_3806)?", metric)
    if match is None:
        return metric, ""
    target, head, kind, k, rule = match.groups()
    of_pairs = target == "action" or head or rule
    return f"{target} {KINDS[kind].format(k)}", RULES[head or rule or ""] if of_pairs else ""


def _counts(said: Predictions) -> list[str]:
    """`tail: verb 1,760, noun 1,900, action 3,105 samples`."""
    targets = targets_of(said)
    lines = [f"overall: {len(said.ids):,} samples"]
    for share, rows in shares(said.subsets, set(targets)).items():
        counts = {target: int(np.sum(rows[target])) for target in targets}
        told = ", ".join(f"{target} {count:,}" for target, count in counts.items())
        same = len(set(counts.values())) == 1
        lines.append(f"{share}: {f'{next(iter(counts.values())):,}' if same else told} samples")
    return lines
