"""The methods by name, and their text form in configurations, such as `cond_conv(experts=4)`."""

from collections.abc import Callable

from torch import Tensor, nn

from dggraph.baselines.conditional_convs import cond_conv
from dggraph.baselines.excitation import squeeze_excitation
from dggraph.baselines.filter_gates import gaternet
from dggraph.baselines.fixed_edges import static_edges
from dggraph.baselines.kernel_attention import dynamic_conv
from dggraph.baselines.layer_gates import layer_skip
from dggraph.baselines.network import BaselineNetwork
from dggraph.baselines.random_graphs import random_wiring
from dggraph.baselines.streams import hyper_connections
from dggraph.models.registry import LoadedModel
from dggraph.network.network import DynamicNetwork
from dggraph.system.specs import Spec, bind, read_known

Method = Callable[..., BaselineNetwork | DynamicNetwork]
"""Maps a model, an example input and options to a network."""

BASELINES: dict[str, Method] = {
    "squeeze_excitation": squeeze_excitation,
    "cond_conv": cond_conv,
    "dynamic_conv": dynamic_conv,
    "gaternet": gaternet,
    "layer_skip": layer_skip,
    "static_edges": static_edges,
    "random_wiring": random_wiring,
    "hyper_connections": hyper_connections,
}
"""Methods by name. Add a function of this form to try a method of your own."""


DYNAMIC_GRAPH = "dynamic_graph"
"""The name of dggraph's own method where a method is asked for: `convert`."""


def read_method(text: str) -> Spec:
    """Parse a text such as `cond_conv(experts=4)`, and check its options.

    Raises:
        InputError: The method is unknown, or does not take these options.
    """
    known = (DYNAMIC_GRAPH, *BASELINES)
    spec = read_known("method", text, known, example="Write for example cond_conv(experts=4).")
    bind(spec, BASELINES.get(spec.name, _without_options), num_taken=2)
    return spec


def _without_options(model: object, example_input: object) -> None:
    """Stand for dggraph's own method, whose options are keys of their own."""


def make_baseline(
    text: str, model: nn.Module | str | LoadedModel, example_input: Tensor | None
) -> BaselineNetwork | DynamicNetwork:
    """Apply the method that `text` names to `model`.

    Raises:
        InputError: The method is unknown, or refuses its options or the model.
    """
    spec = read_method(text)
    return bind(spec, BASELINES[spec.name], num_taken=2)(model, example_input)
