"""A fake batch that runs through a graph while it is traced, up to the op that is asked about."""

import builtins
import copy
import operator
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from dggraph.ops.guards import hold
from dggraph.system.torch_private import FakeTensorMode

_ISINSTANCE, _LEN = isinstance, len


class Unanswered(fx.proxy.TraceError):
    """The answer to a question depends on the values or the number of the images."""


class HooksGradients(Exception):
    """A forward puts a hook on the gradient of a feature map, which a graph cannot record."""

    def __init__(self, method: str) -> None:
        super().__init__(
            f"forward puts a hook on the gradient of a feature map ({method}), which a graph of"
            " ops cannot record; set a hook on a module of the converted network instead"
            " (register_full_backward_hook)"
        )


@dataclass(frozen=True, slots=True)
class _Unknown:
    """A value that could not be computed on the fake batch."""

    reason: str


class Witness:
    """A batch that follows the graph.

    It is fake, so that it costs nothing, until a module that is kept as a single call needs values;
    then it is real.
    """

    def __init__(
        self, module: nn.Module, attempt: nn.Module, example: Tensor, num_images: int
    ) -> None:
        """Set up the witness; it runs nothing yet.

        Args:
            module: runs the ops.
            attempt: the module that is traced; it holds the constants that tracing stores.
            example: (1 or more, C, H, W), of which the first image is used.
            num_images: batch size.
        """
        self.module, self.attempt = module, attempt
        self.real = example[:1].expand(num_images, *example.shape[1:]).contiguous()
        self.mode: FakeTensorMode | None = FakeTensorMode(allow_non_fake_inputs=True)
        self.batch: Tensor = self.mode.from_tensor(self.real)
        self.values: dict[fx.Node, Any] = {}
        self.is_running = False

    def value(self, fx_node: fx.Node) -> Any:
        """Return the value of `fx_node`.

        Raises:
            Unanswered: it could not be computed.
        """
        if fx_node not in self.values:
            self._follow(fx_node.graph)
        if isinstance(self.values[fx_node], _Unknown) and self.mode is not None:
            self.mode, self.batch, self.values = None, self.real.clone(), {}
            # A copy: its counters and caches must not reach the module that is converted.
            self.module = copy.deepcopy(self.module)
            self._follow(fx_node.graph)
        value = self.values[fx_node]
        if isinstance(value, _Unknown):
            raise Unanswered(value.reason)
        return value

    def _follow(self, graph: fx.Graph) -> None:
        self.is_running = True
        try:
            # Fake tensors dispatch three times faster in inference mode.
            ungraded = torch.no_grad() if self.mode is None else torch.inference_mode()
            with ungraded, _ordinary_builtins(), self.mode or nullcontext():
                for fx_node in graph.nodes:
                    if fx_node not in self.values:
                        self.values[fx_node] = self._compute(fx_node)
        finally:
            self.is_running = False

    def _compute(self, fx_node: fx.Node) -> Any:
        unknown = [
            source
            for source in fx_node.all_input_nodes
            if isinstance(self.values.get(source), _Unknown)
        ]
        if unknown:
            return self.values[unknown[0]]
        args = fx.node.map_aggregate(fx.map_arg(fx_node.args, self.values.__getitem__), _plain)
        kwargs = fx.node.map_aggregate(fx.map_arg(fx_node.kwargs, self.values.__getitem__), _plain)
        try:
            if fx_node.op == "placeholder":
                return self.batch
            if fx_node.op == "get_attr":
                found = operator.attrgetter(str(fx_node.target))(self.attempt)
                if not issubclass(type(found), fx.Proxy):
                    return found
                # Forward has put a proxy on `attempt`.
                return operator.attrgetter(str(fx_node.target))(self.module).clone()
            if fx_node.op == "call_method":
                return getattr(args[0], str(fx_node.target))(*args[1:], **kwargs)
            target: Any = (
                self.module.get_submodule(str(fx_node.target))
                if fx_node.op == "call_module"
                else fx_node.target
            )
            return None if target is hold else target(*args, **kwargs)
        except Exception as error:
            return _Unknown((str(error).strip().splitlines() or [type(error).__name__])[0])


@contextmanager
def _ordinary_builtins() -> Iterator[None]:
    """Undo `answered_builtins`: fake tensors call `isinstance` thousands of times a layer."""
    answered = builtins.isinstance, builtins.len
    builtins.isinstance, builtins.len = _ISINSTANCE, _LEN
    try:
        yield
    finally:
        builtins.isinstance, builtins.len = answered


def _plain(argument: Any) -> Any:
    """Return a training flag as a bool, which torch's functions require."""
    return bool(argument) if isinstance(argument, int) and hasattr(argument, "path") else argument
