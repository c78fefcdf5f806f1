"""A process that fills a store of tokens: what tests/test_cache.py kills, and starts several of.

    python tests/filler.py SPEC.json TOKENS SPLIT SECONDS

SECONDS are slept in every batch; each batch that it has encoded is a line on stdout.
"""

import json
import sys
import time
from pathlib import Path

import torch

from harness import cache
from harness.feed import Feed
from harness.model import Model
from harness.registry import load_plugins
from harness.spec import RunSpec, dataset_of

cache.BATCH, cache.SHARD = 16, 64


def main() -> None:
    load_plugins()
    file, tokens, split, seconds = sys.argv[1:]
    spec = RunSpec(**json.loads(Path(file).read_text()))
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dataset = dataset_of(spec, {})
    model = Model(spec, dataset, {})

    def slowly(*_: object) -> None:
        print("batch", flush=True)
        time.sleep(float(seconds))

    for encoder in model.encoders.values():
        encoder.register_forward_hook(slowly)
    Feed(spec, dataset, split, model, torch.device("cpu"), Path(tokens))


if __name__ == "__main__":
    main()
