"""Generate code for modules, parameters and buffers whose names are taken.

Names are taken by Python (`class`, `in`) or by every `fx.GraphModule` (`graph`, `code`). `fx`
writes `self.in_proj.class`, which is not valid Python, and `self.graph`, which is the fx graph and
not the layer. Targets, and with them state-dict keys, stay unchanged; only the code that reads them
differs.
"""

import keyword
import re

from torch import fx, nn

_EMPTY = fx.GraphModule(nn.Module(), fx.Graph())


def read_taken_names_(graph: fx.Graph) -> None:
    """Let the code of `graph` reach every target, whatever its name."""
    odd = {
        str(fx_node.target)
        for fx_node in graph.nodes
        if fx_node.op in ("call_module", "get_attr") and _is_taken(str(fx_node.target))
    }
    if not odd:
        return
    calls = {str(fx_node.target) for fx_node in graph.nodes if fx_node.op == "call_module"}
    written = {
        _as_fx_writes(target): _readable(target, is_called=target in calls) for target in odd
    }
    found = re.compile(
        "|".join(rf"{re.escape(text)}(?![\w.])" for text in sorted(written, key=len, reverse=True))
    )
    graph.on_generate_code(
        lambda _: (
            lambda body: [found.sub(lambda match: written[match.group()], line) for line in body]
        )
    )


def shadows_graph_module(name: str) -> bool:
    """Whether every GraphModule has an attribute `name`.

    It would hide a child, parameter or buffer of that name.
    """
    return name != "training" and hasattr(_EMPTY, name)


def _is_taken(target: str) -> bool:
    parts = target.split(".")
    return shadows_graph_module(parts[0]) or any(keyword.iskeyword(part) for part in parts)


def _as_fx_writes(target: str) -> str:
    text = "self"
    for part in target.split("."):
        text = f"{text}.{part}" if part.isidentifier() else f'getattr({text}, "{part}")'
    return text


def _readable(target: str, *, is_called: bool) -> str:
    first, *rest = target.split(".")
    if not shadows_graph_module(first):
        text, rest = "self", [first, *rest]
    elif is_called or rest:
        text = f'self._modules["{first}"]'
    else:
        text = f'(self._modules | self._parameters | self._buffers)["{first}"]'
    for part in rest:
        is_plain = part.isidentifier() and not keyword.iskeyword(part)
        text = f"{text}.{part}" if is_plain else f'getattr({text}, "{part}")'
    return text
