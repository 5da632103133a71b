"""`self.training` while a backbone is traced in eval mode: a false number that knows whose flag it
is, and who asked.

Handed on to an op the flag is followed: the graph reads the module's own. Where Python decides by
it (`if self.training:`), one branch is traced, and the other would be lost in silence; so each such
question is noted, and tracing looks what the other answer would have led to.
"""

import types
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.fx.node import map_aggregate

Owner = type[nn.Module] | types.FunctionType
"""What decides by a flag: the class of the module whose flag it is, or a plain function that it was
handed to.
"""


@dataclass(slots=True)
class Question:
    """One owner's questions."""

    place: str
    """File, line and source of the first."""
    paths: set[str] = field(default_factory=set)
    """Modules whose flags were asked."""


class TrainingFlag(int):
    """False, or true where the other answer is looked at."""

    path: str
    note: Callable[[str], None]

    def __new__(cls, path: str, note: Callable[[str], None], value: int) -> "TrainingFlag":
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
    """Replace every flag among the arguments by a read of the module's `training`."""
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
    """True for what may become one call: functions, and modules that hold no blocks to route."""
    if isinstance(owner, types.FunctionType):
        return True
    if isinstance(backbone, owner):
        return False
    found = [inner for inner in backbone.modules() if isinstance(inner, owner)]
    return len(found) > 1 or not any(_holds_alike(one) for one in found)


def _holds_alike(module: nn.Module) -> bool:
    """True where a container in `module` has two children of one class that is none of torch's."""
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
