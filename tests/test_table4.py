"""Table 4 at full size: the numbers the paper prints, recomputed by the sweep and its report."""

import csv
from pathlib import Path

import pytest

from harness import track
from harness.cost import cost
from harness.costing import costs_of
from harness.launch import launch
from harness.plan import plan
from harness.spec import RunSpec, dataset_of
from harness.store import Store
from reports.build import build

ROOT = Path(__file__).resolve().parent.parent
SWEEP = ROOT / "sweeps" / "table4.yaml"


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """(store, printed report, folder of the report) of the whole sweep."""
    store = Store(tmp_path_factory.mktemp("table4") / "runs")
    track.prepare(store)
    planned = plan(SWEEP)
    store.write_sweep(planned.record())
    outcome = launch(store, planned, "local", jobs=1, threads=1)
    assert not outcome.failed
    track.collect(store)
    out = store.report_folder
    return store, build(store, track.uri(store), [], None, ["4"], out), out


@pytest.fixture(scope="module")
def rows(swept):
    with open(swept[2] / "table4-plain.csv") as file:
        return {row["row"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("row", "gflops", "params"),
    [
        ("orvit", (405.2, 405.3), 147.678349),
        ("transformer_12x12", (413.4, 413.649), 242.2),
        ("mamba_shared", (413.15, 413.5), 157.3),
        ("orvit_336", (1036.5, 1036.8), 147.678349),
        ("vit_b", (449.97, 449.99), 85.812 + 0.305),
        ("vit_l", (2065.7, 2065.9), 303.196 + 0.407),
    ],
)
def test_the_rows_cost_what_the_published_models_cost(rows, row, gflops, params):
    assert gflops[0] <= float(rows[row]["gflops"]) <= gflops[1]
    assert float(rows[row]["params_m"]) == pytest.approx(params, abs=0.06)


def test_two_independent_counts_agree_within_one_percent(swept):
    store, _, _ = swept
    for folder in store.runs():
        cost = folder.result()["cost"]
        assert cost["gflops_recounted"] == pytest.approx(cost["gflops"], rel=0.01)
        assert sum(v for k, v in cost["gflops_by_part"].items() if part_of(k)) == pytest.approx(
            cost["gflops"]
        )
        assert sum(cost["params_m_by_part"].values()) == pytest.approx(cost["params_m"])


def part_of(name: str) -> bool:
    """Parts that make up the whole, none inside another."""
    return name in ("fusion", "pre_logits", "heads") or (
        name.startswith("encoders.") and name.count(".") == 1
    )


def test_the_paper_stands_beside_ours_and_both_are_subtracted(swept, rows):
    _, text, _ = swept
    assert float(rows["mamba_shared"]["gflops_ours_minus_paper"]) == pytest.approx(0.2, abs=0.1)
    assert float(rows["orvit"]["params_m_ours_minus_paper"]) == pytest.approx(-0.3, abs=0.1)
    (line,) = (row for row in text.splitlines() if row.startswith("| MambaVL (shared A)"))
    cells = [cell.strip() for cell in line.strip("|").split(" | ")]
    assert cells[1:5] == ["413.2", "413", "157.3", "157"]


def test_the_protocol_both_counts_and_the_parts_are_printed_under_it(swept):
    _, text, _ = swept
    assert text.startswith("### Table 4. Cost")
    for phrase in (
        "A second count",
        "RoIAlign apart 0.058 G",
        "1 multiply-add = 1",
        "The paper contradicts itself",
        "do not prove it",
        "encoders.video 405.2 G, 146.8 M",
    ):
        assert phrase in text


def test_a_run_that_counts_has_no_scores_and_no_weights(swept):
    store, _, _ = swept
    for folder in store.runs():
        assert folder.result()["metrics"] == {}
        assert not folder.weights_file.exists()


def test_the_command_counts_a_stored_run_as_the_sweep_did(swept):
    store, _, _ = swept
    folder = next(f for f in store.runs() if RunSpec(**f.spec()["spec"]).fusion.name == "mlp")
    text = costs_of(folder.path / "spec.json", None, [])
    assert folder.run_id in text
    assert "405.2" in text


def test_leaving_out_the_discarded_half_saves_89_gflops():
    off = "runs.orvit.encoders.video.options.discarded_half=false"
    spec = plan(SWEEP, settings=[off]).runs[0].spec
    assert cost(spec, dataset_of(spec, {}), {})["gflops"] == pytest.approx(405.25 - 89.2, abs=0.3)
