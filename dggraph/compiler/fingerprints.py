"""A digest of a graph's structure, which archives hold."""

import hashlib
from typing import Any

from torch import fx

from dggraph.compiler.capture import keep
from dggraph.ops.guards import hold


def fingerprint(graph: fx.Graph) -> str:
    """SHA-256 of the graph's structure: names, targets, arguments. Equal for two traces of one
    architecture.
    """
    digest = hashlib.sha256()
    for fx_node in graph.nodes:
        if fx_node.target is keep:  # archives written before these were traced stay readable
            continue
        target = (
            fx_node.target if isinstance(fx_node.target, str) else qualified_name(fx_node.target)
        )
        args = (
            fx_node.args[:-1] if fx_node.target is hold else fx_node.args
        )  # lines move from version to version
        digest.update(
            f"{fx_node.op} {fx_node.name} {target} {args!r} {fx_node.kwargs!r}\n".encode()
        )
    return digest.hexdigest()


def qualified_name(function: Any) -> str:
    """Module and name of a function or class."""
    name = getattr(function, "__qualname__", getattr(function, "__name__", "?"))
    return f"{getattr(function, '__module__', '')}.{name}"
