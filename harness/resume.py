"""Where the training of a run stands, kept so that it can go on at that very step.

A checkpoint holds what the learner needs (weights, optimiser, ...), every rank's random state, and
the place: how many epochs and steps are behind it, and what has been summed in the epoch that is
not over.
"""

from __future__ import annotations

import io
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from harness.distributed import Group
from harness.learner import Learner
from harness.lease import Lease
from harness.store import RunFolder

CHECKPOINT_SECONDS = 600.0
"""a checkpoint is written at the latest this long after the last: jobs are ended without warning"""


class Stopped(Exception):
    """The run was asked to stop and did, with a checkpoint: the next one goes on at that step."""


@dataclass(frozen=True)
class Place:
    """Where training stands."""

    epoch: int = 0
    """epochs behind it"""
    step: int = 0
    """steps behind it of the epoch after these"""
    loss_sum: float = 0.0
    """of these steps"""
    seconds: float = 0.0
    """spent on them"""


class Keeper:
    """Reads and writes a run's checkpoints. Every rank calls it; the one with a lease writes."""

    def __init__(
        self,
        folder: RunFolder,
        lease: Lease | None,
        group: Group,
        learner: Learner,
    ) -> None:
        self.folder, self.lease, self.group, self.learner = folder, lease, group, learner
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Whether a checkpoint is to be written again: rank 0's clock says so."""
        return self.lease is not None and time.monotonic() - self._saved >= CHECKPOINT_SECONDS

    def save(self, place: Place) -> None:
        """Write a checkpoint; raises LeaseLost instead if another process has taken over."""
        random = self.group.collect(_random_state())
        if self.lease is None:
            return
        state = {
            **asdict(place),
            **self.learner.state(),
            "random": random,
        }
        whole = io.BytesIO()  # torch would hide why writing failed, e.g. a full disk
        torch.save(state, whole)
        with self.lease.held():
            self.folder.save_checkpoint(lambda out: out.write(whole.getbuffer()))
        self._saved = time.monotonic()

    def load(self) -> Place:
        """Take the newest readable checkpoint, the same one in every rank; where it stands."""
        found = _newest(self.folder) if self.group.rank == 0 else None
        told = self.group.tell(found and (found[0], _place(found[1])))
        if told is None:
            return Place()
        file, place = told
        state = found[1] if found else torch.load(file, map_location="cpu", weights_only=True)
        if _place(state) != place:
            raise ValueError(f"{file}: stands at {_place(state)}, rank 0 reads {place} there")
        self.learner.load_state(state, str(file))
        self._set_random(state)
        return place

    def _set_random(self, state: dict[str, Any]) -> None:
        rank, size = self.group.rank, self.group.size
        # checkpoints had one rank's state, and no list, before there were several
        states = state.get("random", [state])
        if rank == 0 and len(states) != size:
            print(
                f"{self.folder.run_id}: begun by {len(states)} processes and resumed by {size}: "
                f"equal up to rounding, if dropout and augmentation draw no random numbers",
                file=sys.stderr,
            )
        if rank < len(states):
            torch.set_rng_state(states[rank]["rng"])
            if torch.cuda.is_available() and len(states[rank]["cuda_rng"]):
                torch.cuda.set_rng_state(states[rank]["cuda_rng"][0])


def _random_state() -> dict[str, Any]:
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return {"rng": torch.get_rng_state(), "cuda_rng": cuda}


def _newest(folder: RunFolder) -> tuple[Path, dict[str, Any]] | None:
    for file in folder.checkpoints():
        try:
            return file, torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # whatever bytes torch or pickle trip over: the one before it is whole
            continue
    return None


def _place(state: dict[str, Any]) -> Place:
    """Of a checkpoint; those written at the end of an epoch once had no more than its number."""
    return Place(**{name: state[name] for name in asdict(Place()) if name in state})
