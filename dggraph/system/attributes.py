"""Attribute dictionaries of modules, made small.

In CPython the instances of a class share the keys of their attributes, until an instance is copied:
`copy.deepcopy` gives each copy a dictionary of its own, three times as large. A converted network
consists of copies, and looks at them before each pass. On one small image this costs several
percent of the time, since the dictionaries drive weights out of the cache.
"""

from torch import nn


def share_keys_(module: nn.Module) -> None:
    """Let the attributes of the modules inside `module` share their keys again. In place.

    Modules stay the same objects, with the same attributes. Those that hold an attribute that their
    class also has are left alone: setting it might call code.
    """
    for one in module.modules():
        kind = type(one)
        if one is module or any(hasattr(kind, name) for name in vars(one)):
            continue
        twin = object.__new__(kind)
        for name, value in vars(one).items():
            object.__setattr__(twin, name, value)
        object.__setattr__(one, "__dict__", vars(twin))
