"""What the bench is to show, on the demo's own sweep: minutes, so `make test-slow`."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from harness.launch import launch
from harness.plan import plan
from harness.store import Store

ROOT = Path(__file__).resolve().parent.parent
ADDITIVE = ("mean", "late_logits", "mamba_shared", "mamba_per_modality")
FUSING = ("mlp", "transformer_6x4", "mamba_joint", "mamba_shared_pre_logits")
TARGETS = ("verb_top1", "noun_top1")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Row -> result of every control at the demo preset, one seed."""
    folder = tmp_path_factory.mktemp("science")
    shutil.copytree(ROOT / "sweeps", folder / "sweeps")
    store, sweep = Store(folder / "runs"), plan(folder / "sweeps/anatomy.yaml", None, ["seeds=[0]"])
    outcome = launch(store, sweep, "local", 2, 1)
    assert not outcome.failed
    return {run.row: store.run(run.run_id).result() for run in sweep.runs if run.in_table}


def test_no_row_exceeds_its_ceiling_by_three_standard_errors(results: dict[str, dict]) -> None:
    for row, result in results.items():
        assert result["samples"]["test"] >= 8000
        for metric in (*TARGETS, "action_top1"):
            ceiling = result["ceilings"][result["ceiling"]][metric]
            error = math.sqrt(ceiling * (1 - ceiling) / result["samples"]["test"])
            assert result["metrics"][f"test/{metric}"] < ceiling + 3 * error, (row, metric)


@pytest.mark.parametrize("row", ["video", "text"])
def test_a_single_stream_comes_within_five_points_of_its_ceiling(results, row: str) -> None:
    for metric in TARGETS:
        ceiling = results[row]["ceilings"][row][metric]
        assert results[row]["metrics"][f"test/{metric}"] > ceiling - 0.05


@pytest.mark.parametrize("row", ADDITIVE)
def test_additive_heads_land_at_the_additive_ceiling_and_score_a_half(results, row: str) -> None:
    result = results[row]
    assert result["ceiling"] == "additive"
    for metric in TARGETS:
        assert (
            abs(result["metrics"][f"test/{metric}"] - result["ceilings"]["additive"][metric]) < 0.03
        )
    assert fusion_score(result) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("row", FUSING)
def test_heads_that_let_streams_meet_pass_the_additive_ceiling(results, row: str) -> None:
    for metric in TARGETS:
        assert (
            results[row]["metrics"][f"test/{metric}"]
            > results[row]["ceilings"]["additive"][metric] + 0.1
        )
    assert fusion_score(results[row]) == pytest.approx(1.0, abs=0.06)


def fusion_score(result: dict) -> float:
    scores = result["metrics"]
    ratios = [scores[f"test/{m}[two_handed]"] / scores[f"test/{m}[one_handed]"] for m in TARGETS]
    return float(np.mean(ratios))
