"""A digest of a graph's structure, which archives store."""

import hashlib
from typing import Any

from torch import fx

from dggraph.compiler.capture import keep
from dggraph.ops.guards import hold


def fingerprint(graph: fx.Graph) -> str:
    """Return the SHA-256 of the graph's structure: names, targets and arguments.

    Two traces of one architecture have equal digests.
    """
    digest = hashlib.sha256()
    for fx_node in graph.nodes:
        if fx_node.target is keep:  # archives written before `keep` was traced must still load
            continue
        target = (
            fx_node.target if isinstance(fx_node.target, str) else qualified_name(fx_node.target)
        )
        # The last argument of `hold` is a line of source, which moves from version to version.
        args = fx_node.args[:-1] if fx_node.target is hold else fx_node.args
        digest.update(
            f"{fx_node.op} {fx_node.name} {target} {args!r} {fx_node.kwargs!r}\n".encode()
        )
    return digest.hexdigest()


def qualified_name(function: Any) -> str:
    """Return the module and name of a function or class."""
    name = getattr(function, "__qualname__", getattr(function, "__name__", "?"))
    return f"{getattr(function, '__module__', '')}.{name}"
