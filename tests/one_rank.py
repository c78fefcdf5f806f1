"""One process of several that do runs together: `one_rank.py TASKS`, where TASKS is a JSON list.

A task is {"root": ..., "run_id": ...}, and what is to happen: `stop`, `fail`, `kill`, `freeze`,
`sleep` or `overtaken` is [rank, step]. Prints a line of JSON for each: how it ended, and after how
many seconds.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from harness import peers
from harness.distributed import find_world
from harness.files import read_json, write_json
from harness.run import run
from harness.store import Store

RANK = find_world().rank


def do(task: dict) -> None:
    now = None
    peers.GRACE_SECONDS = task.get("grace", peers.GRACE_SECONDS)
    peers.SILENT_BEATS = task.get("beats", peers.SILENT_BEATS)

    def on_step(step: int, total: int, loss: float) -> None:
        nonlocal now
        now = [RANK, step]
        if task.get("fail") == now:
            raise ValueError("an upset rank")
        if task.get("kill") == now:
            os.kill(os.getpid(), signal.SIGKILL)
        if task.get("overtaken") == now:
            file = Path(task["root"], task["run_id"], "lease.json")
            write_json(file, {**read_json(file), "fence": 17})
        if task.get("freeze") == now:
            os.kill(os.getpid(), signal.SIGSTOP)
        if task.get("sleep") == now:
            time.sleep(100)

    def stop() -> bool:
        return now is not None and task.get("stop") == [RANK, now[1] + 1]

    run(Store(Path(task["root"])), task["run_id"], on_step, 1, stop)


for task in json.loads(sys.argv[1]):
    begun, ended, notes = time.time(), "returned", []
    try:
        do(task)
    except Exception as error:
        ended, notes = f"{type(error).__name__}: {error}", getattr(error, "__notes__", [])
    said = {"rank": RANK, "ended": ended, "notes": notes, "seconds": time.time() - begun}
    print(json.dumps(said), flush=True)
