"""Reference rows: logistic regression on the mean tokens, fitted by scikit-learn.

Source: none, ours. It says what a linear reading of the encoders gives, and with the encoder
`summary` what simple statistics of a signal give, before any fusion is trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from harness.evaluate import Predictions, pairs_of
from harness.feed import Feed
from harness.model import Model
from harness.spec import RunSpec
from harness.splits import Labels
from harness.train import EVALUATION_BATCH

MAX_ITERATIONS = 3000


def fit(
    spec: RunSpec, model: Model, feeds: Mapping[str, Feed], targets: Mapping[str, int]
) -> tuple[dict[str, Predictions], int]:
    """Predictions of `select` and `test`, and the number of fitted coefficients.

    Features: each stream's tokens, mean over the real ones, side by side, standardised on train.
    """
    arrays = {name: _mean_tokens(model, feed) for name, feed in feeds.items()}
    features, labels = arrays["train"]
    logits: dict[str, dict[str, npt.NDArray[np.float32]]] = {"select": {}, "test": {}}
    coefficients = 0
    for target, classes in targets.items():
        regression = LogisticRegression(C=spec.train.logistic_c, max_iter=MAX_ITERATIONS)
        pipeline = make_pipeline(StandardScaler(), regression)
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            pipeline.fit(features, labels.targets[target])
        coefficients += regression.coef_.size + regression.intercept_.size
        for split in logits:
            said = np.full((len(arrays[split][0]), classes), -np.inf, np.float32)
            said[:, regression.classes_] = pipeline.predict_log_proba(arrays[split][0])
            logits[split][target] = said
    return {
        split: Predictions(
            arrays[split][1].ids,
            arrays[split][1].groups,
            arrays[split][1].subsets,
            arrays[split][1].targets,
            logits[split],
            pairs_of(feeds[split].dataset.actions()),
        )
        for split in logits
    }, coefficients


@torch.no_grad()
def _mean_tokens(model: Model, feed: Feed) -> tuple[npt.NDArray[np.float64], Labels]:
    model.eval()
    rows, labels = [], []
    for batch in feed.batches(EVALUATION_BATCH):
        means = []
        for _, tokens in sorted(model.tokens(batch.inputs, batch.side).items()):
            real = tokens.mask[..., None].to(tokens.features.dtype)
            means.append((tokens.features * real).sum(1) / real.sum(1).clamp_min(1))
        rows.append(torch.cat(means, dim=1).cpu().double().numpy())
        labels.append(batch.labels)
    return np.concatenate(rows), Labels.join(labels)
