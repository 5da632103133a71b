"""What an archive keeps of a conversion besides its graph."""

from dataclasses import dataclass

from dggraph.compiler.stages import FoundStage


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """What an archive must keep to lower the same trace again."""

    fingerprint: str
    found: tuple[FoundStage, ...]
    static: tuple[tuple[str, int, str], ...]
    """(module path, MACs, reason) of what belongs to no stage."""
    kept_because: tuple[str, ...]
    """Per stage, why its residuals are kept; empty where they are lifted."""
    router: str
    gate: str
    leaves: tuple[str, ...]
    """Classes of the backbone's modules that the caller kept as one call."""
    input_shape: tuple[int, ...]
    """Shape of one example instance."""
    dtype: str
    """Type of the example, such as `float32`."""
