"""Runs and sweeps end to end, and what they survive. Every process here is a real one."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file

from harness import cache
from harness.cache import wanted
from harness.cli import main
from harness.data.simkitchen import SimKitchen
from harness.evaluate import scores
from harness.feed import Feed
from harness.launch import launch
from harness.model import Model, load_weights
from harness.plan import plan
from harness.provenance import changes
from harness.registry import DATASETS
from harness.spec import dataset_of
from harness.splits import fetch
from harness.states import plan_table, stale_runs, state_of
from harness.store import Store

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
ROWS = """
runs:
  text: {label: Question only}
  more: {label: With pre-logits, head: pre_logits}
"""
LONG = """
report: {table: watch, title: "Sensors", metrics: [label_top1]}
base:
  data: {name: watch}
  encoders: {accel: {name: sensor_conv, options: {width: 8, rotation: 0.2, dropout: 0.3}}}
  fusion: {name: single}
  width: 8
  train: {epochs: 40, steps_per_epoch: 3, batch_size: 16, optimiser: adamw, warmup_epochs: 1}
runs: {accel: {}}
"""
"""random numbers in every step: dropout, and rotated inputs"""


def start(folder: Path, *words: str, **env: str) -> subprocess.Popen:
    """`harness WORDS` in `folder`, as a user's shell starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "harness.cli", *words],
        cwd=folder,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def harness(folder: Path, *words: str, **env: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `harness WORDS`."""
    process = start(folder, *words, **env)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def finish(store: Store, file: Path):
    """The sweep in `file`, run to its end in this process."""
    sweep = plan(file)
    return sweep, launch(store, sweep, "inline", 1, 1)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished sweep: (folder, sweep, store, outcome)."""
    folder = tmp_path_factory.mktemp("done")
    (folder / "tiny.yaml").write_text(TINY + ROWS)
    store = Store(folder / "runs")
    sweep, outcome = finish(store, folder / "tiny.yaml")
    return folder, sweep, store, outcome


def test_a_sweep_brings_every_run_to_a_result(done):
    _, sweep, store, outcome = done
    assert sorted(outcome.done) == sorted(run.run_id for run in sweep.runs)
    for run in sweep.runs:
        folder = store.run(run.run_id)
        result = folder.result()
        assert {"test/verb_top1", "test/action_top1", "select/noun_top5"} <= set(result["metrics"])
        assert result["samples"] == {"train": 96, "select": 32, "test": 64}
        assert result["cost"]["params_m"] > 0
        assert [row["epoch"] for row in folder.metrics()] == [1, 2, 3]
        assert folder.checkpoints() == []
        assert len(folder.predictions().ids) == 64


def test_the_scores_are_those_of_the_stored_predictions(done):
    _, sweep, store, _ = done
    folder = store.run(sweep.runs[0].run_id)
    said = folder.predictions()
    share = (said.logits["verb"].argmax(1) == said.targets["verb"]).mean()
    assert folder.result()["metrics"]["test/verb_top1"] == pytest.approx(share)


class KnownActions(SimKitchen):
    """SimKitchen as if only pairs on a diagonal, and ten more, existed."""

    def actions(self):
        return tuple((v, n) for v in range(8) for n in range(12) if v == n or v == 3)


def test_a_dataset_that_says_which_actions_exist_has_the_metrics_of_these(
    store, sweep_file, monkeypatch
):
    monkeypatch.setitem(DATASETS._plugins, "known_actions", KnownActions)
    rows = "runs: {text: {train.epochs: 1}, lr: {train: {method: logistic_regression}}}\n"
    base = TINY.replace("simkitchen", "known_actions").replace("action_top1", "action_top1_3806")
    sweep, outcome = finish(store, sweep_file(rows, base=base))
    assert len(outcome.done) == 2
    for run in sweep.runs:
        folder = store.run(run.run_id)
        assert len(folder.predictions().actions) == 19
        found = folder.result()["metrics"]
        assert found["test/action_top1_3806"] == scores(folder.predictions())["action_top1_3806"]
        assert "select/action_recall5_3806" in found


def test_the_same_sweep_again_does_nothing(done):
    _, sweep, store, _ = done
    before = {f: f.stat().st_mtime_ns for f in store.root.rglob("*") if f.name == "result.json"}
    again = launch(store, sweep, "inline", 1, 1)
    assert again.done == []
    assert len(again.skipped) == 2
    assert {f: f.stat().st_mtime_ns for f in before} == before


def test_the_plan_says_what_is_done_and_what_is_new(done, sweep_file):
    _, sweep, store, _ = done
    assert "2 runs (2 done)" in plan_table(sweep, store)
    text = plan_table(plan(sweep_file(LONG, base="")), store)
    assert "(1 new)" in text
    assert re.search(r"new +run$", text, re.M)


def killed_after(folder: Path, run_id: str, lines: int) -> None:
    """Start a run in a process and end it with SIGKILL once it has written `lines` epochs."""
    process = start(folder, "run", f"runs/{run_id}/spec.json")
    with process:
        run = Store(folder / "runs").run(run_id)
        deadline = time.time() + 60
        while len(run.metrics()) < lines and time.time() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_killed_at_any_moment_a_run_ends_with_the_same_bits(tmp_path, sweep_file):
    file = sweep_file(LONG, base="")
    sweep, _ = finish(Store(tmp_path / "calm"), file)
    run_id = sweep.runs[0].run_id
    store = Store(tmp_path / "runs")
    store.run(run_id).write_spec(sweep.runs[0].spec.model_dump(mode="json"), sweep.paths)
    for lines in (1, 7, 23):
        killed_after(tmp_path, run_id, lines)
        assert store.run(run_id).state() == "interrupted"
        assert "resume after epoch" in state_of(sweep.runs[0], store)[1]
    launch(store, sweep, "inline", 1, 1)
    calm, stormy = Store(tmp_path / "calm").run(run_id), store.run(run_id)
    assert stormy.attempts() == 4
    assert stormy.result()["metrics"] == calm.result()["metrics"]
    for name, logits in calm.predictions().logits.items():
        assert np.array_equal(logits, stormy.predictions().logits[name])

    def curve(run):
        return [
            {k: v for k, v in row.items() if "time" not in k and k != "epoch_seconds"}
            for row in run.metrics()
        ]

    assert curve(stormy) == curve(calm)


def test_two_sweeps_at_once_run_everything_exactly_once(tmp_path, sweep_file):
    sweep_file(ROWS + "seeds: [0, 1]\n")
    both = [start(tmp_path, "sweep", "tiny.yaml", "--jobs", "2") for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    store = Store(tmp_path / "runs")
    assert [run.attempts() for run in store.runs()] == [1, 1, 1, 1]
    assert all(run.state() == "done" for run in store.runs())


def test_two_sweeps_named_in_one_command_share_its_workers(tmp_path, sweep_file):
    sweep_file("runs: {text: {}, more: {head: pre_logits}}\n", "one.yaml")
    sweep_file("runs: {less: {}, none: {fusion: {name: mean}}}\n", "two.yaml")
    code, _, err = harness(tmp_path, "sweep", "one.yaml", "two.yaml", "--jobs", "2")
    assert code == 0, err
    assert len(re.findall(r"^done ", err, re.M)) == 3  # `text` and `less` are one run
    assert "one: 2 runs: 2 done now, 0 done before, 0 failed" in err
    assert "two: 2 runs: 2 done now" in err
    code, _, err = harness(tmp_path, "sweep", "two.yaml", "absent.yaml")
    assert code == 2
    assert "absent.yaml" in err


def test_a_failed_run_does_not_stop_the_others_and_is_named_at_the_end(tmp_path, sweep_file):
    sweep_file("runs: {bad: {label: Bad, train.peak_lr.fusion: 1e30}, good: {}}\n")
    code, _, err = harness(tmp_path, "sweep", "tiny.yaml")
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert re.match(r"FAILED  [0-9a-f]{12}  Bad, seed 0: FloatingPointError: the loss is", last)
    assert "Traceback" not in err
    store = Store(tmp_path / "runs")
    assert sorted(run.state() for run in store.runs()) == ["done", "failed"]
    code, out, _ = harness(tmp_path, "plan", "tiny.yaml")
    assert code == 0
    assert "--retry runs it again: FloatingPointError" in out


def test_a_run_whose_need_failed_is_not_started(store, sweep_file):
    text = """
needs: {first: {train.peak_lr.fusion: 1e30, fusion: {name: mean}}}
runs: {a: {needs.weights: first}}
"""
    sweep, outcome = finish(store, sweep_file(text))
    failures = {run.row: outcome.failed[run.run_id] for run in sweep.runs}
    assert "FloatingPointError" in failures["first"]
    assert "it needs run" in failures["a"]
    assert store.run(sweep.runs[1].run_id).attempts() == 0


def test_frozen_tokens_are_computed_once_and_give_what_the_live_encoder_gives(store, sweep_file):
    text = """
needs: {first: {fusion: {name: mean}, data.options.targets: perception}}
runs:
  frozen: {needs.weights: first, encoders.text.frozen: true}
  wider: {needs.weights: first, encoders.text.frozen: true, head: pre_logits}
"""
    sweep, outcome = finish(store, sweep_file(text))
    assert outcome.failed == {}
    # train, select, test, and the texts of each: once for both
    assert len(list(store.tokens.glob("*/done.json"))) == 6
    kept = load_file(store.run(sweep.runs[1].run_id).weights_file)
    assert not any(name.startswith("encoders.") for name in kept)
    needed, spec = store.run(sweep.runs[0].run_id).weights_file, sweep.runs[1].spec
    model = Model(spec, dataset_of(spec, {}), {})
    load_weights(model, spec, {}, needed)
    stored = Feed(spec, dataset_of(spec, {}), "test", model, CPU, store.tokens)
    batch = next(stored.batches(20))
    items = fetch(dataset_of(spec, {}).split("test"), range(20))
    encoder = model.encoders["text"].eval()
    with torch.no_grad():
        live = encoder(encoder.collate([item.streams["text"] for item in items]))
    assert torch.equal(batch.inputs["text"].mask, live.mask)
    torch.testing.assert_close(batch.inputs["text"].features, live.features)


def test_tokens_of_other_weights_or_other_code_are_other_tokens(store, sweep_file, monkeypatch):
    spec = plan(sweep_file("runs: {a: {encoders.text.frozen: true}}\n")).runs[0].spec
    dataset = dataset_of(spec, {})
    first, second = (Model(spec, dataset, {}).encoders["text"] for _ in range(2))

    def key_of(split, encoder):
        return wanted(spec, dataset, "text", split, encoder).key

    key = key_of("test", first)
    assert key_of("test", first) == key
    assert key_of("train", first) != key
    assert key_of("test", second) != key
    second.load_state_dict(first.state_dict())
    assert key_of("test", second) == key
    monkeypatch.setattr(cache, "token_code", lambda *_: {"backbones.word_transformer": "edited"})
    assert key_of("test", first) != key


def test_a_run_is_stale_when_what_it_needed_was_made_anew(store, sweep_file):
    text = """
needs: {first: {fusion: {name: mean}}}
runs: {a: {needs.weights: first}, b: {}}
"""
    sweep, _ = finish(store, sweep_file(text))
    first, a, b = (run.run_id for run in sweep.runs)
    assert [changes(store, run_id) for run_id in (first, a, b)] == [[], [], []]
    with open(store.run(first).weights_file, "ab") as out:
        out.write(b" ")
    assert [changes(store, run_id) for run_id in (first, a, b)] == [[], [f"run {first}"], []]
    assert stale_runs(sweep, store) == [a]


def test_a_run_resumed_with_other_code_than_it_began_with_is_marked(store, sweep_file):
    sweep = plan(sweep_file("runs: {a: {}}\n"))
    folder = store.run(sweep.runs[0].run_id)
    folder.write_spec(sweep.runs[0].spec.model_dump(mode="json"), {})
    with folder.lease():
        folder.write_env({"threads": 1, "code": {"fusions.single": "0123", "harness.feed": "4567"}})
        folder.save_checkpoint(lambda out: out.write(b"torn"))
    launch(store, sweep, "inline", 1, 1)
    assert set(changes(store, folder.run_id)) == {"fusions/single.py", "harness/feed.py"}


def test_the_sweep_and_then_its_report_from_the_command_line(done, monkeypatch, capsys):
    folder, sweep, store, _ = done
    monkeypatch.chdir(folder)
    for words, said in (
        (["sweep", "tiny.yaml"], ""),
        (["report", "tiny"], "| Question only | 1 |"),
    ):
        monkeypatch.setattr("sys.argv", ["harness", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert ended.value.code in (None, 0), err
        assert said in out
    top1 = store.run(sweep.runs[0].run_id).result()["metrics"]["test/verb_top1"]
    assert f"{100 * top1:.1f} (n=1)" in out
    made = {file.name for file in (folder / "runs" / "report").iterdir()}
    assert {f"tiny-plain{end}" for end in (".md", ".tex", ".csv", "-curves.png")} <= made


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_told_to_stop_ends_its_workers_and_says_how_to_go_on(
    tmp_path, sweep_file, number
):
    sweep_file(LONG.replace("epochs: 40", "epochs: 100000"), base="")
    process = start(tmp_path, "sweep", "tiny.yaml")
    store = Store(tmp_path / "runs")
    deadline = time.time() + 120
    while time.time() < deadline and not any(run.metrics() for run in store.runs()):
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from here" in err
    (run,) = store.runs()
    while time.time() < deadline and run.state() == "running":
        time.sleep(0.1)
    assert run.state() == "interrupted"


def test_an_edited_plugin_is_seen_and_can_be_run_anew(tmp_path, sweep_file):
    source = (ROOT / "tests" / "toy_package" / "toy_fusion.py").read_text()
    info = tmp_path / "site" / "toy_fusion-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-fusion\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[harness.plugins]\ntoy = toy_fusion\n")
    plugin = tmp_path / "site" / "toy_fusion.py"
    plugin.write_text(source)
    env = {"PYTHONPATH": str(tmp_path / "site")}
    sweep_file("runs: {toy: {fusion: {name: toy_sum}}}\n")
    code, _, err = harness(tmp_path, "sweep", "tiny.yaml", "--launcher", "inline", **env)
    assert code == 0, err
    plugin.write_text(source.replace(".tanh()", ".sigmoid()"))
    _, out, _ = harness(tmp_path, "plan", "tiny.yaml", **env)
    assert "done (code differs: " in out
    assert "toy_fusion.py)" in out
    code, _, err = harness(tmp_path, "sweep", "tiny.yaml", "--stale", "rerun", **env)
    assert code == 0, err
    _, out, _ = harness(tmp_path, "plan", "tiny.yaml", **env)
    assert "code differs" not in out
    (run,) = Store(tmp_path / "runs").runs()
    assert run.attempts() == 2
    assert (run.path / "stale" / "1" / "result.json").exists()


def test_the_options_of_training_all_run(store, sweep_file):
    text = """
runs:
  bfloat16: {train.precision: bfloat16, train.clip_norm: 1.0, fusion: {name: mamba_shared}}
  sgd: {train.optimiser: sgd, head: pre_logits}
  passes: {train.steps_per_epoch: null}
"""
    sweep, outcome = finish(store, sweep_file(text))
    assert outcome.failed == {}
    steps = [store.run(run.run_id).metrics()[-1]["step"] for run in sweep.runs]
    assert steps == [12, 12, 18]


def test_what_a_killed_write_left_behind_is_removed(store, sweep_file):
    sweep = plan(sweep_file("runs: {a: {}}\n"))
    folder = store.run(sweep.runs[0].run_id)
    folder.path.mkdir(parents=True)
    (folder.path / ".checkpoint.pt.0123abcd").write_bytes(b"half")
    launch(store, sweep, "inline", 1, 1)
    assert not list(folder.path.glob(".*"))


def test_changed_data_stop_a_planned_run_with_a_clear_word(store, sweep_file):
    sweep = plan(sweep_file(ROWS))
    run = sweep.runs[0]
    spec = run.spec.model_copy(update={"fingerprint": "0" * 64})
    folder = store.run(spec.run_id)
    folder.write_spec(spec.model_dump(mode="json"), {})
    from harness.run import run as execute

    with pytest.raises(ValueError, match="have changed since the run was planned"):
        execute(store, spec.run_id, lambda *_: None)
    assert "have changed" in folder.failure()


def test_user_errors_are_one_message_and_exit_code_2(tmp_path, sweep_file):
    sweep_file("runs: {a: {fusion: {name: mpl}}}\n")
    code, out, err = harness(tmp_path, "sweep", "tiny.yaml")
    assert (code, out) == (2, "")
    assert "unknown fusion 'mpl'" in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from harness.cli import app\n"
        "heavy = {'torch', 'mlflow', 'pydantic', 'pandas', 'numpy', 'rich'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
