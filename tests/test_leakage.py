"""What the audit measures, what reports make of it, and what runs of several sources share."""

import re
from pathlib import Path

import numpy as np
import pytest
import questions_bench as bench
from report_bench import TEXT, VIDEO, Bench, kitchen

from harness.cache import wanted
from harness.clusters import clustered_mean
from harness.config import ConfigError
from harness.contracts import Dataset, PluginConfig, Sample, Stream
from harness.data.simkitchen import SimKitchen
from harness.plan import plan
from harness.questions.audit import audited, runs_of_words, sources_of, table
from harness.spec import PluginSpec, RunSpec, TrainSpec
from harness.store import Store
from reports.build import build
from reports.leakage import survives

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"train_size": 8192, "test_size": 3072, "select_size": 2}


def kitchen_with(more):
    options = dict(text.split("=") for text in more)
    return SimKitchen(SimKitchen.Config(**SIZES, **options))


@pytest.mark.parametrize("source", ["ground_truth", "predicted", "category"])
def test_the_audit_finds_what_simkitchen_is_known_to_tell(source):
    found = list(audited(kitchen_with, [source], lambda text: None))
    assert [one.target for one in found] == ["verb", "noun", "action"]
    for one in found:
        assert one.known is not None
        assert one.low <= one.known <= one.high, one
        assert one.high - one.low < 0.06


class Told(Dataset):
    """Of 40 classes; texts say the class, or nothing, as `questions` asks."""

    class Config(PluginConfig):
        questions: str = "all"

    @property
    def streams(self):
        return {"text": Stream("text", (8,))}

    @property
    def targets(self):
        return {"label": 4}

    def split(self, name):
        rng = np.random.default_rng(len(name))
        labels = rng.choice(4, 400, p=[0.4, 0.2, 0.2, 0.2])
        told = self.config.questions == "all"
        return [
            Sample(str(n), {"text": f"is it {label if told else 0} ?"}, {"label": int(label)},
                   group=str(n // 40))
            for n, label in enumerate(labels)
        ]  # fmt: skip


def test_the_probe_reads_what_is_said_and_the_commonest_class_where_nothing_is():
    def make(more):
        return Told(Told.Config(**dict(text.split("=") for text in more)))

    everything, nothing = audited(make, ["all", "none"], lambda text: None)
    assert everything.probe == everything.table == 1.0
    assert everything.leak == pytest.approx(1 - everything.commonest)
    assert everything.low < everything.leak < everything.high
    assert nothing.probe == nothing.table == nothing.commonest == everything.commonest
    assert (nothing.leak, nothing.low, nothing.high) == (0, 0, 0)
    assert nothing.known is None
    text = table([everything, nothing], "told")
    assert re.search(r"all +label +100\.0 +100\.0 +\d\d\.\d +\+\d\d\.\d \[", text)


def test_an_interval_counts_samples_of_a_group_as_dependent():
    values = np.repeat([0.0, 1.0, 1.0, 0.0, 1.0], 100)
    mean, alone = clustered_mean(values, [""] * 500)
    grouped = clustered_mean(values, np.repeat(list("abcde"), 100).tolist())[1]
    assert mean == 0.6
    assert alone == pytest.approx(1.965 * np.std(values, ddof=1) / np.sqrt(500), rel=1e-3)
    assert grouped == pytest.approx(2.776 * np.std([0, 1, 1, 0, 1], ddof=1) / np.sqrt(5), rel=1e-3)
    assert np.isnan(clustered_mean(values, ["a"] * 500)[1])


def test_runs_of_words_know_their_question():
    assert list(runs_of_words("a b </s> c")) == ["0:a", "0:b", "0:a b", "1:c"]


def test_sources_that_cannot_be_had_are_named_or_refused(tmp_path):
    folder = bench.write_annotations(tmp_path, each=6)
    done = bench.harness(folder, "questions", "audit", "ek100", "--out", "leaks.csv")
    assert done.returncode == 0, done.stderr
    assert "ground_truth: left out: questions of EPIC-Kitchens-100" in done.stderr
    assert "Traceback" not in done.stderr
    rows = {(row["source"], row["target"]): row for row in bench.table(folder / "leaks.csv")}
    assert float(rows["narration", "verb"]["probe"]) == 1.0
    assert float(rows["constant", "verb"]["leak"]) == 0.0
    refused = bench.harness(folder, "questions", "audit", "ek100", "--sources", "ground_truth")
    assert refused.returncode == 2
    assert "harness questions build" in refused.stderr
    wrong = bench.harness(folder, "questions", "audit", "ek100", "--sources", "truth")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
    assert "ground_truth" in sources_of(SimKitchen(SimKitchen.Config()))
    with pytest.raises(ConfigError):
        list(audited(kitchen_with, ["truth"], lambda text: None))


# what runs share


def spec_of(**options):
    data = PluginSpec(name="simkitchen", options=SimKitchen.Config(**options).model_dump())
    return RunSpec(data=data, encoders={"video": VIDEO, "text": TEXT},
                   fusion=PluginSpec(name="mlp"),
                   fingerprint=SimKitchen(SimKitchen.Config(**options)).fingerprint())  # fmt: skip


def test_runs_that_differ_in_their_questions_share_the_tokens_of_the_video(monkeypatch):
    import torch

    monkeypatch.setattr("harness.cache.token_code", lambda spec, stream: "")

    def key(stream, **options):
        dataset = SimKitchen(SimKitchen.Config(**options))
        return wanted(spec_of(**options), dataset, stream, "train", torch.nn.Linear(1, 1)).key

    torch.manual_seed(0)
    state = torch.get_rng_state()

    def keys(stream, *many):
        found = set()
        for options in many:
            torch.set_rng_state(state)
            found.add(key(stream, **options))
        return len(found)

    asked = ({}, {"questions": "predicted", "q_v": 0.5}, {"questions": "category"})
    assert keys("video", *asked) == 1
    assert keys("text", *asked) == 3
    assert keys("video", {}, {"rho": 0.25}, {"seed": 1}, {"label_noise": 0.1}) == 4


ASKED = {"questions": "predicted"}


def test_what_is_said_not_to_change_a_stream_does_not():
    told = 0
    for name in SimKitchen.unseen["video"]:
        other = {"questions": "category", "mask": False}.get(name, 0.3)
        asked = {} if name in ("questions", "mask", "contrast", "cue_dropped") else ASKED
        plain = SimKitchen(SimKitchen.Config(**asked))
        changed = SimKitchen(SimKitchen.Config(**{**asked, name: other}))
        for one, two in zip(plain.split("test").__getitems__(range(20)),
                            changed.split("test").__getitems__(range(20)),
                            strict=True):  # fmt: skip
            assert (one.streams["video"] == two.streams["video"]).all()
            assert one.targets == two.targets
            told += one.streams["text"] != two.streams["text"]
    assert told > 20  # the text does change


# the report


def leak_bench(tmp_path, sources):
    """MLP of 100 samples; `sources`: source -> how many of them are right, one- and two-handed."""
    found = Bench(Store(tmp_path / "runs"))
    for source, right in sources.items():
        for seed in (0, 1, 2):
            data = PluginSpec(name="simkitchen", options={"questions": source})
            spec = RunSpec(data=data, encoders={"video": VIDEO, "text": TEXT}, seed=seed,
                           fusion=PluginSpec(name="mlp"), train=TrainSpec())  # fmt: skip
            folder = found.plan(f"mlp questions={source}", "MLP", spec)
            found.finish(folder, kitchen(right, right))
    return found


def leak_report(found, tmp_path, **more):
    found.store.write_sweep(
        {"name": "leakage", "preset": "demo", "settings": [], "runs": found.runs,
         "report": {"table": "leakage", "title": "Leakage", "metrics": ["verb_top1", "action_top1"],
                    "leakage": True, **more}}
    )  # fmt: skip
    from harness import track

    track.prepare(found.store)
    track.collect(found.store)
    return build(found.store, found.uri, ["leakage"], None, [], tmp_path / "out")


def test_the_report_says_what_of_the_gain_survives(tmp_path):
    found = leak_bench(
        tmp_path,
        {"constant": (10, 10), "predicted": (20, 20), "ground_truth": (40, 40), "shuffled": (9, 9)},
    )
    text = leak_report(found, tmp_path)
    row = next(line for line in text.splitlines() if line.startswith("| MLP |"))
    assert "| 20.0 / 20.0 | 18.0 / 18.0 | 40.0 / 40.0 | 80.0 / 80.0 |" in row
    assert "| +60.0 [" in row
    assert row.endswith("| 33 % |")
    assert "constant questions | shuffled questions | predicted questions | ground truth" in text
    assert (
        "- MLP, Action top-1: +60.0 points over the constant question where questions are made "
        "from the truth, +20.0 where they are made from predictions: 33 % of the gain survives."
    ) in text
    assert "means over seeds (0, 1, 2)" in text
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {f"leakage-demo-leakage.{end}" for end in ("md", "csv", "tex", "png", "pdf")} <= names
    line = bench.table(tmp_path / "out" / "leakage-demo-leakage.csv")[0]
    assert float(line["survives"]) == pytest.approx(1 / 3)
    assert float(line["gain_ground_truth"]) == pytest.approx(60.0)


def test_nothing_survives_where_there_is_no_gain_and_nothing_is_said_of_what_was_not_run(tmp_path):
    found = leak_bench(tmp_path, {"constant": (10, 10), "ground_truth": (10, 10)})
    text = leak_report(found, tmp_path)
    assert "Survives" not in text
    assert "survives" not in text
    assert survives((0.0, (-1.0, 1.0)), (0.0, (-1.0, 1.0))) is None
    assert survives((10.0, (9.0, 11.0)), (5.0, None)) == 0.5
    assert survives(None, (5.0, None)) is None


def test_a_preset_may_take_a_row_out(sweep_file):
    rows = "runs: {mlp: {fusion: {name: mlp}}, mean: {fusion: {name: mean}}}\n"
    file = sweep_file(
        rows + "presets: {some: {runs: {mlp: null}}, all: {}, no: {runs: {mpl: null}}}"
    )
    everything = {run.row for run in plan(file, "all").runs}
    assert everything - {run.row for run in plan(file, "some").runs} == {"mlp"}
    with pytest.raises(ConfigError, match=r"runs.mpl: no such key. Did you mean 'mlp'"):
        plan(file, "no")
    with pytest.raises(ConfigError, match=r"runs.mean: a mapping is needed"):
        plan(sweep_file("runs: {mlp: {}, mean: }"))


def test_an_axis_can_be_set_from_the_command_line(sweep_file):
    file = sweep_file("axes: {data.options.questions: [constant]}")
    planned = plan(file, settings=["axes={data.options.questions: [predicted, category]}"])
    assert [run.row for run in planned.runs] == ["questions=predicted", "questions=category"]


def test_the_sweep_asks_every_source_of_every_fusion():
    rows = {run.row for run in plan(ROOT / "sweeps" / "leakage.yaml").runs if run.in_table}
    models = {row.partition(" questions=")[0] for row in rows}
    sources = {row.partition(" questions=")[2] for row in rows}
    assert models == {"text", "mlp", "mamba_shared"}
    assert sources == {"constant", "shuffled", "category", "predicted", "ground_truth"}
    assert len(rows) == len(models) * len(sources)
