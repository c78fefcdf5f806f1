"""What a search tried, drawn: score against each setting, a panel for each row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.store import Store
from reports.numbers import heading
from reports.search import Found, found


def response_curves(record: Mapping[str, Any], store: Store) -> dict[str, Figure]:
    """Parameter -> score against it, one panel per row: complete and pruned trials, the best, the
    range that is as good, and the value that the file has."""
    told, every = record["search"], found(record, store)
    made = {}
    for key in dict.fromkeys(key for one in every for key in one.space):
        drawn = [one for one in every if key in one.space and one.of("COMPLETE")]
        if not drawn:
            continue
        columns = min(4, len(drawn))
        lines = -(-len(drawn) // columns)
        figure = Figure(figsize=(2.6 * columns + 0.6, 2.5 * lines + 0.9))
        panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
        for place, one in enumerate(drawn):
            panel = panels[place // columns][place % columns]
            _response(panel, one, key)
            if place % columns == 0:
                panel.set_ylabel(
                    f"{heading(told['objective']['metric'])}, {told['objective']['split']} (%)"
                )
        for place in range(len(drawn), lines * columns):
            panels[place // columns][place % columns].set_axis_off()
        handles: dict[str, Any] = {}
        for panel in panels.flat:
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles)
        )
        made[key] = figure
    return made


def _response(panel: Axes, one: Found, key: str) -> None:
    parameter = one.space[key]
    places = {value: place for place, value in enumerate(parameter.categorical or ())}

    def at(value: Any) -> float:
        return float(places[value]) if parameter.categorical is not None else float(value)

    good = one.as_good(key)
    if good and parameter.kind != "categorical" and good[0] < good[-1]:
        panel.axvspan(good[0], good[-1], color="0.9", zorder=0, label="as good as the best")
    looks: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("COMPLETE", {"marker": "o", "s": 22}, "complete"),
        ("PRUNED", {"marker": "x", "s": 26, "linewidths": 1.2, "color": "0.45"}, "pruned, last"),
    )
    for state, look, label in looks:
        shown = [t for t in one.of(state) if t["value"] is not None and key in t["params"]]
        if shown:
            panel.scatter(
                [at(t["params"][key]) for t in shown], [100 * t["value"] for t in shown],
                label=label, zorder=2, **look,
            )  # fmt: skip
    if one.best is not None and key in one.best["params"]:
        panel.scatter(
            [at(one.best["params"][key])], [100 * one.best["value"]], marker="*", s=130,
            facecolor="none", edgecolor="black", linewidths=1.1, label="best", zorder=3,
        )  # fmt: skip
    own = one.written.get(key)
    number = float(own) if isinstance(own, int | float) and not isinstance(own, bool) else None
    if (
        number is not None
        and parameter.kind != "categorical"
        and (number > 0 or parameter.log_uniform is None)
    ):
        panel.axvline(number, linestyle="--", color="0.3", linewidth=1, label="as written")
    if parameter.log_uniform is not None:
        panel.set_xscale("log")
        panel.set_xlim(parameter.span[0] / 1.2, parameter.span[1] * 1.2)
    if parameter.categorical is not None:
        panel.set_xticks(list(places.values()), [str(value) for value in places])
    panel.set_title(one.label.replace(" (", "\n(", 1), fontsize="small")
    panel.set_xlabel(key.removeprefix("train.").removeprefix("fusion.options."))
