"""Buffers that no state dict has but a network needs, restored after a move to the meta device.

These are the anchors of gates, closed and following edges, and constants of the backbone's forward.
`to("meta")` loses them and `to_empty` fills them with arbitrary values. The rest can be loaded from
a state dict.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from dggraph.compiler.lowered import LoweredModule, StageRouting
from dggraph.compiler.tracing import TENSOR_CONSTANT


def remember_(kept: dict[str, Tensor], lowered: LoweredModule) -> None:
    """Copy the constants of `lowered` into `kept`, by name. In place.

    Tensors on the meta device have no values, so the older copies stay.
    """
    kept.update(
        {
            name: constant.detach().clone()
            for name, constant in _constants(lowered)
            if constant.device.type != "meta"
        }
    )


def restore_(kept: dict[str, Tensor], lowered: LoweredModule) -> None:
    """Write the values in `kept` back into the constants of `lowered`. In place."""
    with torch.no_grad():
        for name, constant in _constants(lowered):
            if name in kept and constant.device.type != "meta":
                constant.copy_(kept[name])


def _constants(lowered: LoweredModule) -> Iterator[tuple[str, Tensor]]:
    for path, module in lowered.named_modules():
        is_routing = isinstance(lowered._modules.get(path.partition(".")[0]), StageRouting)
        for name in module._non_persistent_buffers_set if is_routing or not path else ():
            buffer = module._buffers[name]
            if buffer is not None and (is_routing or name.startswith(TENSOR_CONSTANT)):
                yield f"{path}.{name}", buffer
