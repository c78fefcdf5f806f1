"""How lines and points are told apart: a colour, a dash and a marker, alike only far apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib

from reports.rows import Row

DASHES = ("-", "--", ":")
MARKERS = "osD^vPXh"


def look(place: int) -> dict[str, Any]:
    """Of the line number `place`."""
    colours = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    return {
        "color": colours[place % len(colours)],
        "linestyle": DASHES[place // len(colours) % len(DASHES)],
        "marker": MARKERS[place % len(MARKERS)],
    }


def looks(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Row -> its look, the same in every figure."""
    return {row.name: look(place) for place, row in enumerate(rows)}
