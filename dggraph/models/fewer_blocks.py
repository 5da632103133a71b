"""Backbones without some of their blocks, as plain modules."""

import copy
from collections.abc import Iterable

from torch import nn

from dggraph.errors import InputError


def without_blocks(model: nn.Module, paths: Iterable[str]) -> nn.Module:
    """Return a copy of `model` with `nn.Identity` in the place of the modules at `paths`.

    Raises:
        InputError: There is no module at a path.
    """
    smaller = copy.deepcopy(model)
    for path in paths:
        owner, _, name = path.rpartition(".")
        try:
            smaller.get_submodule(path)
        except AttributeError as error:
            raise InputError(
                f"{type(model).__name__} has no module {path!r} to leave out. Give the path of a"
                " block as named_modules() lists it, for example layer1.1."
            ) from error
        setattr(smaller.get_submodule(owner), name, nn.Identity())
    return smaller
