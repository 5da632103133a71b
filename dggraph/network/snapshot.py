"""What conversion knew of a network, for as long as the network is built as it was then: so `save`
neither runs it nor builds its backbone again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx, nn

from dggraph.compiler.fingerprints import qualified_name
from dggraph.compiler.regions import Flow

Outline = tuple[tuple[str, object], ...]
"""The class of every module, and the shape of every tensor in the state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A network as it was converted."""

    outline: Outline
    num_outputs: int | None
    """Columns of an output (B, columns); None where the backbone returns something else."""
    source: str | None = None
    """The MODEL name that built its backbone; None where that is not known."""
    source_options: Mapping[str, int] | None = None

    def holds_of(self, lowered: nn.Module) -> bool:
        """Whether `lowered` is still built so: no head replaced, no adapter added."""
        return self.outline == outline_of(lowered)


def outline_of(lowered: nn.Module) -> Outline:
    """How `lowered` is built, whatever its weights are."""
    # by name: each fx.GraphModule has a class of its own
    classes = ((path, qualified_name(type(module))) for path, module in lowered.named_modules())
    state = lowered.state_dict(keep_vars=True)
    return (*classes, *((key, getattr(value, "shape", None)) for key, value in state.items()))


def count_outputs(flow: Flow) -> int | None:
    """Columns of what the traced backbone returns, where that is one tensor (B, columns)."""
    (output,) = (fx_node for fx_node in flow.order if fx_node.op == "output")
    returned = output.args[0]
    if not isinstance(returned, fx.Node):
        return None
    shape = flow.profile.shapes.get(returned.name, ())
    return shape[1] if len(shape) == 2 else None
