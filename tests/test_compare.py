"""`harness compare` on a store with known numbers."""

import numpy as np
import pytest
from report_bench import kitchen_spec, written

from harness.config import ConfigError
from reports.compare import bootstrap, compare


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return written(tmp_path_factory.mktemp("bench"))


def told(bench, *names, **options):
    return compare(bench.store, bench.uri, names, **options)


def line(text, begin):
    (found,) = [row for row in text.splitlines() if row.startswith(f"| {begin}")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_two_rows_have_a_line_for_each_metric_and_say_what_is_undecided(bench):
    text = told(bench, "table3/mlp", "late")
    assert text.startswith("MLP (seeds 0, 1, 2)  minus  Late logits (seeds 0, 1, 2)")
    # verb: 90, 92, 94 against 70, 71, 72 of 100; noun: 68, 66, 66 against 66, 67, 68
    cells = line(text, "Verb top-1")
    assert cells[1:4] == ["92.0 ± 2.0", "71.0 ± 1.0", "+21.0"]
    low, high = cells[4].strip("[]").split(", ")
    assert float(low) > 0
    assert float(high) > 21
    assert float(cells[5]) < 0.05
    assert line(text, "Noun top-1")[3] == "\N{MINUS SIGN}0.3"
    assert "Undecided, which is not equal:" in text
    assert "Noun top-1" in text.split("Undecided, which is not equal:")[1].splitlines()[0]
    assert "3 seeds in common, 100 groups or single samples" in text


def test_two_runs_have_mcnemars_test_and_the_samples_that_flipped(bench):
    mlp, late = kitchen_spec("mlp", 0).run_id, kitchen_spec("late_logits", 0).run_id
    text = told(bench, mlp[:6], late, metric="verb_top1")
    # the first 45 of 50 and 45 of 50 against 47 and 23: 22 in the MLP alone, 2 in the other
    assert "Verb top-1: right in the first alone 22, in the second alone 2 (McNemar" in text
    assert "ONE SEED" in text
    assert "Right in the second alone, for example: 45, 46." in text
    assert "Classes that changed most (class: samples won): 0: +20." in text


def test_a_bootstrap_draws_whole_groups():
    groups = np.repeat(["a", "b", "c", "d"], 25)
    values = np.repeat([0.0, 0.0, 1.0, 1.0], 25)
    low, high = bootstrap(values, groups)
    assert (low, high) == (0.0, 1.0)
    alone = bootstrap(values, np.arange(100).astype(str))
    assert alone[0] > 0.35
    assert alone[1] < 0.65


def test_folds_are_compared_over_all_their_people(bench):
    text = told(bench, "watch/both", "watch/accel")
    assert "2 seeds in common" in text
    assert line(text, "Label top-1")[3].startswith("+")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("mlpp", "late"), "unknown row or run 'mlpp'. Did you mean 'mlp'?"),
        (("big", "late"), "big: has no result yet (not run)"),
        (("mlp", "both"), "were not tested on the same samples"),
    ],
)
def test_what_cannot_be_compared_is_named(bench, names, message):
    with pytest.raises(ConfigError) as found:
        told(bench, *names)
    assert message in str(found.value)


def test_a_metric_that_they_do_not_share_is_named(bench):
    with pytest.raises(ConfigError, match="unknown metric of both 'verb_top7'"):
        told(bench, "mlp", "late", metric="verb_top7")
