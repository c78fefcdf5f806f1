"""`harness report --html`: one file with everything in it, that asks the network for nothing.

Tables, figures, claims and what is missing are written out; what a number opens (its runs, the
classes that changed, predictions) lies beside them as JSON and is shown when it is asked for.
"""

from __future__ import annotations

import io
import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from harness.files import write_atomic
from reports.details import details
from reports.missing import missing
from reports.numbers import NONE
from reports.table import Cell, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reports.build import Report

CAPTIONS = {
    "accuracy-cost": "Accuracy against cost; the grey line joins what nothing cheaper reaches.",
    "curves": "Learning curves on the select split: mean over seeds, band of a standard deviation.",
    "length": "Accuracy, and time of an epoch, against the number of tokens.",
    "gain": "What the best fused row has over the best single stream, by true class.",
    "spectra": "Learned rates of decay of each matrix A, and how far each has moved.",
    "leakage": "Scores by where the questions come from.",
    "response": "Score against each setting that was searched.",
}
VERDICTS = ("supported", "equivalent", "against", "undecided")


def write_page(report: Report, drawings: Mapping[str, Mapping[str, Figure]], file: Path) -> None:
    """Write `file`; `drawings` are the figures of each section."""
    text = _page(report, drawings)
    write_atomic(file, lambda out: out.write(text.encode()))


def _page(report: Report, drawings: Mapping[str, Mapping[str, Figure]]) -> str:
    environment = Environment(
        loader=PackageLoader("reports", "templates"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.globals.update(sort_key=sort_key, verdicts=VERDICTS, none=NONE)
    parts = [
        {
            "stem": section.stem,
            "id": slug(section.stem),
            "table": section.table,
            "key": source.stem,
            "figures": list(_figures(section.stem, drawings.get(section.stem, {}))),
            "claims": section.kind == "claims",
        }
        for section, source in zip(report.sections, report.owners, strict=True)
    ]
    found = details(report)
    read = Path(__file__).parent / "templates"
    return environment.get_template("page.html").render(
        parts=parts,
        missing=missing(report),
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        runs=len(found["runs"]),
        counted=_verdicts(parts),
        css=Markup((read / "page.css").read_text()),
        script=Markup((read / "page.js").read_text()),
        data=Markup(_json(found).replace("<", "\\u003c")),
    )


def _json(value: Any) -> str:
    """As browsers read it: they know no NaN and no infinity."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, Mapping):
            return {key: plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value

    return json.dumps(plain(value), separators=(",", ":"), allow_nan=False)


def sort_key(cell: Cell) -> str:
    """What a column is sorted by: the first number behind a cell, else its text."""
    if cell.text == NONE:
        return ""
    numbers = [v for v in cell.raw.values() if isinstance(v, int | float)]
    return f"{numbers[0]:.12g}" if numbers else cell.text


def _verdicts(parts: list[dict[str, Any]]) -> dict[str, int]:
    """How many claims have each verdict."""
    tables: list[Table] = [part["table"] for part in parts if part["claims"]]
    told = [cell.raw.get("verdict") for table in tables for line in table.rows for cell in line]
    return {name: told.count(name) for name in VERDICTS if name in told}


def _figures(stem: str, drawn: Mapping[str, Figure]) -> Iterator[dict[str, Any]]:
    for name, figure in drawn.items():
        kind = name.partition("-")[0] if name.startswith("response") else name
        yield {
            "name": name,
            "caption": CAPTIONS[kind],
            "svg": Markup(svg(figure, f"{stem}-{name}")),
        }


def slug(text: str) -> str:
    """As a name in the page."""
    return re.sub(r"[^\w-]", "-", text)


def svg(figure: Figure, prefix: str) -> str:
    """A figure to stand in a page: names of its own, the page's colour of text, no background."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None},
                       transparent=True)  # fmt: skip
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    safe = f"figure-{slug(prefix)}"
    text = re.sub(r'\bid="', f'id="{safe}-', text)
    text = re.sub(r'href="#', f'href="#{safe}-', text).replace("url(#", f"url(#{safe}-")
    return text.replace("#000000", "currentColor")
