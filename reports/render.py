"""One table -> Markdown, LaTeX (booktabs) or CSV."""

from __future__ import annotations

import csv
import io
import re
import unicodedata

from reports.table import Cell, Table

LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "%": r"\%",
    "_": r"\_",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "±": r"$\pm$",
    "\N{MINUS SIGN}": r"$-$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{HORIZONTAL ELLIPSIS}": r"\dots{}",
    "\N{LEFT SINGLE QUOTATION MARK}": "`",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{LEFT DOUBLE QUOTATION MARK}": "``",
    "\N{RIGHT DOUBLE QUOTATION MARK}": "''",
    "\N{GREATER-THAN OR EQUAL TO}": r"$\geq$",
    "\N{LESS-THAN OR EQUAL TO}": r"$\leq$",
    "\N{ALMOST EQUAL TO}": r"$\approx$",
    "\N{NOT EQUAL TO}": r"$\neq$",
    "\N{RIGHTWARDS ARROW}": r"$\rightarrow$",
    "\N{NO-BREAK SPACE}": "~",
    "\N{DEGREE SIGN}": r"$^\circ$",
    "\N{MICRO SIGN}": r"$\mu$",
    "\N{MIDDLE DOT}": r"$\cdot$",
}
LATIN = 0x180
"""letters below are in pdfLaTeX's fonts"""
GREEK = (
    "GAMMA", "DELTA", "THETA", "LAMBDA", "XI", "PI", "SIGMA", "UPSILON", "PHI", "PSI", "OMEGA",
    "ALPHA", "BETA", "EPSILON", "ZETA", "ETA", "IOTA", "KAPPA", "MU", "NU", "RHO", "TAU", "CHI",
)  # fmt: skip
CAPITALS = GREEK[:11]
"""of capitals only these have a command: others look as Latin ones do"""


ALONE = (
    r"% \input{} it in a document with \usepackage{booktabs,graphicx}, or compile it as it is",
    r"\expandafter\ifx\csname @nodocument\endcsname\relax\else",
    r"\documentclass{article}\usepackage{booktabs,graphicx}",
    r"\usepackage[landscape,margin=15mm]{geometry}\def\alone{1}\begin{document}\fi",
)
"""what makes a document of a table unless it is in one"""


def markdown(table: Table) -> str:
    """A heading, a pipe table, and the footnotes as a list."""
    lines = [
        f"### {_plain(table.title)}",
        "",
        table.subtitle,
        "",
        _pipe([*map(_plain, table.header)]),
    ]
    lines.append(_pipe(["---", *["---:"] * (len(table.header) - 1)]))
    lines += [_pipe([_marked(cell) for cell in row]) for row in table.rows]
    lines += ["", *(f"- {_plain(note)}" for note in table.footnotes)]
    return "\n".join(lines).rstrip() + "\n"


def _pipe(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """In one line, and no markup."""
    told = " ".join(text.split()).replace("|", r"\|").replace("*", r"\*")
    return re.sub(r"<(?=[A-Za-z/!?])", r"\<", told)


def _marked(cell: Cell) -> str:
    text = _plain(cell.text)
    if cell.tied:
        return f"<u>{text}</u>"
    return f"**{text}**" if cell.bold else text


def latex(table: Table) -> str:
    """A float that is read by \\input (the document needs booktabs and graphicx), or compiled."""
    right = "r" * (len(table.header) - 1)
    header = " & ".join(_header(name) for name in table.header)
    rows = [" & ".join(_latex_cell(cell) for cell in row) + r" \\" for row in table.rows]
    if 0 < table.quoted < len(rows):
        rows.insert(len(rows) - table.quoted, r"\midrule")
    notes = [f"{escape(note)}\\par" for note in table.footnotes]
    return "\n".join(
        [
            *ALONE,
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(table.title)} ({escape(table.subtitle)})}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{l{right}}}",
            r"\toprule",
            header + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\par\medskip\begin{minipage}{\linewidth}\footnotesize",
            *notes,
            r"\end{minipage}",
            r"\end{table}",
            r"\expandafter\ifx\csname alone\endcsname\relax\else\end{document}\fi",
            "",
        ]
    )


def escape(text: str) -> str:
    """Plain text as LaTeX prints it, in one paragraph; `[U+4E2D]` for what pdfLaTeX has not."""
    joined = " ".join(text.split()).replace("--", "-{}-")
    return "".join(_letter(letter) for letter in joined.replace("-{}-", "\0"))


def _letter(letter: str) -> str:
    if letter == "\0":
        return "-{}-"
    if letter in LATEX or ord(letter) < LATIN:
        return LATEX.get(letter, letter)
    name = unicodedata.name(letter, "").replace("LAMDA", "LAMBDA").split(" LETTER ")
    if len(name) == 2 and name[0] == "GREEK SMALL" and name[1] in GREEK:
        return rf"$\{name[1].lower()}$"
    if len(name) == 2 and name[0] == "GREEK CAPITAL" and name[1] in CAPITALS:
        return rf"$\{name[1].capitalize()}$"
    return f"[U+{ord(letter):04X}]"


def _header(name: str) -> str:
    return rf"\textbf{{{escape(name)}}}"


def _latex_cell(cell: Cell) -> str:
    text = escape(cell.text)
    if text.startswith(("[", "*")):  # which the end of the row before would take for its own
        text = f"{{}}{text}"
    if cell.tied:
        return rf"\underline{{{text}}}"
    return rf"\textbf{{{text}}}" if cell.bold else text


def comma_separated(table: Table) -> str:
    """The numbers behind the cells, not rounded, one line per row."""
    lines = [{k: v for cell in row for k, v in cell.raw.items()} for row in table.rows]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()
