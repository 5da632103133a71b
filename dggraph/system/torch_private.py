"""Every private name of torch that we rely on. Tried with torch 2.10 to 2.15.

Each stands here with the reason and what the public way lacks. The rest of the package asks this
file.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.graph import CodeGen
from torch.utils._pytree import tree_leaves

__all__ = [
    "FakeTensorMode",
    "NamingCodeGen",
    "backward_pass",
    "below_autograd",
    "has_forward_hooks",
    "has_global_hooks",
    "is_in_functorch",
    "is_jit_traced",
    "tree_leaves",
]
# FakeTensorMode: shapes without memory. The public way to one, torch.export, traces the model too.
# tree_leaves: the containers that torch itself looks into. No public name walks them.


def below_autograd() -> Any:
    """Within it, custom ops are called without their autograd, which is Python and costs as much as
    a small sum.
    """
    return torch._C._AutoDispatchBelowAutograd()


def backward_pass() -> int:
    """Which backward pass is running, -1 for none. `torch.utils.checkpoint` asks the same."""
    return torch._C._current_graph_task_id()


def is_in_functorch() -> bool:
    """True within `torch.func.grad`, `vmap` and their like. `autograd.Function` asks the same."""
    return bool(torch._C._are_functorch_transforms_active())


def is_jit_traced() -> bool:
    """True while `torch.jit.trace` looks on."""
    return torch._C._get_tracing_state() is not None


def has_forward_hooks(module: nn.Module) -> bool:
    """True where a call of `module` calls hooks too."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def has_global_hooks() -> bool:
    """Whether a hook is registered for every module at once."""
    every = torch.nn.modules.module
    return bool(every._global_forward_hooks or every._global_forward_pre_hooks)


class NamingCodeGen(CodeGen):
    """Generates the same code as fx, with short names for what it calls.

    Where torch comes to generate code in another way, the long names come back.

    Args:
        names: short name to function. A name that an argument of the graph has stays with the
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
