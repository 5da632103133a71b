"""Other methods on the same backbones, to compare with: they change the blocks that we route."""

from typing import TYPE_CHECKING

from dggraph.lazy import lazily

if TYPE_CHECKING:
    from dggraph.baselines.conditional_convs import cond_conv as cond_conv
    from dggraph.baselines.excitation import squeeze_excitation as squeeze_excitation
    from dggraph.baselines.kernel_attention import dynamic_conv as dynamic_conv
    from dggraph.baselines.network import BaselineNetwork as BaselineNetwork
    from dggraph.baselines.network import BaselineReport as BaselineReport
    from dggraph.baselines.registry import BASELINES as BASELINES

__all__ = [
    "BASELINES",
    "BaselineNetwork",
    "BaselineReport",
    "cond_conv",
    "dynamic_conv",
    "squeeze_excitation",
]

_HOMES = {
    "BASELINES": "dggraph.baselines.registry",
    "BaselineNetwork": "dggraph.baselines.network",
    "BaselineReport": "dggraph.baselines.network",
    "cond_conv": "dggraph.baselines.conditional_convs",
    "dynamic_conv": "dggraph.baselines.kernel_attention",
    "squeeze_excitation": "dggraph.baselines.excitation",
}

__getattr__, __dir__ = lazily(__name__, _HOMES)
