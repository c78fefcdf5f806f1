"""The checks, made in a process on the machine that runs are to use.

Every check is a function that takes a Visit and returns a Finding. What was found so far is on disk
before the next check begins, so that one which ends the process is known by name.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.doctor import files, machine
from harness.doctor.meeting import meeting
from harness.files import read_json, write_json
from harness.finding import Finding

REQUEST = "request.json"
MEETING = "tasks"
"""the check that takes all of them"""


@dataclass(frozen=True)
class Visit:
    """One task of those that look."""

    folder: Path
    asked: dict[str, Any]
    """request.json"""
    rank: int
    tasks: int

    @property
    def local(self) -> bool:
        return bool(self.asked["launcher"] == "local")

    @property
    def node(self) -> str:
        """The name of the machine, as SLURM knows it."""
        return "this machine" if self.local else os.environ.get("SLURMD_NODENAME", platform.node())


Check = Callable[[Visit], Finding]

EVERYWHERE: dict[str, Check] = {
    "python": machine.python,
    "processors": machine.processors,
    "gpu": machine.gpu,
}
"""made by every task"""
ONCE: dict[str, Check] = {
    "bfloat16": machine.bfloat16,
    "atomic rename": files.renaming,
    "clocks": files.clocks,
    "file locks": files.locks,
    "hard links": files.links,
    "space": files.space,
    "hub": machine.hub,
    "video decoding": machine.decoding,
}
"""made by the first task"""


def plugins(visit: Visit) -> Finding:
    """Whether every plugin can be imported."""
    from harness.registry import DATASETS, ENCODERS, FUSIONS, load_plugins

    load_plugins()
    return Finding(
        "ok",
        f"{len(FUSIONS.names())} fusions, {len(ENCODERS.names())} encoders, "
        f"{len(DATASETS.names())} datasets",
    )


def inputs(visit: Visit) -> Finding:
    """Whether the weights and data that a sweep was planned with are here, unchanged."""
    from harness.spec import RunSpec, dataset_of, path_of

    paths = visit.asked["paths"]
    lacking = []
    for digest in (name for name in paths if not name.startswith("data.")):
        try:
            path_of(digest, paths)
        except ValueError as error:
            lacking.append(str(error).split(" (sha256")[0])
    spec = RunSpec(**visit.asked["spec"])
    if not lacking and dataset_of(spec, paths).fingerprint() != spec.fingerprint:
        lacking.append(f"the data of {spec.data.name} are others here")
    if lacking:
        fix = "put them, and HF_HOME, where all nodes see them; `harness prefetch FILE` says what"
        return Finding("fail", "; ".join(lacking), fix)
    return Finding("ok", f"{len(paths)} files or folders of weights and data, and {spec.data.name}")


def _checks(visit: Visit) -> Iterator[tuple[str, Check]]:
    """All checks of this task, in their order."""
    yield from EVERYWHERE.items()
    if visit.rank == 0:
        yield from ONCE.items()
        yield "plugins", plugins
        from harness.registry import CHECKS

        for name, check in CHECKS.items():
            yield name, partial(_of_plugin, check)
        if visit.asked["spec"] is not None:
            yield "inputs", inputs
    yield MEETING, meeting
    if visit.rank == 0 and visit.asked["spec"] is not None and visit.asked["trained"]:
        from harness.doctor.trial import trial

        yield "training", trial


def _of_plugin(check: Callable[[], Finding], visit: Visit) -> Finding:
    return check()


def examine(folder: str, rank: int | None = None, tasks: int | None = None) -> None:
    """Make all checks of one task; in a SLURM job it knows itself which it is."""
    place = int(os.environ.get("SLURM_PROCID") or 0) if rank is None else rank
    number = int(os.environ.get("SLURM_NTASKS") or 1) if tasks is None else tasks
    visit = Visit(Path(folder), read_json(Path(folder) / REQUEST) or {}, place, number)
    made: list[dict[str, str]] = []

    def note(**now: Any) -> None:
        file = visit.folder / f"found-{place}.json"
        write_json(file, {"node": visit.node, "made": made, **now})

    for name, check in _checks(visit):
        note(at=name)
        try:
            found = check(visit)
        except Exception as error:  # whatever it is, it is what was looked for
            found = Finding("fail", f"{type(error).__name__}: {error}", _advice(error))
        made.append({"check": name, **found._asdict()})
        print(f"{found.state:<8} {name}: {found.found}", flush=True)
        if name == "python" and found.state == "fail":
            break
    note(over=True)


def _advice(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "let slurm.setup activate the environment that the harness is installed in"
    return "look at the message; `harness run` of such a run would end with it too"


if __name__ == "__main__":
    examine(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
