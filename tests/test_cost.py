"""Cost, against sums worked out by hand."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from harness.config import ConfigError
from harness.contracts import Fusion, PluginConfig, Tokens
from harness.cost import cost
from harness.costing import costs_of
from harness.model import Model
from harness.plan import plan
from harness.registry import FUSIONS
from harness.spec import dataset_of


def costs(file, **changes) -> dict:
    sweep = plan(file, settings=[f"{key}={value}" for key, value in changes.items()])
    spec = sweep.runs[0].spec
    return cost(spec, dataset_of(spec, sweep.paths), sweep.paths)


def test_heads_count_one_multiply_add_per_weight(sweep_file):
    found = costs(sweep_file("runs: {a: {}}\n"))
    assert found["gflops_by_part"]["heads.verb"] * 1e9 == pytest.approx(16 * 8)
    assert found["gflops_by_part"]["heads.noun"] * 1e9 == pytest.approx(16 * 12)


def test_parameters_are_all_those_of_the_model(sweep_file):
    found = costs(sweep_file("runs: {a: {head: pre_logits}}\n"))
    less = costs(sweep_file("runs: {a: {}}\n", "b.yaml"))
    assert (found["params_m"] - less["params_m"]) * 1e6 == pytest.approx(16 * 16 + 16)
    assert found["params_trained_m"] == found["params_m"]


FROZEN = """
needs: {first: {fusion: {name: mean}}}
runs: {a: {needs.weights: first, encoders.text.frozen: true, fusion: {name: mean}}}
"""


def test_a_frozen_text_encoder_is_left_out_of_both_columns(sweep_file):
    sweep = plan(sweep_file(FROZEN))
    (live,), (frozen,) = (
        [cost(run.spec, dataset_of(run.spec, {}), {}) for run in sweep.runs if run.row == row]
        for row in ("first", "a")
    )
    assert frozen["excluded"] == ["text"]
    assert live["excluded"] == []
    assert live["params_m"] - frozen["params_m"] > 0
    assert not any(part.startswith("encoders") for part in frozen["gflops_by_part"])
    assert live["gflops"] > frozen["gflops"]


def test_attention_is_counted(sweep_file):
    text = "runs: {a: {fusion: {name: transformer, options: {layers: 2, heads: 4}}}}\n"
    found = costs(sweep_file(text))
    words, width = 48, 16
    in_encoder = words * words * 2 * width
    in_fusion = 2 * words * words * 2 * width
    assert found["gflops_by_operator"]["attention"] * 1e9 == pytest.approx(in_encoder + in_fusion)


def test_the_scan_is_counted_by_its_formula(sweep_file):
    found = costs(sweep_file("runs: {a: {fusion: {name: mamba_shared}}}\n"))
    scan = found["gflops_by_operator"]["harness::selective_scan"] * 1e9
    assert scan == pytest.approx(9 * 48 * 16 * 16 + 48 * 16)


def test_an_operator_nobody_knows_is_an_error_that_names_it(sweep_file, monkeypatch):
    class Odd(Fusion):
        class Config(PluginConfig): ...

        def __init__(self, config: Config, widths: Mapping[str, int], width: int) -> None:
            super().__init__(config, widths, width)
            self.mix = nn.Linear(self.widths["text"], width)

        def forward(self, streams: Mapping[str, Tokens]) -> Tensor:
            return torch.special.bessel_j0(self.mix(streams["text"].features)).sum(dim=1)

    monkeypatch.setitem(FUSIONS._plugins, "odd", Odd)
    with pytest.raises(ValueError, match=r"cost of \['aten::special_bessel_j0'\] is not known"):
        costs(sweep_file("runs: {a: {fusion: {name: odd}}}\n"))


def test_nothing_is_allocated_for_a_large_model(sweep_file):
    text = "runs: {a: {width: 6144, fusion: {name: mlp}}}\n"
    assert costs(sweep_file(text))["params_m"] > 30


def test_streams_with_equal_encoders_are_both_counted():
    planned = plan(Path(__file__).parent.parent / "sweeps" / "watch.yaml")
    for run in {run.row: run for run in planned.runs}.values():
        data = dataset_of(run.spec, planned.paths)
        real = sum(p.numel() for p in Model(run.spec, data, planned.paths).parameters())
        assert cost(run.spec, data, planned.paths)["params_m"] * 1e6 == pytest.approx(real)


def test_every_row_is_printed_also_where_labels_repeat(sweep_file):
    rows = "runs: {a: {label: Same}, b: {label: Same, head: pre_logits}}\n"
    text = costs_of(sweep_file(rows), None, [])
    assert "Same (a)" in text
    assert "Same (b)" in text


def test_a_spec_that_cannot_be_counted_is_named(tmp_path):
    folder = tmp_path / "runs" / "abc"
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text('{"spec": {"version": 1}, "paths": {}}')
    with pytest.raises(ConfigError, match=r"spec\.json: was written by another version"):
        costs_of(folder / "spec.json", None, [])
    with pytest.raises(ConfigError, match="give a sweep file"):
        costs_of(folder / "result.json", None, [])
