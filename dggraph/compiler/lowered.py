"""The module that lowering returns.

It runs the lowered graph and owns the backbone's module tree, under the backbone's own names.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from dggraph.compiler.hooks import watch_
from dggraph.compiler.naming import read_taken_names_, shadows_graph_module
from dggraph.errors import BackboneOnlyError, LoweringError
from dggraph.system.attributes import share_keys_

OWNED = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")
"""Attributes in which `nn.Module` stores what it owns.

Two modules that share these four objects own the same tree.
"""


ROUTING = "dg_"
"""Prefix of all names that lowering adds."""


class StageRouting(nn.Module):
    """The routers, gates and threshold of one stage, as a container.

    Vertex i has `router_i` and `gate_i`; the stage has one `threshold`.
    """

    threshold: torch.Tensor

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.tensor(float(threshold), dtype=torch.float32))

    def router(self, index: int) -> nn.Module:
        """Return the router of vertex `index`, from features (B, C, H, W) to logits (B, edges)."""
        router = self._modules[f"router_{index}"]
        assert router is not None
        return router

    def gate(self, index: int) -> nn.Module:
        """Return the gate of vertex `index`, from logits to weights, both (B, edges)."""
        gate = self._modules[f"gate_{index}"]
        assert gate is not None
        return gate

    def deciders(self) -> Iterator[tuple[int, nn.Module, nn.Module]]:
        """Yield each vertex with a router, its router and its gate."""
        for name, router in self.named_children():
            if name.startswith("router_"):
                vertex = int(name.removeprefix("router_"))
                yield vertex, router, self.gate(vertex)

    def forward(self, *_inputs: Any) -> Any:
        """Raise `BackboneOnlyError`: a container of routers cannot be called."""
        raise BackboneOnlyError(
            "a converted network cannot be run child by child, because its routers run between its"
            " blocks. Slice the backbone first, for example"
            " nn.Sequential(*list(backbone.children())[:-2]), and convert the slice; convert the"
            " backbone of a detector in place with dggraph.convert_backbone_."
        )


class LoweredModule(fx.GraphModule):
    """A GraphModule that owns the backbone's module tree unchanged, used or not.

    State-dict keys are those of the backbone. Routing comes first among its children, so its last
    children and parameters are those of the backbone.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str = "LoweredModule") -> None:
        super().__init__(nn.Module(), fx.Graph(), class_name)
        read_taken_names_(graph)
        self.graph = graph
        adopt_(self, root)
        is_rest = {
            name: not isinstance(child, StageRouting) for name, child in self._modules.items()
        }
        self.__dict__["_modules"] = {
            name: self._modules[name] for name in sorted(is_rest, key=is_rest.__getitem__)
        }
        share_keys_(self)
        watch_(self)

    def __getattr__(self, name: str) -> Any:
        computed = vars(self)["_modules"].get("parametrizations", ())
        # A parametrized weight is computed; its parametrization belongs to the root.
        return computed[name]() if name in computed else super().__getattr__(name)

    def get_submodule(self, target: str) -> nn.Module:
        """Return the module at `target`, as `nn.Module.get_submodule` does.

        A child with a name that each GraphModule has (`graph`, `code`) is found too.
        """
        first, _, rest = target.partition(".")
        if not shadows_graph_module(first):
            return super().get_submodule(target)
        child = self._modules.get(first)
        if child is None:
            raise AttributeError(f"{type(self).__name__} has no module {first!r}.")
        return child.get_submodule(rest)

    @property
    def dg_self(self) -> "LoweredModule":
        """The module itself.

        The graph reads it to keep the values that the backbone's forward keeps on the backbone.
        """
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "LoweredModule":
        root = nn.Module()
        adopt_(root, copy.deepcopy(plain_owner(self), memo))
        twin = LoweredModule(root, copy.deepcopy(self.graph))
        twin.training = self.training
        return twin

    def __reduce__(self) -> Any:
        raise LoweringError(
            "a lowered network cannot be pickled: torch regenerates its code on loading and may"
            " change in-place ops (pytorch #198077). Use dggraph.save(net, folder), or its"
            " state_dict()."
        )


def routing_name(stage: str) -> str:
    """Return the name of the routing of `stage` among the children of a lowered network."""
    return f"{ROUTING}{stage}"


def routing_of(lowered: nn.Module, stage: str) -> StageRouting:
    """Return the routers, gates and threshold of `stage`."""
    found = lowered._modules[routing_name(stage)]
    assert isinstance(found, StageRouting)
    return found


def weight_dtype(lowered: nn.Module) -> torch.dtype | None:
    """Return the type of the backbone's weights, or None if it has none.

    That of routers may differ.
    """
    named = lowered.named_parameters()
    return next(
        (p.dtype for name, p in named if p.is_floating_point() and not name.startswith(ROUTING)),
        None,
    )


def adopt_(owner: nn.Module, module: nn.Module) -> None:
    """Make `owner` own the children, parameters and buffers of `module`.

    They are shared and keep their names.
    """
    for name in OWNED:
        vars(owner)[name] = copy.copy(vars(module)[name])
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor):
            vars(owner)[name] = value
    owner.training = module.training


def plain_owner(module: nn.Module) -> nn.Module:
    """Return a plain module that owns everything that `module` owns."""
    owner = nn.Module()
    adopt_(owner, module)
    return owner
