"""Every private torch name in use, each with the reason. Tested with torch 2.10 to 2.15.

The reason says what the public interface lacks. The rest of the package uses this module.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.graph import CodeGen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = [
    "COMPILED",
    "FakeTensorMode",
    "NamingCodeGen",
    "TorchDispatchMode",
    "activations",
    "backward_pass",
    "below_autograd",
    "has_forward_hooks",
    "has_global_hooks",
    "has_values",
    "is_in_functorch",
    "is_jit_traced",
    "tree_leaves",
]
# FakeTensorMode: shapes without memory. The public interface, torch.export, also traces the model.
# TorchDispatchMode: sees every operation, also those of a backward pass. No public class does.
# tree_leaves: walks the containers that torch itself supports. No public function does.

COMPILED = "_compiled_call_impl"
"""Attribute in which a module keeps what its `compile` made, which runs that module.

`nn.Module.__getstate__` leaves it out, but refuses modules with parametrizations.
"""


def activations(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the activation `name` and its form in place, without their Python wrappers.

    The public functions check their arguments anew at each call.
    """
    if name == "relu":
        return torch.relu, torch.relu_
    return getattr(torch._C._nn, name), getattr(torch._C._nn, f"{name}_")


def below_autograd() -> Any:
    """Return a context in which custom ops are called without their autograd.

    Their autograd is Python code that costs as much as a small sum.
    """
    return torch._C._AutoDispatchBelowAutograd()


def backward_pass() -> int:
    """Return the id of the current backward pass, or -1.

    `torch.utils.checkpoint` uses the same call.
    """
    return torch._C._current_graph_task_id()


def has_values(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is more than a shape: neither on the meta device nor fake."""
    return tensor.device.type != "meta" and not isinstance(tensor, FakeTensor)


def is_in_functorch() -> bool:
    """Whether `torch.func.grad`, `vmap` or similar is active.

    `autograd.Function` uses the same call.
    """
    return bool(torch._C._are_functorch_transforms_active())


def is_jit_traced() -> bool:
    """Whether `torch.jit.trace` is running."""
    return torch._C._get_tracing_state() is not None


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether a call of `module` also calls hooks."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def has_global_hooks() -> bool:
    """Whether a hook is registered for all modules."""
    every = torch.nn.modules.module
    return bool(every._global_forward_hooks or every._global_forward_pre_hooks)


class NamingCodeGen(CodeGen):
    """Generates the same code as fx, with short names for the functions it calls.

    If a later torch generates code differently, the long names are used again.

    Args:
        names: {short name: function}. A name that an argument of the graph has stays with the
            argument.
    """

    def __init__(self, names: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__()
        self.names = names

    def _gen_python_code(self, nodes: Any, root_module: str, namespace: Any, **options: Any) -> Any:
        arguments = {fx_node.target for fx_node in nodes if fx_node.op == "placeholder"}
        for name, function in self.names.items():
            if name not in arguments:
                namespace.create_name(name, function)
        return super()._gen_python_code(nodes, root_module, namespace, **options)
