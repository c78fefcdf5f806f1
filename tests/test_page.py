"""The page of a report, and its record of every number; in a browser: tests/test_browser.py."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report_bench import kitchen_spec, written
from typer.testing import CliRunner

from harness.cli import app
from harness.config import ConfigError
from reports.build import Choice, gather, write
from reports.hits import difference
from reports.provenance import check, choice_of


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return written(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def out(bench, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write(gather(bench.store, bench.uri, Choice()), folder, page=True)
    return folder


class Page(HTMLParser):
    """What a page holds: tags with their attributes, ids, and the data beside it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.data, self.inside = [], [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.tags.append((tag, known))
        self.ids += [known["id"]] if "id" in known else []
        self.inside = known.get("id", "") if tag == "script" else ""

    def handle_data(self, data):
        if self.inside == "data":
            self.data += data


@pytest.fixture(scope="module")
def page(out):
    return Page((out / "index.html").read_text())


def test_the_page_asks_the_network_for_nothing(page, out):
    for tag, known in page.tags:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            if name in known:
                assert known[name].startswith(("#", "data:")), (tag, known)
    assert not re.search(r"url\((?!#|&#)|@import", (out / "index.html").read_text())


def test_every_number_opens_runs_that_are_in_the_page(page, bench):
    data = json.loads(page.data)
    opened = [known["data-runs"] for tag, known in page.tags if "data-runs" in known]
    assert len(opened) > 40
    ids = {run_id for text in opened for run_id in text.split()}
    assert ids <= set(data["runs"])
    done = [folder.run_id for folder in bench.store.runs() if folder.state() == "done"]
    assert set(data["runs"]) == set(done)
    run = data["runs"][done[0]]
    assert run["spec"] == bench.store.run(done[0]).spec()["spec"]
    assert run["commit"].startswith("0123456789")
    assert set(run["curves"]) <= {"Verb top-1", "Noun top-1", "Action top-1", "Label top-1"}
    row = data["rows"]["table3-demo/mlp"]
    assert row["runs"] == [r for r in row["runs"] if data["runs"][r]["row"] == "MLP"]
    assert row["against"] == "Video only"
    assert row["changed"][0]["classes"] == [["0", pytest.approx(32.0), 100]]


def test_no_name_in_the_page_is_used_twice(page):
    assert len(page.ids) == len(set(page.ids))


def test_the_page_shows_predictions_of_the_samples_that_rows_disagree_on(page):
    found = json.loads(page.data)["samples"]["table3-demo"]
    first = found["samples"][0]
    assert set(first["said"]) == {"video", "late", "mlp", "mamba"}
    right = [
        all(said[target][0] == truth for target, truth in first["truth"].items())
        for said in first["said"].values()
    ]
    assert set(right) == {True, False}  # the action: verb and noun


def test_what_a_run_has_stored_is_text_and_never_markup(tmp_path):
    made = written(tmp_path)
    record = next(one for one in made.store.sweeps() if one["name"] == "table3")
    evil = "</script><script>alert(1)</script>"
    runs = [{**run, "label": evil} if run["row"] == "mlp" else run for run in record["runs"]]
    made.store.write_sweep({**record, "runs": runs})
    write(gather(made.store, made.uri, Choice(["table3"])), tmp_path / "out", page=True)
    text = (tmp_path / "out" / "index.html").read_text()
    assert "<script>alert" not in text
    assert len(re.findall(r"<script", text)) == 2


def test_the_record_has_every_number_with_its_runs(out, bench):
    stored = json.loads((out / "report.json").read_text())
    table = next(one for one in stored["sections"] if one["name"] == "table3-demo")
    row = next(line for line in table["rows"] if line[0]["values"]["row"] == "mlp")
    cell = next(one for one in row if "verb_top1_mean" in one["values"])
    assert cell["values"]["verb_top1_mean"] == pytest.approx(0.92)
    assert len(cell["runs"]) == 3
    run = stored["runs"][cell["runs"][0]]
    assert run["fingerprint"] == "f" * 64
    assert len(run["spec"]) == len(run["predictions"]) == 64


def again(bench, file):
    return check(gather(bench.store, bench.uri, Choice(**choice_of(file))), file)


def test_a_report_is_derived_again_and_any_difference_is_named(tmp_path):
    made = written(tmp_path)
    write(gather(made.store, made.uri, Choice(["table3"])), tmp_path / "out")
    file = tmp_path / "out" / "report.json"
    assert again(made, file) == []
    text = file.read_text()

    stored = json.loads(text)
    table = next(one for one in stored["sections"] if one["name"] == "table3-demo")
    cell = next(c for line in table["rows"] for c in line if c["values"].get("verb_top1_mean"))
    cell["values"]["verb_top1_mean"] += 1e-6
    file.write_text(json.dumps(stored))
    told = again(made, file)[0]
    assert told.startswith("table3-demo: Video only")
    assert "verb_top1_mean is 0.600001" in told

    stored = json.loads(text)
    table = next(one for one in stored["sections"] if one["name"] == "table3-demo")
    table["title"], table["notes"][0] = "Another", "Nobody said this"
    table["rows"][0][2]["text"] = "99.9 ± 0.0"
    stored["runs"][next(iter(stored["runs"]))]["commit"] = "f" * 40
    file.write_text(json.dumps(stored))
    told = "\n".join(again(made, file))
    for part in ("called 'Another'", "Nobody said this", "'99.9 ± 0.0'", "its commit is another"):
        assert part in told

    file.write_text(text)
    run_id = next(iter(stored["runs"]))
    folder = made.store.run(run_id)
    said = folder.predictions()
    said.logits["verb"][:, 0] += 100.0  # now all are right
    folder.write_predictions(said)
    told = again(made, file)
    assert any(f"run {run_id}: its predictions is another:" in line for line in told)
    assert any(f"run {run_id}: verb_top1 is 1.0 by its predictions" in line for line in told)


def test_the_command_checks_a_report_and_fails_where_it_differs(tmp_path, monkeypatch):
    made = written(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["report", "table3", "--html"])
    assert done.exit_code == 0, done.stderr
    file = made.store.report_folder / "report.json"
    assert (made.store.report_folder / "index.html").stat().st_size > 50_000
    assert CliRunner().invoke(app, ["report", "--check", str(file)]).exit_code == 0
    stored = json.loads(file.read_text())
    stored["sections"].pop()
    file.write_text(json.dumps(stored))
    wrong = CliRunner().invoke(app, ["report", "--check", str(file)])
    assert wrong.exit_code == 1
    assert "this table is new" in wrong.stdout
    for text in ("{}", '{"format": 1}'):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(ConfigError, match=r"not a report\.json of this version"):
            choice_of(tmp_path / "other.json")
    both = CliRunner().invoke(app, ["report", "table3", "--check", str(file)])
    assert both.exit_code == 2


def test_a_row_without_predictions_is_compared_with_none_and_ends_no_report(tmp_path):
    made = written(tmp_path)
    run_id = kitchen_spec("late_logits", 1).run_id
    made.store.run(run_id).predictions_file.unlink()
    write(gather(made.store, made.uri, Choice(["table3"])), tmp_path / "out", page=True)
    text = (tmp_path / "out" / "table3-demo.md").read_text()
    assert "71.0 ± 1.0" in text


def rows_of(made):
    (source,) = gather(made.store, made.uri, Choice(["table3"])).sources
    return {row.name: row for row in source.rows}


def test_a_row_tested_on_other_samples_of_the_same_names_is_not_compared(tmp_path):
    made = written(tmp_path)
    for seed in range(3):
        folder = made.store.run(kitchen_spec("late_logits", seed).run_id)
        said = folder.predictions()
        said.targets["verb"][:] = 1
        folder.write_predictions(said)
    rows = {
        row.name: row for row in gather(made.store, made.uri, Choice(["table3"])).sources[0].rows
    }
    assert difference(made.store, rows["mlp"], rows["late"], "verb_top1") is None
    assert difference(made.store, rows["mlp"], rows["video"], "verb_top1") is not None


def test_a_sample_that_one_seed_lacks_makes_no_folds_of_the_others(tmp_path):
    made = written(tmp_path)
    rows = {
        row.name: row for row in gather(made.store, made.uri, Choice(["table3"])).sources[0].rows
    }
    whole = difference(made.store, rows["mlp"], rows["video"], "verb_top1")
    folder = made.store.run(kitchen_spec("mlp", 0).run_id)
    said = folder.predictions()
    part = {name: value[1:] for name, value in said.targets.items()}
    logits = {name: value[1:] for name, value in said.logits.items()}
    folder.write_predictions(
        replace(said, ids=said.ids[1:], groups=said.groups[1:], subsets=said.subsets[1:],
                targets=part, logits=logits)
    )  # fmt: skip
    told = difference(made.store, rows["mlp"], rows["video"], "verb_top1")
    assert (told.clusters, told.seeds, told.folds) == (99, 3, False)
    assert told.error == pytest.approx(whole.error, rel=0.05)
