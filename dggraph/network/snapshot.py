"""The structure of a network at its conversion.

While the structure stays the same, `save` needs neither to run the network nor to rebuild its
backbone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx, nn

from dggraph.compiler.fingerprints import qualified_name
from dggraph.compiler.regions import Flow

Outline = tuple[tuple[str, object], ...]
"""The class of every module, and the shape of every tensor in the state dict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The structure and the source of a network at its conversion."""

    outline: Outline
    num_outputs: int | None
    """Number of columns of an output (B, columns); None if the output has another form."""
    source: str | None = None
    """The MODEL name that built its backbone; None if unknown."""
    source_options: Mapping[str, int] | None = None

    def holds_of(self, lowered: nn.Module) -> bool:
        """Whether `lowered` still has this structure: no head replaced, no adapter added."""
        return self.outline == outline_of(lowered)


def outline_of(lowered: nn.Module) -> Outline:
    """Return the structure of `lowered`, which does not depend on the values of its weights."""
    # names, not classes: each fx.GraphModule has its own class
    classes = ((path, qualified_name(type(module))) for path, module in lowered.named_modules())
    state = lowered.state_dict(keep_vars=True)
    return (*classes, *((key, getattr(value, "shape", None)) for key, value in state.items()))


def count_outputs(flow: Flow) -> int | None:
    """Return the columns of the traced backbone's output (B, columns); None for another form."""
    (output,) = (fx_node for fx_node in flow.order if fx_node.op == "output")
    returned = output.args[0]
    if not isinstance(returned, fx.Node):
        return None
    shape = flow.profile.shapes.get(returned.name, ())
    return shape[1] if len(shape) == 2 else None
