"""Several processes that do one run together, on one machine or on several.

Each is a *rank*. All hold the whole model and take a share of every batch and of every split; rank
0 alone writes the run folder. A launcher says who is who: submitit, or the variables of torchrun.
One process alone opens no connection and computes what it always did.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from harness.peers import PeerLost, Watch, exchanging

START_TIMEOUT = timedelta(minutes=10)
"""how long a process waits for the others to come"""
STUCK_TIMEOUT = timedelta(minutes=20)
"""how long a collective waits for a process that lives; a dead one is noticed much earlier"""

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Which of how many processes this one is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """among the processes on this machine: the GPU it takes"""
    address: str = ""
    """where rank 0 listens"""
    port: int = 0
    one_machine: bool = True
    """all of them on the same one"""


def find_world() -> World:
    """What the launcher says: a submitit job's tasks, else torchrun's variables, else alone."""
    env = os.environ
    if "SUBMITIT_EXECUTOR" in env:
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        job = JobEnvironment()
        if job.num_tasks == 1:
            return World()
        told = TorchDistributedEnvironment()
        # a machine's own name need not resolve, nor those of several nodes that one machine plays
        one = job.num_nodes == 1 or not _resolves(told.master_addr)
        address = "127.0.0.1" if one else told.master_addr
        return World(told.rank, told.world_size, told.local_rank, address, told.master_port, one)
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= env.keys():
        return World()
    size, address = int(env["WORLD_SIZE"]), env["MASTER_ADDR"]
    one = int(env.get("LOCAL_WORLD_SIZE", -1)) == size or address in ("127.0.0.1", "localhost")
    local = int(env.get("LOCAL_RANK", 0))
    return World(int(env["RANK"]), size, local, address, int(env["MASTER_PORT"]), one)


class Group:
    """The processes of one run. Its methods are called by all of them, in the same order; they
    raise PeerLost if another process fails or is gone."""

    def __init__(self, world: World | None = None, watch: Watch | None = None) -> None:
        world = world or World()
        self.rank, self.size, self.watch = world.rank, world.size, watch

    def exchanging(self) -> AbstractContextManager[None]:
        """Around passes through a model of `wrap`, in which gradients are exchanged."""
        return contextlib.nullcontext() if self.size == 1 else exchanging()

    def share(self, number: int) -> range:
        """The part of `number` things that is this rank's; in rank order they are all of them."""
        return range(number * self.rank // self.size, number * (self.rank + 1) // self.size)

    def seed(self, seed: int) -> int:
        """Of this rank's random numbers: each draws others, and rank 0 those of one process."""
        # only the lower 32 bits count on a CPU
        mixed = np.random.SeedSequence([seed, self.rank]).generate_state(1)[0]
        return int(mixed) if self.rank else seed

    def add(self, *values: float) -> list[float]:
        """Each value summed over the ranks, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with exchanging():
            torch.distributed.all_reduce(total)
        return [float(value) for value in total]

    def meet(self) -> None:
        """Wait until every rank is here."""
        self.add(0.0)

    def tell(self, value: T) -> T:
        """What rank 0 passes; what the others pass is not used."""
        told = [value]
        if self.size > 1:
            with exchanging():
                torch.distributed.broadcast_object_list(told, device=torch.device("cpu"))
        return told[0]

    def collect(self, value: T) -> list[T] | None:
        """Every rank's value, in rank order, at rank 0; None elsewhere."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        with exchanging():
            torch.distributed.gather_object(value, values)
        return values

    @torch.no_grad()
    def align(self, module: nn.Module) -> None:
        """Give every rank the parameters and buffers, all on the CPU, that rank 0 has."""
        if self.size == 1:
            return
        with exchanging():
            for value in module.state_dict().values():
                if value.numel():
                    whole = value.contiguous()
                    torch.distributed.broadcast(whole.view(-1).view(torch.uint8), 0)
                    value.copy_(whole)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose gradients are means over the ranks; itself if there is one rank."""
        if self.size == 1 or not any(p.requires_grad for p in model.parameters()):
            return model
        # Looking for unused parameters also keeps gradients in the same buckets in every step. They
        # would be dealt anew after the first one, and with three ranks or more a sum's last bits
        # depend on its place in a bucket: a resumed run would end with others.
        with exchanging():
            return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)

    def failed(self, error: Exception, trace: str) -> str | None:
        """What is to be stored of a failure: `trace`, or that of the rank which failed first. None
        if another rank is gone without a word: then the run was interrupted and did not fail."""
        if self.watch is None:
            return trace
        if isinstance(error, PeerLost):
            told = self.watch.failure()
            error.add_note(told or "it left no trace: something outside the run ended it")
            return told
        self.watch.leave(trace)
        return trace


@contextlib.contextmanager
def opened(world: World) -> Iterator[Group]:
    """The group of `world`, its connections closed at the end.

    NCCL with GPUs, of which each process takes the one of its local rank; Gloo without, and for
    what is on the CPU. Leaving without an error waits for the others.
    """
    if world.size == 1:
        yield Group(world)
        return
    from torch.distributed.distributed_c10d import PrefixStore

    if world.one_machine:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(world.local_rank % torch.cuda.device_count())
    name = f"run{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}.{next(_opened)}"
    stores = [PrefixStore(name, store) for store in _stores(world)]
    watch = Watch(stores[1], world.rank, world.size)
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=stores[0],
        rank=world.rank,
        world_size=world.size,
        timeout=STUCK_TIMEOUT,
    )
    watch.start()
    group = Group(world, watch)
    try:
        yield group
        group.meet()
    finally:
        torch.distributed.destroy_process_group()
        watch.stop()


_opened = count()
"""ranks open their groups in the same order, and none meets what another left in the store"""


@cache
def _stores(world: World) -> tuple[Any, Any]:
    """The store at rank 0 that the ranks meet by, and a second connection to it for the watch,
    which must not wait for what the first one waits for. They live as long as the process."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    theirs = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's own process
    serves = [world.rank == 0 and not theirs, False]
    stores = [
        TCPStore(
            world.address,
            world.port,
            is_master=serve,
            timeout=START_TIMEOUT,
            wait_for_workers=False,
        )
        for serve in serves
    ]
    return stores[0], stores[1]


def _resolves(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def _loopback() -> str:
    """Name of the network interface by which a machine speaks to itself."""
    names = [name for _, name in socket.if_nameindex()]
    return "lo" if "lo" in names else "lo0"
