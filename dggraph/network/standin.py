"""A module with the interface of its backbone: the same names of attributes and weights."""

import copy
from collections.abc import Callable, Mapping
from functools import cache
from inspect import get_annotations
from typing import Any, TypeVar

from torch import Tensor, nn

from dggraph.compiler.copying import STATE_HOOKS
from dggraph.compiler.hooks import watch_, watch_new_
from dggraph.compiler.lowered import OWNED, LoweredModule
from dggraph.compiler.naming import shadows_graph_module
from dggraph.errors import BackboneOnlyError
from dggraph.models.origins import GIVEN
from dggraph.network.constants import remember_, restore_
from dggraph.network.shell import (
    copy_shell,
    hand_tensors_,
    has,
    is_read,
    look_up,
    make_shell,
    own_version,
    refuse_baked,
)
from dggraph.network.structure import Structure
from dggraph.network.weights_origin import Origin, origin_now, origin_of
from dggraph.system.torch_private import COMPILED

Self = TypeVar("Self", bound="StandIn")


class StandIn(nn.Module):
    """A module that owns the backbone's modules, parameters and buffers under their original names.

    The routing of each stage comes first, as `dg_<stage>`. `lowered` owns the same objects, so
    whatever is assigned, deleted or loaded here is what runs.

    Attributes of the backbone are available, and so are read-only methods of its class
    (`get_classifier`). Its other methods would run or rebuild the static backbone, and raise a
    BackboneOnlyError. An attribute of this class hides an attribute of the backbone with the same
    name, which `lowered` still has.
    """

    lowered: LoweredModule
    """The fx.GraphModule that runs; a second owner of the children, and not itself a child."""
    _shell: nn.Module
    """The backbone without its weights, see `shell`."""
    _structure: Structure
    """The generated code and what it assumes about modules, see `structure`."""
    _constants: dict[str, Tensor]
    """See `constants`."""
    _origin: Origin
    """The origin of the weights when it was last noted."""

    def __init__(self, lowered: LoweredModule, backbone: nn.Module) -> None:
        mode = lowered.training
        vars(self)["lowered"] = lowered
        super().__init__()
        self.training = mode
        self._own(make_shell(backbone, lowered))
        self._structure, self._constants = Structure(lowered), {}
        self._origin = Origin(GIVEN, None)

    def _own(self, shell: nn.Module) -> None:
        """Own the same objects as `lowered`, so that both always have the same children."""
        vars(self).update({name: vars(self.lowered)[name] for name in OWNED}, _shell=shell)
        vars(self).update({name: vars(shell)[name] for name in STATE_HOOKS})

    @property
    def training(self) -> bool:
        """The mode, shared with `lowered`."""
        return self.lowered.training

    @training.setter
    def training(self, mode: bool) -> None:
        self.lowered.training = mode

    @property
    def weights_origin(self) -> str:
        """The origin of the weights, for example `random` or `torchvision IMAGENET1K_V2`.

        Other origins are `checkpoint FILE`, `trained by dggraph`, `given by the caller`, and
        `unknown` for archives that do not record it. Random weights that were trained or
        overwritten since are `given by the caller`.
        """
        return origin_now(self._origin, self.lowered)

    def train(self: Self, mode: bool = True) -> Self:
        """Set the mode of every module, with the backbone's own `train` if it has one.

        Some backbones keep norms in eval mode, for example.
        """
        own = own_version(self._shell, "train")
        return super().train(mode) if own is None else self._in_mode_of(own, mode)

    def eval(self: Self) -> Self:
        """Set eval mode, with the backbone's own `eval` if it has one."""
        own = own_version(self._shell, "eval")
        return super().eval() if own is None else self._in_mode_of(own)

    def _in_mode_of(self: Self, own: Callable[..., Any], *mode: bool) -> Self:
        self._shell.training = self.training
        own(*mode)
        self.training = self._shell.training
        return self

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        """Set `requires_grad` of all parameters, with the backbone's own version if it has one.

        Some backbones keep a stem frozen, for example.
        """
        own = own_version(self._shell, "requires_grad_") or super().requires_grad_
        own(requires_grad)
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_shell" not in vars(self):
                raise
        kept = vars(self.lowered)
        if name in kept and not shadows_graph_module(name):  # set by the last forward pass
            return kept[name]
        found = look_up(self._shell, name)
        return self if found is self._shell else found

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _declared(type(self)) or hasattr(type(self), name):  # type: ignore[arg-type]
            if isinstance(value, nn.Module):
                raise BackboneOnlyError(
                    f"every converted network has an attribute {name!r} that is not a module. If"
                    " the backbone has a module with this name, replace it by"
                    f" net.lowered.{name} = ..."
                )
            object.__setattr__(self, name, value)
            return
        refuse_baked(self._shell, name, self.lowered.graph)
        is_module_like = isinstance(value, nn.Module | nn.Parameter) or any(
            name in vars(self)[kind] for kind in OWNED
        )
        if isinstance(value, nn.Module | nn.Parameter):  # replaces a plain attribute
            for held in (vars(self), vars(self._shell)):
                held.pop(name, None)
            self._show(name)
        if is_module_like or name in vars(self) or not has(self._shell, name):
            super().__setattr__(name, value)
            if isinstance(value, nn.Module):
                watch_(self.lowered)
        else:
            vars(self._shell)[name] = value
        self._show(name)

    def __delattr__(self, name: str) -> None:
        if name in vars(self._shell) and name not in vars(self):
            refuse_baked(self._shell, name, self.lowered.graph)
            del vars(self._shell)[name]
        else:
            super().__delattr__(name)
        self._show(name)

    def _show(self, name: str) -> None:
        """Make the graph read the plain tensor that is now at `name`, and not an older one."""
        plain, read = vars(self).get(name, vars(self._shell).get(name)), vars(self.lowered)
        if isinstance(plain, Tensor) and is_read(self.lowered.graph, name):
            read[name] = plain
        elif isinstance(read.get(name), Tensor):
            del read[name]

    def get_submodule(self, target: str) -> nn.Module:
        """Return the module at `target`.

        A child of the backbone whose name is hidden here (`graph`, `labels`) is found too.
        """
        return self.lowered.get_submodule(target) if target else self

    def __deepcopy__(self, memo: dict[int, Any]) -> "StandIn":
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        vars(twin)["lowered"] = copy.deepcopy(self.lowered, memo)
        twin._own(copy_shell(self._shell, twin.lowered, memo))
        own = {*vars(twin), COMPILED}
        others = {name: value for name, value in vars(self).items() if name not in own}
        vars(twin).update(copy.deepcopy(others, memo))
        return twin

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "StandIn":
        remember_(self._constants, self.lowered)
        own = own_version(self._shell, "_apply")
        if own is None:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        else:
            _ = own(fn) if recurse else own(fn, recurse)
            hand_tensors_(self._shell, self.lowered)
        restore_(self._constants, self.lowered)
        return self

    @property
    def _version(self) -> int:  # type: ignore[override]
        return self._shell._version

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """Return the state dict, with the backbone's own version of this method if it has one."""
        own = own_version(self._shell, "state_dict") or super().state_dict
        return own(*args, **options)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """Load a state dict, with the backbone's own version of this method if it has one.

        Keys of earlier versions, which begin with `lowered.`, are accepted.
        """
        own = own_version(self._shell, "load_state_dict")
        if own is None:
            return super().load_state_dict(state_dict, *args, **options)
        state: Any = copy.copy(state_dict)
        rename_old_keys_(state, self)
        return own(state, *args, **options)

    def _save_to_state_dict(self, *args: Any) -> None:
        self._shell._save_to_state_dict(*args)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        rename_old_keys_(state_dict, self, prefix)
        self._shell._load_from_state_dict(state_dict, prefix, *rest)
        hand_tensors_(self._shell, self.lowered)

    def _replicate_for_data_parallel(
        self,
    ) -> Any:  # private, torch 2.10 to 2.15; what nn.DataParallel calls for several devices
        raise BackboneOnlyError(
            "nn.DataParallel cannot copy a converted network to several devices in each step. Use"
            " DistributedDataParallel, with one process per device."
        )

    def refuse_changes(self) -> None:
        """Raise if the network no longer has the modules that its graph was written for.

        Raises:
            StructureError: A module that the graph needs was removed, or has another forward than
                the traced one.
        """
        if self._structure.code != self.lowered.code:
            self._structure = Structure(self.lowered)
        seen = self._structure.seen
        self._structure.refuse_changes(self.lowered)
        if self._structure.seen is not seen:
            watch_new_(self.lowered)


def note_weights_(net: StandIn, told: str) -> None:
    """Set the origin of the current weights of `net`. In place."""
    net._origin = origin_of(told, net.lowered)


def rename_old_keys_(state: dict[str, Any], net: StandIn, prefix: str = "") -> None:
    """Rename old keys of `net`, in which `lowered.` stood before the backbone's names. In place.

    `prefix` is the path of `net` in the state dict. The order of keys stays.
    """
    old = f"{prefix}lowered."
    if "lowered" in net._modules or not any(
        key.startswith(old) for key in state
    ):  # a backbone may have a child of that name
        return
    renamed = {
        prefix + key.removeprefix(old) if key.startswith(old) else key: value
        for key, value in state.items()
    }
    state.clear()
    state.update(renamed)


def load_full_state_dict_(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict from `sharding.full_state_dict` into a model that may be sharded. In place.

    State dicts of earlier versions are accepted.
    """
    from dggraph.system.sharding import shard_like  # half a second of torch

    now, state = model.state_dict(), dict(state)
    for path, module in model.named_modules():
        if isinstance(module, StandIn):
            rename_old_keys_(state, module, f"{path}." if path else "")
    model.load_state_dict(
        {
            name: shard_like(tensor, now[name]) if name in now else tensor
            for name, tensor in state.items()
        }
    )


@cache
def _declared(kind: type[nn.Module]) -> frozenset[str]:
    """Return the attributes that `kind` declares, even if the backbone has the same names."""
    ours = kind.__mro__[: kind.__mro__.index(nn.Module)]
    return frozenset(name for one in ours for name in get_annotations(one))
