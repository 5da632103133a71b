"""Networks of backbones that can be indexed, such as `nn.Sequential` and timm's feature lists.

`net[0]`, `len(net)` and `for layer in net` give the backbone's own layers, without routing.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from dggraph.compiler.lowered import StageRouting
from dggraph.errors import BackboneOnlyError
from dggraph.network.network import DynamicNetwork


class IndexedNetwork(DynamicNetwork):
    """A `DynamicNetwork` that can be indexed like its backbone."""

    def __getitem__(self, key: Any) -> Any:
        """Return the backbone's item at `key`.

        Raises:
            BackboneOnlyError: The item would be a new module, such as a slice, which would run
                without routing.
        """
        view: Any = self._view()
        found = view[key]
        if isinstance(found, nn.Module) and all(found is not one for one in self.modules()):
            raise BackboneOnlyError(
                f"net[{_written(key)}] would be a static {type(found).__name__} of the network's"
                " layers, without the routers between them. Slice the backbone, and convert that."
            )
        return found

    def __setitem__(self, key: Any, module: nn.Module) -> None:
        """Replace a layer, as in the backbone."""
        view: Any = self._view()
        before = dict(view._modules)
        view[key] = module
        for name, child in view._modules.items():
            if child is not before.get(name):
                setattr(self, name, child)

    def __delitem__(self, key: Any) -> None:
        raise BackboneOnlyError(
            f"net[{_written(key)}] cannot be deleted, because the network runs it. Replace it by"
            " nn.Identity(), or delete it from the backbone, and convert that."
        )

    def __len__(self) -> int:
        view: Any = self._view()
        return len(view)

    def __iter__(self) -> Iterator[Any]:
        view: Any = self._view()
        return iter(view)

    def _view(self) -> nn.Module:
        """Return an instance of the backbone's class with only the backbone's children."""
        kind = type(self._shell)
        view: nn.Module = object.__new__(kind)
        children = {
            name: child
            for name, child in self._modules.items()
            if not isinstance(child, StageRouting)
        }
        vars(view).update(vars(self._shell), _modules=children)
        return view


def is_indexed(backbone: nn.Module) -> bool:
    """Whether the class of `backbone` can be indexed."""
    return hasattr(type(backbone), "__getitem__")


def _written(key: object) -> str:
    """Return `key` as it is written between brackets."""
    if not isinstance(key, slice):
        return repr(key)
    return ":".join("" if one is None else str(one) for one in (key.start, key.stop, key.step)[:2])
