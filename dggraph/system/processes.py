"""Functions for one process or many: torch.distributed, with results for a single process too.

`torchrun -m dggraph train|eval|atlas ...` starts the processes. `process_group` makes them a group,
over nccl on GPUs and gloo elsewhere.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from hashlib import blake2b
from typing import NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dggraph.errors import LostProcessError, TrainingError

Item = TypeVar("Item")
PATIENCE = timedelta(minutes=10)
"""Time without an answer after which a lost process is reported as an error."""

_chosen: torch.device | None = None
"""See `computing_on`."""


@contextmanager
def process_group() -> Iterator[None]:
    """Form a group of the processes started by torchrun, within this context.

    It does nothing for a single process. After an error the group is not destroyed: the end of the
    process closes its connections, which notifies the others.

    Raises:
        LostProcessError: The group cannot be formed, or another process ended.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    try:
        is_gpu = device().type == "cuda"
        if is_gpu:
            torch.cuda.set_device(device())
        dist.init_process_group("nccl" if is_gpu else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise LostProcessError(
            f"the processes cannot find each other: {error}. Start them with torchrun."
        ) from error
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise LostProcessError(
                "another process of this run ended or was killed, so this one stopped too. Look for"
                " the error of that process, or in the system's log for a lack of memory. What was"
                " saved before is still valid."
            ) from error
        raise
    dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End this process immediately: flush its output, but do not shut down the interpreter.

    torch keeps the mesh of a sharded network in caches, so the threads of the group outlive
    `process_group`. A thread that releases its last tensor during the shutdown aborts the process
    (https://github.com/pytorch/pytorch/pull/179291).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_reporting_rank(message: str, *, is_consequence: bool) -> bool:
    """Whether this process reports `message` to the user.

    It is the first process with this message. No process reports a consequence of the error of
    another one. This is decided in the store of the torchrun that started this process, which
    exists before `process_group` and outlives every process.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return True
    run, restart = os.environ["TORCHELASTIC_RUN_ID"], os.environ.get("TORCHELASTIC_RESTART_COUNT")
    attempt = f"dggraph/{run}/{restart}"
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(  # type: ignore[attr-defined]
            host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10)
        )
        if is_consequence and store.check([attempt]):
            return False
        if not is_consequence:
            store.set(attempt, "")
        return int(store.add(f"{attempt}/{blake2b(message.encode()).hexdigest()}", 1)) == 1
    except RuntimeError:  # without a store, a repeated report is better than none
        return True


def assert_same_on_all_ranks(facts: Mapping[str, object]) -> None:
    """Check before the work that `facts` are the same in all processes.

    Raises:
        TrainingError: A fact differs; the error names it.
    """
    everyone = all_gather_objects(dict(facts))
    for name in facts:
        found = [one.get(name) for one in everyone if isinstance(one, dict)]
        other = next((number for number, one in enumerate(found) if one != found[0]), None)
        if other is not None:
            first, second = (f"{one!r:.80}" for one in (found[0], found[other]))
            raise TrainingError(
                f"the processes of this run differ in {name}: {first} on process 0, {second} on"
                f" process {other}. Start all with the same command, files and data."
            )


def rank() -> int:
    """Return the rank of this process, 0 for a single one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def computing_on(device: torch.device | None) -> Iterator[None]:
    """Make `device()` return the given device within this context; None changes nothing.

    With several processes, `cuda` means the GPU of each process's rank.

    Each process of several has a GPU of its own, so of `cuda` they take the one of their rank.
    """
    global _chosen
    before, _chosen = _chosen, device or _chosen
    try:
        yield
    finally:
        _chosen = before


def device() -> torch.device:
    """Return the device of this process: that of `computing_on`, else a GPU if there is one."""
    if _chosen is not None and (_chosen.type != "cuda" or _chosen.index is not None):
        return _chosen
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def distribute(model: nn.Module) -> nn.Module:
    """Return `model` with gradients averaged over the processes."""
    if not dist.is_initialized():
        return model
    return DistributedDataParallel(
        model, device_ids=[device().index] if device().type == "cuda" else None
    )


def share_buffers_(model: nn.Module) -> None:
    """Copy the buffers of process 0, such as running statistics, to every process. In place.

    DistributedDataParallel does the same before each step.
    """
    if not dist.is_initialized():
        return
    buffers = list(model.buffers())
    for dtype in dict.fromkeys(buffer.dtype for buffer in buffers):
        same = [buffer for buffer in buffers if buffer.dtype == dtype]
        flat = torch.cat([buffer.detach().reshape(-1) for buffer in same])
        dist.broadcast(flat, 0)
        for buffer, part in zip(
            same, torch.split(flat, [buffer.numel() for buffer in same]), strict=True
        ):
            buffer.copy_(part.view_as(buffer))


def all_reduce_sum(values: Tensor) -> Tensor:
    """Return the sum over the processes, exact for integers."""
    if dist.is_initialized():
        values = values.to(device())
        dist.all_reduce(values)
    return values.cpu()


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true in any process."""
    return bool(all_reduce_sum(torch.tensor(int(flag)))) if dist.is_initialized() else flag


def all_gather_objects(value: object) -> list[object]:
    """Return the values of every process, by rank."""
    if not dist.is_initialized():
        return [value]
    found: list[object] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def all_gather_items(mine: Sequence[Item]) -> list[Item]:
    """Return the items of all processes, by rank."""
    return [item for part in all_gather_objects(list(mine)) for item in cast("list[Item]", part)]


def barrier() -> None:
    """Wait for the other processes."""
    if dist.is_initialized():
        dist.barrier()
