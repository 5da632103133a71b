"""Other methods on the same backbones, to compare with: they change the blocks that we route."""

from typing import TYPE_CHECKING

from dggraph.lazy import lazily

if TYPE_CHECKING:
    from dggraph.baselines.conditional_convs import cond_conv as cond_conv
    from dggraph.baselines.excitation import squeeze_excitation as squeeze_excitation
    from dggraph.baselines.filter_gates import gaternet as gaternet
    from dggraph.baselines.fixed_edges import static_edges as static_edges
    from dggraph.baselines.kernel_attention import dynamic_conv as dynamic_conv
    from dggraph.baselines.layer_gates import layer_skip as layer_skip
    from dggraph.baselines.network import BaselineNetwork as BaselineNetwork
    from dggraph.baselines.network import BaselineReport as BaselineReport
    from dggraph.baselines.random_graphs import random_wiring as random_wiring
    from dggraph.baselines.registry import BASELINES as BASELINES
    from dggraph.baselines.streams import hyper_connections as hyper_connections

__all__ = [
    "BASELINES",
    "BaselineNetwork",
    "BaselineReport",
    "cond_conv",
    "dynamic_conv",
    "gaternet",
    "hyper_connections",
    "layer_skip",
    "random_wiring",
    "squeeze_excitation",
    "static_edges",
]

_HOMES = {
    "BASELINES": "dggraph.baselines.registry",
    "BaselineNetwork": "dggraph.baselines.network",
    "BaselineReport": "dggraph.baselines.network",
    "cond_conv": "dggraph.baselines.conditional_convs",
    "dynamic_conv": "dggraph.baselines.kernel_attention",
    "gaternet": "dggraph.baselines.filter_gates",
    "hyper_connections": "dggraph.baselines.streams",
    "layer_skip": "dggraph.baselines.layer_gates",
    "random_wiring": "dggraph.baselines.random_graphs",
    "squeeze_excitation": "dggraph.baselines.excitation",
    "static_edges": "dggraph.baselines.fixed_edges",
}

__getattr__, __dir__ = lazily(__name__, _HOMES)
