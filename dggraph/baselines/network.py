"""The network that a method returns, and what it reports.

Shape suffixes: B images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dggraph.baselines.publishing import save_pretrained
from dggraph.compiler.lowered import LoweredModule
from dggraph.compiler.profiling import profile
from dggraph.errors import InputError
from dggraph.models.preprocessing import Preprocess
from dggraph.network.publishing import push_to_hub
from dggraph.network.shell import only_images
from dggraph.network.snapshot import Outline, outline_of
from dggraph.network.standin import StandIn
from dggraph.ops.aggregation import is_plain
from dggraph.system.modes import evaluating

Exactness = Literal["to the bit", "up to rounding", "no"]
Option = int | float | str
Values = dict[str, Tensor]
"""What a forward pass decided, by name, with the batch first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineReport:
    """What a method changed in a backbone.

    Example:
        >>> import dggraph
        >>> report = dggraph.baselines.squeeze_excitation("dggraph:resnet20_8").report
        >>> report.exactness, len(report.changed)
        ('no', 9)
    """

    changed: tuple[str, ...]
    """Paths of the modules that it changed."""
    unchanged: tuple[tuple[str, str], ...]
    """(path, reason) of each part that it left as it was."""
    exactness: Exactness
    """Whether the network starts as the backbone."""
    reason: str
    """Why it does or does not."""
    max_difference: float
    """max |backbone - network| over the outputs, measured on two random images."""
    num_added_parameters: int

    def __str__(self) -> str:
        """Return one line per fact."""
        lines = [
            f"changed: {', '.join(self.changed)}",
            f"starts as the backbone: {self.exactness}, {self.reason}"
            f" (largest difference {self.max_difference:.3g})",
            f"added parameters: {self.num_added_parameters:,}",
        ]
        return "\n".join([*lines, *(f"unchanged: {path}: {why}" for path, why in self.unchanged)])


class BaselineNetwork(StandIn):
    """A backbone changed by one of the methods in `BASELINES`, made by it or by `load`.

    Modules, parameters and buffers keep their names from the backbone. What the method adds is
    named `dg_...`.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.baselines.squeeze_excitation("dggraph:resnet20_8", reduction=4)
        >>> net(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> net.method, net.options
        ('squeeze_excitation', {'reduction': 4})
    """

    method: str
    """Its name in `BASELINES`."""
    options: Mapping[str, Option]
    """The options that the method got."""
    name: str
    """The class of the backbone."""
    report: BaselineReport
    """What the method changed."""
    fingerprint: str
    """The fingerprint of the backbone's trace, for an archive."""
    outline: Outline
    """The structure that it was built with, for an archive."""
    input_shape: tuple[int, ...]
    """(C, H, W) of the example that it was built with."""
    source: str | None
    """The MODEL name that it was built from, or None for a bare module."""
    source_options: Mapping[str, int]
    """Options that its backbone was built with, for example {"num_classes": 10}."""
    preprocess: Preprocess | None
    """How images become inputs, if known."""
    labels: tuple[str, ...] | None
    """Class names, if known."""
    _macs: dict[tuple[int, ...], dict[str, int]]

    def __init__(
        self,
        lowered: LoweredModule,
        *,
        backbone: nn.Module,
        method: str,
        options: Mapping[str, Option],
        report: BaselineReport,
        fingerprint: str,
        input_shape: tuple[int, ...],
    ) -> None:
        super().__init__(lowered, backbone)
        self.method, self.options, self.name = method, dict(options), type(backbone).__name__
        self.report, self.fingerprint, self.input_shape = report, fingerprint, input_shape
        self.outline = outline_of(lowered)
        self.source, self.source_options = None, {}
        self.preprocess = self.labels = None
        self._macs = {}

    save_pretrained = save_pretrained
    push_to_hub = push_to_hub

    def extra_repr(self) -> str:
        """Return the method, its options and the origin of the weights, for the repr."""
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        return f"{self.method}({options}), weights {self.weights_origin}"

    def forward(self, x: Tensor | None = None, return_values: bool = False, **named: Any) -> Any:
        """Return the backbone's output for images x (B, C, H, W).

        Args:
            x: The images.
            return_values: Also return what the pass decided, as {name: (B, ...)}.
            named: The images under the backbone's own name for them.

        Raises:
            InputError: x is not a batch of images.
            StructureError: A module was removed or replaced by one that the graph cannot run.
        """
        if x is None or named:
            x = only_images(self._shell, x, named)
        if x.ndim != 4:
            raise InputError(
                f"{self.name} takes a batch of images (B, C, H, W), got {tuple(x.shape)}. Add the"
                " batch axis with x[None]."
            )
        if not is_plain():
            self.refuse_changes()
        output, values = self.lowered(x)
        return (output, values) if return_values else output

    def anneal_(self, done: float) -> None:
        """Set what the method changes during training, after the share `done` of it. In place."""

    def auxiliary_loss(self, values: Values) -> Tensor | None:
        """Return what the method adds to the task's loss, 0-d; None if nothing.

        Args:
            values: The result of `net(x, return_values=True)`.
        """
        return None

    @torch.no_grad()
    def macs(self, x: Tensor) -> Tensor:
        """Return the multiply-accumulates of each image of x (B, C, H, W), as (B,) float64.

        They are those of convolutions, linear layers and matrix products, as `FlopCounterMode`
        counts them. A network whose work does not depend on the image returns one number B times.
        """
        return torch.full((len(x),), float(self._macs_of_one(x)), dtype=torch.float64)

    def _macs_of_one(self, x: Tensor) -> int:
        return sum(self._macs_of_parts(x).values())

    def _macs_of_parts(self, x: Tensor) -> dict[str, int]:
        """Return the cost of each fx node for one image of the shape of x (B, C, H, W)."""
        sizes = sum(parameter.numel() for parameter in self.parameters())
        key = (*x.shape[1:], sizes)  # a module may have been replaced
        if key not in self._macs:
            with evaluating(self):
                self._macs[key] = profile(self.lowered, self.lowered.graph, x).macs
        return self._macs[key]


def baseline_part(model: nn.Module) -> BaselineNetwork | None:
    """Return the first network of a method in `model`, which may be `model` itself, or None."""
    return next((module for module in model.modules() if isinstance(module, BaselineNetwork)), None)
