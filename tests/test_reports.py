"""Tables and figures of a store with known numbers, written by the real store, read from MLflow."""

import csv
import re
import shutil

import numpy as np
import pytest
from report_bench import KITCHEN, Bench, kitchen, kitchen_spec, written

from harness import track
from harness.config import ConfigError
from harness.reportspec import ReportSpec
from harness.spec import TrainSpec
from harness.store import Store
from reports import figures, rows
from reports.numbers import MINUS, NONE


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return written(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def out(bench, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    bench.report(folder)
    return folder


def line(text, label):
    """The cells of the table row that begins with `label`."""
    found = [row for row in text.splitlines() if row.startswith(f"| {label}")]
    assert len(found) == 1, text
    return [cell.strip() for cell in found[0].strip("|").split(" | ")]


@pytest.fixture(scope="module")
def table3(out):
    return (out / "table3-demo.md").read_text()


@pytest.fixture(scope="module")
def watch_table(out):
    return (out / "watch-plain.md").read_text()


def raw(file):
    with open(file) as lines:
        return list(csv.DictReader(lines))


def test_a_cell_is_mean_and_sample_standard_deviation_over_seeds_in_percent(table3):
    # verb 90, 92, 94 of 100: mean 92, standard deviation sqrt((4 + 0 + 4) / 2) = 2
    assert line(table3, "MLP")[1:3] == ["3", "**92.0 ± 2.0**"]
    # noun 68, 66, 66: mean 66.67, standard deviation sqrt((1.78 + 0.44 + 0.44) / 2) = 1.15
    assert line(table3, "MLP")[3] == "<u>66.7 ± 1.2</u>"  # Late logits lead, by less than chance


def test_the_csv_holds_the_numbers_that_are_not_rounded(out):
    row = next(r for r in raw(out / "table3-demo.csv") if r["row"] == "mlp")
    nouns = [0.68, 0.66, 0.66]
    assert float(row["noun_top1_mean"]) == pytest.approx(np.mean(nouns), abs=1e-12)
    assert float(row["noun_top1_std"]) == pytest.approx(np.std(nouns, ddof=1), abs=1e-12)
    assert row["noun_top1_n"] == "3"
    assert row["run_ids"].split() == [kitchen_spec("mlp", seed).run_id for seed in range(3)]


def test_one_seed_is_shown_as_such_and_without_a_spread(table3):
    assert line(table3, "MambaVL (shared A)")[1:3] == ["1 of 3 seeds", "60.0 (n=1)"]


def test_rows_stand_in_the_order_of_the_sweep_and_none_is_dropped(table3):
    labels = [row.split(" | ")[0] for row in table3.splitlines() if row.startswith("| ")][1:]
    start = " [cached, tokens: patch, fp16, random]"
    done = [f"Video only{start}", f"Late logits{start} †", f"MLP{start}"]
    wanted = [*done, f"MambaVL (shared A){start}", "Transformer", "Broken"]
    assert labels[1:7] == [f"| {label}" for label in wanted]


def test_a_row_without_a_result_says_why(table3):
    assert line(table3, "Transformer |")[1:3] == ["not run", NONE]
    assert line(table3, "Broken")[1:3] == ["failed", NONE]


def test_a_run_that_others_only_need_is_no_row(table3):
    assert "Perception" not in table3


def test_a_row_that_only_the_paper_has_is_shown_as_not_run(table3):
    cells = line(table3, "Transformer (6x4)")
    assert cells[1] == "not run"
    assert "62.9 / 51.9 / 40.0" in cells


def test_the_best_row_is_bold_only_where_it_is_significantly_better(table3):
    assert line(table3, "MLP")[2].startswith("**")  # 92 against 71 %
    assert "**" not in line(table3, "MLP")[3]  # 66.7 against 67.0 % in nouns
    assert "**" not in line(table3, "Late logits")[3]


def test_the_ceiling_of_a_row_is_the_one_that_bounds_it(table3):
    assert f"71.3 / 70.0 / {NONE} (additive)" in line(table3, "Late logits")
    assert f"37.5 / 25.0 / {NONE} (video)" in line(table3, "Video only")


def test_a_row_above_its_ceiling_is_marked_and_named(table3):
    # 60 % where 37.5 % bounds it: 3 standard errors of 100 samples are 14.5 points
    assert line(table3, "Video only")[2] == "60.0 ± 0.0 ‡"
    assert "‡ Video only is above its ceiling! Verb top-1: 60.0 where 37.5 (video)" in table3
    assert "Late logits is above its ceiling" not in table3


def test_the_fusion_score_is_the_mean_ratio_of_the_two_subsets(table3):
    # late logits, seeds 0, 1, 2: verb (23, 24, 25) / 47, noun (22, 23, 24) / 44
    ratios = [((23 + s) / 47 + (22 + s) / 44) / 2 for s in range(3)]
    wanted = f"{np.mean(ratios):.2f} ± {np.std(ratios, ddof=1):.2f}"
    assert wanted == "0.52 ± 0.02"
    assert wanted in line(table3, "Late logits")
    assert "94.0 / 88.0" in line(table3, "Late logits")


def test_one_stream_has_no_fusion_score(table3, out):
    place = table3.splitlines()[4].split(" | ").index("Fusion score")
    assert line(table3, "Video only")[place] == NONE


def test_cost_has_three_significant_digits(table3):
    assert {"1.25", "0.0042"} <= set(line(table3, "MLP"))


def test_ours_minus_paper_is_not_printed_for_other_data(table3, out):
    assert line(table3, "MLP")[-2:] == ["62.8 / 51.6 / 39.6", "other data: simkitchen"]
    row = next(r for r in raw(out / "table3-demo.csv") if r["row"] == "mlp")
    assert row["not_comparable"] == "other data: simkitchen"


def test_a_stale_row_is_marked_and_its_changed_files_are_named(table3):
    assert line(table3, "Late logits")[0].endswith("†")
    assert "† Late logits: run before harness/train.py changed." in table3


def test_the_footnotes_say_how_and_from_what_the_numbers_came(table3):
    assert "Cost: 1 multiply-add = 1." in table3
    assert "Scores in % on the test split, 100 samples" in table3
    assert "seeds (0, 1, 2)" in table3
    assert "simkitchen (ffffffff). Preset: demo." in table3
    assert "video: tubes (cached, tokens: patch, fp16)" in table3
    assert "text: words (trained)" in table3
    assert "10 runs, commit 0123456789; 3 of them with uncommitted changes" in table3
    assert "A note of the sweep" in table3


def test_samples_that_could_not_be_read_are_told_under_the_table(tmp_path):
    made = Bench(Store(tmp_path / "runs"))
    track.prepare(made.store)
    bad = {
        ("late", "repeat"): [("train", [f"a{n}" for n in range(10)]), ("test", ["b", "c"])],
        ("mlp", "skip"): [("train", ["a"]), ("select", []), ("test", [])],
        ("mean", "skip"): [("train", []), ("test", [])],
    }
    for (fusion, policy), found in bad.items():
        train = TrainSpec(bad_samples=policy, bad_test_samples="skip")
        for seed in (0, 1):  # both miss the same samples, which are counted once
            spec = kitchen_spec(fusion, seed).model_copy(update={"train": train})
            folder = made.plan(fusion, fusion.title(), spec)
            made.finish(folder, kitchen((40, 20), (30, 15)), bad=found)
    made.write_sweep("table3", "demo", KITCHEN)
    track.collect(made.store)
    made.report(tmp_path / "out")
    text = (tmp_path / "out/table3-demo.md").read_text()
    assert (
        "Late: 12 samples could not be read: 10 in train (repeated), 2 in test (not scored)."
        in text
    )
    assert "Mlp: 1 sample could not be read: 1 in train (left out)." in text
    assert text.count("could not be read") == 2


def test_the_folds_of_a_seed_are_scored_as_one(watch_table):
    # accel: 36 of 60 right; the mean of the two folds, 70 and 55 %, would be 62.5
    assert line(watch_table, "accel |")[1:3] == ["2", "60.0 ± 0.0"]


def test_fused_minus_single_is_chosen_on_select_with_an_interval_over_groups(watch_table):
    # both - accel by subject, points: 10, 20, 10, 20; gyro is better on test but not on select
    assert f"Fusion gain, Label top-1: both {MINUS} accel" in watch_table
    # mean 15, t(0.975, 3) = 3.182, standard error sqrt(100 / 3) / 2 = 2.887: 15 -+ 9.2
    assert "+15.0 points, 95 % t interval [+5.8, +24.2] over 4 groups" in watch_table


def test_a_reference_row_is_labelled_and_compared_with_the_same_streams(watch_table):
    cells = line(watch_table, "accel logistic (reference)")
    assert cells[3:] == ["0.00021", NONE]
    # accel - logistic by subject: -10, -10, -10, -10 points
    told = f"{MINUS}10.0 points, 95 % t interval [{MINUS}10.0, {MINUS}10.0] over 4 groups"
    assert f"accel against its logistic reference (accel logistic): {told}" in watch_table
    assert "gyro against" not in watch_table


def test_table_4_comes_from_the_same_runs(out):
    text = (out / "table4-demo.md").read_text()
    assert line(text, "MLP")[1:4] == ["0.0042", NONE, "1.25"]
    assert line(text, "MambaVL")[1:6] == ["0.0042", "413", "1.25", "157", "0.5"]
    assert line(text, "MambaVL")[6] == "other data: simkitchen"
    assert line(text, "Transformer")[1:5] == ["not run", "413.5", NONE, "242"]
    assert line(text, "ORViT")[1:5] == ["not run", "405", NONE, "148"]


def test_latex_is_escaped_and_every_row_has_all_columns(out):
    text = (out / "table3-demo.tex").read_text()
    assert r"100\% \& more\_words" in text
    assert r"$92.0 \pm 2.0$" in text or r"92.0 $\pm$ 2.0" in text
    assert r"\dag{}" in text
    assert not re.search(r"(?<!\\)%", text.split("\n", 1)[1].replace("{!}{%", ""))
    assert text.isascii()
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    assert len({row.replace(r"\&", "").count("&") for row in body.splitlines() if "&" in row}) == 1
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")


def test_names_that_nothing_has_are_refused_with_a_suggestion(bench, tmp_path):
    with pytest.raises(ConfigError, match=r"unknown sweep 'tabel3'. Did you mean 'table3'"):
        bench.report(tmp_path, sweeps=["tabel3"])
    with pytest.raises(ConfigError, match=r"unknown table 'table5'.*Known: table3, table4, watch"):
        bench.report(tmp_path, tables=["5"])
    with pytest.raises(ConfigError, match=r"unknown preset of table3 'dem'. Did you mean 'demo'"):
        bench.report(tmp_path, sweeps=["table3"], preset="dem")


def test_tables_and_sweeps_narrow_what_is_written(bench, tmp_path):
    text = bench.report(tmp_path, tables=["4"])
    assert "Table 4. Cost" in text
    assert "Table 3" not in text
    tables = {f"table4-demo{suffix}" for suffix in (".md", ".tex", ".csv")}
    assert {file.name for file in tmp_path.iterdir()} == {*tables, "report.json"}
    assert bench.report(tmp_path, sweeps=["watch"]) == (tmp_path / "watch-plain.md").read_text()


def test_an_empty_store_says_which_command_fills_it(tmp_path):
    empty = Bench(Store(tmp_path / "runs"))
    with pytest.raises(ConfigError, match=r"harness sweep sweeps/table3\.yaml"):
        empty.report(tmp_path)


def test_a_metric_that_no_run_has_is_refused(bench, tmp_path):
    shutil.copytree(bench.store.root, tmp_path / "runs")
    other = Bench(Store(tmp_path / "runs"))
    other.plan("mlp", "MLP", kitchen_spec("mlp", 0))
    other.write_sweep(
        "mine", "demo", {**KITCHEN, "metrics": ["verb_top11"], "subsets": [], "fusion_score": False}
    )
    with pytest.raises(ConfigError, match=r"unknown metric 'verb_top11'. Did you mean 'verb_top1'"):
        other.report(tmp_path / "out", sweeps=["mine"])


def test_figures_are_written_as_png_and_pdf_and_repeat_bit_for_bit(bench, out, tmp_path):
    bench.report(tmp_path, sweeps=["table3"], tables=["3"])
    for stem in ("table3-demo-curves", "table3-demo-accuracy-cost"):
        for suffix, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
            data = (out / f"{stem}{suffix}").read_bytes()
            assert data.startswith(magic)
            assert data == (tmp_path / f"{stem}{suffix}").read_bytes()


def kitchen_rows(bench):
    record = next(r for r in bench.store.sweeps() if r["name"] == "table3")
    return rows.collect(bench.store, track.tracked(bench.uri), record)


def test_learning_curves_show_the_select_split_by_epoch(bench):
    figure = figures.learning_curves(ReportSpec(**KITCHEN), kitchen_rows(bench), bench.uri)
    drawn = [li for li in figure.axes[0].get_lines() if len(li.get_xdata()) == 3]
    assert len(drawn) == 4  # video, late logits, MLP, MambaVL
    np.testing.assert_allclose(drawn[0].get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(drawn[0].get_ydata(), [40 / 3, 80 / 3, 40])


def test_the_legend_covers_no_panel(bench):
    shown = kitchen_rows(bench)
    made = [figures.learning_curves(ReportSpec(**KITCHEN), shown, bench.uri)]
    made.append(figures.accuracy_cost(ReportSpec(**KITCHEN), shown))
    for figure in made:
        figure.set_layout_engine("constrained")
        figure.draw_without_rendering()
        (legend,) = figure.legends
        for panel in figure.axes:
            assert not panel.get_tightbbox().overlaps(legend.get_window_extent())


def test_accuracy_is_drawn_against_gflops_with_its_spread(bench):
    panel = figures.accuracy_cost(ReportSpec(**KITCHEN), kitchen_rows(bench)).axes[0]
    by_label = {bar.get_label(): bar for bar in panel.containers}
    point, _, (spread,) = by_label["MLP"].lines
    assert (point.get_xdata()[0], point.get_ydata()[0]) == pytest.approx((0.0042, 92))
    assert spread.get_segments()[0][:, 1] == pytest.approx([90, 94])


def test_blocks_are_tables_and_figures_of_their_own(tmp_path):
    """Rows of one are not compared with those of another, nor drawn beside them."""
    bench = Bench(Store(tmp_path / "runs"))
    track.prepare(bench.store)
    for block, right in (("few tokens", (45, 45)), ("at the paper's cost", (40, 30))):
        for name, less in (("MLP", 0), ("Mean", 10)):
            for seed in range(3):
                spec = kitchen_spec(f"{name}-{block}", seed)
                folder = bench.plan(f"{name} {block}", name, spec, block=block)
                bench.finish(folder, kitchen([r - less for r in right], (20, 20)))
    bench.write_sweep("table3", "demo", KITCHEN)
    track.collect(bench.store)
    told = bench.report(tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    for stem in ("table3-demo-few-tokens", "table3-demo-at-the-paper-s-cost"):
        assert {f"{stem}.md", f"{stem}.csv", f"{stem}.tex"} <= names
        assert {f"{stem}-curves.png", f"{stem}-accuracy-cost.pdf"} <= names
        text = (tmp_path / "out" / f"{stem}.md").read_text()
        assert text.count("| MLP [") == text.count("| Mean [") == 1
    assert "table3-demo.md" not in names
    assert "### Table 3. Fusion heads: few tokens" in told
    assert "### Table 3. Fusion heads: at the paper's cost" in told
