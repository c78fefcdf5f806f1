"""Whether the tasks of a run find each other, over NCCL or Gloo."""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from harness.files import read_json, write_json
from harness.finding import Finding

if TYPE_CHECKING:
    from harness.doctor.visit import Visit

PLACE = "meeting.json"
COME_SECONDS = 300
"""that the first task may take to get here: it has more to look at"""
MEET_SECONDS = 60
NUMBERS = 1 << 22
"""float32 that are summed: 16 MB"""
FIX = (
    "name the network between the nodes in slurm.setup, `export NCCL_SOCKET_IFNAME=...` and "
    "`export GLOO_SOCKET_IFNAME=...` (on a node, `ip -brief address` lists them)"
)


def meeting(visit: Visit) -> Finding:
    """All tasks meet and add up what each brings; the first says how that went."""
    if visit.tasks == 1:
        return Finding("skipped", "one task")
    import torch
    from torch import distributed

    try:
        store, backend = _store(visit)
        torch_device = _device(visit) if backend == "nccl" else torch.device("cpu")
        distributed.init_process_group(
            backend,
            store=store,
            rank=visit.rank,
            world_size=visit.tasks,
            timeout=timedelta(seconds=MEET_SECONDS),
        )
    except (RuntimeError, ValueError, OSError) as error:
        return Finding("fail", f"did not meet: {_first_line(error)}", FIX)
    try:
        brought = torch.full((NUMBERS,), visit.rank + 1.0, device=torch_device)
        distributed.all_reduce(brought.clone())  # connections are made with the first
        begun = time.perf_counter()
        distributed.all_reduce(brought)
        total = float(brought[0].item())
        took = time.perf_counter() - begun
        places: list[Any] = [None] * visit.tasks
        distributed.all_gather_object(places, visit.node)
        distributed.barrier()
    except RuntimeError as error:
        return Finding("fail", f"{backend}: {_first_line(error)}", FIX)
    finally:
        distributed.destroy_process_group()
    nodes = ", ".join(f"{places.count(node)} on {node}" for node in dict.fromkeys(places))
    found = f"{backend}: {visit.tasks} tasks ({nodes}) sum 16 MB in {1000 * took:.0f} ms"
    if total != visit.tasks * (visit.tasks + 1) / 2:
        return Finding("fail", f"{found}, wrongly", FIX)
    return Finding("ok", found)


def _store(visit: Visit) -> tuple[Any, str]:
    """What tells the tasks each other's addresses, and the backend that the first has chosen."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    wait = timedelta(seconds=MEET_SECONDS)
    if visit.rank == 0:
        host = "127.0.0.1" if visit.local else socket.gethostname()
        store = TCPStore(host, 0, visit.tasks, True, wait, wait_for_workers=False)
        backend = _backend(visit)
        write_json(visit.folder / PLACE, {"host": host, "port": store.port, "backend": backend})
        return store, backend
    until = time.monotonic() + COME_SECONDS
    while (place := read_json(visit.folder / PLACE)) is None:
        if time.monotonic() > until:
            raise RuntimeError("the first task did not come")
        time.sleep(0.2)
    store = TCPStore(place["host"], place["port"], visit.tasks, False, wait)
    return store, str(place["backend"])


def _backend(visit: Visit) -> str:
    """NCCL where every task has a GPU of its own."""
    import torch
    from torch import distributed

    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    each = visit.tasks if visit.local else visit.asked["tasks_per_node"]
    own = seen >= each or (seen >= 1 and "SLURM_GPUS_PER_TASK" in os.environ)
    return "nccl" if own and distributed.is_nccl_available() else "gloo"


def _device(visit: Visit) -> Any:
    import torch

    place = visit.rank if visit.local else int(os.environ.get("SLURM_LOCALID") or 0)
    device = torch.device("cuda", place % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
