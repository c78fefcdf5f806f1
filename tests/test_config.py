"""Malformed sweep files: one clear message each, where and what, and never a traceback."""

import os
from pathlib import Path

import pytest

from harness.cli import main
from harness.config import ConfigError
from harness.plan import plan
from harness.yamlfile import parse_yaml

GOOD = """report: {table: t, title: T, metrics: [verb_top1]}
base:
  data: {name: simkitchen, options: {train_size: 64, select_size: 16, test_size: 16}}
  encoders: {text: {name: word_transformer}}
  width: 16
  fusion: {name: single}
  train: {epochs: 2, batch_size: 32}
"""
ROWS = "runs: {a: {}}\n"


def message(tmp_path: Path, text: str | bytes, **options) -> str:
    file = tmp_path / "s.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        plan(file, **options)
    return str(caught.value).replace(str(tmp_path) + "/", "")


def test_a_good_file_is_planned(tmp_path):
    (tmp_path / "s.yaml").write_text(GOOD + ROWS)
    assert len(plan(tmp_path / "s.yaml").runs) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD + ROWS + "axis: {}\n", ["s.yaml:9: axis: no such key", "Did you mean 'axes'"]),
        (
            GOOD + "runs: {a: {fusoin: {name: mlp}}}\n",
            ["s.yaml:8: fusoin: no such key", "'fusion'"],
        ),
        (
            GOOD + "runs: {a: {train.epoch: 3}}\n",
            ["s.yaml:8: train.epoch: no such key", "'epochs'"],
        ),
        (GOOD + ROWS + "base: {}\n", ["s.yaml:9: base: key stands twice, first in line 2"]),
        (GOOD + "runs: {a: {train.epochs: many}}\n", ["s.yaml:8: train.epochs", "'many'"]),
        (GOOD + "runs: {a: {train.epochs: 0}}\n", ["s.yaml:8: train.epochs", "greater than 0"]),
        (GOOD + "runs: {a: {train.peak_lr.fusion: .nan}}\n", ["train.peak_lr.fusion", "finite"]),
        (GOOD + "runs:\n\ta: {}\n", ["s.yaml:9: not valid YAML: a tab"]),
        (
            GOOD + "runs: {a: {fusion: {name: mamba_shred}}}\n",
            ["s.yaml:8: fusion.name: unknown fusion 'mamba_shred'", "Did you mean 'mamba_shared'"],
        ),
        (
            GOOD + "runs: {a: {fusion: {name: mamba_shared, options: {state: 4}}}}\n",
            ["s.yaml:8: fusion.options.state: no such key", "Known keys:"],
        ),
        (GOOD + "runs: {a: {data.name: simkitchn}}\n", ["s.yaml:8: data.name: unknown dataset"]),
        (
            GOOD + "runs: {a: {encoders.txt: {name: word_transformer}}}\n",
            ["s.yaml:8: encoders.txt: unknown stream of simkitchen 'txt'", "'text'"],
        ),
        (
            GOOD + "runs: {a: {encoders.video: {name: word_transformer}}}\n",
            ["s.yaml:8: encoders.video.name: 'word_transformer' reads text, but 'video' is video"],
        ),
        (
            GOOD + "runs: {a: {train.batch_size: 65}}\n",
            ["s.yaml:8: train.batch_size: 65 is more than the 64 samples of train"],
        ),
        (GOOD + "axes: {train.epochs: []}\n", ["s.yaml:8: axes.train.epochs: is empty"]),
        (GOOD + "axes: {train.epochs: 3}\n", ["s.yaml:8: axes.train.epochs: is a number"]),
        (GOOD + "axes: [1]\n", ["s.yaml:8: axes: a mapping is needed, not a list"]),
        (GOOD + "runs: {}\n", ["s.yaml:8: runs: is empty"]),
        (GOOD + "runs: {a: 3}\n", ["s.yaml:8: runs.a: a mapping is needed, not a number"]),
        (GOOD, ["neither `runs` nor `axes`"]),
        (GOOD + ROWS + "seeds: []\n", ["s.yaml:9: seeds: a list"]),
        (GOOD + ROWS + "seeds: [x]\n", ["s.yaml:9: seeds: a whole number, not 'x'"]),
        (
            GOOD + "runs: {a: {needs.weights: b}}\n",
            ["s.yaml:8: needs.weights: no run is called 'b'"],
        ),
        (
            GOOD + "runs: {a: {needs.weights: b}, b: {needs.weights: a}}\n",
            ["goes in a circle"],
        ),
        (GOOD + "runs: {a: {needs.wieghts: b}, b: {}}\n", ["needs.wieghts: no such key"]),
        (GOOD + ROWS + "presets: {big: nowhere.yaml}\n", ["s.yaml:9: presets.big: no such file"]),
        (GOOD[GOOD.index("base") :] + ROWS, ["report: is missing"]),
        ("", ["s.yaml: is empty"]),
        ("# nothing\n", ["s.yaml: is empty"]),
        ("- a\n- b\n", ["s.yaml:1: a mapping is needed here, this is a list"]),
        ("hello", ["s.yaml:1: a mapping is needed here, this is text"]),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", ["s.yaml:1: not text in UTF-8"]),
        (b"a: \x00\x01", ["s.yaml:1: control character"]),
        ("a: [1, 2\nb: 3\n", ["s.yaml:2: not valid YAML"]),
        ("a: !!python/object/apply:os.system ['true']\n", ["s.yaml:1", "tag", "not allowed"]),
        ("a: !mine 3\n", ["s.yaml:1", "tag !mine is not allowed"]),
        ("a: {? [1, 2] : 3}\n", ["s.yaml:1: keys are plain words"]),
        ("a: &a {x: 1}\nb: {<<: *a}\n", ["s.yaml:2: keys are plain words; merge keys"]),
        (GOOD + "runs: {a: {fusion: {name: single}, fusion.name: mlp, train: 3}}\n", ["s.yaml:8"]),
        (GOOD + ROWS + "presets: 3\n", ["s.yaml:9: presets: a mapping by name is needed"]),
        (GOOD + ROWS + "presets: [x]\n", ["s.yaml:9: presets: a mapping by name is needed"]),
        (GOOD + "runs: {a: {seed: 5}}\n", ["s.yaml:8: seed: is not set here; write `seeds"]),
        (GOOD + "runs: {a: {fingerprint: x}}\n", ["s.yaml:8: fingerprint: is not set here"]),
        (GOOD + ROWS + "seeds: [-1, 1.5, true]\n", ["not -1", "not 1.5", "not True"]),
        (GOOD + ROWS + "seeds: [100000000000000000]\n", ["0 to 4294967295"]),
        (GOOD + ROWS + "seeds: [{seed: true}]\n", ["seeds: a whole number, not True"]),
        (
            GOOD + "runs: {a: {train.epochs: true}}\n",
            ["train.epochs: a number is needed, got true"],
        ),
        (GOOD + "runs: {a: {train.epochs: '3'}}\n", ["train.epochs: a whole number is needed"]),
        (GOOD + "runs: {a: {width: 100000000000000}}\n", ["s.yaml:6: this model cannot be built"]),
        (GOOD + "runs: {a: {width: 99999999999999999999}}\n", ["s.yaml:"]),
        (GOOD + "runs: {a: {needs.weights: {x: 1}}}\n", ["needs.weights: the name of a run"]),
        (GOOD + ROWS + "needs: {s: 3}\n", ["s.yaml:9: needs.s: a mapping is needed, not a number"]),
        (GOOD + ROWS + "needs: {s: {}}\n", ["s.yaml:9: needs.s: no run needs it"]),
        (GOOD + "runs: {a: {label: {x: 1}, paper: [1]}}\n", ["label: text", "paper: text"]),
        (GOOD + "runs: {a: 3, b: x}\n", ["runs.a: a mapping", "runs.b: a mapping"]),
        (GOOD + "axes: {x: [], y: 3}\n", ["axes.x: is empty", "axes.y: is a number"]),
        (GOOD + "axes: {seed: [0]}\nseeds: [1]\n", ["s.yaml:8: axes.seed: `seeds`"]),
        (GOOD + "axes: {fusion: [{name: mlp, options: 3}]}\n", ["s.yaml:8: fusion.options"]),
        (
            GOOD
            + "axes: {"
            + ", ".join(f"k{i}: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]" for i in range(8))
            + "}",
            ["100000000 rows; 100000 are the most"],
        ),
        (
            GOOD + "runs: {a: {train.epochs: 7, train: {epochs: 1}}}\n",
            ["s.yaml:8: train: set twice"],
        ),
        (GOOD.replace("[verb_top1]", "[vreb_top1]") + ROWS, ["s.yaml:1: report.metrics: unknown"]),
        (
            GOOD.replace("title: T,", "title: T, fusion_score: true, subsets: [tail],") + ROWS,
            ["s.yaml:1: report: ", "fusion_score compares two subsets, here are 1"],
        ),
        (
            GOOD.replace("  data:", "  dat:") + ROWS,
            ["s.yaml:3: dat: no such key", ": data: is missing"],
        ),
        (GOOD + "runs: {a: {train.epochs: !!int abc}}\n", ["s.yaml:8: 'abc' is no value"]),
        (GOOD + "runs: {a: {train.epochs: 0x_}}\n", ["s.yaml:8: "]),
        (GOOD + 'runs: {"a": {label: "\\ud800"}}\n', ["s.yaml:8: half a character"]),
        (GOOD + f"runs: {{a: {{encoders.text.init: pretrained:{'w' * 300}}}}}\n", ["no such file"]),
        (
            GOOD + "runs: {a: {encoders.text.init: pretrained:~nobody0/x}}\n",
            ["s.yaml:8: encoders.text"],
        ),
        (
            GOOD + "runs: {a: {encoders.text.init: pretrained:w.safetensors}}\n",
            ["s.yaml:8: encoders.text.init: no such file"],
        ),
    ],
)
def test_a_malformed_file_gives_one_clear_error(tmp_path, monkeypatch, capsys, text, expected):
    """Through the command itself: exit code 2, nothing on stdout, no traceback, nothing written."""
    (tmp_path / "s.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["harness", "sweep", "s.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    for part in expected:
        assert part in err
    assert "Traceback" not in err
    assert [file.name for file in tmp_path.iterdir()] == ["s.yaml"]


def test_all_mistakes_are_named_at_once(tmp_path):
    text = GOOD + "runs: {a: {train.epoch: 3, fusion.name: nope}, b: {widht: 3}}\n"
    said = message(tmp_path, text)
    assert "train.epoch" in said
    assert "'nope'" in said
    assert "widht" in said
    assert len(said.splitlines()) == 3


def test_an_alias_bomb_is_refused(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "once aliases are written out" in message(tmp_path, "\n".join(lines))


def test_endless_nesting_is_refused(tmp_path):
    assert "levels deep" in message(tmp_path, "a: " + "[" * 5000 + "]" * 5000)


def test_an_alias_to_itself_is_refused(tmp_path):
    assert "levels deep" in message(tmp_path, "a: &a [*a]")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is a folder"):
        plan(tmp_path)


def test_a_missing_file_names_one_that_was_meant(tmp_path):
    (tmp_path / "table3.yaml").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"no such file. Did you mean .*table3.yaml"):
        plan(tmp_path / "tabel3.yaml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_refused(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(GOOD)
    file.chmod(0)
    with pytest.raises(ConfigError, match="cannot be read"):
        plan(file)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs /proc")
def test_a_file_that_breaks_while_it_is_read_is_refused():
    with pytest.raises(ConfigError, match="/proc/self/mem: cannot be read: Input/output error"):
        plan(Path("/proc/self/mem"))


def test_a_missing_preset_names_the_known_ones(tmp_path):
    said = message(tmp_path, GOOD + ROWS + "presets: {demo: {seeds: [0]}}\n", preset="dmo")
    assert "no preset 'dmo'. Did you mean 'demo'? Known: demo" in said


@pytest.mark.parametrize(
    "setting", ["epochs", "=3", "train..epochs=3", "presets=3", "train.epochs=3\nwidth: 5"]
)
def test_a_setting_that_is_no_key_and_value_is_refused(tmp_path, setting):
    assert "write key=value" in message(tmp_path, GOOD + ROWS, settings=[setting])


def test_a_setting_with_a_wrong_key_says_where_it_came_from(tmp_path):
    said = message(tmp_path, GOOD + ROWS, settings=["train.epoch=3"])
    assert said.startswith("--set train.epoch=3: train.epoch: no such key")


def test_yaml_numbers_are_read_as_numbers():
    node = parse_yaml("a: 1e-3\nb: 0x10\nc: yes\nd: 3", "f")
    assert node.plain() == {"a": 1e-3, "b": 16, "c": "yes", "d": 3}
