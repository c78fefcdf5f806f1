"""Results files of EK100: read, checked against the annotations, scored, written out."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ek100_bench import COLUMNS, row, write_annotations, write_csv

from harness.cli import main
from harness.config import ConfigError
from harness.data.ek100 import annotations
from harness.data.ek100.annotations import NOUNS, VERBS
from harness.data.ek100.results import against, read_results
from harness.data.ek100.submission import Submission, best_of_head, best_of_pairs
from harness.data.ek100.truth import read_truth
from harness.evaluate import Predictions, scores
from harness.predictions import read_predictions, write_predictions

SHARED = Path(__file__).resolve().parents[2] / "shared" / "ek100"
SEGMENTS = 12


@pytest.fixture
def folder(tmp_path):
    """Annotations of twelve made-up segments, of two participants."""
    rows = [row(f"P0{n % 2}_01", n, n, n + 1, n % 4, n % 5) for n in range(SEGMENTS)]
    at = write_annotations(tmp_path / "annotations", train=(), validation=rows)
    write_csv(at / annotations.TAIL_VERBS, ["verb"], [[3]])
    write_csv(at / annotations.TAIL_NOUNS, ["noun"], [[4]])
    write_csv(at / annotations.UNSEEN, ["participant_id"], [["P01"]])
    return at


def train_on(folder, *pairs):
    rows = [row("P05_01", n, n, n + 1, *pair) for n, pair in enumerate(pairs)]
    write_csv(folder / annotations.TRAIN, COLUMNS, rows)


def said_of(truth, seed=0, sharpness=3.0):
    """Scores that are right now and then, in another order than the annotations."""
    rng = np.random.default_rng(seed)
    n = len(truth.ids)
    logits = {
        name: rng.standard_normal((n, count), np.float32)
        for name, count in (("verb", VERBS), ("noun", NOUNS))
    }
    for name, values in logits.items():
        values[np.arange(n), truth.targets[name]] += sharpness
    order = rng.permutation(n)
    none = np.full(n, "")
    return Predictions(
        truth.ids[order], none, none, {}, {name: v[order] for name, v in logits.items()}
    )


def as_list(said):
    verb, noun = said.logits["verb"], said.logits["noun"]
    named = zip(verb, noun, said.ids.tolist(), strict=True)
    return [{"verb_output": v, "noun_output": o, "narration_id": i} for v, o, i in named]


def as_arrays(said):
    verb, noun = said.logits["verb"], said.logits["noun"]
    return {"verb_output": verb, "noun_output": noun, "narration_id": said.ids}


def as_tensors(said):
    arrays = as_arrays(said)
    return {k: v.tolist() if v.dtype.kind == "U" else torch.tensor(v) for k, v in arrays.items()}


def as_objects(said):
    arrays = as_arrays(said)
    return arrays | {
        "narration_id": said.ids.astype(object),
        "verb_output": list(said.logits["verb"]),
    }


def save_pickle(protocol):
    def save(value, file):
        with open(file, "wb") as out:
            pickle.dump(value, out, protocol=protocol)

    return save


def save_legacy(value, file):
    torch.save(value, file, _use_new_zipfile_serialization=False)


SAVES = {
    "zip": torch.save,
    "legacy": save_legacy,
    **{f"pickle {n}": save_pickle(n) for n in (2, 4, 5)},
}


@pytest.mark.parametrize("form", [as_list, as_arrays, as_tensors, as_objects])
@pytest.mark.parametrize("save", SAVES)
def test_published_results_are_read_in_each_of_their_forms(folder, tmp_path, form, save):
    said = said_of(read_truth(folder))
    SAVES[save](form(said), tmp_path / "results.pt")
    if form is as_tensors and save.startswith("pickle"):  # such a file holds whole torch files
        with pytest.raises(ConfigError, match=r"_load_from_bytes.*save its arrays alone"):
            read_results(tmp_path / "results.pt")
        return
    read = read_results(tmp_path / "results.pt")
    assert read.ids.tolist() == said.ids.tolist()
    for name in ("verb", "noun"):
        assert (read.logits[name] == said.logits[name]).all()


class Runs:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("results.pkl", "wb") as out:
        pickle.dump([{"verb_output": Runs(), "noun_output": 1, "narration_id": "a"}], out)
    with pytest.raises(ConfigError, match=r"results\.pkl: asks for .*system.*refused"):
        read_results(Path("results.pkl"))
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.pop("noun_output"), "no noun_output; it has verb_output, narration_id"),
        (lambda one: one.update(verb_output=one["verb_output"][:, :96]), "12 segments and 97"),
        (lambda one: one.update(verb_output=one["verb_output"][:-1]), "12 segments and 97"),
        (lambda one: one.update(noun_output=["a"] * SEGMENTS), "noun_output is not numbers"),
    ],
)
def test_what_is_wrong_with_results_is_said(folder, tmp_path, change, message):
    whole = as_arrays(said_of(read_truth(folder)))
    change(whole)
    torch.save(whole, tmp_path / "r.pt")
    with pytest.raises(ConfigError, match=message):
        read_results(tmp_path / "r.pt")


def test_something_else_than_results_is_refused(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "r.pt")
    with pytest.raises(ConfigError, match="list of mappings, or one mapping, with verb_output"):
        read_results(tmp_path / "r.pt")


def test_results_are_put_in_the_order_of_the_annotations(folder):
    truth = read_truth(folder)
    said = said_of(truth)
    whole = against(said, truth, Path("r.pt"))
    assert whole.ids.tolist() == truth.ids.tolist()
    place = said.ids.tolist().index(truth.ids[5])
    assert (whole.logits["verb"][5] == said.logits["verb"][place]).all()
    assert (whole.targets["verb"] == truth.targets["verb"]).all()


def test_missing_unknown_and_repeated_segments_are_named(folder):
    truth = read_truth(folder)
    said = said_of(truth)
    ids = said.ids.astype(object)
    gone, ids[0], ids[1] = ids[0], "P09_01_1", ids[2]
    with pytest.raises(ConfigError) as told:
        against(replace(said, ids=ids.astype(str)), truth, Path("r.pt"))
    assert str(told.value).startswith("r.pt: not the 12 segments of")
    assert gone in str(told.value)
    assert "1 unknown in EPIC_100_validation.csv (P09_01_1)" in str(told.value)
    assert f"1 more than once ({ids[2]})" in str(told.value)


def test_a_segment_that_lacks_is_an_error_though_all_others_are_right(folder):
    truth = read_truth(folder)
    said = said_of(truth)
    less = {name: values[:-1] for name, values in said.logits.items()}
    with pytest.raises(ConfigError, match=rf"1 missing \({said.ids[-1]}\)"):
        against(replace(said, ids=said.ids[:-1], logits=less), truth, Path("r.pt"))


def test_a_training_set_beside_it_says_which_actions_exist(folder):
    assert read_truth(folder).actions is None
    train_on(folder, (0, 10), (0, 10), (0, 0))
    actions = read_truth(folder).actions.tolist()
    assert actions[:3] == [[0, 0], [0, 10], [0, 3]]
    assert len(actions) == SEGMENTS + 1


def test_annotations_with_a_file_or_a_class_that_is_not_there_are_refused(folder):
    (folder / annotations.TAIL_NOUNS).unlink()
    with pytest.raises(ValueError, match=r"no EPIC_100_tail_nouns\.csv"):
        read_truth(folder)
    write_csv(folder / annotations.TAIL_NOUNS, ["noun"], [[300]])
    with pytest.raises(ValueError, match=r"nouns\.csv:2: noun: '300' is not a class in 0\.\.299"):
        read_truth(folder)


# the file of a challenge


def submission_of(folder, actions=None, **changes):
    truth = read_truth(folder)
    said = against(said_of(truth), truth, Path("r.pt"))
    made = Submission(
        "action_recognition", said.ids, said.logits["verb"], said.logits["noun"], actions
    )
    return replace(made, **changes), truth


def content(file):
    with zipfile.ZipFile(file) as archive:
        assert archive.namelist() == ["test.json"]
        return json.loads(archive.read("test.json"))


@pytest.mark.parametrize(
    ("challenge", "supervision"),
    [("action_recognition", (2, 3, 4)), ("action_anticipation", (1, 4, 3))],
)
def test_a_submission_holds_every_score_of_every_segment(folder, tmp_path, challenge, supervision):
    made, truth = submission_of(folder, challenge=challenge)
    made.write(tmp_path / "s.zip", truth)
    whole = content(tmp_path / "s.zip")
    assert (whole["version"], whole["challenge"]) == ("0.2", challenge)
    assert tuple(whole[key] for key in ("sls_pt", "sls_tl", "sls_td")) == supervision
    assert set(whole) == {"version", "challenge", "sls_pt", "sls_tl", "sls_td", "results"}
    assert list(whole["results"]) == truth.ids.tolist()
    for number, one in enumerate(whole["results"].values()):
        assert set(one) == {"verb", "noun"}
        assert list(one["verb"]) == [str(n) for n in range(97)]
        assert list(one["noun"]) == [str(n) for n in range(300)]
        assert (np.array(list(one["verb"].values()), np.float32) == made.verb[number]).all()
        assert (np.array(list(one["noun"].values()), np.float32) == made.noun[number]).all()


def test_the_100_best_actions_of_pairs_are_those_of_the_whole_table(folder, tmp_path):
    made, truth = submission_of(folder)
    made = replace(made, actions=best_of_pairs(made.verb, made.noun))
    made.write(tmp_path / "s.zip", truth)
    for number, one in enumerate(content(tmp_path / "s.zip")["results"].values()):
        table = made.verb[number].astype(float)[:, None] + made.noun[number]
        best = np.argsort(-table.ravel(), kind="stable")[:100]
        assert list(one["action"]) == [f"{n // 300},{n % 300}" for n in best]
        assert list(one["action"].values()) == table.ravel()[best].tolist()


def test_the_100_best_actions_of_a_head_are_its_own():
    rng = np.random.default_rng(0)
    actions = np.stack(divmod(rng.permutation(97 * 300)[:3806], 300), axis=1)
    logits = rng.integers(0, 50, (600, 3806)).astype(np.float32)
    best = best_of_head(logits, actions)
    for number in (0, 511, 512, 599):
        order = np.argsort(-logits[number], kind="stable")[:100]
        pairs = np.stack([best.verb[number], best.noun[number]], axis=1)
        assert pairs.tolist() == actions[order].tolist()
        assert (best.scores[number] == logits[number, order]).all()


def twice(best):
    best.verb[3, 1], best.noun[3, 1] = best.verb[3, 0], best.noun[3, 0]


def beyond(best):
    best.noun[3, 7] = 300


@pytest.mark.parametrize("change", [twice, beyond])
def test_an_action_there_twice_or_of_no_class_is_refused(folder, tmp_path, change):
    made, truth = submission_of(folder)
    best = best_of_pairs(made.verb, made.noun)
    change(best)
    with pytest.raises(ConfigError, match=f"an action of {truth.ids[3]}"):
        replace(made, actions=best).write(tmp_path / "s.zip", truth)
    assert not (tmp_path / "s.zip").exists()


def test_everything_that_a_challenge_refuses_is_said_at_once(folder, tmp_path):
    made, truth = submission_of(folder)
    noun = made.noun.copy()
    noun[4, 5] = np.nan
    best = best_of_pairs(made.verb[:, :3], made.noun[:, :3])  # only nine pairs
    wrong = replace(
        made,
        challenge="recognition",
        supervision=(2, 3, 6),
        ids=np.where(made.ids == truth.ids[0], "P77_01_1", made.ids),
        verb=made.verb[:, :-1],
        noun=noun,
        actions=best,
    )
    with pytest.raises(ConfigError) as told:
        wrong.write(tmp_path / "s.zip", truth)
    for part in (
        "'recognition' is none of action_recognition, action_anticipation",
        "three of 0..5, not (2, 3, 6)",
        f"1 missing ({truth.ids[0]}); 1 unknown",
        "verb scores are (12, 96), not (12, 97)",
        f"noun scores of {truth.ids[4]} are not all finite",
        "not 100 of each of 12 segments",
    ):
        assert part in str(told.value)
    assert not (tmp_path / "s.zip").exists()


def test_a_submission_is_not_overwritten_unless_asked_and_is_the_same_bytes_again(folder, tmp_path):
    made, truth = submission_of(folder)
    file = tmp_path / "s.zip"
    made.write(file, truth)
    before = file.read_bytes()
    with pytest.raises(ConfigError, match=r"s\.zip: is there already.*--overwrite"):
        replace(made, challenge="action_anticipation").write(file, truth)
    assert file.read_bytes() == before
    made.write(file, truth, overwrite=True)
    assert file.read_bytes() == before


# the command


def evaluate(monkeypatch, capsys, *words):
    """(exit code, stdout, stderr) of `harness evaluate WORDS`."""
    monkeypatch.setattr(sys, "argv", ["harness", "evaluate", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    told = capsys.readouterr()
    return end.value.code or 0, told.out, told.err


def cell(table, metric, rule, share):
    """A number of the printed table."""
    lines = table.splitlines()
    columns = lines[0].split()[2:]
    (line,) = [one for one in lines if one.startswith(f"{metric}  ") and rule in one]
    return float(line.split()[columns.index(share) - len(columns)])


def test_published_results_are_scored_by_rule_and_share(folder, tmp_path, monkeypatch, capsys):
    truth = read_truth(folder)
    said = said_of(truth)
    torch.save(as_list(said), tmp_path / "r.pt")
    train_on(folder, (0, 10))
    code, out, _ = evaluate(monkeypatch, capsys, tmp_path / "r.pt", "--annotations", folder)
    assert code == 0
    found = scores(against(said, read_truth(folder), Path("r.pt")))
    assert out.splitlines()[0].split() == ["metric", "rule", "overall", "unseen", "tail"]
    for metric, rule, name in (
        ("verb top-1", "", "verb_top1"),
        ("noun class-mean recall@5", "", "noun_recall5"),
        ("action top-1", "pair: ", "action_top1"),
        ("action top-5", "pair_3806: ", "action_top5_3806"),
        ("action class-mean recall@5", "each", "action_recall5_each"),
    ):
        for share, tag in (("overall", ""), ("unseen", "[unseen]"), ("tail", "[tail]")):
            assert cell(out, metric, rule, share) == round(100 * found[name + tag], 1)
    assert "tail: verb 3, noun 2, action 5 samples" in out


def test_one_file_of_segments_is_scored_overall(folder, tmp_path, monkeypatch, capsys):
    torch.save(as_list(said_of(read_truth(folder))), tmp_path / "r.pt")
    file = folder / annotations.VALIDATION
    code, out, _ = evaluate(monkeypatch, capsys, tmp_path / "r.pt", "--annotations", file)
    assert code == 0
    assert out.splitlines()[0].split() == ["metric", "rule", "overall"]


def with_head(folder):
    """Truth, and predictions whose head over actions is right but for the first segment."""
    train_on(folder, *((9, n) for n in range(99)))
    truth = read_truth(folder)
    whole = against(said_of(truth), truth, Path())
    places = {pair: place for place, pair in enumerate(map(tuple, truth.actions.tolist()))}
    pairs = zip(truth.targets["verb"].tolist(), truth.targets["noun"].tolist(), strict=True)
    action = np.array([places[pair] for pair in pairs])
    head = np.eye(len(truth.actions), dtype=np.float32)[action] * 5
    head[0] = -head[0]
    targets = {**whole.targets, "action": action}
    return truth, replace(whole, targets=targets, logits={**whole.logits, "action": head})


def test_a_head_over_actions_alone_is_scored_and_its_sums_are_submitted(
    folder, tmp_path, monkeypatch, capsys
):
    truth, whole = with_head(folder)
    logits = {"action": whole.logits["action"]}
    file, zipped = tmp_path / "predictions.npz", tmp_path / "s.zip"
    write_predictions(file, replace(whole, targets={}, logits=logits))
    words = ("--annotations", folder, "--submission", zipped)
    code, out, err = evaluate(monkeypatch, capsys, file, *words)
    assert code == 0, err
    assert cell(out, "action top-1", "joint3806", "overall") == round(100 * 11 / 12, 1)
    assert "action top-1  pair" not in out
    told = content(zipped)["results"][str(truth.ids[1])]
    probabilities = np.exp(logits["action"][1]) / np.exp(logits["action"][1]).sum()
    for side, name in enumerate(("verb", "noun")):
        best = int(truth.targets[name][1])
        mine = probabilities[truth.actions[:, side] == best].sum()
        assert told[name][str(best)] == max(told[name].values()) == pytest.approx(np.log(mine))
        never = set(range(len(told[name]))) - set(truth.actions[:, side].tolist())
        least = min(value for key, value in told[name].items() if int(key) not in never)
        assert all(told[name][str(one)] == pytest.approx(least - 1) for one in never)
    write_predictions(file, replace(whole, targets={}, logits=logits, actions=None))
    (folder / "EPIC_100_train.csv").unlink()
    code, _, err = evaluate(monkeypatch, capsys, file, *words)
    assert (code, "which they are is not known" in err) == (2, True), err


def test_own_predictions_bring_their_truth_and_their_head(folder, tmp_path, monkeypatch, capsys):
    truth, whole = with_head(folder)
    file = tmp_path / "predictions.npz"
    write_predictions(file, whole)
    assert (read_predictions(file).actions == truth.actions).all()
    code, out, _ = evaluate(monkeypatch, capsys, file)
    assert code == 0
    assert cell(out, "action top-1", "joint3806", "overall") == round(100 * 11 / 12, 1)
    assert cell(out, "verb top-1", "joint3806, summed", "unseen") == 100
    _, again, _ = evaluate(monkeypatch, capsys, file, "--annotations", folder)
    assert again == out
    zipped = tmp_path / "s.zip"
    words = ("--annotations", folder, "--submission", zipped, "--sls", "0,1,2")
    code, _, err = evaluate(monkeypatch, capsys, file, *words)
    assert (code, "12 segments for action_recognition" in err) == (0, True)
    made = content(zipped)
    assert (made["sls_pt"], made["sls_tl"], made["sls_td"]) == (0, 1, 2)
    told = made["results"][str(truth.ids[1])]["action"]
    assert next(iter(told)) == f"{truth.targets['verb'][1]},{truth.targets['noun'][1]}"


def test_segments_without_public_classes_make_a_submission_and_no_scores(
    folder, tmp_path, monkeypatch, capsys
):
    truth = read_truth(folder)
    torch.save(as_list(said_of(truth)), tmp_path / "r.pt")
    stamps = tmp_path / "EPIC_100_test_timestamps.csv"
    rows = zip(truth.ids, truth.groups, truth.groups, strict=True)
    write_csv(stamps, ["narration_id", "participant_id", "video_id"], rows)
    words = (tmp_path / "r.pt", "--annotations", stamps)
    code, out, err = evaluate(monkeypatch, capsys, *words)
    assert (code, out, "has no classes" in err) == (2, "", True)
    code, out, _ = evaluate(monkeypatch, capsys, *words, "--submission", tmp_path / "s.zip")
    assert (code, out) == (0, "")
    assert list(content(tmp_path / "s.zip")["results"]) == truth.ids.tolist()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.pt"], "nothing.pt: no such file"),
        (["r.pt"], "r.pt: holds no truth; give it by --annotations"),
        (["r.pt", "--submission", "s.zip"], "--submission: needs --annotations"),
        (["r.pt", "--annotations", "nowhere"], "--annotations: nowhere: no such file"),
        (["r.pt", "--annotations", "annotations", "--sls", "1,2"], "--sls: three levels"),
        (["r.pt", "--annotations", "annotations", "--actions", "all"], "--actions: 'all' is none"),
        (["annotations"], "annotations: not the folder of a run that is done"),
    ],
)
def test_a_mistake_is_one_message(folder, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    torch.save(as_list(said_of(read_truth(folder))), tmp_path / "r.pt")
    code, _, err = evaluate(monkeypatch, capsys, *words)
    assert (code, message in err) == (2, True), err


def test_a_run_is_found_by_the_beginning_of_its_id(folder, tmp_path, store, monkeypatch, capsys):
    truth = read_truth(folder)
    run = store.run("430fc231dd0a")
    run.write_spec({}, {})
    run.write_predictions(against(said_of(truth), truth, Path()))
    run.write_result({"metrics": {}})
    with run.lease():
        pass
    monkeypatch.chdir(tmp_path)
    code, out, _ = evaluate(monkeypatch, capsys, "430f")
    assert code == 0
    assert evaluate(monkeypatch, capsys, run.path)[1] == out


def test_help_needs_nothing_heavy():
    code = (
        "import sys; from harness.cli import app\n"
        "try: app(['evaluate', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('numpy', 'torch', 'scipy', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")


def test_real_segments_are_written_and_score_as_before(tmp_path):
    if not (SHARED / annotations.VALIDATION).exists():
        pytest.skip("the annotations of EK100 are not on this machine (../shared/ek100)")
    truth = read_truth(SHARED)
    some = slice(None, None, 20)
    targets = {name: values[some] for name, values in truth.targets.items()}
    truth = replace(
        truth,
        ids=truth.ids[some],
        groups=truth.groups[some],
        subsets=truth.subsets[some],
        targets=targets,
    )
    whole = against(said_of(truth), truth, Path())
    Submission("action_anticipation", whole.ids, whole.logits["verb"], whole.logits["noun"]).write(
        tmp_path / "s.zip", truth
    )
    results = content(tmp_path / "s.zip")["results"]
    logits = {
        name: np.array([list(results[i][name].values()) for i in truth.ids.tolist()], np.float32)
        for name in ("verb", "noun")
    }
    assert scores(replace(whole, logits=logits)) == scores(whole)
