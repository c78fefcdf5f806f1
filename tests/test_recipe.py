"""Recipes against numbers worked out by hand, and what else a step of training can do."""

import math
import shutil

import numpy as np
import pytest
import tiny_roberta
import torch
from safetensors.torch import load_file
from test_resume import assert_same_bits, go, nothing, stopped_at
from torch import nn

from harness.batch import Batch
from harness.config import ConfigError
from harness.contracts import Sample, Tokens
from harness.distributed import Group
from harness.feed import Feed
from harness.learner import Learner, choice, total_loss
from harness.listing import listing
from harness.mix import Mix, draw_mix, mixed
from harness.model import Model
from harness.optimise import described, in_words, parameter_groups, set_learning_rates
from harness.plan import plan
from harness.recipe import RECIPES, TrainSpec, recipe
from harness.registry import ENCODERS
from harness.run import run as execute
from harness.spec import RunSpec, dataset_of
from harness.splits import Labels, side_of

CPU = torch.device("cpu")
STEPS = 20
"""of an epoch"""


def rates(name: str, mamba: bool = False, part: str = "encoder", **changes) -> list[float]:
    """The rate of a part at every step of a recipe."""
    config = TrainSpec(**{**recipe(name, mamba), **changes})
    model = nn.Module()
    model.encoders = nn.ModuleDict({"video": nn.Linear(2, 2)})
    model.fusion = nn.Linear(2, 2)
    model.heads = nn.Linear(2, 2)
    groups = parameter_groups(model, config)
    optimiser = torch.optim.SGD([{k: v for k, v in g.items() if k != "first"} for g in groups])
    found = []
    for step in range(STEPS * config.epochs):
        set_learning_rates(optimiser, step, STEPS * config.epochs, STEPS, config)
        found.append(next(g["lr"] for g in optimiser.param_groups if g["part"] == part))
    return found


def test_the_paper_climbs_for_two_epochs_and_falls_along_a_cosine():
    rate = rates("paper")
    assert rate[0] == 1e-6
    assert rate[20] == pytest.approx(1e-6 + (1e-3 - 1e-6) * 0.5)
    assert rate[40] == max(rate) == pytest.approx(1e-3)
    # halfway of the 1,960 steps that are left, 1,959 to the last
    half = 1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi * 980 / 1959))
    assert rate[40 + 980] == pytest.approx(half)
    assert rate[-1] == pytest.approx(1e-5)
    assert len(rate) == 2000


def test_the_paper_s_mamba_block_has_three_times_the_rate():
    rate = rates("paper", mamba=True, part="fusion")
    assert max(rate) == pytest.approx(3e-3)
    assert (rate[0], rate[-1]) == (1e-6, pytest.approx(1e-5))
    assert max(rates("paper", part="fusion")) == pytest.approx(1e-3)
    assert max(rates("paper", mamba=True, part="head")) == pytest.approx(1e-3)


def test_avion_scales_with_the_batch_and_counts_as_its_own_code():
    # numpy.linspace(4e-6, 1.2e-2, 40), then half a cosine over 1,960 steps that ends one later
    rate = rates("avion")
    assert rate[0] == pytest.approx(4e-6)
    assert rate[1] == pytest.approx(4e-6 + (1.2e-2 - 4e-6) / 39)
    assert rate[39] == rate[40] == pytest.approx(1.2e-2)
    assert rate[41] == pytest.approx(4e-5 + (1.2e-2 - 4e-5) * 0.5 * (1 + math.cos(math.pi / 1960)))
    assert rate[-1] == pytest.approx(
        4e-5 + (1.2e-2 - 4e-5) * 0.5 * (1 + math.cos(math.pi * 1959 / 1960))
    )
    assert max(rates("avion", batch_size=128)) == pytest.approx(3e-3)


def test_orvit_falls_to_a_tenth_at_epochs_19_and_40():
    rate = rates("orvit")
    assert len(rate) == 50 * STEPS
    assert set(rate[: 19 * STEPS]) == {1e-5}
    assert rate[19 * STEPS] == rate[40 * STEPS - 1] == pytest.approx(1e-6)
    assert rate[40 * STEPS] == rate[-1] == pytest.approx(1e-7)


def test_adamw_has_a_tenth_of_the_paper_s_rate_for_the_backbone():
    assert max(rates("adamw")) == pytest.approx(1e-4)
    assert max(rates("adamw", part="fusion")) == pytest.approx(3e-4)
    assert (RECIPES["adamw"]["weight_decay"], RECIPES["adamw"]["optimiser"]) == (0.05, "adamw")


class Network(nn.Module):
    """Parameters under the names that the published networks have for them."""

    may_start_fresh = r"network\.motion\..+"

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Module()
        self.network.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.network.temp_embed = nn.Parameter(torch.zeros(1, 2, 4))
        self.network.temporal_embedding = nn.Parameter(torch.zeros(2, 4))
        self.network.block = nn.Linear(4, 4)
        self.network.norm = nn.LayerNorm(4)
        self.network.motion = nn.Linear(4, 4)


def groups_of(name: str) -> dict[str, dict]:
    model = nn.Module()
    model.encoders = nn.ModuleDict({"video": Network()})
    model.fusion = nn.Module()
    model.fusion.A_log = nn.Parameter(torch.zeros(4, 2))
    return {
        group["name"]: group for group in parameter_groups(model, TrainSpec(**recipe(name, False)))
    }


def size(group: dict) -> int:
    return sum(p.numel() for p in group["params"])


def test_each_recipe_decays_what_its_authors_decay():
    paper, avion, orvit = (groups_of(name) for name in ("paper", "avion", "orvit"))
    assert size(paper["encoder"]) == 16 + 16  # matrices; no position, bias or norm
    assert size(avion["encoder"]) == 16 + 16 + 8 + 8  # positions in time decay, in space not
    assert orvit["encoder"]["weight_decay"] == 0.05
    # biases and norms decay too; pos_embed and temp_embed do not
    assert size(orvit["encoder"]) == 16 + 4 + 8 + 8
    assert size(orvit["encoder, no decay"]) == 20 + 8
    assert size(orvit["fresh"]) == 16 + 4
    assert {name: group["peak_lr"] for name, group in orvit.items()} == {
        "encoder": 1e-5,
        "encoder, no decay": 1e-5,
        "fresh": 1e-4,
        "fusion, no decay": 1e-5,
    }


def test_groups_are_described_for_people():
    told = in_words(described(list(groups_of("orvit").values())))
    assert "fresh" in told
    assert "encoders.video.network.motion.weight" in told
    assert "0.0001" in told
    assert in_words([]) == "nothing is trained"


def test_a_recipe_is_only_a_name_for_what_it_sets(sweep_file):
    rows = """
runs:
  named: {train: {recipe: paper, epochs: 3}}
  mamba: {train: {recipe: paper, epochs: 3}, fusion: {name: mamba_shared}}
  own: {train: {recipe: paper, epochs: 3, peak_lr.fusion: 7e-3}, fusion: {name: mamba_shared}}
  again: {train: {recipe: adamw, epochs: 3}, fusion: {name: mamba_shared}}
"""
    base = TINY_WITHOUT_TRAIN
    runs = {run.row: run.spec for run in plan(sweep_file(rows, base=base)).runs}
    assert runs["named"].train.epochs == 3
    assert runs["named"].train.batch_size == 128
    assert runs["named"].train.peak_lr.fusion == 1e-3
    assert runs["mamba"].train.peak_lr.fusion == 3e-3
    assert runs["own"].train.peak_lr.fusion == 7e-3
    assert runs["again"].train.peak_lr.fusion == 3e-4
    plain = runs["named"].model_dump(mode="json")
    del plain["train"]["recipe"]
    assert RunSpec(**plain).run_id == runs["named"].run_id
    with pytest.raises(ConfigError, match=r"train\.recipe: .*'paper', 'adamw', 'avion' or 'orvit'"):
        plan(sweep_file("runs: {a: {train.recipe: papr}}\n", base=base))
    assert "peak_lr" in listing("recipes")


TINY_WITHOUT_TRAIN = """
report: {table: tiny, title: "A tiny sweep", metrics: [verb_top1]}
base:
  data: {name: simkitchen, options: {train_size: 160, select_size: 32, test_size: 32}}
  encoders: {text: {name: word_transformer, options: {width: 16}}}
  width: 16
  fusion: {name: single}
  train: {steps_per_epoch: 2}
"""
SENSORS = """
report: {table: watch, title: "Sensors", metrics: [label_top1]}
base:
  data: {name: watch}
  encoders: {accel: {name: sensor_conv, options: {width: 8, dropout: 0}}}
  fusion: {name: single}
  width: 8
  train: {epochs: 3, steps_per_epoch: 4, batch_size: 16, optimiser: adamw, warmup_epochs: 0}
runs:
  a: {}
"""


def learner(sweep_file, changes: str = "") -> tuple[Learner, list[Batch]]:
    """A learner of SENSORS with `changes`, and its first batches; always the same weights."""
    spec = plan(sweep_file(SENSORS.replace("a: {}", f"a: {{{changes}}}"), base="")).runs[0].spec
    torch.manual_seed(0)
    dataset = dataset_of(spec, {})
    model = Model(spec, dataset, {})
    feed = Feed(spec, dataset, "train", model, CPU, None)
    made = Learner(spec, model, dataset, Group(), CPU)
    set_learning_rates(made.optimiser, 0, 12, 4, spec.train)
    return made, list(feed.training(0, 3, range(16)))


def weights(made: Learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in made.model.parameters()])


@pytest.mark.parametrize("parts", [2, 3, 16])
def test_a_batch_in_parts_gives_the_step_of_the_whole_batch(sweep_file, parts):
    whole, batches = learner(sweep_file, "train.optimiser: sgd")
    split, _ = learner(sweep_file, f"train.optimiser: sgd, train.accumulate: {parts}")
    losses = [[one.step(batch, n) for n, batch in enumerate(batches)] for one in (whole, split)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(weights(whole), weights(split), rtol=1e-5, atol=1e-7)
    assert weights(whole).ne(weights(learner(sweep_file, "train.optimiser: sgd")[0])).any()


def test_the_average_of_the_weights_is_what_is_evaluated(sweep_file):
    made, batches = learner(sweep_file, "train.ema: 0.75")
    seen = []
    for number, batch in enumerate(batches):
        made.step(batch, number)
        seen.append(weights(made))
    wanted = 0.75 * (0.75 * seen[0] + 0.25 * seen[1]) + 0.25 * seen[2]  # begun at the first step
    average = torch.cat([p.detach().flatten() for p in made.evaluated.parameters()])
    torch.testing.assert_close(average, wanted)
    assert made.settle() is None
    torch.testing.assert_close(weights(made), wanted)


def test_half_precision_trains_and_keeps_its_weights_whole(sweep_file):
    for precision in ("bfloat16", "float16"):
        made, batches = learner(sweep_file, f"train.precision: {precision}")
        before = weights(made)
        losses = [made.step(batch, number) for number, batch in enumerate(batches)]
        assert np.isfinite(losses).all()
        assert weights(made).dtype == torch.float32
        assert weights(made).ne(before).any()
        assert made.scaler.is_enabled() == (precision == "float16")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_encoder_takes_the_same_step(sweep_file):
    plain, batches = learner(sweep_file)
    fast, _ = learner(sweep_file, "train.compile: true")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    losses = [[one.step(batch, n) for n, batch in enumerate(batches)] for one in (plain, fast)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    torch.testing.assert_close(weights(plain), weights(fast), rtol=1e-3, atol=1e-4)


def test_dropout_before_the_heads_is_drawn_in_training_alone(sweep_file):
    made, batches = learner(sweep_file, "train.head_dropout: 0.5")
    model = made.model.train()
    first, second = (model(batches[0].inputs)["label"] for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(model(batches[0].inputs)["label"], model(batches[0].inputs)["label"])


@pytest.mark.parametrize("parts", [3, 16])
def test_a_batch_that_is_mixed_may_come_in_parts_too(sweep_file, parts):
    """A sample's partner may be in another part of the batch."""
    changes = "train.optimiser: sgd, train.mixup: 0.8"
    whole, batches = learner(sweep_file, changes)
    split, _ = learner(sweep_file, f"{changes}, train.accumulate: {parts}")
    plain, _ = learner(sweep_file, "train.optimiser: sgd")
    each = [
        [one.step(batch, n) for n, batch in enumerate(batches)] for one in (whole, split, plain)
    ]
    assert each[0] == pytest.approx(each[1], rel=1e-5)
    assert each[0] != pytest.approx(each[2], rel=1e-3)
    torch.testing.assert_close(weights(whole), weights(split), rtol=1e-5, atol=1e-7)


def test_mixed_labels_share_the_loss(sweep_file):
    made, batches = learner(sweep_file, "train: {mixup: 0.8, label_smoothing: 0.1}")
    mix = draw_mix(made.config, 0, 5)
    batch, share = mixed(batches[0], mix, made.cuts)
    with torch.no_grad():
        logits = made.model.train()(batch.inputs)
    other = {"label": batches[0].targets["label"].flip(0)}
    wanted = share * total_loss(logits, batches[0].targets, 0.1)
    wanted += (1 - share) * total_loss(logits, other, 0.1)
    assert made.step(batches[0], 5) == pytest.approx(float(wanted), rel=1e-5)


def test_the_best_epoch_may_be_that_of_a_head_over_actions():
    config = TrainSpec(choose="best")
    found = {"action_joint_top1": 0.25, "verb_top1": 0.75, "action_top1": 0.9}
    assert choice(found, ["action"], config) == 0.25
    assert choice(found, ["action", "verb"], config) == 0.5  # the pair's rule is another
    assert choice({"label_top1": 0.5}, ["label"], config) == 0.5


def test_boxes_are_for_those_encoders_that_read_them():
    boxes = {"video": {"boxes": torch.zeros(2, 4, 4)}}
    samples = [Sample("a", {}, {}, side=boxes)] * 2
    assert side_of(samples, "video", ENCODERS["clip_vit"].takes) == {}
    assert set(side_of(samples, "video", ENCODERS["orvit"].takes)) == {"boxes"}
    assert set(side_of(samples, "video")) == {"boxes"}


def test_frozen_encoders_are_not_averaged(sweep_file):
    made, _ = learner(sweep_file, "train.ema: 0.9")
    assert len(made.evaluated.trained_parameters()) == len(made.model.trained_parameters())
    text = KITCHEN.replace("text: {name", "text: {frozen: true, name")
    spec = plan(sweep_file(text + "  a: {train.ema: 0.9}\n", base="")).runs[0].spec
    dataset = dataset_of(spec, {})
    model = Model(spec, dataset, {})
    average = Learner(spec, model, dataset, Group(), CPU).evaluated
    assert average is not model
    assert average.encoders["text"] is model.encoders["text"]
    assert average.heads is not model.heads


KITCHEN = """
report: {table: tiny, title: "A tiny sweep", metrics: [verb_top1]}
base:
  data: {name: simkitchen, options: {train_size: 64, select_size: 32, test_size: 32}}
  encoders: {text: {name: word_transformer, options: {width: 16}}}
  width: 16
  fusion: {name: single}
  train: {batch_size: 16}
runs:
"""


def a_batch(**inputs) -> Batch:
    count = 4
    empty = np.full(count, "")
    targets = {"verb": torch.arange(count)}
    labels = Labels(empty, empty, empty, {"verb": np.arange(count)})
    return Batch(inputs, {}, targets, lambda: labels)


def test_mixup_mixes_all_streams_with_one_share():
    clips = torch.arange(4 * 2 * 6 * 6 * 3, dtype=torch.uint8).view(4, 2, 6, 6, 3)
    features = torch.randn(4, 3, 5)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    batch = a_batch(video=clips, text=Tokens(features, mask))
    found, share = mixed(batch, Mix(0.8), {"video": True, "text": False})
    assert share == 0.8
    torch.testing.assert_close(
        found.inputs["video"][1], 0.8 * clips[1].float() + 0.2 * clips[2].float()
    )
    text = found.inputs["text"]
    assert text.mask[0].tolist() == [True, True, True]
    assert text.mask[1].tolist() == [True, True, False]
    torch.testing.assert_close(text.features[1, 0], 0.8 * features[1, 0] + 0.2 * features[2, 0])
    torch.testing.assert_close(text.features[1, 1], 0.2 * features[2, 1])  # the shorter has ended


def test_cutmix_puts_a_box_of_the_other_clip_into_all_frames():
    clips = torch.stack([torch.full((2, 8, 8, 3), v, dtype=torch.uint8) for v in (0, 10, 20, 30)])
    tokens = Tokens(torch.ones(4, 1, 2) * torch.arange(4)[:, None, None], torch.ones(4, 1).bool())
    batch = a_batch(video=clips, text=tokens)
    box = (0.25, 0.75, 0.0, 0.5)  # 4 x 4 of 8 x 8 pixels
    found, share = mixed(batch, Mix(0.9, box), {"video": True, "text": False})
    assert share == 0.75
    first = found.inputs["video"][0]
    assert (first[:, 2:6, 0:4] == 30).all()
    assert int((first == 30).sum()) == 2 * 16 * 3
    torch.testing.assert_close(found.inputs["text"].features[0, 0, 0], torch.tensor(0.25 * 3))


def test_how_a_batch_is_mixed_is_settled_by_seed_and_step():
    config = TrainSpec(mixup=0.8, cutmix=1.0)
    drawn = [draw_mix(config, 0, step) for step in range(400)]
    assert drawn == [draw_mix(config, 0, step) for step in range(400)]
    assert drawn != [draw_mix(config, 1, step) for step in range(400)]
    cut = [mix for mix in drawn if mix is not None and mix.box is not None]
    assert 150 < len(cut) < 250  # half of them
    assert all(0 <= a <= b <= 1 and 0 <= c <= d <= 1 for a, b, c, d in (m.box for m in cut))
    half = TrainSpec(mixup=0.8, mix_probability=0.5)
    assert 150 < sum(draw_mix(half, 0, step) is None for step in range(400)) < 250
    assert draw_mix(TrainSpec(), 0, 0) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ("train.mixup: 0.8", "text is text: freeze its encoder"),
        (
            "train.cutmix: 1.0, encoders.text.frozen: true",
            "no stream has any: clips are videos",
        ),
        (
            "train.mixup: 0.8, encoders: {text: null, video: {name: orvit, options.size: demo}}",
            "cannot mix the boxes that video reads",
        ),
        (
            "train.mixup: 0.8, encoders: {text: null, video: {name: orvit, options.size: demo, "
            "frozen: true, cache: none}}",
            "cannot mix the boxes that video reads",
        ),
        ("train.schedule: steps", "step_epochs is empty"),
        ("train.accumulate: 64", "accumulate is 64, batch_size 16"),
        ("train: {choose: best, choose_by: verb_topp1}", "Did you mean 'verb_top1'"),
        ("train.choose_by: verb_top1", "choose: best"),
        ("encoders.text.cache: float16", "are for `frozen: true`"),
        ("encoders.text: {frozen: true, views: 2}", "stored tokens of a video"),
    ],
)
def test_what_cannot_be_is_refused_when_planned(sweep_file, changes, told):
    with pytest.raises(ConfigError) as error:
        plan(sweep_file(f"runs: {{a: {{{changes}}}}}\n"))
    assert told in str(error.value)


def test_questions_that_each_head_has_to_itself_are_not_mixed(sweep_file, tmp_path):
    tiny_roberta.write(tmp_path, ["what do you do with the pot ?"], 130)
    text = (
        f"{{name: roberta, frozen: true, init: 'pretrained:{tmp_path}', "
        f"options: {{questions: per_head}}}}"
    )
    rows = f"runs: {{a: {{encoders.text: {text}, train.mixup: 0.4}}}}\n"
    with pytest.raises(ConfigError, match="tokens of text are dealt to heads"):
        plan(sweep_file(rows))
    assert plan(sweep_file(rows.replace("0.4", "0"))).runs


EVERYTHING = (
    "train: {ema: 0.9, precision: float16, accumulate: 2, mixup: 0.4, choose: best, "
    "head_dropout: 0.2, clip_norm: 1.0, epochs: 3}"
)


def test_all_of_it_together_is_resumed_to_the_same_bits(sweep_file, tmp_path):
    from harness.store import Store

    text = SENSORS.replace("a: {}", f"a: {{{EVERYTHING}}}")
    planned = plan(sweep_file(text, base="")).runs[0]
    calm, stormy = (Store(tmp_path / name).run(planned.run_id) for name in ("calm", "stormy"))
    for folder in (calm, stormy):
        folder.write_spec(planned.spec.model_dump(mode="json"), {})
    execute(Store(calm.path.parent), planned.run_id, nothing)
    stopped_at(stormy, 3)
    stopped_at(stormy, 9, 3)
    go(stormy)
    assert_same_bits(calm, stormy)
    result = calm.result()
    assert result["chosen_epoch"] in (1, 2, 3)
    assert stormy.result()["chosen_epoch"] == result["chosen_epoch"]
    assert {group["name"] for group in result["groups"]} >= {"encoder", "head, no decay"}


def test_the_best_epoch_on_select_is_what_is_kept(sweep_file, tmp_path):
    """With rates so high that the last epoch is not the best."""
    from harness.store import Store

    changes = "train: {choose: best, choose_by: label_top1, epochs: 6, peak_lr.encoder: 0.03}"
    planned = plan(sweep_file(SENSORS.replace("a: {}", f"a: {{{changes}}}"), base="")).runs[0]
    store = Store(tmp_path / "runs")
    folder = store.run(planned.run_id)
    folder.write_spec(planned.spec.model_dump(mode="json"), {})
    execute(store, planned.run_id, nothing)
    values = [row["select/label_top1"] for row in folder.metrics()]
    result = folder.result()
    assert result["chosen_epoch"] == 1 + values.index(max(values))
    assert result["metrics"]["select/label_top1"] == pytest.approx(max(values))
    assert load_file(folder.weights_file)
