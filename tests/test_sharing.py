"""Sweeps from one store to another: what travels, what stays at home, and what is refused."""

import dataclasses
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from report_bench import KITCHEN, Bench, kitchen, kitchen_spec, watch, watch_spec, written

from harness import track
from harness.config import ConfigError
from harness.provenance import changes, environment
from harness.sharing.archive import json_bytes, read_members, write_archive
from harness.sharing.exporting import export
from harness.sharing.importing import import_sweep
from harness.sharing.private import Private
from harness.store import Store

REPORT = {**KITCHEN, "notes": [], "subsets": [], "fusion_score": False}
ROWS = {"late": ("Late logits", "late_logits"), "mlp": ("MLP", "mlp")}


def lab(folder, seeds=(0, 1), rows=tuple(ROWS), report=REPORT, **changed):
    """A lab's store with a sweep of two rows; `changed` are settings of all of them."""
    bench = Bench(Store(folder / "runs"))
    for row in rows:
        label, fusion = ROWS[row]
        for seed in seeds:
            spec = kitchen_spec(fusion, seed).model_copy(update=changed)
            run = bench.plan(row, label, spec)
            bench.finish(run, kitchen((45, 40 + seed), (36, 30 + seed)), ceiling="joint")
    bench.write_sweep("table3", "demo", report)
    return bench


def tables(store, out):
    """Every table as it is written, by its file's name."""
    track.prepare(store)
    track.collect(store)
    bench = Bench(store)
    bench.report(out)
    files = [file for file in out.iterdir() if file.suffix in (".md", ".csv", ".tex")]
    return {file.name: file.read_bytes() for file in files}


def contents(root):
    """Every file of a store but locks and leases, with its bytes; without when it was stored."""
    named = (file for file in root.rglob("*") if file.is_file())
    hidden = re.compile(r"lease\..*|\..*|.*\.lock|mlflow\.db")
    return {
        str(file.relative_to(root)): re.sub(rb',\n "time": [\d.]+\n}', b"\n}", file.read_bytes())
        for file in named
        if not hidden.fullmatch(file.name)
    }


def members(file):
    return dict(read_members(file))


def repacked(file, change):
    """The archive, changed and with a manifest that fits again."""
    inside = members(file)
    about = json.loads(inside.pop("manifest.json"))
    change(inside)
    file.unlink()
    write_archive(file, about["sweep"], about["preset"], inside)
    return file


def edited(inside, member, change):
    told = json.loads(inside[member])
    change(told)
    inside[member] = json_bytes(told)


def record_of(store, name="table3"):
    return next(one for one in store.sweeps() if one["name"] == name)


def refused(store, file, name=None):
    """The message; nothing was written."""
    before = contents(store.root)
    with pytest.raises(ConfigError) as found:
        import_sweep(store, file, name)
    assert contents(store.root) == before
    return str(found.value)


@pytest.fixture
def archive(tmp_path):
    """Of a lab with seeds 0 and 1."""
    file = tmp_path / "theirs.tar.gz"
    export(lab(tmp_path / "theirs").store, "table3", out=file)
    return file


# what travels


@pytest.mark.parametrize("sweep", ["table3", "watch"])
def test_tables_of_an_imported_sweep_have_the_same_bytes(tmp_path, sweep):
    bench = written(tmp_path)
    for seed in range(3):  # what has failed is not exported: it counts as not run elsewhere
        spec = kitchen_spec("b", seed)
        shutil.rmtree(bench.store.run(spec.run_id).path)
        bench.store.run(spec.run_id).write_spec(spec.model_dump(mode="json"), {})
    for other in bench.store.root.glob(f"sweeps/{'watch' if sweep == 'table3' else 'table3'}-*"):
        other.unlink()
    ours = tables(bench.store, tmp_path / "ours")
    export(bench.store, sweep, out=tmp_path / "one.tar.gz")
    there = Store(tmp_path / "there" / "runs")
    assert import_sweep(there, tmp_path / "one.tar.gz").told == []
    theirs = tables(there, tmp_path / "theirs")
    assert ours == theirs
    assert len(ours) >= 3


def test_an_archive_has_the_same_bytes_again_and_overwrites_nothing(tmp_path):
    store = lab(tmp_path).store
    one, two = (export(store, "table3", out=tmp_path / f"{n}.tar.gz").file for n in (1, 2))
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        export(store, "table3", out=one)
    assert not list(tmp_path.glob(".*"))


def test_what_is_not_done_is_told_and_is_not_run_elsewhere(tmp_path):
    bench = written(tmp_path)
    done = export(bench.store, "table3", out=tmp_path / "one.tar.gz")
    assert (done.done, dict(done.left)) == (10, {"new": 6, "failed": 3})
    there = Store(tmp_path / "there")
    import_sweep(there, done.file)
    states = [there.run(run["run_id"]).state() for run in record_of(there)["runs"]]
    assert sorted(set(states)) == ["done", "new"]
    assert states.count("done") == 10


def test_weights_that_others_start_from_always_come_along(tmp_path, sweep_file, run_here):
    rows = "needs: {first: {fusion: {name: mean}}}\nruns: {a: {needs.weights: first}, b: {}}\n"
    file = sweep_file(rows)
    assert run_here("sweep", str(file), "--launcher", "inline").exit_code == 0
    store = Store(tmp_path / "runs")
    ids = {run["row"]: run["run_id"] for run in record_of(store, "tiny")["runs"]}
    done = run_here("export", "tiny")
    assert done.stdout == "tiny-plain.tar.gz\n"
    assert "3 runs exported" in done.stderr
    inside = members(tmp_path / "tiny-plain.tar.gz")
    weights = [name for name in inside if name.endswith("weights.safetensors")]
    assert weights == [f"runs/{ids['first']}/weights.safetensors"]
    every = members(export(store, "tiny", out=tmp_path / "all.tar.gz", weights=True).file)
    assert sum(name.endswith("weights.safetensors") for name in every) == 3
    there = Store(tmp_path / "there")
    import_sweep(there, tmp_path / "tiny-plain.tar.gz")
    assert changes(there, ids["a"]) == changes(store, ids["a"]) == []
    # a later archive brings the weights that this one left out, and nothing else
    before = contents(there.root)
    import_sweep(there, tmp_path / "all.tar.gz")
    added = set(contents(there.root)) - set(before)
    assert added == {f"{ids[row]}/weights.safetensors" for row in ("a", "b")}
    _names_no_place(inside, tmp_path)


def _names_no_place(inside, folder):
    """No text of an archive has folders of the store, the user or the project, or the host."""
    host = re.compile(rb"(?<!\w)" + re.escape(socket.gethostname().encode()) + rb"(?!\w)")
    project = Path(__file__).resolve().parent.parent
    for name, content in inside.items():
        if name.endswith((".json", ".jsonl")):
            for place in (folder, Path.home(), project, Path(sys.prefix)):
                assert str(place).encode() not in content, name
            assert not host.search(content), name
            assert not re.search(rb'[ "=:]/\w', content), name


def test_nothing_in_an_archive_tells_where_it_was_made(tmp_path):
    bench = lab(tmp_path / "My Lab")
    folder = bench.store.run(kitchen_spec("mlp", 0).run_id)
    host, root = socket.gethostname(), str(bench.store.root)
    folder.write_spec(folder.spec()["spec"], {"sha256:0": f"{root}/inputs/a file.npz"})
    folder.write_env(
        {
            **environment(1, "cpu"),
            "diff": f"+ROOT = '{root}'\n+x = 1\n",
            "command": f"{Path.home()}/bin/harness sweep --out={root} on {host}",
        }
    )
    result = folder.result()
    result["bad_samples"] = {"test": {"7": f"7: {root}/clips/7.mp4: cannot be read on {host}"}}
    folder.write_result(result)
    stored = record_of(bench.store)
    settings = [f"data.options.file={root}/inputs/a file.npz", "url=http://me:secret@where/x"]
    bench.store.write_sweep({**stored, "settings": settings})
    inside = members(export(bench.store, "table3", out=tmp_path / "one.tar.gz").file)
    _names_no_place(inside, tmp_path)
    env = json.loads(inside[f"runs/{folder.run_id}/env.json"])
    assert env["command"] == ".../harness sweep --out=.../runs on HOST"
    assert not {"host", "pid", "diff"} & set(env)
    assert (env["diff_lines"], len(env["diff_sha256"])) == (2, 64)
    assert json.loads(inside[f"runs/{folder.run_id}/spec.json"])["paths"] == {}
    told = json.loads(inside[f"runs/{folder.run_id}/result.json"])["bad_samples"]["test"]["7"]
    assert told == "7: .../7.mp4: cannot be read on HOST"
    told = json.loads(inside["sweep.json"])["record"]["settings"]
    assert told == ["data.options.file=.../a_file.npz", "url=http://***@where/x"]
    kept = members(export(bench.store, "table3", out=tmp_path / "two.tar.gz", diff=True).file)
    env = json.loads(kept[f"runs/{folder.run_id}/env.json"])
    assert env["diff"] == "+ROOT = '.../runs'\n+x = 1\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("km/h, verb/noun, 1/2, ./x, ~/y, a / b, .../z", None),
        ("https://host/a/b?page=2", None),
        ("(°/s) and m/s, --- /dev/null", None),
        ("/a", ".../a"),
        ("/a/b/", ".../b/"),
        ("//a//b c", ".../b c"),
        ("'/a b/c d.mp4': gone", "'.../c d.mp4': gone"),
        ("at /my lab/runs/1f/x.pt: no", "at .../x.pt: no"),
        ("x=/a/b;/c/d,(/e/f)", "x=.../b;.../d,(.../f)"),
        ("sqlite:////data/a.db", "sqlite:///.../a.db"),
        ("file:///home/me/x", "file:///.../x"),
        ("postgresql://me:p@s/s@host/db", "postgresql://me:***@host/db"),
        ("s3://bucket/home/me/x", "s3://bucket/.../x"),
        ("https://token@host/x?api_key=1&b=2", "https://***@host/x?api_key=***&b=2"),
        ("on n1, not on n1-b or xn1", "on HOST, not on n1-b or xn1"),
    ],
)
def test_texts_lose_their_paths_and_passwords_and_no_more(text, shown):
    private = Private.of(["/my lab/runs"], ["n1"])
    assert private.told(text) == (text if shown is None else shown)
    assert private.told(private.told(text)) == private.told(text)


def test_names_that_become_alike_are_counted_still():
    told = Private.of([], []).all({"/a/x": 1, "/b/x": ["/c"], "n": None})
    assert told == {".../x": 1, ".../x (2)": [".../c"], "n": None}


def test_samples_that_are_named_by_paths_are_told(tmp_path, run_here):
    bench = Bench(Store(tmp_path / "runs"))
    said = kitchen((45, 45), (36, 36))
    said = dataclasses.replace(said, ids=np.char.add("/clips/", said.ids))
    bench.finish(bench.plan("mlp", "MLP", kitchen_spec("mlp", 0)), said)
    bench.write_sweep("table3", "demo", REPORT)
    assert "100 names of test samples are absolute paths" in run_here("export", "table3").stderr


# two labs


def test_seeds_of_two_labs_become_one_table(tmp_path, archive):
    ours = lab(tmp_path / "ours", seeds=(2, 3)).store
    done = import_sweep(ours, archive)
    assert (len(done.added), done.known, done.kept, done.told) == (4, [], {}, [])
    runs = record_of(ours)["runs"]
    assert [(run["row"], run["seed"]) for run in runs] == [
        ("late", 2), ("late", 3), ("mlp", 2), ("mlp", 3),
        ("late", 0), ("late", 1), ("mlp", 0), ("mlp", 1),
    ]  # fmt: skip
    told = tables(ours, tmp_path / "out")["table3-demo.md"].decode()
    assert "seeds (0, 1, 2, 3)" in told
    assert re.search(r"\| MLP[^|]*\| 4 \|", told)
    env = ours.run(done.added[0]).env()
    assert env["imported"]["archive"] == "theirs.tar.gz"
    assert len(env["imported"]["digest"]) == 64


def test_the_same_archive_again_changes_nothing(tmp_path, archive):
    ours = lab(tmp_path / "ours", seeds=(1, 2)).store
    done = import_sweep(ours, archive)
    assert (len(done.added), len(done.known)) == (2, 2)
    files = [file for file in ours.root.rglob("*") if file.is_file()]
    before, times = contents(ours.root), {file: file.stat().st_mtime_ns for file in files}
    done = import_sweep(ours, archive)
    assert (len(done.added), len(done.known), done.kept) == (0, 4, {})
    assert contents(ours.root) == before
    assert {file: file.stat().st_mtime_ns for file in files} == {
        **times, ours.root / ".submit.lock": (ours.root / ".submit.lock").stat().st_mtime_ns
    }  # fmt: skip


def test_what_an_import_brought_can_be_exported_again(tmp_path, archive):
    ours = lab(tmp_path / "ours", seeds=(2,)).store
    import_sweep(ours, archive)
    third = Store(tmp_path / "third")
    import_sweep(third, export(ours, "table3", out=tmp_path / "both.tar.gz").file)
    assert record_of(third) == record_of(ours)
    kept, again = ({k: v for k, v in contents(one.root).items() if "env" not in k}
                   for one in (ours, third))  # fmt: skip
    assert {k: v for k, v in kept.items() if "sweeps/" not in k}.items() <= again.items()


def test_rows_that_are_not_the_same_are_refused(tmp_path, archive):
    other = kitchen_spec("mlp", 0).train.model_copy(update={"epochs": 7})
    ours = lab(tmp_path / "ours", seeds=(2, 3), rows=["mlp"], train=other).store
    told = refused(ours, archive)
    assert "row 'mlp': train.epochs is 7 here and 100 in the archive" in told
    assert "--as NAME" in told
    assert "late" not in told
    import_sweep(ours, archive, "theirs")
    assert [run["seed"] for run in record_of(ours, "theirs")["runs"]] == [0, 1, 0, 1]
    assert len(record_of(ours)["runs"]) == 2
    assert "--as: name" in refused(ours, archive, "../x")


def test_other_data_are_seen(tmp_path, archive):
    ours = lab(tmp_path / "ours", seeds=(2,), fingerprint="e" * 64).store
    told = refused(ours, archive)
    assert f"row 'mlp': fingerprint is \"{'e' * 64}\" here" in told


def folds(folder, seeds, which, fingerprints="ab"):
    bench = Bench(Store(folder / "runs"))
    right = {"s1": 8, "s2": 6, "s3": 12, "s4": 10}
    for seed in seeds:
        for fold in which:
            spec = watch_spec(["accel"], seed, fold, "gradient")
            spec = spec.model_copy(update={"fingerprint": fingerprints[fold]})
            bench.finish(bench.plan("accel", "Accelerometer", spec), watch(fold, right))
    bench.write_sweep("watch", "", {"table": "watch", "title": "W", "metrics": ["label_top1"]})
    return bench.store


def test_folds_may_differ_and_their_data_may_not(tmp_path):
    theirs = folds(tmp_path / "theirs", (1,), (0, 1))
    file = export(theirs, "watch", out=tmp_path / "w.tar.gz").file
    ours = folds(tmp_path / "ours", (0,), (0, 1))
    import_sweep(ours, file)
    assert len(record_of(ours, "watch")["runs"]) == 4
    others = folds(tmp_path / "others", (0,), (0, 1), "ac")
    assert 'fingerprint is "c" here and "b" in the archive' in refused(others, file)
    # one fold alone here, another alone there: nothing says that rows vary so
    alone = folds(tmp_path / "alone", (0,), (0,))
    theirs = folds(tmp_path / "second", (1,), (1,))
    file = export(theirs, "watch", out=tmp_path / "v.tar.gz").file
    assert "data.options.fold is 0 here and 1 in the archive" in refused(alone, file)


def test_each_seed_may_start_from_a_run_of_its_own(tmp_path):
    def needing(folder, seed, epochs=100):
        bench = Bench(Store(folder / "runs"))
        first = kitchen_spec("mean", seed)
        first = first.model_copy(
            update={"train": first.train.model_copy(update={"epochs": epochs})}
        )
        run = bench.plan("first", "First", first, in_table=False)
        bench.finish(run, kitchen((40, 40), (40, 40)))
        run.weights_file.write_bytes(b"weights")
        second = kitchen_spec("mlp", seed).model_copy(update={"needs": {"weights": first.run_id}})
        bench.finish(bench.plan("mlp", "MLP", second), kitchen((45, 45), (36, 36)))
        bench.write_sweep("table3", "demo", REPORT)
        return bench.store

    theirs = export(needing(tmp_path / "a", 1), "table3", out=tmp_path / "a.tar.gz").file
    ours = needing(tmp_path / "b", 0)
    import_sweep(ours, theirs)
    assert [run["seed"] for run in record_of(ours)["runs"]] == [0, 0, 1, 1]
    others = needing(tmp_path / "c", 0, epochs=3)
    told = refused(others, theirs)
    assert "row 'mlp': needs.weights.train.epochs is 3 here and 100 in the archive" in told


def test_what_differs_in_print_is_told_and_ours_stays(tmp_path, archive):
    report = {**REPORT, "title": "Our title"}
    ours = lab(tmp_path / "ours", seeds=(2,), report=report).store
    done = import_sweep(ours, archive)
    assert done.told == ['report.title is "Our title" here, "Table 3. Fusion heads" in the archive']
    assert record_of(ours)["report"]["title"] == "Our title"


def test_half_a_seed_whose_settings_nobody_knows_is_left_out(tmp_path):
    theirs = folds(tmp_path / "theirs", (1,), (0, 1))
    gone = watch_spec(["accel"], 1, 1, "gradient").model_copy(update={"fingerprint": "b"})
    shutil.rmtree(theirs.run(gone.run_id).path)
    file = export(theirs, "watch", out=tmp_path / "w.tar.gz").file
    ours = folds(tmp_path / "ours", (0,), (0, 1))
    assert import_sweep(ours, file).told == [
        "2 runs are left out: nothing is known of their settings"
    ]
    assert {run["seed"] for run in record_of(ours, "watch")["runs"]} == {0}


def test_claims_keep_the_day_on_which_they_were_made(tmp_path):
    store = lab(tmp_path / "theirs").store
    claim = {"says": "MLP wins", "row": "mlp", "than": "late", "metric": "verb_top1", "margin": 1.0}
    claim["name"] = "wins"
    record = {**record_of(store), "claims": [claim]}
    told = {"sweep": "table3", "preset": "demo", "claim": claim, "time": 1e9, "done": 0}
    store.declared_elsewhere([told])
    store.write_sweep(record)
    there = Store(tmp_path / "there")
    file = export(store, "table3", out=tmp_path / "c.tar.gz").file
    import_sweep(there, file)
    import_sweep(there, file, "copy")
    for name in ("table3", "copy"):
        known = there.declared(record_of(there, name))["wins"]
        assert (known["time"], known["done"], known["imported"]) == (1e9, 0, "c.tar.gz")


# what is here already


def test_other_scores_never_replace_ours(tmp_path, archive, run_here):
    ours = lab(tmp_path, seeds=()).store
    spec = kitchen_spec("mlp", 1)
    bench = Bench(ours)
    folder = bench.plan("mlp", "MLP", spec)
    bench.finish(folder, kitchen((45, 45), (36, 36)))
    bench.write_sweep("table3", "demo", REPORT)
    before = contents(folder.path)
    done = run_here("import", str(archive))
    assert done.exit_code == 1
    assert f"KEPT  {spec.run_id}  MLP, seed 1: test/action_recall5 is 0.9 here" in done.stderr
    assert done.stdout == "table3, preset demo: 3 runs imported, 0 known before\n"
    assert contents(folder.path) == before


def test_a_run_that_somebody_is_at_is_left_alone(tmp_path, archive, run_here):
    spec = kitchen_spec("late_logits", 0)
    folder = Store(tmp_path / "runs").run(spec.run_id)
    with folder.lease():
        done = run_here("import", str(archive))
    assert done.exit_code == 1
    assert f"RUNNING  {spec.run_id}  Late logits, seed 0: not imported" in done.stderr
    assert folder.state() == "interrupted"
    done = run_here("import", str(archive))
    assert done.exit_code == 0
    assert done.stdout == "table3, preset demo: 1 runs imported, 3 known before\n"


def test_what_was_begun_here_is_done_by_the_import(tmp_path, archive):
    ours = Store(tmp_path / "ours")
    failed, begun = (ours.run(kitchen_spec("mlp", seed).run_id) for seed in (0, 1))
    paths = {"sha256:0": "/data/x"}
    for folder in (failed, begun):
        folder.write_spec(kitchen_spec("mlp", 0).model_dump(mode="json"), paths)
        with folder.lease():
            folder.append_metrics({"epoch": 1, "step": 1, "time": 1.0, "train/loss": 9.0})
            folder.save_checkpoint(lambda out: out.write(b"half"))
            folder.weights_file.write_bytes(b"of another attempt")
    failed.write_failure("Traceback: it broke")
    import_sweep(ours, archive)
    for folder in (failed, begun):
        assert folder.state() == "done"
        assert folder.checkpoints() == []
        assert folder.failure() is None
        assert not folder.weights_file.exists()
        assert "train/loss" not in folder.metrics()[0]
        assert folder.spec()["paths"] == paths


KILLED = """
import os, signal, sys
from pathlib import Path
from harness.sharing.importing import import_sweep
from harness.store import Store

archive, base = map(Path, sys.argv[1:])

def import_until(number):
    seen = 0
    def hook(event, args):
        nonlocal seen
        seen += event == "os.rename"
        if event == "os.rename" and seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    import_sweep(Store(base / str(number)), archive)

for number in range(1, 100):
    child = os.fork()
    if child == 0:
        try:
            import_until(number)
            os._exit(0)
        finally:
            os._exit(3)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        print(number, os.WEXITSTATUS(status))
        break
"""


def test_killed_before_any_of_its_writes_it_leaves_nothing_half_done(tmp_path):
    """Each file comes by a rename: the import is killed before the first, the second, and so on."""
    theirs = lab(tmp_path / "theirs", seeds=(0,)).store
    theirs.run(kitchen_spec("mlp", 0).run_id).weights_file.write_bytes(b"weights")
    file = export(theirs, "table3", out=tmp_path / "t.tar.gz", weights=True).file
    whole = Store(tmp_path / "whole")
    import_sweep(whole, file)
    words = [sys.executable, "-c", KILLED, str(file), str(tmp_path / "killed")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    kills, code = map(int, done.stdout.split())
    assert code == 0, done.stderr
    assert kills > 12  # two runs of at least six files, and the sweep
    for number in range(1, kills):
        here = Store(tmp_path / "killed" / str(number))
        for folder in here.runs():
            if folder.state() == "done":
                kept = contents(whole.run(folder.run_id).path)
                assert contents(folder.path) == kept, number
        if here.sweeps():
            assert all(folder.state() == "done" for folder in here.runs())
        import_sweep(here, file)
        assert contents(here.root) == contents(whole.root), number


# what is refused


def forge(member, change):
    return lambda inside, run: edited(inside, f"runs/{run}/{member}", change)


def _without_predictions(inside, run):
    del inside[f"runs/{run}/predictions.npz"]


def _other_predictions(inside, run):
    other = kitchen_spec("late_logits", 1).run_id
    inside[f"runs/{run}/predictions.npz"] = inside[f"runs/{other}/predictions.npz"]


def _row_of_test(inside, run):
    name = f"runs/{run}/metrics.jsonl"
    rows = [json.loads(line) for line in inside[name].splitlines()]
    rows[0]["test]/verb_top1"] = 0.99
    inside[name] = "".join(json.dumps(row) + "\n" for row in rows).encode()


def _row_of_later(inside, run):
    name = f"runs/{run}/metrics.jsonl"
    rows = [json.loads(line) for line in inside[name].splitlines()]
    rows[0]["epoch"] = 999
    inside[name] = "".join(json.dumps(row) + "\n" for row in rows).encode()


def _seed_of_another(inside, run):
    def change(told):
        told["record"]["runs"][0]["seed"] = 5

    edited(inside, "sweep.json", change)


def _twice(inside, run):
    edited(inside, "sweep.json", lambda told: told["record"]["runs"].extend(told["record"]["runs"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            forge("result.json", lambda told: told["metrics"].update({"test/verb_top1": 0.99})),
            "test/verb_top1 is 0.99, its predictions give 0.85",
        ),
        (
            forge("result.json", lambda told: told["metrics"].pop("test/verb_top1")),
            "test/verb_top1 is known to its predictions alone",
        ),
        (
            forge("result.json", lambda told: told["metrics"].update({"test/more": 1.0})),
            "test/more is known to its result alone",
        ),
        (
            forge("result.json", lambda told: told["metrics"].update({"]test/verb_top1": 1.0})),
            "nothing in it may be called ']test/verb_top1'",
        ),
        (
            forge("result.json", lambda told: told.update(told={"run_id": "0" * 12})),
            "nothing in it may be called 'run_id'",
        ),
        (
            forge("result.json", lambda told: told.update(needs={"0" * 12: "0" * 64})),
            "its result needs other runs than its spec",
        ),
        (forge("result.json", lambda told: told.pop("ceilings")), "ceilings: Field required"),
        (forge("spec.json", lambda told: told["spec"].update(seed=9)), "its spec is that of run"),
        (forge("spec.json", lambda told: told.update(paths={"a": "/b"})), "without paths"),
        (forge("spec.json", lambda told: told["spec"].update(version=1)), "version"),
        (_without_predictions, "has scores on test, but no predictions"),
        (_other_predictions, "its predictions give"),
        (_row_of_test, "not metrics by epoch ('test]/verb_top1': 0.99)"),
        (_row_of_later, "not metrics by epoch (its epochs are not in order)"),
        (_seed_of_another, "as seed 5, but has another"),
        (_twice, "twice"),
    ],
)
def test_a_table_cannot_be_changed_by_editing_an_archive(tmp_path, archive, change, message):
    run = kitchen_spec("mlp", 0).run_id
    file = repacked(archive, lambda inside: change(inside, run))
    assert message in refused(Store(tmp_path / "ours"), file)
    assert not (tmp_path / "ours").exists()


def with_member(file, out, name, content=b"x", kind=tarfile.REGTYPE, link=""):
    """A copy of an archive in which a member is put before the last."""
    with tarfile.open(file) as old, tarfile.open(out, "w:gz") as new:
        every = old.getmembers()
        for member in every:
            if member is every[-1]:
                extra = tarfile.TarInfo(name)
                extra.type, extra.linkname, extra.size = kind, link, len(content)
                new.addfile(extra, io.BytesIO(content))
            new.addfile(member, old.extractfile(member))
    return out


@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        ("../../outside", tarfile.REGTYPE, ""),
        ("/outside", tarfile.REGTYPE, ""),
        ("runs/0123456789ab/../../outside", tarfile.REGTYPE, ""),
        ("runs/0123456789ab/notes.txt", tarfile.REGTYPE, ""),
        ("sweep.json", tarfile.SYMTYPE, "/etc/passwd"),
        ("sweep.json", tarfile.LNKTYPE, "manifest.json"),
        ("sweep.json", tarfile.FIFOTYPE, ""),
        ("sweep.json", tarfile.DIRTYPE, ""),
    ],
)
def test_a_member_that_no_archive_has_is_refused(tmp_path, archive, name, kind, link):
    content = b"x" if kind == tarfile.REGTYPE else b""
    file = with_member(archive, tmp_path / "bad.tar.gz", name, content, kind, link)
    told = refused(Store(tmp_path / "ours"), file)
    assert f"holds {name!r}" in told or "not an ordinary file" in told


@pytest.mark.parametrize(
    ("part", "name"),
    [("runs", "../../../x"), ("runs", "0123456789AB"), ("sweep", "../x"), ("preset", "a/b")],
)
def test_a_manifest_that_names_places_is_refused(tmp_path, archive, part, name):
    inside = members(archive)
    manifest = json.loads(inside["manifest.json"])
    manifest[part] = {name: {}} if part == "runs" else name
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as new:
        for member, content in {**inside, "manifest.json": json_bytes(manifest)}.items():
            told = tarfile.TarInfo(member)
            told.size = len(content)
            new.addfile(told, io.BytesIO(content))
    assert "manifest.json: " in refused(Store(tmp_path / "ours"), tmp_path / "bad.tar.gz")


def test_another_format_is_refused_by_its_number(tmp_path, archive):
    inside = members(archive)
    manifest = {**json.loads(inside["manifest.json"]), "format": 2, "harness": "9.1"}
    with tarfile.open(tmp_path / "new.tar.gz", "w:gz") as new:
        content = json_bytes(manifest)
        told = tarfile.TarInfo("manifest.json")
        told.size = len(content)
        new.addfile(told, io.BytesIO(content))
    message = refused(Store(tmp_path / "ours"), tmp_path / "new.tar.gz")
    assert "has format 2, this version reads 1; it was written by harness '9.1'" in message


def test_damage_anywhere_is_refused(tmp_path, archive):
    whole, bad = archive.read_bytes(), tmp_path / "bad.tar.gz"
    ours = Store(tmp_path / "ours")
    for share in (0, 1, 10, 50, 90, 99):
        bad.write_bytes(whole[: len(whole) * share // 100])
        assert str(bad) in refused(ours, bad)
    for cut in range(1, 30):
        bad.write_bytes(whole[:-cut])
        refused(ours, bad)
    for place in range(10, len(whole), len(whole) // 60):
        bad.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        refused(ours, bad)
    bad.write_bytes(whole + b"more")
    refused(ours, bad)
    bad.write_text("not an archive")
    refused(ours, bad)
    assert "no such file. Did you mean" in refused(ours, tmp_path / "theirs.tar")
    assert not ours.root.exists()


def test_results_that_nobody_could_import_are_not_exported(tmp_path):
    store = lab(tmp_path).store
    folder = store.run(kitchen_spec("mlp", 0).run_id)
    result = folder.result()
    folder.write_result({**result, "metrics": {**result["metrics"], "test/verb_top1": 0.9}})
    with pytest.raises(ConfigError, match=r"test/verb_top1 is 0\.9, its predictions give 0\.85"):
        export(store, "table3", out=tmp_path / "x.tar.gz")
    assert not (tmp_path / "x.tar.gz").exists()


def test_a_spec_with_a_path_in_it_is_not_exported(tmp_path):
    bench = Bench(Store(tmp_path / "runs"))
    spec = kitchen_spec("mlp", 0)
    data = spec.data.model_copy(update={"options": {"odd": "/home/me/x"}})
    bench.finish(bench.plan("mlp", "MLP", spec.model_copy(update={"data": data})),
                 kitchen((45, 45), (36, 36)))  # fmt: skip
    bench.write_sweep("table3", "demo", REPORT)
    with pytest.raises(ConfigError, match="holds an absolute path"):
        export(bench.store, "table3", out=tmp_path / "x.tar.gz")


# searches


def test_a_search_travels_and_is_not_joined(tmp_path):
    store = lab(tmp_path / "theirs").store
    attrs = {"worker": f"0a-{socket.gethostname()}-1-2", "failed": f"at {tmp_path}/x.py"}
    rows = {"mlp": {"trials": [{"number": 0, "attrs": attrs}]}}
    store.write_search({**record_of(store), "name": "lr", "search": {"rows": rows}})
    file = export(store, "lr", out=tmp_path / "lr.tar.gz").file
    there = Store(tmp_path / "there")
    import_sweep(there, file)
    told = there.read_search("lr", "demo")["search"]["rows"]["mlp"]["trials"][0]["attrs"]
    assert told == {"failed": "at .../x.py"}
    before = contents(there.root)
    import_sweep(there, file)
    assert contents(there.root) == before
    changed = {**there.read_search("lr", "demo"), "settings": ["train.epochs=3"]}
    there.write_search(changed)
    assert "searches are not joined; --as NAME" in refused(there, file)
    import_sweep(there, file, "lr-theirs")
    assert there.read_search("lr-theirs", "demo")["name"] == "lr-theirs"
    assert there.read_search("lr", "demo") == changed


# the command line


def test_commands_say_what_they_did_and_what_is_wrong(tmp_path, run_here):
    bench = written(tmp_path)
    done = run_here("export", "table3")
    assert done.stdout == "table3-demo.tar.gz\n"
    assert done.stderr == (
        "table3: 10 runs exported\nleft out, for they have no result: 6 not run, 3 failed\n"
    )
    for words, message in (
        (["export", "tabel3"], "unknown sweep 'tabel3'. Did you mean 'table3'?"),
        (["export", "table3", "--preset", "dem"], "unknown preset of table3 'dem'"),
        (["export", "table3"], "table3-demo.tar.gz: is there already"),
        (["export", "watch", "--out", "no/x.tar.gz"], "no folder no"),
        (["import", "tabel3-demo.tar.gz"], "no such file. Did you mean table3-demo.tar.gz?"),
        (["import", "table3-demo.tar.gz", "--as", "../x"], "--as: name: "),
    ):
        with pytest.raises(ConfigError) as found:
            run_here(*words)
        assert message in str(found.value)
    bench.store.write_sweep({**record_of(bench.store), "preset": ""})
    with pytest.raises(ConfigError, match="run with presets plain, demo; say which with --preset"):
        run_here("export", "table3")
    assert run_here("export", "table3", "--preset", "plain").stdout == "table3-plain.tar.gz\n"


def test_a_sweep_of_which_nothing_is_done_is_not_exported(tmp_path):
    bench = Bench(Store(tmp_path / "runs"))
    bench.plan("mlp", "MLP", kitchen_spec("mlp", 0))
    bench.write_sweep("table3", "demo", REPORT)
    with pytest.raises(ConfigError, match=r"nothing of it is done yet \(1 not run\)"):
        export(bench.store, "table3")
    with pytest.raises(ConfigError, match="no sweep has been run yet"):
        export(dataclasses.replace(bench.store, root=tmp_path / "none"), "table3")
