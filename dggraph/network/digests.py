"""Digests of networks, so that a collection is only continued with the network it was made from."""

from hashlib import blake2b

import torch
from torch import nn

from dggraph.graph.schema import to_json
from dggraph.network.network import DynamicNetwork


def digest_of(net: DynamicNetwork) -> str:
    """Return a digest of the graph of `net` and of the bits of every weight and buffer."""
    return digest_state(to_json(net.graph), net)


def digest_state(description: str, model: nn.Module) -> str:
    """Return a digest of `description` and of the bits of every weight and buffer of `model`.

    Tensors are copied one at a time.
    """
    digest = blake2b(description.encode(), digest_size=16)
    state = model.state_dict()
    is_routing = {key: key.startswith("dg_") for key in state}
    for key in sorted(
        is_routing, key=is_routing.__getitem__
    ):  # routing last: interrupted collections have digests in this order
        tensor = state[key]
        digest.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
