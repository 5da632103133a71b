"""The static backbone of a converted network, in the forms that its time is compared with.

A fair comparison gives both sides the same weights and the same preparation. `with_weights_of` is
the backbone as its author wrote it. `static_twin` is the backbone as a network without routed
blocks: it runs by the same executor, inlined in the same way, and `optimize_for_inference` prepares
it by the same steps. Its `lowered` calls modules one by one.
"""

import copy

import torch
from torch import nn

from dggraph.compiler.lowered import plain_owner
from dggraph.errors import InputError
from dggraph.network.conversion import convert
from dggraph.network.network import DynamicNetwork
from dggraph.system.devices import first_weight


def with_weights_of(net: DynamicNetwork, backbone: nn.Module) -> nn.Module:
    """Return a copy of `backbone` in eval mode, with the weights of `net` and on its device.

    Args:
        net: a converted `backbone`, trained since or not.
        backbone: the static network, with any weights.

    Raises:
        InputError: the weights of `net` do not fit `backbone`.
    """
    weight = first_weight(net)
    twin = copy.deepcopy(backbone).eval().requires_grad_(False).to(weight.device, weight.dtype)
    owner, state = plain_owner(twin), net.lowered.state_dict()  # keys of no class's own making
    try:
        owner.load_state_dict({key: state[key] for key in owner.state_dict()})
    except (KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip(" \t.")
        raise InputError(
            f"the weights of this {net.graph.name} do not fit the given {type(backbone).__name__}"
            f" ({reason}), so there is no static network to compare it with. Give the backbone that"
            " it was converted from, with the same number of classes."
        ) from error
    return twin


def static_twin(net: DynamicNetwork, backbone: nn.Module) -> DynamicNetwork:
    """Return `backbone`, with the weights of `net`, as a network without routed blocks.

    Args:
        net: a converted `backbone`.
        backbone: the static network, with any weights.

    Raises:
        InputError: as for `with_weights_of`.
    """
    static = with_weights_of(net, backbone)
    example = torch.zeros(1, *net.blueprint.input_shape).to(first_weight(net))
    return convert(static, example, stages={}, allow_static=True).eval()
