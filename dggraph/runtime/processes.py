"""One process or many: the few questions that a run asks of torch.distributed, answered without it too.

`torchrun -m dggraph train|eval|atlas ...` starts the processes; `joined` makes them a group, over nccl on GPUs and gloo elsewhere.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dggraph.errors import TrainingError

PATIENCE = timedelta(minutes=10)
"""After so long without an answer a lost process is an error, never a hang."""


@contextmanager
def joined() -> Iterator[None]:
    """Within this context the processes that torchrun started are one group; alone, nothing happens.

    Raises:
        TrainingError: the group cannot be formed.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(device())
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"the processes cannot find each other: {error}. Start them with torchrun.") from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Of this process, 0 alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def device() -> torch.device:
    """Where this process computes."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def distribute(model: nn.Module) -> nn.Module:
    """`model` with gradients averaged over the processes."""
    if not dist.is_initialized():
        return model
    return DistributedDataParallel(model, device_ids=[device().index] if device().type == "cuda" else None)


def synchronised(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Gradients travel with the last part of a batch only."""
    if isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return nullcontext()


def total(values: Tensor) -> Tensor:
    """The sum over the processes, of integers exact."""
    if dist.is_initialized():
        values = values.to(device())
        dist.all_reduce(values)
    return values.cpu()


def any_of(flag: bool) -> bool:
    """Whether it holds in any process."""
    return bool(total(torch.tensor(int(flag)))) if dist.is_initialized() else flag


def gather(value: object) -> list[object]:
    """What every process has, by rank."""
    if not dist.is_initialized():
        return [value]
    found: list[object] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def barrier() -> None:
    """Wait for the others."""
    if dist.is_initialized():
        dist.barrier()
