"""How long scores take at the size of EK100's validation set, and the memory beside the logits.

Run: python benchmarks/metrics.py. Time is that of the processor, the best of several goes;
memory is what numpy holds at most beyond what it was given.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from harness.data.ek100.submission import best_of_head, best_of_pairs
from harness.evaluate import Predictions, scores

SAMPLES, VERBS, NOUNS, ACTIONS = 10_000, 97, 300, 3806
REPEATS = 5


def predictions(with_actions: bool, with_head: bool) -> Predictions:
    rng = np.random.default_rng(0)
    pairs = rng.permutation(VERBS * NOUNS)[:ACTIONS]
    actions = np.stack([pairs // NOUNS, pairs % NOUNS], axis=1)
    place = rng.integers(ACTIONS, size=SAMPLES)
    targets = {"verb": actions[place, 0], "noun": actions[place, 1]}
    classes = {"verb": VERBS, "noun": NOUNS}
    if with_head:
        targets["action"], classes["action"] = place, ACTIONS
    none = np.full(SAMPLES, "")
    subsets = np.where(rng.random(SAMPLES) < 0.1, "unseen tail@verb tail@action", "")
    logits = {}
    for name, count in classes.items():
        logits[name] = rng.standard_normal((SAMPLES, count), np.float32)
        logits[name][np.arange(SAMPLES), targets[name]] += 2
    ids = np.arange(SAMPLES).astype(str)
    return Predictions(ids, none, subsets, targets, logits, actions if with_actions else None)


def measure(name: str, work: Callable[[], object]) -> None:
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{name:<52} {min(times):6.3f} s   {peak / 1e6:6.1f} MB")


if __name__ == "__main__":
    print(f"{SAMPLES:,} samples, {VERBS} verbs, {NOUNS} nouns, {ACTIONS:,} actions")
    plain, known, head = (
        predictions(False, False),
        predictions(True, False),
        predictions(True, True),
    )
    measure("scores: pair", lambda: scores(plain))
    measure("scores: pair, pair_3806", lambda: scores(known))
    measure("scores: pair, pair_3806, joint3806 and marginals", lambda: scores(head))
    measure("100 best pairs", lambda: best_of_pairs(head.logits["verb"], head.logits["noun"]))
    measure("100 best of a head", lambda: best_of_head(head.logits["action"], head.actions))
