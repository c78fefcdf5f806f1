"""A store with known numbers, written through the real store: what the report tests read."""

from dataclasses import dataclass

import numpy as np

from harness import track
from harness.evaluate import Predictions, scores
from harness.reportspec import ReportSpec
from harness.spec import EncoderSpec, PluginSpec, RunSpec, TrainSpec
from harness.store import Store
from reports.build import build

ADDITIVE = {"verb_top1": 0.713, "noun_top1": 0.70, "verb_top1[two_handed]": 0.475}
CEILINGS = {"video": {"verb_top1": 0.375, "noun_top1": 0.25}, "additive": ADDITIVE}
KITCHEN = {
    "table": "table3",
    "title": "Table 3. Fusion heads",
    "metrics": ["verb_top1", "noun_top1", "action_top1"],
    "subsets": ["one_handed", "two_handed"],
    "fusion_score": True,
    "notes": ["A note of the sweep with 100% & more_words."],
}
WATCH = {"table": "watch", "title": "Watch", "metrics": ["label_top1"]}
VIDEO = EncoderSpec(name="tubes", frozen=True, options={"tokens": "patch"})
TEXT = EncoderSpec(name="words")
FOLD_GROUPS = ((("s1", 10), ("s2", 10)), (("s3", 20), ("s4", 20)))
COMMIT = "0123456789abcdef"


def logits(hits, classes):
    """Logits that are right (class 0 is the truth) where `hits` is true."""
    said = np.zeros((len(hits), classes), np.float32)
    said[np.arange(len(hits)), np.where(hits, 0, 1)] = 5.0
    return said


def kitchen(verb, noun):
    """100 samples, 50 of each subset; counts of right ones: (one-handed, two-handed)."""
    hits = {
        name: np.concatenate([np.arange(50) < one, np.arange(50) < two])
        for name, (one, two) in (("verb", verb), ("noun", noun))
    }
    return Predictions(
        np.arange(100).astype(str),
        np.full(100, ""),
        np.repeat(["one_handed", "two_handed"], 50),
        {name: np.zeros(100, np.int64) for name in hits},
        {"verb": logits(hits["verb"], 8), "noun": logits(hits["noun"], 12)},
    )


def watch(fold, right):
    """The subjects of a fold, with `right[subject]` right samples each."""
    groups = np.concatenate([np.repeat(name, size) for name, size in FOLD_GROUPS[fold]])
    hits = np.concatenate([np.arange(n) < right[name] for name, n in FOLD_GROUPS[fold]])
    truth = np.zeros(len(hits), np.int64)
    ids = np.char.add(groups, np.arange(len(hits)).astype(str))
    return Predictions(
        ids, groups, np.full(len(hits), ""), {"label": truth}, {"label": logits(hits, 7)}
    )


@dataclass
class Bench:
    """A store, its tracking URI and the sweeps written into it."""

    store: Store

    def __post_init__(self):
        self.runs = []

    @property
    def uri(self):
        return track.uri(self.store)

    def plan(self, row, label, spec, paper=None, in_table=True, block=None):
        folder = self.store.run(spec.run_id)
        folder.write_spec(spec.model_dump(mode="json"), {})
        known = {"row": row, "label": label, "paper": paper, "in_table": in_table}
        known |= {"block": block} if block else {}
        self.runs.append({**known, "seed": spec.seed, "run_id": spec.run_id})
        return folder

    def finish(
        self, folder, predictions, select=0.5, ceiling="", code=None, dirty=False, cost=(), bad=()
    ):
        spec = folder.spec()["spec"]
        epochs = 3 if spec["train"]["method"] == "gradient" else 0
        chosen = {f"select/{name}": select for name in scores(predictions)}
        with folder.lease():
            folder.write_env({"commit": COMMIT, "dirty": dirty})
            for epoch in range(1, epochs + 1):
                grown = {name: value * epoch / epochs for name, value in chosen.items()}
                folder.append_metrics({"epoch": epoch, "step": epoch, "time": 1e9 + epoch, **grown})
            folder.write_predictions(predictions)
            counted = {"gflops": 0.0042, "params_m": 1.25, "params_trained_m": 0.5}
            tested = {f"test/{name}": value for name, value in scores(predictions).items()}
            folder.write_result(
                {
                    "metrics": {**tested, **chosen},
                    "ceilings": CEILINGS if spec["data"]["name"] == "simkitchen" else {},
                    "ceiling": ceiling,
                    "cost": {**counted, **dict(cost), "convention": "1 multiply-add = 1"},
                    "code": code or {},
                    "bad_samples": {split: dict.fromkeys(ids, "why") for split, ids in bad},
                    "finished": 1e9 + 10,
                    "started": 1e9,
                    "stored": {"video": "cached fp16"} if spec["encoders"].get("video") else {},
                }
            )

    def write_sweep(self, name, preset, report):
        runs, self.runs = self.runs, []
        full = ReportSpec(**report).model_dump()
        self.store.write_sweep({"name": name, "preset": preset, "report": full, "runs": runs})

    def report(self, out, sweeps=(), preset=None, tables=()):
        return build(self.store, self.uri, list(sweeps), preset, list(tables), out)


def written(folder):
    """A bench in `folder` with both sweeps, known to MLflow."""
    made = Bench(Store(folder / "runs"))
    track.prepare(made.store)
    write_kitchen(made)
    write_watch(made)
    track.collect(made.store)
    return made


def kitchen_spec(fusion, seed, streams=("text", "video")):
    known = {"text": TEXT, "video": VIDEO}
    return RunSpec(
        data=PluginSpec(name="simkitchen", options={"test_size": 100}),
        encoders={stream: known[stream] for stream in streams},
        fusion=PluginSpec(name=fusion),
        seed=seed,
        fingerprint="f" * 64,
    )


def write_kitchen(bench):
    for seed in range(3):
        folder = bench.plan("video", "Video only", kitchen_spec("single", seed, ["video"]))
        bench.finish(folder, kitchen((35, 25), (10, 10)), ceiling="video", select=0.4)
    for seed in range(3):
        folder = bench.plan("late", "Late logits", kitchen_spec("late_logits", seed))
        said = kitchen((47, 23 + seed), (44, 22 + seed))
        bench.finish(folder, said, ceiling="additive", code={"harness.train": "0" * 16})
    for seed in range(3):
        folder = bench.plan("mlp", "MLP", kitchen_spec("mlp", seed), paper="MLP")
        noun = (36, 30 + 2 * (seed == 0))
        bench.finish(folder, kitchen((45, 45 + 2 * seed), noun), ceiling="joint", dirty=True)
    for seed in range(3):
        folder = bench.plan("mamba", "MambaVL (shared A)", kitchen_spec("m", seed), paper="MambaVL")
        if seed == 0:
            bench.finish(folder, kitchen((40, 20), (30, 15)), ceiling="additive")
    for seed in range(3):
        bench.plan("big", "Transformer", kitchen_spec("t", seed), paper="Transformer (12x12)")
    for seed in range(3):
        folder = bench.plan("broken", "Broken", kitchen_spec("b", seed))
        with folder.lease():
            folder.write_failure("Traceback: it broke")
    bench.plan("perception", "Perception", kitchen_spec("p", 0), in_table=False)
    bench.write_sweep("table3", "demo", KITCHEN)


def watch_spec(streams, seed, fold, method):
    return RunSpec(
        data=PluginSpec(name="watch", options={"fold": fold}),
        encoders={stream: EncoderSpec(name="sensor") for stream in streams},
        fusion=PluginSpec(name="mlp" if len(streams) > 1 else "single"),
        train=TrainSpec(method=method),
        seed=seed,
    )


WATCH_ROWS = {
    # right samples of s1 (of 10), s2 (10), s3 (20), s4 (20), and the score on select
    "accel": (["accel"], "gradient", (8, 6, 12, 10), 0.80),
    "gyro": (["gyro"], "gradient", (9, 9, 19, 19), 0.60),
    "both": (["accel", "gyro"], "gradient", (9, 8, 14, 14), 0.85),
    "accel_logistic": (["accel"], "logistic_regression", (9, 7, 14, 12), 0.90),
}


def write_watch(bench):
    for row, (streams, method, right, select) in WATCH_ROWS.items():
        for seed in (0, 1):
            for fold in (0, 1):
                spec = watch_spec(streams, seed, fold, method)
                by_subject = dict(zip(("s1", "s2", "s3", "s4"), right, strict=True))
                folder = bench.plan(row, row.replace("_", " "), spec)
                fitted = {"coefficients": 210} if method != "gradient" else {}
                bench.finish(folder, watch(fold, by_subject), select, cost=fitted)
    bench.write_sweep("watch", "", WATCH)
