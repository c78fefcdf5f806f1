"""Schedule, parameter groups and batch order, against values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from harness.learner import total_loss
from harness.optimise import learning_rate, parameter_groups
from harness.registry import FUSIONS
from harness.spec import TrainSpec
from harness.splits import batch_indices


def test_the_rate_climbs_linearly_then_falls_along_half_a_cosine():
    # paper sec. 4.1: 1e-6 -> 1e-3 over 2 epochs, -> 1e-5 at the end; 10 steps an epoch, 10 epochs
    rate = [learning_rate(step, 100, 20, 1e-6, 1e-3, 1e-5) for step in range(100)]
    assert rate[0] == 1e-6
    assert rate[10] == pytest.approx(1e-6 + 0.5 * (1e-3 - 1e-6))
    assert rate[20] == pytest.approx(1e-3)
    assert rate[99] == pytest.approx(1e-5)
    assert rate[59] == pytest.approx(1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * 39 / 79)))
    assert max(rate) == rate[20]


def test_a_peak_of_zero_is_never_trained():
    assert {learning_rate(step, 10, 2, 1e-6, 0.0, 1e-5) for step in range(10)} == {0.0}


def test_without_warm_up_the_first_step_has_the_peak():
    assert learning_rate(0, 10, 0, 1e-6, 1e-3, 1e-5) == pytest.approx(1e-3)


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleDict({"a": nn.Linear(2, 2)})
        self.fusion = nn.Module()
        self.fusion.A_log = nn.Parameter(torch.zeros(2, 2))
        self.fusion.D = nn.Parameter(torch.zeros(2))
        self.fusion.mix = nn.Linear(2, 2)
        self.heads = nn.ModuleDict({"verb": nn.Linear(2, 2)})


def test_each_part_has_its_peak_rate_and_only_matrices_decay():
    config = TrainSpec(peak_lr={"encoder": 1.0, "fusion": 2.0, "head": 3.0}, weight_decay=0.5)
    groups = {group["name"]: group for group in parameter_groups(Parts(), config)}
    assert {name: group["peak_lr"] for name, group in groups.items()} == {
        "encoder": 1.0,
        "encoder, no decay": 1.0,
        "fusion": 2.0,
        "fusion, no decay": 2.0,
        "head": 3.0,
        "head, no decay": 3.0,
    }
    sizes = {name: sum(p.numel() for p in group["params"]) for name, group in groups.items()}
    assert sizes["fusion"] == 4  # mix.weight
    assert sizes["fusion, no decay"] == 4 + 2 + 2  # A_log, D, mix.bias
    assert groups["fusion"]["weight_decay"] == 0.5
    assert groups["fusion, no decay"]["weight_decay"] == 0.0


@pytest.mark.parametrize("name", FUSIONS.names())
def test_no_fusion_has_its_state_matrix_or_its_skips_decayed(name):
    """Whether one A_log serves all streams or each has its own: rows must differ in that alone."""
    model = nn.Module()
    widths = {"text": 4} if name == "single" else {"text": 4, "video": 4}
    model.fusion = FUSIONS[name](FUSIONS[name].Config(), widths, 16)
    groups = parameter_groups(model, TrainSpec(weight_decay=0.5))
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for parameter, value in model.named_parameters():
        exempt = value.ndim == 1 or {"A_log", "D"} & set(parameter.split("."))
        assert (id(value) in decayed) == (not exempt and value.requires_grad), parameter


def test_every_pass_shows_every_sample_once_in_a_new_order():
    first = np.concatenate([batch_indices(0, step, 4, 12) for step in range(3)])
    second = np.concatenate([batch_indices(0, step, 4, 12) for step in range(3, 6)])
    assert sorted(first) == sorted(second) == list(range(12))
    assert first.tolist() != second.tolist()


def test_the_order_depends_on_the_seed_and_on_nothing_before_it():
    late = batch_indices(3, 40, 4, 14)
    batch_indices(5, 1, 4, 14)
    assert batch_indices(3, 40, 4, 14).tolist() == late.tolist()
    assert batch_indices(4, 40, 4, 14).tolist() != late.tolist()


def test_a_batch_larger_than_the_data_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"batch_size is 16.*only 10 samples"):
        batch_indices(0, 0, 16, 10)


def test_the_loss_is_the_sum_of_the_targets_cross_entropies():
    logits = {"verb": torch.tensor([[0.0, 0.0]]), "noun": torch.tensor([[0.0, 0.0, 0.0, 0.0]])}
    targets = {"verb": torch.tensor([1]), "noun": torch.tensor([2])}
    assert float(total_loss(logits, targets, 0.0)) == pytest.approx(math.log(2) + math.log(4))
    peaked = {"verb": torch.tensor([[50.0, 0.0]])}
    smooth = float(total_loss(peaked, {"verb": torch.tensor([0])}, 0.1))
    assert smooth == pytest.approx(0.05 * 50, rel=1e-4)
