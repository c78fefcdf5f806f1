"""A worker: it takes a trial from the desk, trains its runs, hands in the score, and again.

When the trials of a row are over it makes the final runs, those that the tables show. It ends when
nothing is left that it could do. Several processes may be one worker (`torchrun`, the tasks of a
SLURM job): rank 0 is at the desk, all of them train.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.job import Told, leave, say
from harness.lease import lease_holder
from harness.search.rows import Search
from harness.site import read_site
from harness.slurm import this_job

if TYPE_CHECKING:
    from harness.distributed import Group
    from harness.search.shift import Shift
    from harness.store import RunFolder

IN_SITE = "the site file's"


@dataclass
class Worker:
    """Called by submitit, or in this process."""

    search: Search
    root: str
    """the store, as an absolute path"""
    url: str | None
    """of the studies' database; `IN_SITE`: it has a password, and stands in the site file; None:
    the journal"""
    threads: int
    requeues: int = 0
    """how often its job may come back"""
    mlflow_uri: str | None = None
    folder: str = ""
    """what its job prints, if it is SLURM's"""
    code: str | None = None
    """the frozen code that the job runs"""
    patient: bool = True
    """wait while others are at the last trials: there may be something to do after them"""

    def checkpoint(self) -> Any:
        """What submitit asks for if USR2 comes before `__call__`: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def __call__(self) -> None:
        told, job = Told(), this_job()
        if job is not None:
            told.listen()
        restart = job[1] if job else 0
        if restart > self.requeues:
            say(f"came back {restart} times, slurm.requeues allows {self.requeues}: it ends here")
            return
        from harness.distributed import find_world, opened

        with opened(find_world()) as group:
            self._work(group, told)
        if told() and group.rank == 0 and job is not None:
            leave(told, self.requeues)

    def _work(self, group: Group, told: Told) -> None:
        from harness.lease import Lease
        from harness.live_sync import syncing
        from harness.run import run_in
        from harness.search.desk import Desk, forget
        from harness.search.shift import Shift
        from harness.store import Store

        store = Store(Path(self.root))
        with contextlib.ExitStack() as held:
            shift: Shift | None = None
            missing = [r for r in self.search.needed if store.run(r.run_id).state() != "done"]
            if lacking := group.tell([run.run_id for run in missing]):
                say(f"not started: the search needs run {lacking[0]}, which is not done")
                return
            if group.rank == 0:
                desk, name = Desk(self.search, store, storage_of(self.url)), self._name()
                held.callback(desk.close)
                _forget_former_self(desk.workers)
                file = desk.workers / f"{name}.json"
                held.callback(forget, file)
                held.enter_context(Lease(file))
                shift = Shift(self, desk, name, told, alone=group.size == 1)
            while (run_id := group.tell(shift.next() if shift else None)) is not None:
                if not run_id:  # nothing to do yet
                    continue
                on_step, stop = (shift.on_step, shift.stop) if shift else (_nothing, told)
                with (
                    _ends(shift, group.size),
                    syncing(store, run_id, self._uri(shift)),
                    _logged(store.run(run_id), here=this_job() is None),
                ):
                    run_in(group, store, run_id, on_step, self.threads, stop)

    def _name(self) -> str:
        """Of this worker: no other has it, not even one that comes back with the same pid."""
        number = time.time_ns() // 1000 % 10**10
        return f"{self.search.digest}-{socket.gethostname()}-{os.getpid()}-{number}"

    def _uri(self, shift: Shift | None) -> str | None:
        return self.mlflow_uri if shift is not None else None


def storage_of(url: str | None) -> str | None:
    """The URL that a worker was given, or what the site file has: a password is not passed on."""
    return read_site().search_storage if url == IN_SITE else url


def _forget_former_self(workers: Path) -> None:
    """A job that comes back was this one; on another node its lease would look alive for long."""
    from harness.search.desk import forget

    job, restart = this_job() or (None, 0)
    for file in workers.glob("*.json"):
        holder = lease_holder(file)
        if job is not None and holder.get("job") == job and holder.get("restart", 0) < restart:
            forget(file)


@contextlib.contextmanager
def _logged(folder: RunFolder, here: bool) -> Iterator[None]:
    """What a run prints goes into its folder; a SLURM job has a log that is found by the job."""
    if not here:
        yield
        return
    folder.log_folder().mkdir(parents=True, exist_ok=True)
    with (
        open(folder.log_folder() / f"{os.getpid()}_0_log.err", "a", buffering=1) as log,
        contextlib.redirect_stderr(log),
    ):
        yield


def _nothing(step: int, total: int, loss: float) -> None:
    pass


@contextlib.contextmanager
def _ends(shift: Shift | None, ranks: int) -> Iterator[None]:
    """Hand in how a run ended; what only concerns the run is no reason for the worker to end."""
    from harness.lease import LeaseLost, LeaseTaken
    from harness.peers import PeerLost
    from harness.resume import Stopped
    from harness.run import passing

    try:
        yield
    except Stopped:
        if shift is not None:
            shift.stopped()
    except LeaseTaken:
        time.sleep(1.0)
    except (KeyboardInterrupt, SystemExit):
        if shift is not None:
            shift.leave()
        raise
    except Exception as error:
        traceback.print_exc()
        lost = isinstance(error, LeaseLost | PeerLost)  # no fault of the settings
        if shift is not None and lost and not shift.has_failed():
            shift.leave(died=True)
        elif shift is not None and not passing(error):
            shift.failed(error)
        together = isinstance(error, FloatingPointError)  # all processes of the worker raise it
        if passing(error) or (ranks > 1 and not together):
            raise  # a full disk, or the other processes are in disorder
