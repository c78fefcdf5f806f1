"""How long a report takes: a store with many runs is written, and reported in a fresh process.

    python benchmarks/report.py --runs 1000 --epochs 100
    python benchmarks/report.py --runs 10 --epochs 20

Stages are timed beyond the imports, which are told apart. The runs are made up but whole: spec,
metrics by epoch, predictions, result; they are brought into MLflow first, which is not counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from harness import track
from harness.evaluate import Predictions, scores
from harness.reportspec import ReportSpec
from harness.spec import EncoderSpec, PluginSpec, RunSpec
from harness.store import Store

HEADS = ("single", "late_logits", "mlp", "transformer", "mamba_shared", "mamba_per_modality",
         "mamba_joint", "mean", "mamba_no_scan", "mamba_frozen_a")  # fmt: skip
SAMPLES = 2048
CHILD = """
import time
began = time.time()
import torch, mlflow, matplotlib, scipy.stats, jinja2
import matplotlib.backends.backend_agg, matplotlib.backends.backend_pdf
import mlflow.store.tracking.sqlalchemy_store
from pathlib import Path
from harness import track, provenance, registry
from reports.build import Choice, gather, write
import reports.page, reports.figures, reports.results
from harness.store import Store
registry.load_plugins()
told = {"imports": time.time() - began}
store, out = Store(Path(FOLDER) / "runs"), Path(FOLDER) / "out"
for name, make in (
    ("collect", lambda: (track.prepare(store), globals().update(found=track.collect(store)))),
    ("tables", lambda: globals().update(
        made=gather(store, track.uri(store), Choice(), found.known))),
    ("files and figures", lambda: write(made, out)),
    ("the same, with the page", lambda: write(made, out, True)),
):
    began = time.time()
    make()
    told[name] = time.time() - began
import json
print(json.dumps(told))
"""


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--runs", type=int, default=1000)
    asked.add_argument("--epochs", type=int, default=100)
    args = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "runs")
        track.prepare(store)
        _write(store, args.runs, args.epochs)
        began = time.time()
        track.collect(store)
        print(f"first export to MLflow, not counted: {time.time() - began:.1f} s")
        code = CHILD.replace("FOLDER", repr(folder))
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
        )
        told = json.loads(done.stdout.splitlines()[-1])
        for name, seconds in told.items():
            print(f"{name:<26} {seconds:6.2f} s")
        page = Path(folder) / "out" / "index.html"
        counted = sum(told[name] for name in ("collect", "tables", "files and figures"))
        print(
            f"a report beyond imports    {counted:6.2f} s; page {page.stat().st_size / 1e6:.1f} MB"
        )


def _write(store: Store, runs: int, epochs: int) -> None:
    heads = HEADS[: max(1, min(len(HEADS), runs // 3))]
    rng, rows = np.random.default_rng(0), []
    truth = {"verb": rng.integers(0, 8, SAMPLES), "noun": rng.integers(0, 12, SAMPLES)}
    ids, groups = np.arange(SAMPLES).astype(str), (np.arange(SAMPLES) // 20).astype(str)
    for number in range(runs):
        place, seed = number % len(heads), number // len(heads)
        spec = RunSpec(
            data=PluginSpec(name="simkitchen", options={"test_size": SAMPLES}),
            encoders={"video": EncoderSpec(name="tubes"), "text": EncoderSpec(name="words")},
            fusion=PluginSpec(name=heads[place]), seed=seed, fingerprint="f" * 64,
        )  # fmt: skip
        folder = store.run(spec.run_id)
        folder.write_spec(spec.model_dump(mode="json"), {})
        logits = {}
        for name, classes in (("verb", 8), ("noun", 12)):
            logits[name] = rng.normal(0, 1, (SAMPLES, classes)).astype(np.float32)
            logits[name][np.arange(SAMPLES), truth[name]] += 1 + 0.2 * place
        said = Predictions(ids, groups, np.full(SAMPLES, ""), truth, logits)
        found = scores(said)
        with folder.lease():
            folder.write_env({"commit": "0" * 40, "dirty": False})
            lines = "".join(
                json.dumps({"epoch": epoch, "step": epoch, "time": 1e9 + epoch, "loss": 1 / epoch,
                            **{f"select/{k}": v * epoch / epochs for k, v in found.items()}}) + "\n"
                for epoch in range(1, epochs + 1)
            )  # fmt: skip
            (folder.path / "metrics.jsonl").write_text(lines)
            folder.write_predictions(said)
            told = {f"test/{k}": v for k, v in found.items()}
            cost = {"gflops": 0.1 * (place + 1), "params_m": 1.0, "params_trained_m": 1.0}
            folder.write_result(
                {"metrics": told, "ceilings": {}, "cost": {**cost, "convention": "counted"},
                 "code": {}, "finished": 1e9, "started": 1e9 - 60}
            )  # fmt: skip
        known = {"row": heads[place], "label": heads[place], "paper": None, "in_table": True}
        rows.append({**known, "seed": seed, "run_id": spec.run_id})
    report = ReportSpec(
        table="many", title="Many runs", metrics=["verb_top1", "noun_top1", "action_top1"],
        reference=heads[0],
    )  # fmt: skip
    record = {"name": "many", "preset": "", "report": report.model_dump(), "runs": rows}
    store.write_sweep(record)


if __name__ == "__main__":
    main()
