"""Figures of rows whose numbers are known: what is drawn, and where nothing can be."""

import re

import numpy as np
import pytest
from report_bench import KITCHEN, Bench, kitchen, kitchen_spec
from safetensors.numpy import save_file

from harness import track
from harness.reportspec import ReportSpec
from harness.store import Store
from reports.figures import pareto
from reports.gains import class_gains, gain_bars
from reports.lengths import by_length, length_curves
from reports.page import svg
from reports.rows import collect
from reports.spectra import apart, matrices, spectra

TWO = {
    "single": ("Video only", (20, 20), (20, 20), "video"),
    "fused": ("Fused", (40, 30), (25, 25)),
}
REPORT = ReportSpec(**{**KITCHEN, "metrics": ["verb_top1", "noun_top1"]})


def bench_of(folder, rows, cost=None, weights=None):
    """A store with rows name -> (label, right verbs, right nouns, streams), three seeds each."""
    made = Bench(Store(folder / "runs"))
    track.prepare(made.store)
    for name, (label, verb, noun, *streams) in rows.items():
        for seed in range(3):
            spec = kitchen_spec(name, seed, streams or ("text", "video"))
            run = made.plan(name, label, spec)
            tokens = {"tokens": cost[name]} if cost else {}
            made.finish(run, kitchen(verb, noun), cost=tokens)
            if weights and name in weights:
                save_file(weights[name], run.weights_file)
    made.write_sweep("table3", "demo", REPORT.model_dump())
    track.collect(made.store)
    return made


def rows_of(made):
    return collect(made.store, track.tracked(made.uri), made.store.sweeps()[0])


def test_the_front_is_what_nothing_as_cheap_reaches():
    points = [(1, 50), (2, 40), (2, 60), (3, 60), (4, 70), (0.5, 10)]
    assert pareto(points) == [(0.5, 10), (1, 50), (2, 60), (4, 70)]


def test_a_gain_is_by_true_class_and_its_mean_is_the_difference(tmp_path):
    made = bench_of(tmp_path, TWO)
    single, fused = rows_of(made)
    gains = class_gains(made.store, fused, single, "verb_top1")
    assert gains == [(0, pytest.approx(30.0), 100)]  # 70 of 100 against 40, all of class 0
    assert class_gains(made.store, fused, single, "action_top1") == []
    figure = gain_bars(REPORT, made.store, (single, fused))
    left, right = figure.axes
    assert left.patches[0].get_width() == pytest.approx(30.0)
    assert right.patches[0].get_width() == pytest.approx(10.0)
    assert "Fused \N{MINUS SIGN} Video only" in figure.get_suptitle()
    assert gain_bars(REPORT, made.store, (fused,)) is None


def test_lengths_are_drawn_for_heads_that_were_run_at_several(tmp_path):
    cost = {"short": {"video": 8, "text": 4}, "long": {"video": 96, "text": 4},
            "other": {"video": 96, "text": 4}}  # fmt: skip
    made = bench_of(tmp_path, {
        "short": ("Head", (10, 10), (20, 20)), "long": ("Head", (20, 20), (30, 30)),
        "other": ("Other", (20, 20), (30, 30)),
    }, cost)  # fmt: skip
    rows = rows_of(made)
    found = by_length(REPORT, made.store, rows)
    assert {label: [point[:2] for point in points] for label, points in found.items()} == {
        "Head": [(12, pytest.approx(40.0)), (100, pytest.approx(60.0))]
    }
    figure = length_curves(REPORT, made.store, rows)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Head"]
    assert length_curves(REPORT, made.store, rows[1:]) is None


def test_spectra_show_each_matrix_and_how_far_it_moved(tmp_path):
    start = np.broadcast_to(np.log(np.arange(1, 5, dtype=np.float32)), (6, 4))
    weights = {
        "shared": {"fusion.A_log": start + np.float32(0.5)},
        "own": {"fusion.A_log.text": start.copy(), "fusion.A_log.video": start - np.float32(0.25)},
        "mlp": {"fusion.weight": np.ones((2, 2), np.float32)},
    }
    made = bench_of(tmp_path, {
        name: (name.capitalize(), (10, 10), (20, 20)) for name in weights
    }, weights=weights)  # fmt: skip
    rows = rows_of(made)
    assert set(matrices(made.store, rows[1].run_ids[0])) == {"text", "video"}
    assert matrices(made.store, rows[2].run_ids[0]) == {}
    assert apart(start, start + 0.5) == pytest.approx(0.5)
    figure = spectra(made.store, rows)
    names = [tick.get_text() for tick in figure.axes[1].get_yticklabels()]
    assert names == ["Shared", "Own, text", "Own, video", "Own, text to video"]
    moved = [line.get_xdata()[0] for line in figure.axes[1].lines]
    assert moved == pytest.approx([0.5, 0.0, 0.25, 0.25], abs=1e-6)
    assert spectra(made.store, rows[2:]) is None


def test_a_figure_in_a_page_has_names_of_its_own_and_the_colour_of_the_text(tmp_path):
    made = bench_of(tmp_path, TWO)
    figure = gain_bars(REPORT, made.store, rows_of(made))
    first, second = svg(figure, "one table/gain"), svg(figure, "two")
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    used = set(re.findall(r'href="#([^"]+)"', first)) | set(re.findall(r"url\(#([^)]+)\)", first))
    assert used <= ids[0]
    assert "#000000" not in first
    assert "currentColor" in first
    assert first == svg(figure, "one table/gain")
