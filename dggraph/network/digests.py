"""Digests of networks: what a collection was made from, so that none goes on with another one."""

from hashlib import blake2b

import torch
from torch import nn

from dggraph.graph.schema import to_json
from dggraph.network.network import DynamicNetwork


def digest_of(net: DynamicNetwork) -> str:
    """A digest of what may connect and of every weight and buffer, to the bit."""
    return digest_state(to_json(net.graph), net)


def digest_state(description: str, model: nn.Module) -> str:
    """A digest of `description` and of every weight and buffer of `model`, to the bit; one tensor
    is copied at a time.
    """
    digest = blake2b(description.encode(), digest_size=16)
    state = model.state_dict()
    is_routing = {key: key.startswith("dg_") for key in state}
    for key in sorted(
        is_routing, key=is_routing.__getitem__
    ):  # routing last, as in digests of interrupted collections
        tensor = state[key]
        digest.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
