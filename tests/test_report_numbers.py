"""The small parts of a report: statistics, the paper's numbers, comparability, escaping."""

import math
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from report_bench import KITCHEN, Bench, kitchen, kitchen_spec

from harness import track
from harness.reportspec import ReportSpec
from harness.store import Store
from harness.track import Tracked
from reports import figures
from reports import published as paper
from reports.numbers import MINUS, NONE, heading, percent, points, size
from reports.protocol import action_rule, protocol
from reports.render import comma_separated, escape, latex, markdown
from reports.results import results_table
from reports.rows import Row, SeedResult, collect
from reports.statistics import exceeds, summary, t_interval
from reports.table import Cell, Table


def test_the_standard_deviation_is_that_of_a_sample():
    found = summary([1.0, 2.0, 6.0])
    assert (found.mean, found.n) == (3.0, 3)
    assert found.std == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert summary([5.0]).std is None
    assert summary([]) is None


def test_a_t_interval_is_that_of_the_tables():
    # t(0.975, 2) = 4.303
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx(
        (2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), 1e-4
    )
    assert t_interval([1.0]) is None


def test_a_ceiling_is_exceeded_by_three_binomial_standard_errors():
    # sqrt(0.5 * 0.5 / 100) = 0.05
    assert not exceeds(0.64, 0.5, 100)
    assert exceeds(0.66, 0.5, 100)
    assert not exceeds(0.2, 0.5, 100)


def test_numbers_are_printed_for_reading():
    assert percent(summary([0.7, 0.72])) == "71.0 ± 1.4"
    assert percent(summary([0.709])) == "70.9 (n=1)"
    assert points(-1.25) == f"{MINUS}1.2"
    sizes = {0.0042: "0.0042", 0.0000378: "0.0000378", 1.2345: "1.23", 148.2: "148.2", 0: "0"}
    assert {value: size(value) for value in sizes} == sizes
    headings = {
        "verb_top1": "Verb top-1",
        "noun_recall5": "Noun recall@5",
        "left_motion_top1": "Left_motion top-1",
        "action_recall5_each": "Action recall@5, each",
        "action_top1_3806": "Action top-1, pairs that exist",
        "action_joint_top5": "Action top-5, head over actions",
        "verb_marginal_recall5": "Verb recall@5, summed over actions",
    }
    assert {name: heading(name) for name in headings} == headings


def test_the_samples_of_a_subset_are_counted_for_each_target(store):
    bench = Bench(store)
    folder = bench.plan("mlp", "MLP", kitchen_spec("mlp", 0))
    subsets = np.array(["unseen tail@verb"] * 7 + ["tail@noun"] * 3 + [""] * 90)
    bench.finish(folder, replace(kitchen((3, 3), (4, 4)), subsets=subsets))
    bench.write_sweep("mine", "", KITCHEN)
    track.prepare(store)
    track.collect(store)
    (row,) = collect(store, track.tracked(bench.uri), store.sweeps()[0])
    counted = [row.count(m, s) for m in ("verb_top1", "noun_recall5") for s in ("tail", "unseen")]
    assert counted == [7, 7, 3, 7]
    assert row.count("action_top1", "tail") == 0
    assert row.count("verb_top1") == 100
    assert row.values("verb_top1[tail]") == {0: pytest.approx(3 / 7)}
    assert row.values("action_top1[tail]") == {}


def test_the_papers_numbers_are_those_it_prints():
    found = paper.published("table3", "MambaVL")
    assert dict(found.scores) == {"verb_top1": 69.1, "noun_top1": 63.9, "action_top1": 48.6}
    assert {name: len(rows) for name, rows in paper.paper_tables().items()} == {
        "table1": 11,
        "table2": 6,
        "table3": 4,
        "table4": 3,
    }


def test_a_table_of_our_own_quotes_a_row_only_if_its_name_is_in_one_table():
    assert paper.published("anatomy", "MambaVL").scores["action_top1"] == 48.6
    assert paper.published("anatomy", "MambaVL (ORViT)") is None  # in Tables 1 and 2
    assert paper.published("table3", None) is None


def row_as_in(protocol, **changed):
    params = {**protocol, **changed}
    metrics = {"verb_top1": 0.70, "noun_top1": 0.62, "action_top1": 0.486}
    run = Tracked("id", "mlflow", {}, params, {})
    return Row("mamba", "Ours", "MambaVL", (SeedResult(0, ("id",), "done", (run,), metrics),), 0)


def test_a_row_is_comparable_only_if_all_of_the_protocol_agrees():
    mamba = paper.published("table3", "MambaVL")
    assert paper.comparable(row_as_in(mamba.protocol), mamba) is None
    for name in mamba.protocol:
        reason = paper.comparable(row_as_in(mamba.protocol, **{name: "another"}), mamba)
        assert "another" in reason
    frozen = {k: v for k, v in mamba.protocol.items() if k != "encoders.text.frozen"}
    reason = paper.comparable(row_as_in(frozen), mamba)
    assert reason == "encoders.text.frozen is not recorded, not True"


def test_a_row_of_the_paper_without_a_protocol_is_never_subtracted_from():
    other = paper.published("table1", "MambaVL (ViT-B)")
    assert paper.comparable(row_as_in({"data.name": "ek100"}), other)


def test_ours_minus_paper_is_printed_where_the_protocol_agrees(tmp_path):
    report = ReportSpec(table="table3", title="", metrics=["verb_top1", "noun_top1", "action_top1"])
    row = row_as_in(paper.published("table3", "MambaVL").protocol)
    cell = results_table(report, "", Store(tmp_path), [row], []).rows[0][-1]
    assert cell.text == f"+0.9 / {MINUS}1.9 / 0.0"
    assert cell.raw["verb_top1_ours_minus_paper"] == pytest.approx(0.9)


NASTY = r"50% of a_b & c#1 {x} \y ~ ^ $ < > | ± † ‡" + MINUS + NONE


def test_latex_gets_no_character_that_it_reads_as_a_command():
    text = escape(NASTY)
    assert text.isascii()
    assert r"50\% of a\_b \& c\#1 \{x\} \textbackslash{}y" in text
    assert not re.search(r"(?<!\\)[%&#_]", text)


def test_every_rendering_shows_the_same_table():
    best, tied = Cell("1.5", {"x": 1.4999}, bold=True), Cell("1.4", {"x": 1.4}, tied=True)
    rows = ((Cell("a|b", {"row": "a|b"}), best), (Cell("c", {"row": "c"}), tied))
    table = Table("Title", "sweep s", ("Row", "X"), rows, ("note",))
    assert "| a\\|b | **1.5** |\n| c | <u>1.4</u> |" in markdown(table)
    assert r"a$|$b & \textbf{1.5} \\" in latex(table)
    assert r"c & \underline{1.4} \\" in latex(table)
    assert comma_separated(table) == "row,x\na|b,1.4999\nc,1.4\n"


@pytest.mark.parametrize(
    ("costs", "unit"),
    [
        ((3.8e-5, 3.8e-5), "MFLOPs"),
        ((3.8e-5, 7.5e-5), "MFLOPs"),
        ((2e-3, 7e-2), "MFLOPs"),
        ((1e-4, 500), "GFLOPs"),
        ((405, 413.5), "GFLOPs"),
        ((0, 0.5), "GFLOPs"),
    ],
)
def test_numbers_on_the_cost_axis_do_not_run_into_each_other(costs, unit):
    shown = [
        Row(
            str(place),
            f"row {place}",
            None,
            (SeedResult(0, ("id",), "done", (run,), {"verb_top1": 0.5}),),
            0,
        )
        for place, cost in enumerate(costs)
        for run in [Tracked("id", "mlflow", {"cost/gflops": cost}, {}, {})]
    ]
    figure = figures.accuracy_cost(ReportSpec(**KITCHEN), shown)
    figure.draw_without_rendering()
    axis = figure.axes[0].xaxis
    assert axis.get_label_text() == f"{unit} per sample"
    low, high = figure.axes[0].get_xlim()
    boxes = [
        tick.label1.get_window_extent()
        for tick in axis.get_major_ticks()
        if low <= tick.get_loc() <= high
    ]
    assert len(boxes) >= 2
    boxes.sort(key=lambda box: box.x0)
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def protocol_row(label, **params):
    known = {"encoders.video.name": "orvit", "head": "linear", "train.epochs": "100",
             "train.optimiser": "sgd", "data.options.frames": "16", "data.options.size": "224",
             "data.options.test_clips": "1", "data.options.test_crops": "3"}  # fmt: skip
    run = Tracked("id", "mlflow", {}, known | params, {})
    return Row(label, label, None, (SeedResult(0, ("id",), "done", (run,), {}),), 10)


def test_the_protocol_is_told_once_where_rows_share_it_and_by_row_where_they_do_not():
    rows = [protocol_row("A"), protocol_row("B"), protocol_row("C", **{"train.epochs": "50"})]
    (line,) = protocol(["verb_top1", "action_top1_3806"], rows)
    assert "Action rule: verb and noun of the best pair among those that exist." in line
    assert "Clip: 16 frames of 224 x 224. Views at test: 1 clips x 3 crops." in line
    assert "Training: 50 epochs, sgd (C); 100 epochs, sgd (the others)." in line
    assert action_rule(["label_top1"]) == ""
    assert action_rule(["action_joint_top1"]) == "a head over the actions that exist"
    assert action_rule(["action_top1"]).startswith("verb and noun both right")


def test_whatever_a_label_holds_is_one_line_of_latex_and_of_a_pipe_table():
    said = "[a] \N{GREEK SMALL LETTER LAMDA}\n\n\N{GREATER-THAN OR EQUAL TO} \u4e2d --set <b>x|y"
    table = Table(f"T\n\n{said}", "s", ("Row", "x"), ((Cell(said), Cell("1")),), (said,))
    text = latex(table)
    assert r"{}[a] $\lambda$ $\geq$ [U+4E2D] -{}-set $<$b$>$x$|$y & 1 \\" in text
    assert "\n\n" not in text
    (row,) = [line for line in markdown(table).splitlines() if line.startswith("| [a]")]
    assert row.endswith(r"\<b>x\|y | 1 |")
