"""Flags that replace `self.training` while a backbone is traced in eval mode.

A flag is a false number that records its module and the code that asks for it. If it is passed to
an op, the graph reads the module's own flag. If Python decides by it (`if self.training:`), only
one branch is traced and the other would be lost silently. Each such question is noted, and tracing
then checks where the other answer would have led.
"""

import types
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.fx.node import map_aggregate

Owner = type[nn.Module] | types.FunctionType
"""The code that decides by a flag.

Either the class of the module that has the flag, or a plain function that the flag was passed to.
"""


@dataclass(slots=True)
class Question:
    """All questions of one owner."""

    place: str
    """File, line and source of the first question."""
    paths: set[str] = field(default_factory=set)
    """Paths of the modules whose flags were asked for."""


class TrainingFlag(int):
    """A number that replaces `training`: 0, or 1 while the other answer is traced."""

    path: str
    note: Callable[[str], None]

    def __new__(cls, path: str, note: Callable[[str], None], value: int) -> "TrainingFlag":
        """Make a flag of the module at `path`; `note` is called with the path on each question."""
        flag = super().__new__(cls, value)
        flag.path, flag.note = path, note
        return flag

    def __deepcopy__(self, memo: dict[int, Any]) -> "TrainingFlag":
        return self

    __hash__ = int.__hash__


def _noting(name: str) -> Callable[..., Any]:
    ordinary = getattr(int, name)

    def ask(self: TrainingFlag, *others: Any) -> Any:
        self.note(self.path)
        return ordinary(self, *others)

    return ask


_ASKING = "bool eq ne int index float and or xor mul add sub rand ror rxor rmul radd rsub"
for _name in _ASKING.split():
    setattr(TrainingFlag, f"__{_name}__", _noting(f"__{_name}__"))


def set_flags_(module: nn.Module, note: Callable[[str], None], trained: Collection[str]) -> None:
    """Put a flag on every module in `module`, true for the paths in `trained`."""
    for path, inner in module.named_modules():
        vars(inner)["training"] = TrainingFlag(path, note, int(path in trained))


def follow_training(graph: fx.Graph) -> None:
    """Replace every flag among the arguments of ops by a read of the module's `training`."""
    for fx_node in list(graph.nodes):

        def follow(argument: Any, fx_node: fx.Node = fx_node) -> Any:
            if not isinstance(argument, TrainingFlag):
                return argument
            target = f"{argument.path}.training" if argument.path else "training"
            with graph.inserting_before(fx_node):
                flag = graph.create_node("get_attr", target, name=f"{fx_node.name}_training")
            flag.meta["nn_module_stack"] = fx_node.meta.get("nn_module_stack", {})
            return flag

        fx_node.args = map_aggregate(fx_node.args, follow)
        fx_node.kwargs = map_aggregate(fx_node.kwargs, follow)


def can_keep(owner: Owner, backbone: nn.Module) -> bool:
    """Whether `owner` may become a single call.

    True for functions, and for modules without blocks to route.
    """
    if isinstance(owner, types.FunctionType):
        return True
    if isinstance(backbone, owner):
        return False
    found = [inner for inner in backbone.modules() if isinstance(inner, owner)]
    return len(found) > 1 or not any(_holds_alike(one) for one in found)


def _holds_alike(module: nn.Module) -> bool:
    """Whether a container in `module` has two children of one class from outside torch."""
    for inner in module.modules():
        if isinstance(inner, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            kinds = [
                type(child)
                for child in inner.children()
                if not type(child).__module__.startswith("torch.nn.")
            ]
            if len(kinds) > len(set(kinds)):
                return True
    return False
