"""A module that stands where its backbone stood: by the same names one finds, assigns, deletes, loads and trains the same things."""

import copy
from collections.abc import Callable
from inspect import get_annotations
from typing import Any

from torch import Tensor, nn

from dggraph.compiler.hooks import watch_
from dggraph.compiler.lowered import OWNED, LoweredModule
from dggraph.compiler.naming import shadows_graph_module
from dggraph.errors import BackboneOnlyError
from dggraph.runtime.constants import remember_, restore_
from dggraph.runtime.shell import copy_shell, has, look_up, make_shell, refuse_baked
from dggraph.runtime.structure import Place, places_of, refuse_changes


class StandIn(nn.Module):
    """Owns the backbone's modules, parameters and buffers under their original names, behind the routing of each stage, `dg_<stage>`.

    `lowered` owns the very same, so that whatever is assigned, deleted or loaded here is what runs. Attributes of the backbone are answered
    too, and methods of its class that only look (`get_classifier`); other methods of it would run or rebuild the static backbone and raise
    a BackboneOnlyError. A name of ours hides the same name of the backbone, which `lowered` still has.
    """

    lowered: LoweredModule
    """The fx.GraphModule that runs; no child of this module, but a second owner of its children."""
    _shell: nn.Module
    """What is left of the backbone, see `shell`."""
    _places: tuple[str, tuple[Place, ...]]
    """Generated code, and what it takes for granted, see `structure`."""
    _constants: dict[str, Tensor]
    """See `constants`."""

    def __init__(self, lowered: LoweredModule, backbone: nn.Module) -> None:
        mode = lowered.training
        vars(self)["lowered"] = lowered
        super().__init__()
        self.training = mode
        self._own(make_shell(backbone, lowered))
        self._places, self._constants = (lowered.code, places_of(lowered)), {}

    def _own(self, shell: nn.Module) -> None:
        """Hold what `lowered` holds: the same objects, so that neither can have what the other has not."""
        vars(self).update({name: vars(self.lowered)[name] for name in OWNED}, _shell=shell)

    @property
    def training(self) -> bool:
        """One flag with `lowered`."""
        return self.lowered.training

    @training.setter
    def training(self, mode: bool) -> None:
        self.lowered.training = mode

    def train(self, mode: bool = True) -> "StandIn":
        """Set the mode of every module, as the backbone's own `train` does where its class has one (norms that it keeps in eval mode)."""
        own = type(self._shell).train
        if own is nn.Module.train:
            return super().train(mode)
        own(self._shell, mode)
        self.training = self._shell.training
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_shell" not in vars(self):
                raise
        kept = vars(self.lowered)
        if name in kept and not shadows_graph_module(name):  # by forward, in its last pass
            return kept[name]
        found = look_up(self._shell, name)
        return self if found is self._shell else found

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _declared(type(self)) or hasattr(type(self), name):
            if isinstance(value, nn.Module):
                raise BackboneOnlyError(
                    f"every converted network has an attribute {name!r} that is no module. If a module of the backbone is called so, "
                    f"replace it by net.lowered.{name} = ..."
                )
            object.__setattr__(self, name, value)
            return
        refuse_baked(self._shell, name, self.lowered.graph)
        is_module_like = isinstance(value, nn.Module | nn.Parameter) or any(name in vars(self)[kind] for kind in OWNED)
        if is_module_like or name in vars(self) or not has(self._shell, name):
            super().__setattr__(name, value)
            if isinstance(value, nn.Module):
                watch_(self.lowered)
            return
        vars(self._shell)[name] = value
        if name in vars(self.lowered):  # a plain tensor, which the graph reads there
            vars(self.lowered)[name] = value

    def __delattr__(self, name: str) -> None:
        if name in vars(self._shell) and name not in vars(self):
            refuse_baked(self._shell, name, self.lowered.graph)
            del vars(self._shell)[name]
            return
        super().__delattr__(name)

    def get_submodule(self, target: str) -> nn.Module:
        """As every module's, but a child of the backbone whose name is one of ours (`graph`, `labels`) is found too."""
        return self.lowered.get_submodule(target) if target else self

    def __deepcopy__(self, memo: dict[int, Any]) -> "StandIn":
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        vars(twin)["lowered"] = copy.deepcopy(self.lowered, memo)
        twin._own(copy_shell(self._shell, twin.lowered, memo))
        others = {name: value for name, value in vars(self).items() if name not in vars(twin)}
        vars(twin).update(copy.deepcopy(others, memo))
        return twin

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "StandIn":
        remember_(self._constants, self.lowered)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        restore_(self._constants, self.lowered)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        rename_old_keys_(state_dict, self, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def refuse_changes(self) -> None:
        """Raise where a module that the graph needs is gone, or has another forward than the one that was traced.

        Raises:
            StructureError: names it.
        """
        if self._places[0] != self.lowered.code:
            self._places = (self.lowered.code, places_of(self.lowered))
        refuse_changes(self.lowered, self._places[1])


def rename_old_keys_(state: dict[str, Any], net: StandIn, prefix: str = "") -> None:
    """Rename the keys of `net`, at `prefix`, as they were when the backbone's names stood behind `lowered.`. In place, in their order."""
    old = f"{prefix}lowered."
    if "lowered" in net._modules or not any(key.startswith(old) for key in state):  # a backbone may have a child of that name
        return
    renamed = {prefix + key.removeprefix(old) if key.startswith(old) else key: value for key, value in state.items()}
    state.clear()
    state.update(renamed)


def _declared(kind: type[nn.Module]) -> frozenset[str]:
    """The attributes that `kind` declares as its own, whatever the backbone has by these names."""
    ours = kind.__mro__[: kind.__mro__.index(nn.Module)]
    return frozenset(name for one in ours for name in get_annotations(one))
