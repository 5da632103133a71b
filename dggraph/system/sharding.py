"""FSDP2: each process has a shard of every parameter, its gradient and its optimiser state.

The network is sharded as a single unit. Its parts cannot be sharded alone: a lowered network calls
modules rather than blocks, and modules such as attention read the weights of others without calling
them. Each step therefore gathers all weights once, and between steps a process has only its shard.
This module is separate from `processes`, since torch takes half a second to import what it needs.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from dggraph.errors import InputError
from dggraph.system.processes import device, share_buffers_, world_size


def shard_(model: nn.Module) -> None:
    """Shard every parameter over the processes. In place.

    Parameters are first copied from process 0, and so are buffers before each step. A sharded model
    can be called and trained. Copying and saving need `full_state_dict`.

    Raises:
        InputError: torch cannot shard a parameter.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 0 or not parameter.is_contiguous():
            what = "is a single number" if parameter.ndim == 0 else "is not contiguous in memory"
            raise InputError(
                f"the parameter {name} {what}, so it cannot be sharded over processes. Choose"
                " parallel = 'ddp'."
            )
    for parameter in model.parameters():
        dist.broadcast(parameter.detach(), 0)
    fully_shard(model, mesh=init_device_mesh(device().type, (world_size(),)))

    def share(module: nn.Module, _inputs: Any) -> None:
        if module.training:
            share_buffers_(module)

    model.register_forward_pre_hook(share)


def gradient_sync(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Synchronise gradients only with the last part of a batch.

    Until then gathered weights are not resharded.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last)
        model.set_reshard_after_backward(is_last)
    if isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return nullcontext()


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor, on the CPU if it was sharded; then every process must call this."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def local_tensors(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the local shards of `tensors`."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def shard_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return the local shard of `tensor`, sharded like `other`.

    If `other` is not sharded, or has another shape, `tensor` itself is returned.
    """
    if not isinstance(other, DTensor) or tensor.shape != other.shape:
        return tensor
    return distribute_tensor(
        tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None
    )


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with full tensors; every process must call this."""
    return {name: full_tensor(tensor) for name, tensor in model.state_dict().items()}
