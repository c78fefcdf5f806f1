"""Claims: what is wrong with them in a file, the verdicts, how often these are wrong, and power."""

import shlex
from dataclasses import replace

import numpy as np
import pytest
from report_bench import written
from test_differences import drawn

from harness.config import ConfigError
from harness.plan import plan
from harness.slurm import SlurmSettings
from reports.build import Choice, gather
from reports.claims import claims_table
from reports.differences import Difference, Parts, crossed
from reports.hits import difference
from reports.missing import missing
from reports.numbers import NONE
from reports.power import Assumed, power_of
from reports.statistics import MIN_SEEDS
from reports.verdicts import below, settled, verdicts

SWEEP = """
report: {table: tiny, title: "A tiny sweep", metrics: [verb_top1, noun_top1]}
claims:
  better: {says: One is better, row: one, than: two}
base:
  data: {name: simkitchen, options: {train_size: 64, select_size: 16, test_size: 400}}
  encoders: {text: {name: word_transformer, options: {width: 16, depth: 1}}}
  width: 16
  train: {epochs: 1, batch_size: 16}
runs:
  one: {label: One, fusion: {name: single}}
  two: {label: Two, fusion: {name: mean}}
seeds: [0, 1, 2]
"""


@pytest.fixture
def file(tmp_path):
    made = tmp_path / "tiny.yaml"
    made.write_text(SWEEP)
    return made


# in a sweep file


def test_a_claim_is_by_the_last_metric_and_its_margin_is_a_point_unless_it_says_otherwise(file):
    claim = plan(file).claims["better"]
    assert (claim.metric, claim.margin) == ("noun_top1", 1.0)
    assert plan(file).record()["claims"] == [{"name": "better", **claim.model_dump()}]


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        ("{says: x, row: oen, than: two}", "claims.better.row: unknown row 'oen'. Did you mean"),
        ("{says: x, row: one, than: three}", "claims.better.than: unknown row 'three'"),
        ("{says: x, row: one, than: one}", "claims.better: 'one' is compared with itself"),
        ("{says: x, row: one, than: two, metric: verb}", "claims.better.metric: unknown metric"),
        ("{says: x, row: one, than: two, margin: 0}", "claims.better.margin"),
        ("{says: x, row: one, then: two}", "claims.better.then"),
        ("One is better", "claims.better: a mapping is needed"),
    ],
)
def test_what_is_wrong_with_a_claim_is_said_with_its_line(tmp_path, claim, told):
    file = tmp_path / "s.yaml"
    file.write_text(SWEEP.replace("{says: One is better, row: one, than: two}", claim))
    with pytest.raises(ConfigError) as error:
        plan(file)
    assert f"s.yaml:4: {told}" in str(error.value)


def test_a_preset_takes_out_a_claim_with_its_row(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(
        SWEEP
        + "presets:\n  a: {runs: {two: null}}\n  b: {runs: {two: null}, claims: {better: null}}"
    )
    with pytest.raises(ConfigError, match=r"unknown row 'two'.*claims: \{better: null\}"):
        plan(file, "a")
    assert plan(file, "b").claims == {}


def test_a_reference_row_must_be_one_of_the_rows(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(SWEEP.replace("metrics:", "reference: thre, metrics:"))
    with pytest.raises(ConfigError, match=r"report\.reference: unknown row 'thre'"):
        plan(file)


# verdicts


def known(mean, error, seeds=5):
    parts = Parts(error**2, 0.0, 0.0)
    return Difference(mean, error, seeds - 1, seeds, 100, error * seeds**0.5, parts)


def test_a_verdict_follows_from_the_difference_and_the_margin():
    def verdict(mean, error, **more):
        return verdicts([(known(mean, error, **more), 0.01)])[0].verdict

    assert verdict(0.05, 0.005) == "supported"
    assert verdict(-0.05, 0.005) == "against"
    assert verdict(0.0, 0.002) == "equivalent"
    assert verdict(0.004, 0.001) == "equivalent"  # above zero, and too small to matter
    assert verdict(0.02, 0.02) == "undecided"
    assert verdict(0.05, 0.005, seeds=2) == "undecided"
    assert verdicts([(None, 0.01)])[0].verdict == "undecided"
    same = replace(known(0.05, 0.005), spread=0.0)  # no seed changed anything
    assert verdicts([(same, 0.01)])[0].verdict == "undecided"


def test_claims_of_a_sweep_are_judged_together():
    one = known(0.03, 0.0085)  # p = 0.024
    assert verdicts([(one, 0.01)])[0].verdict == "supported"
    together = verdicts([(one, 0.01), (known(0.0, 0.1), 0.01), (None, 0.01)])
    assert together[0].verdict == "undecided"
    assert together[0].p == pytest.approx(2 * one.p)
    assert together[0].claims == 2


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("true", "margin"), [(0.0, 0.02), (0.03, 0.03)])
def test_at_most_5_of_100_verdicts_are_wrong(seeds, true, margin):
    rng, wrong = np.random.default_rng(seeds), 0
    for _ in range(2000):
        told = crossed(*drawn(rng, seeds, 138, 0.01, 0.1, true=true))
        verdict = verdicts([(told, margin)])[0].verdict
        wrong += verdict in (("supported", "against") if true == 0 else ("equivalent", "against"))
    assert wrong / 2000 <= 0.05


def test_the_seeds_that_are_named_settle_a_claim_about_four_times_in_five():
    rng, asked, found = np.random.default_rng(7), [], 0
    true, margin, how = 0.02, 0.005, (138, 0.02, 0.03)
    for _ in range(40):
        judged = verdicts([(crossed(*drawn(rng, 3, *how, true=true)), margin)])[0]
        exact = replace(judged, difference=replace(judged.difference, mean=true))
        if exact.needed is not None:
            asked.append(exact.needed)
    seeds = round(float(np.median(asked)))
    for _ in range(400):
        told = crossed(*drawn(rng, seeds, *how, true=true))
        found += verdicts([(told, margin)])[0].verdict == "supported"
    assert 0.65 <= found / 400 <= 0.95


def test_the_seeds_that_show_two_rows_equal_do_so_four_times_in_five():
    rng, margin, how, found = np.random.default_rng(9), 0.02, (138, 0.02, 0.03), 0
    pilots = [crossed(*drawn(rng, 3, *how)) for _ in range(40)]
    needed = [
        next(n for n in range(3, 100) if margin >= below(pilot.with_seeds(n), 1))
        for pilot in pilots
    ]
    seeds = round(float(np.median(needed)))
    assert seeds > 3
    for _ in range(400):
        told = crossed(*drawn(rng, seeds, *how))
        found += verdicts([(told, margin)])[0].verdict == "equivalent"
    assert 0.7 <= found / 400 <= 0.97


def test_no_number_of_seeds_makes_up_for_few_samples():
    few = Difference(0.01, 0.05, 2, 3, 10, 0.001, Parts(1e-7, 0.05**2, 1e-8))
    judged = verdicts([(few, 0.005)])[0]
    assert judged.needed is None
    assert judged.floor > 0.1
    assert settled(known(0.0, 0.001), 0.0, 0.01)


# of a stored sweep


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    made = written(tmp_path_factory.mktemp("claims"))
    record = next(one for one in made.store.sweeps() if one["name"] == "table3")
    claims = [
        ("fusing", "Fusing helps", "mlp", "video", "verb_top1"),
        ("layer", "A layer helps", "mlp", "late", "noun_top1"),
        ("scan", "A scan helps", "mamba", "mlp", "verb_top1"),
        ("size", "Size helps", "big", "mlp", "verb_top1"),
    ]
    names = ("name", "says", "row", "than", "metric")
    told = [dict(zip(names, claim, strict=True)) | {"margin": 1.0} for claim in claims]
    made.store.write_sweep({**record, "file": "sweeps/table3.yaml", "claims": told})
    return made


def test_each_claim_has_a_verdict_or_what_is_missing_for_one(bench):
    made = gather(bench.store, bench.uri, Choice(["table3"]))
    (table,) = [one.table for one in made.sections if one.stem == "table3-demo-claims"]
    rows = {line[0].text: [cell.text for cell in line] for line in table.rows}
    assert rows["Fusing helps"][7:] == ["supported", "nothing"]
    assert rows["Fusing helps"][3].startswith("+32.0 [")
    assert rows["A layer helps"][7] == "undecided"
    assert "more test samples" in rows["A layer helps"][8]
    assert rows["A scan helps"][8] == f"at least {MIN_SEEDS} seeds, here 1"
    assert rows["Size helps"][3:] == [NONE, "1", NONE, NONE, "undecided", "Transformer: not run"]
    assert "when 6 of its runs were done ALREADY: Fusing helps; A layer helps" in table.footnotes[0]


def test_when_a_claim_was_declared_is_kept_and_a_changed_one_is_a_new_one(bench):
    record = next(one for one in bench.store.sweeps() if one["name"] == "table3")
    before = bench.store.declared(record)
    bench.store.write_sweep(record)
    assert bench.store.declared(record) == before
    claims = [{**record["claims"][0], "margin": 2.0}, *record["claims"][1:]]
    changed = {**record, "claims": claims}
    assert set(bench.store.declared(changed)) == {"layer", "scan", "size"}


def test_a_claim_declared_before_any_run_is_said_to_be(tmp_path, file):
    from harness.store import Store

    store = Store(tmp_path / "runs")
    record = plan(file).record()
    store.write_sweep(record)
    table = claims_table(record, "here", store, ())
    assert "before any of its runs: One is better." in table.footnotes[0]


def test_the_report_names_what_is_missing_and_the_command_that_makes_it(bench):
    made = gather(bench.store, bench.uri, Choice(["table3"]))
    told = {one.what: one.command for one in missing(made)}
    again = "harness sweep sweeps/table3.yaml --preset demo"
    assert told["table3, demo: failed: Broken, seed 0; Broken, seed 1; Broken, seed 2"] == (
        f"{again} --retry"
    )
    (not_run,) = [what for what in told if "not run" in what]
    assert "Transformer, seed 0" in not_run
    assert told[not_run] == again
    (stale,) = [what for what in told if "changed since" in what]
    assert told[stale] == f"{again} --stale rerun"


# power


def test_power_is_of_what_was_measured_where_seeds_were_run_and_else_assumed(bench, file):
    planned = plan(file)
    text = power_of(bench.store, bench.uri, planned, SlurmSettings(), Assumed(0.5, 10.0, None))
    (line,) = [one for one in text.splitlines() if one.startswith("| One is better")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3:6] == ["1", "assumed", "3"]
    assert "Assumed: rows vary by 0.5 points" in text
    more = power_of(bench.store, bench.uri, planned, SlurmSettings(), Assumed(0.5, 10.0, 100_000))
    (line,) = [one for one in more.splitlines() if one.startswith("| One is better")]
    needed = [cell.strip() for cell in line.strip("|").split("|")][7]
    assert 5 <= int(needed) <= 12  # standard deviation 0.71 points, to find 1 point
    assert "node-hours of training" in more
    assert f"{needed} seeds of every row" in more


def test_power_without_claims_says_what_to_write(bench, tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(
        SWEEP.replace("claims:\n  better: {says: One is better, row: one, than: two}", "")
    )
    with pytest.raises(ConfigError, match="declares no claims"):
        power_of(bench.store, bench.uri, plan(file), SlurmSettings(), Assumed(0.5, 10, None))


def test_more_seeds_leave_what_the_samples_do_not_say(bench):
    made = gather(bench.store, bench.uri, Choice(["table3"]))
    rows = {row.name: row for row in made.sources[0].rows}
    told = difference(bench.store, rows["mlp"], rows["video"], "verb_top1")
    more = told.with_seeds(12)
    assert more.error < told.error
    assert more.error >= (told.parts.clusters - told.parts.both) ** 0.5
    assert told.with_seeds(told.seeds).error == pytest.approx(told.error)


def test_power_of_rows_that_were_run_is_of_their_own_difference(tmp_path):
    from report_bench import Bench, kitchen

    from harness import track
    from harness.store import Store

    file = tmp_path / "tiny.yaml"
    file.write_text(SWEEP)
    planned, made = plan(file), Bench(Store(tmp_path / "runs"))
    track.prepare(made.store)
    for run in planned.runs:
        folder = made.plan(run.row, run.label, run.spec)
        more = 30 if run.row == "one" else 10
        made.finish(folder, kitchen((more, 20 + run.spec.seed), (more, 20 + run.spec.seed)))
    made.store.write_sweep(planned.record())
    track.collect(made.store)
    text = power_of(made.store, made.uri, planned, SlurmSettings(), Assumed(0.5, 10, None))
    (line,) = [one for one in text.splitlines() if one.startswith("| One is better")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[4] == "of 3 seeds, 100 groups or samples"
    assert cells[9].endswith("(+20.0)")  # 30 of 50 more than 10
    assert "Assumed" not in text


def test_a_line_that_was_cut_short_is_left_out_and_the_next_one_is_whole(tmp_path, file):
    from harness.store import Store

    store = Store(tmp_path / "runs")
    record = plan(file).record()
    (tmp_path / "runs" / "sweeps").mkdir(parents=True)
    (tmp_path / "runs" / "sweeps" / "claims.jsonl").write_text('{"sweep": "t", "pre')
    store.write_sweep(record)
    before = store.declared(record)
    assert before["better"]["done"] == 0
    store.write_sweep(record)
    assert store.declared(record) == before
    assert store.sweeps()[0]["claims"] == record["claims"]


def test_rows_of_one_label_are_told_apart_by_their_axis(tmp_path):
    from report_bench import Bench, kitchen, kitchen_spec

    from harness import track
    from harness.store import Store

    made = Bench(Store(tmp_path / "runs"))
    track.prepare(made.store)
    for name in ("mlp tokens=frame", "mlp tokens=patch", "mean"):
        for seed in range(3):
            folder = made.plan(name, "Mean" if name == "mean" else "MLP", kitchen_spec(name, seed))
            made.finish(folder, kitchen((20, 20), (20, 20)))
    made.write_sweep("table3", "demo", {"table": "t", "title": "T", "metrics": ["verb_top1"]})
    track.collect(made.store)
    rows = gather(made.store, made.uri, Choice()).sources[0].rows
    assert [row.label for row in rows] == ["MLP, tokens=frame", "MLP, tokens=patch", "Mean"]
    assert [row.head for row in rows] == ["MLP", "MLP", "Mean"]


def test_no_command_is_told_where_seeds_are_more_than_a_number(tmp_path):
    made = written(tmp_path)
    record = next(one for one in made.store.sweeps() if one["name"] == "watch")
    made.store.write_sweep({**record, "file": "my sweeps/watch.yaml"})
    told = missing(gather(made.store, made.uri, Choice(["watch"])))
    (few,) = [one for one in told if "fewer than 3 seeds" in one.what]
    assert "accel logistic" not in few.what
    assert few.command == ""  # two folds to a seed


def test_commands_can_be_typed_as_they_stand(bench):
    record = next(one for one in bench.store.sweeps() if one["name"] == "table3")
    other = {**record, "name": "odd", "file": "my file.yaml", "settings": ["report.title='A, B'"]}
    bench.store.write_sweep(other)
    told = missing(gather(bench.store, bench.uri, Choice(["odd"])))
    words = shlex.split(told[0].command)
    assert words[2] == "my file.yaml"
    assert words[words.index("--set") + 1] == "report.title='A, B'"
