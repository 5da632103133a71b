"""Gates: router logits to bounded edge weights, "raw" ones.

`liveness` then decides which of these edges are open. The weight that an open edge adds with is the
raw one, except behind a `ShrinkGate`, where `shrink` takes the threshold off.

Forms other than `anchored` and their sources: `scaled` is that of hyper-connections (arXiv
2409.19606), `softmax` anneals its temperature as dynamic convolution does (arXiv 1912.03458).

Shape suffixes: B instances, E edges that one router decides, S sources of one target.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from math import inf, log
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor, nn

from dggraph.errors import InputError
from dggraph.system.specs import bind, read_known

SCRATCH_OFFSET = 1.0
FIRST_SCALE, LARGEST_SCALE = 0.01, 0.1
Weights = TypeVar("Weights", Tensor, npt.NDArray[Any])


class AnchoredGate(nn.Module):
    """A gate with weight = static + tanh(logit / temperature); logit 0 is the backbone.

    This form is our choice, not the paper's.

    Args:
        static: for each edge of the row, 1 if the backbone has it, else 0.
    """

    anchor_E: Tensor
    temperature: Tensor
    """0-d buffer, initially `start_temperature`. Smaller values give sharper decisions.

    Set it with `DynamicNetwork.set_temperature`.
    """
    start_temperature: ClassVar[float] = 1.0

    def __init__(self, static: Sequence[bool]) -> None:
        """Register the anchors and the temperature as buffers."""
        super().__init__()
        self.static = tuple(map(bool, static))
        self.register_buffer(
            "temperature", torch.tensor(self.start_temperature, dtype=torch.float32)
        )
        self.register_buffer(
            "anchor_E", torch.tensor(self.static, dtype=torch.float32), persistent=False
        )

    def _load_from_state_dict(self, *args: Any) -> None:
        """Load, and set the anchors, which no state dict has: `to_empty` leaves any values."""
        super()._load_from_state_dict(*args)
        anchor_E = self.temperature.new_tensor(self.static)
        if self.anchor_E.device != anchor_E.device:  # `load_state_dict(..., assign=True)`
            self.anchor_E = anchor_E
        else:
            with torch.no_grad():
                self.anchor_E.copy_(anchor_E)

    def forward(self, logits_BE: Tensor) -> Tensor:
        """Map logits (B, E) to weights in (-1, 2), shape (B, E)."""
        return self.anchor_E.to(logits_BE.dtype) + torch.tanh(logits_BE / self.temperature)


class ShrinkGate(AnchoredGate):
    """An anchored gate whose open edges add with weight (raw - tau) / (1 - tau), see `shrink`.

    tau is the stage's threshold. The weight is continuous where the edge closes, and a raw weight
    of 1 stays 1. Edges open and close as with the anchored gate, by their raw weight.
    """


class ScaledGate(AnchoredGate):
    """A gate with weight = static + s tanh(logit / temperature), s learned: 0.01 to below 0.1.

    s is 0.1 sigmoid(`growth`), one for all edges of the gate. It gets no gradient before a logit
    differs from 0, from the second step on.
    """

    span: ClassVar[float] = LARGEST_SCALE

    def __init__(self, static: Sequence[bool]) -> None:
        """Register the anchors and the temperature, and the parameter of s."""
        super().__init__(static)
        start = log(FIRST_SCALE / (LARGEST_SCALE - FIRST_SCALE))
        self.growth = nn.Parameter(torch.full((1,), start, dtype=torch.float32))

    def forward(self, logits_BE: Tensor) -> Tensor:
        """Map logits (B, E) to weights in (-0.1, 1.1), shape (B, E)."""
        moves_BE = self.scale(logits_BE.dtype) * torch.tanh(logits_BE / self.temperature)
        return self.anchor_E.to(logits_BE.dtype) + moves_BE

    def scale(self, dtype: torch.dtype) -> Tensor:
        """Return s, (1,), in `dtype`."""
        return LARGEST_SCALE * torch.sigmoid(self.growth.to(dtype))


class SoftmaxGate(AnchoredGate):
    """A gate in which the edges into one node compete: weight = static + share - null share.

    The shares are the softmax of logit / temperature over the sources of a node and of a null
    source, whose logit is 0. A logit of 0 is the backbone's weight at any temperature.

    Args:
        static: for each edge, 1 if the backbone has it, else 0.
        targets: for each edge, the vertex that it enters, in ascending order.
    """

    start_temperature = 30.0

    def __init__(self, static: Sequence[bool], targets: Sequence[int]) -> None:
        """Register the anchors and the temperature as buffers."""
        super().__init__(static)
        self.num_sources = [len(list(edges)) for _, edges in groupby(targets)]

    def forward(self, logits_BE: Tensor) -> Tensor:
        """Map logits (B, E) of all edges of a stage to weights in (-1, 2), shape (B, E)."""
        moves: list[Tensor] = []
        for logits_BS in torch.split(logits_BE / self.temperature, self.num_sources, 1):
            null_B1 = torch.zeros_like(logits_BS[:, :1])
            shares_BS = torch.softmax(torch.cat([null_B1, logits_BS], 1), dim=1)
            moves.append(shares_BS[:, 1:] - shares_BS[:, :1])
        return self.anchor_E.to(logits_BE.dtype) + torch.cat(moves, 1)


class SigmoidGate(nn.Module):
    """A gate with weight = sigmoid(logit / temperature + 1), for training from scratch.

    At logit 0 every edge is open, with weight 0.73.
    """

    temperature: Tensor
    """As in `AnchoredGate`."""

    def __init__(self, static: Sequence[bool]) -> None:
        """Register the temperature as a buffer; `static` is not used."""
        super().__init__()
        self.register_buffer("temperature", torch.tensor(1.0, dtype=torch.float32))

    def forward(self, logits_BE: Tensor) -> Tensor:
        """Map logits (B, E) to weights in (0, 1), shape (B, E)."""
        return torch.sigmoid(logits_BE / self.temperature + SCRATCH_OFFSET)


Reach = Literal["edge", "column"]
Gate = Callable[[Sequence[bool], Sequence[int]], nn.Module]
"""Maps for each edge of a row whether it is static, and its target, to a module on logits."""

GATES: dict[str, tuple[Reach, Callable[..., nn.Module]]] = {
    "anchored": ("edge", AnchoredGate),
    "sigmoid": ("edge", SigmoidGate),
    "shrink": ("edge", ShrinkGate),
    "scaled": ("edge", ScaledGate),
    "softmax": ("column", SoftmaxGate),
}
"""For each name, what its weights depend on and its factory.

`edge`: the edge's own logit. `column`: the logits of all edges into a node, which a `stage` router
has; the factory then also gets their targets.
"""


class GateKind(NamedTuple):
    """What the name of a gate stands for."""

    reach: Reach
    make: Gate
    shrinks: bool
    """Whether open edges add with what their weight has above the threshold, see `shrink`."""
    start_temperature: float
    """The temperature at the start of training."""
    span: float
    """Weights stay within this distance of the static ones, or infinity if that is not known."""

    def refuse_threshold(self, threshold: float) -> None:
        """Refuse a threshold at which no weight could open or close an edge.

        Raises:
            InputError: it lies further from 0 and from 1 than weights can move.
        """
        if self.span <= threshold <= 1 - self.span:
            raise InputError(
                f"this gate moves weights by less than {self.span:g}, so at threshold={threshold:g}"
                " no edge could open or close, and every image would take the backbone's path. Use"
                ' threshold=0, or gate="shrink" or "anchored".'
            )


def find_gate(text: str) -> GateKind:
    """Return the gate that `text` names, such as `anchored`.

    What is in brackets are further arguments of a registered factory.

    Raises:
        InputError: no such gate, or arguments that it does not take.
    """
    spec = read_known("gate", text, GATES, example="Write for example anchored or sigmoid.")
    reach, make = GATES[spec.name]
    bound = bind(spec, make, num_taken=2 if reach == "column" else 1)
    return GateKind(
        reach=reach,
        make=bound if reach == "column" else lambda static, _targets: bound(static),
        shrinks=isinstance(make, type) and issubclass(make, ShrinkGate),
        start_temperature=float(getattr(make, "start_temperature", 1.0)),
        span=float(getattr(make, "span", inf)),
    )


def register_gate(name: str, make: Callable[..., nn.Module], *, reach: Reach = "edge") -> None:
    """Register a gate, to be selected with `gate=name`.

    Args:
        name: a name that is not registered yet.
        make: called with one bool per edge of a row, whether the backbone has it; returns a module
            from logits to weights, both (B, E). For `init="preserve"`, zero logits must give weight
            1 on the backbone's edges and at most the threshold on all others.
        reach: `column` for a gate that needs the edges into a node together. It goes with `stage`
            routers alone, and is also called with the target of each edge.

    Raises:
        InputError: the name is already registered.

    Example:
        >>> import dggraph, torch
        >>> class HardGate(torch.nn.Module):
        ...     def __init__(self, is_static):
        ...         super().__init__()
        ...         self.register_buffer("base", torch.tensor(is_static, dtype=torch.float32))
        ...     def forward(self, logits_BE):
        ...         return (self.base + logits_BE).clamp(0, 1)
        >>> dggraph.register_gate("hard", HardGate)
        >>> dggraph.convert("dggraph:resnet20_8", gate="hard").blueprint.gate
        'hard'
    """
    if name in GATES:
        raise InputError(f"a gate named {name!r} is already registered; choose another name.")
    GATES[name] = (reach, make)


def shrink(weights_BE: Weights, threshold: Any) -> Weights:
    """Return (weight - threshold) / (1 - threshold) for open edges, and 0 for closed ones.

    Weight 1 stays exactly 1. The gradient is 1 / (1 - threshold) for every edge: whether it passes
    a closed one is decided before.

    Args:
        weights_BE: weights as settled, (B, E), 0 where an edge is closed.
        threshold: the stage's, 0-d.
    """
    # in the weights' type, so that both differences round alike
    is_tensor = isinstance(weights_BE, Tensor)
    tau = (threshold.to if is_tensor else threshold.astype)(weights_BE.dtype)
    shrunk_BE: Weights = (weights_BE - tau * (weights_BE != 0)) / (1 - tau)
    return shrunk_BE


def settled_weight(threshold: float, *, shrinks: bool) -> Callable[[float], float]:
    """Return the function from the raw weight of an open edge to the weight that applies."""
    if not shrinks or threshold == 0:
        return lambda weight: weight
    rest = 1 - threshold
    return lambda weight: (weight - threshold) / rest


def column(rows: Sequence[Tensor], picks: Sequence[tuple[int, int]]) -> Tensor:
    """Gather the weights of the edges into one node from the adjacency rows of its sources.

    Args:
        rows: one tensor (B, edges of that router) per router.
        picks: for each incoming edge, its row and its place in that row.

    Returns:
        (B, E), one column of the adjacency matrix.
    """
    return torch.stack([rows[row][:, place] for row, place in picks], dim=1)
