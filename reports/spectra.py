"""What heads with state-space models learned to forget: the matrix A of each, and how far apart.

A is diagonal, A[d, n] = -exp(A_log[d, n]) (Algorithm 1, line 1): a state fades by exp(dt A) per
token, so exp(A_log) is a rate of decay. The heads here start at the rates 1 .. N in every channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.store import Store
from reports.looks import look
from reports.rows import Row

NAME = "fusion.A_log"
Matrices = Mapping[str, Any]
"""stream, or `` where all share it -> A_log (D, N)"""


def matrices(store: Store, run_id: str) -> Matrices:
    """Those of a run; empty if its head has none, or its weights are not here."""
    from safetensors import safe_open

    file = store.run(run_id).weights_file
    if not file.is_file():
        return {}
    with safe_open(file, "np") as stored:
        names = [name for name in stored.keys() if name.split(".A_log")[0] + ".A_log" == NAME]  # noqa: SIM118
        found = {name.removeprefix(NAME).strip("."): stored.get_tensor(name) for name in names}
    return {name: values for name, values in found.items() if values.ndim == 2 and values.size}


def apart(first: Any, second: Any) -> float:
    """Root mean square of log(rate / rate): 0 equal, 0.69 a factor of two."""
    return float(np.sqrt(np.mean((first - second) ** 2)))


def spectra(store: Store, rows: Sequence[Row]) -> Figure | None:
    """Left: rates of decay, sorted, of each matrix. Right: how far each has moved from where it
    began, and the matrices of a head from each other; a point for each seed."""
    found: dict[str, list[Matrices]] = {}
    for row in rows:
        told = [matrices(store, run_id) for run_id in row.run_ids]
        shapes = {str({name: of.shape for name, of in one.items()}) for one in told}
        if told and all(told) and len(shapes) == 1:
            found[row.label] = told
    if not found:
        return None
    figure = Figure(figsize=(8.4, 3.6))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    moved: list[tuple[str, list[float], str]] = []
    place = 0
    for label, seeds in found.items():
        for stream in seeds[0]:
            drawn = look(place)
            place += 1
            name = f"{label}, {stream}" if stream else label
            _rates(left, [one[stream] for one in seeds], name, drawn)
            far = [apart(one[stream], _start(one[stream])) for one in seeds]
            moved.append((name, far, drawn["color"]))
        streams = sorted(seeds[0])
        for number, first in enumerate(streams):
            for second in streams[number + 1 :]:
                if seeds[0][first].shape != seeds[0][second].shape:
                    continue
                between = [apart(one[first], one[second]) for one in seeds]
                moved.append((f"{label}, {first} to {second}", between, "0.35"))
    states = next(iter(next(iter(found.values()))[0].values()))
    left.plot(np.linspace(0, 100, states.size), np.sort(np.exp(_start(states)).ravel()),
              color="0.5", linestyle=":", label="1 .. N")  # fmt: skip
    left.set(yscale="log", xlabel="states, sorted (%)", ylabel="rate of decay, exp(A_log)")
    left.legend(loc="upper left", fontsize=7.5)
    for line, (_, values, colour) in enumerate(moved):
        right.plot(values, [line] * len(values), "o", color=colour, alpha=0.8, markersize=5)
    right.set_yticks(range(len(moved)), [name for name, _, _ in moved], fontsize=7.5)
    right.set_ylim(len(moved) - 0.4, -0.6)
    right.set_xlim(left=0)
    right.set(xlabel="from the rates 1 .. N, or apart\n(r.m.s. log of the ratio)")
    right.grid(axis="y", visible=False)
    return figure


def _start(a_log: Any) -> Any:
    return np.broadcast_to(np.log(np.arange(1, a_log.shape[1] + 1)), a_log.shape)


def _rates(panel: Axes, seeds: Sequence[Any], name: str, drawn: Mapping[str, Any]) -> None:
    rates = np.stack([np.sort(np.exp(one).ravel()) for one in seeds])
    share = np.linspace(0, 100, rates.shape[1])
    line = {key: drawn[key] for key in ("color", "linestyle")}
    panel.plot(share, rates.mean(axis=0), label=name, **line)
    if len(rates) > 1:
        panel.fill_between(share, rates.min(axis=0), rates.max(axis=0), color=drawn["color"],
                           alpha=0.2, linewidth=0)  # fmt: skip
