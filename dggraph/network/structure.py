"""Assumptions of a lowered graph about the modules that it runs, checked before each pass.

The graph calls some modules, which may be replaced by any other: a new head, an adapter. It runs
the parts of others one by one, as their forward did when it was traced. If such a module had
another class, the graph would still run the old forward.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from dggraph.compiler.contexts import called_modules
from dggraph.compiler.identities import Identities
from dggraph.compiler.lowered import LoweredModule
from dggraph.errors import StructureError

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Place(NamedTuple):
    """A module that the graph reaches."""

    owner: int
    """Index of the module that has it as a child; 0 is the root."""
    name: str
    """Its name among its owner's children."""
    path: str
    forward: Callable[..., Any] | None
    """The forward of its class if the graph runs its parts; None if the graph calls the module."""
    is_patched: bool
    """Whether the instance had its own forward at the conversion."""
    children: tuple[str, ...] | None
    """The children of a container that the graph runs one by one, at the conversion; else None."""


def places_of(lowered: LoweredModule) -> tuple[Place, ...]:
    """Return every module that the graph of `lowered` reaches, owners first."""
    calls = dict.fromkeys(called_modules(lowered.graph.nodes))
    reads = dict.fromkeys(
        str(fx_node.target).rpartition(".")[0]
        for fx_node in lowered.graph.nodes
        if fx_node.op == "get_attr"
    )
    index, places = {"": 0}, list[Place]()
    for path in (*calls, *reads):
        parts = path.split(".") if path else []
        for end in range(1, len(parts) + 1):
            reached = ".".join(parts[:end])
            if reached not in index:
                index[reached] = len(index)
                module = lowered.get_submodule(reached)
                forward = None if reached in calls else type(module).forward
                owner = index[".".join(parts[: end - 1])]
                children = (
                    tuple(module._modules)
                    if forward is not None and isinstance(module, _CONTAINERS)
                    else None
                )
                places.append(
                    Place(
                        owner, parts[end - 1], reached, forward, "forward" in vars(module), children
                    )
                )
    return tuple(places)


class _Seen(NamedTuple):
    """The result of a walk over the modules."""

    same: Identities
    forwards: dict[type[nn.Module], Callable[..., Any]]
    """The forward of each class at the walk."""

    def is_same(self) -> bool:
        """Whether another walk would find the same objects."""
        forwards = [cls.forward is forward for cls, forward in self.forwards.items()]
        return all(forwards) and self.same.hold()


class Structure:
    """The modules that a lowered graph reaches, as they were when the graph was written.

    If a pass finds the same objects as the last one, comparing identities is enough.
    """

    def __init__(self, lowered: LoweredModule) -> None:
        self.code, self.places = lowered.code, places_of(lowered)
        self.seen: _Seen | None = None
        """What the last walk found, one object until something changes."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Structure":
        twin = copy.copy(self)
        twin.seen = None
        return twin

    def refuse_changes(self, lowered: LoweredModule) -> None:
        """Raise if a module was removed, or has another forward than the traced one.

        Raises:
            StructureError: Names the module.
        """
        if self.seen is None or not self.seen.is_same():
            self.seen = self._walk(lowered)

    def _walk(self, lowered: LoweredModule) -> "_Seen":
        modules: list[nn.Module] = [lowered]
        values: list[tuple[Mapping[str, Any], str, Any]] = []
        opened: list[nn.Module] = []  # the graph runs their parts
        containers: list[Mapping[str, Any]] = []
        for owner, name, path, forward, is_patched, children in self.places:
            module = modules[owner]._modules.get(name)
            if module is None:
                raise StructureError(
                    f"the network runs {path!r}, which is no longer there. Assign a module, for"
                    f" example net.{path} = nn.Identity(), or remove it from the backbone before"
                    " converting."
                )
            if forward is not None and (
                type(module).forward is not forward or ("forward" in vars(module)) != is_patched
            ):
                raise StructureError(_replaced(path, module, forward))
            if children is not None and len(module._modules) > len(children):
                new = next(
                    child
                    for child in module._modules
                    if child not in children or child == list(module._modules)[-1]
                )
                raise StructureError(
                    f"{path!r} has an additional module, {new!r}, which the network would not run:"
                    f" it runs the {len(children)} that were there when it was converted. If the"
                    " last of them is a single layer, replace it by nn.Sequential(it, the new one);"
                    " otherwise change the backbone and convert it again."
                )
            modules.append(module)
            values.append((modules[owner]._modules, name, module))
            if "inplace" in vars(module):
                values.append((vars(module), "inplace", module.inplace))
            if forward is not None:
                values.append((vars(module), "forward", vars(module).get("forward")))
                opened.append(module)
            if children is not None:
                containers.append(module._modules)
        return _Seen(
            Identities(values, opened, containers),
            {type(module): type(module).forward for module in opened},
        )


def _replaced(path: str, module: nn.Module, forward: Callable[..., Any]) -> str:
    was = getattr(forward, "__qualname__", "forward").removesuffix(".forward")
    now = (
        f"{type(module).__name__} with its own forward"
        if "forward" in vars(module)
        else type(module).__name__
    )
    return (
        f"{path!r} is a {now}, but the network runs its parts one by one, as {was} did when it was"
        f" converted, so the change would have no effect. Replace the modules that {path!r} calls,"
        " or change the backbone and convert it again"
        + (". Compile the whole network, not its blocks." if hasattr(module, "_orig_mod") else ".")
    )
