"""The parts of a conversion, apart from its graph, that an archive keeps."""

from dataclasses import dataclass

from dggraph.compiler.planning import Aggregation
from dggraph.compiler.stages import FoundStage
from dggraph.ops.granularity import Granularity


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """The information needed to lower the same trace again."""

    fingerprint: str
    found: tuple[FoundStage, ...]
    static: tuple[tuple[str, int, str], ...]
    """(module path, MACs, reason) of each module outside the stages."""
    kept_because: tuple[str, ...]
    """Per stage, why its residuals are kept; empty if they are lifted."""
    router: str
    gate: str
    granularity: Granularity = "edge"
    """How many weights an edge has."""
    aggregation: Aggregation = "sum"
    """How nodes of lifted stages read their sources."""
    leaves: tuple[str, ...]
    """Qualified names of the module classes that the caller kept as a single call."""
    whole: tuple[str, ...] = ()
    """Paths of modules that took a place after conversion, and are single calls too."""
    input_shape: tuple[int, ...]
    """Shape of one example image, without the batch axis."""
    dtype: str
    """The dtype of the example, for example `float32`."""
