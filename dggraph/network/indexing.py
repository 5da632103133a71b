"""Networks of backbones that can be indexed, as `nn.Sequential` and timm's feature lists are:
`net[0]`, `len(net)`, `for layer in net` mean the backbone's own layers, without routing.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from dggraph.compiler.lowered import StageRouting
from dggraph.errors import BackboneOnlyError
from dggraph.network.network import DynamicNetwork


class IndexedNetwork(DynamicNetwork):
    """A `DynamicNetwork` with the container's own view of its layers."""

    def __getitem__(self, key: Any) -> Any:
        """What the backbone has at `key`.

        Raises:
            BackboneOnlyError: it would be a new module: a slice would run without routing.
        """
        view: Any = self._view()
        found = view[key]
        if isinstance(found, nn.Module) and all(found is not one for one in self.modules()):
            raise BackboneOnlyError(
                f"net[{_written(key)}] would be a static {type(found).__name__} of the network's"
                " layers: its routers stand between them. Slice the backbone, and convert that."
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
            f"net[{_written(key)}] cannot be deleted: the network runs it. Replace it by"
            " nn.Identity(), or delete it from the backbone, and convert that."
        )

    def __len__(self) -> int:
        view: Any = self._view()
        return len(view)

    def __iter__(self) -> Iterator[Any]:
        view: Any = self._view()
        return iter(view)

    def _view(self) -> nn.Module:
        """An instance of the backbone's class that has its children alone."""
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
    """`key` as it stands between brackets."""
    if not isinstance(key, slice):
        return repr(key)
    return ":".join("" if one is None else str(one) for one in (key.start, key.stop, key.step)[:2])
