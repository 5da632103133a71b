"""Measure the shapes and multiply-accumulates (MACs) of every fx node.

The graph runs on fake tensors, which take no memory and no arithmetic. MACs count convolutions,
linear layers and matrix products, quantised ones included, as `torch.utils.flop_counter` does
(FLOPs = 2 x MACs).
"""

import logging
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dggraph.compiler.quantised import FLOPS_OF_QUANTISED
from dggraph.errors import InputError
from dggraph.system.torch_private import (
    FakeTensorMode,
    has_forward_hooks,
    has_values,
    tree_leaves,
)

TRACED_BATCH = 2
TIED_IMAGES = (
    "Its forward ties the images of a batch together, for example where the frames of clips are"
    " folded into it (B * T), but each image must take its own path. Convert the image backbone"
    " inside, and fold, shift and pool frames around the converted network."
)
CLIPS_BATCH = 480
"""A multiple of most clip lengths, for forwards that need a batch of whole clips."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Measurements of one forward pass at batch size 2."""

    shapes: dict[str, tuple[int, ...]]
    """For each fx node that returns a tensor: its shape, with the batch axis."""
    macs: dict[str, int]
    """For each fx node: multiply-accumulates of one instance."""
    bundles: frozenset[str]
    """Fx nodes that return tensors in a tuple, list or mapping."""
    unroutable: Mapping[str, torch.dtype]
    """Fx nodes that return complex, quantised or integer tensors, which no gate can weigh."""


def profile(module: nn.Module, graph: fx.Graph, example_input: Tensor) -> Profile:
    """Run `graph` once on `example_input`, repeated to a batch of 2.

    Raises:
        InputError: the backbone cannot run on an input of this shape.
    """
    try:
        return _run_fake(module, graph, example_input, TRACED_BATCH)
    except Exception:
        try:
            with unchanged(module):
                return _run(module, graph, _repeated(example_input, TRACED_BATCH).clone())
        except Exception as error:
            raise InputError(_why_not(module, graph, example_input, error)) from error


def _why_not(module: nn.Module, graph: fx.Graph, example: Tensor, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].removesuffix(".")
    wanted = tuple(_repeated(example, TRACED_BATCH).shape)
    if "hook on a tensor that doesn't require grad" in reason:
        return (
            f"the backbone cannot run without gradients, as in evaluation: {reason}. In its"
            " forward, write `if y.requires_grad: y.register_hook(...)`."
        )
    if _runs_itself(module, example):
        return (
            f"the backbone runs on an input of shape {wanted}, but not as it was traced: {reason}."
            " Its Python code took another branch during tracing, for example because of `type(x)"
            " is torch.Tensor` or an error that it catches. Use isinstance(x, torch.Tensor), or"
            " move that part into a separate module and pass its class in `leaves=`."
        )
    for size in (len(example), CLIPS_BATCH):
        try:
            _run_fake(module, graph, example, size)
        except Exception:
            continue
        return (
            f"the backbone runs on a batch of {size}, but not of {TRACED_BATCH}: {reason}."
            f" {TIED_IMAGES}"
        )
    return (
        f"the backbone cannot run on an input of shape {wanted}: {reason}. Give an input"
        " (`example_input`, --input-size) of the shape it was made for."
    )


def _runs_itself(module: nn.Module, example: Tensor) -> bool:
    try:
        with unchanged(module), torch.no_grad():
            module(_repeated(example, TRACED_BATCH).clone())
    except Exception:
        return False
    return True


def _repeated(example: Tensor, size: int) -> Tensor:
    return example[:1].expand(size, *example.shape[1:])


def _run_fake(module: nn.Module, graph: fx.Graph, example: Tensor, size: int) -> Profile:
    with unchanged(module), quiet(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return _run(module, graph, mode.from_tensor(_repeated(example, size)))


def _run(module: nn.Module, graph: fx.Graph, batch: Tensor) -> Profile:
    profiler = _Profiler(module, graph)
    with (
        torch.no_grad(),
        _without_parameter_gradients(module),
        _counted_attention(),
        profiler.counter,
    ):
        profiler.run(batch)
    return Profile(profiler.shapes, profiler.macs, frozenset(profiler.bundles), profiler.unroutable)


_CONTAINERS = (dict, OrderedDict, defaultdict, list, set)


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Restore buffers and attributes of modules after this context.

    Modules change attributes in forward: ConViT keeps an index tensor, transformers keeps hooks.
    """
    attributes = {inner: dict(vars(inner)) for inner in module.modules()}
    contents = [
        (held, held.copy())
        for named in attributes.values()
        for held in named.values()
        if type(held) in _CONTAINERS
    ]
    values = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for inner, before in attributes.items():
            if list(vars(inner)) != list(before):
                vars(inner).clear()
            vars(inner).update(before)  # keeps shared keys where the names are the same
        # In the same objects: a converted network shares dicts with its lowered module.
        for held, before in contents:
            held.clear()
            held.extend(before) if isinstance(held, list) else held.update(before)
        with torch.no_grad():
            for buffer, value in values:
                # The buffers of an observer are empty before its first batch.
                if buffer.shape != value.shape:
                    buffer.resize_(value.shape)
                buffer.copy_(value)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's log of tracebacks for failures on fake tensors.

    Such a failure is retried on real tensors or reported in one error.
    """
    logger = logging.getLogger(FakeTensorMode.__module__)
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled


@contextmanager
def _without_parameter_gradients(module: nn.Module) -> Iterator[None]:
    """Switch gradients off for all parameters.

    A view of a parameter would require a gradient even within `no_grad`, and the counter inspects
    its history.
    """
    asking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


@contextmanager
def _counted_attention() -> Iterator[None]:
    """Run attention as plain matrix products: fused kernels hide their MACs from the counter."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


def _is_plain_norm(module: nn.Module) -> bool:
    """Whether a call in eval mode surely keeps the shape; torch would run ten ops for a norm."""
    return (
        type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        and not module.training
        and "forward" not in vars(module)
        and not has_forward_hooks(module)
    )


class _Profiler(fx.Interpreter):
    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.counter = FlopCounterMode(display=False, custom_mapping=FLOPS_OF_QUANTISED)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.macs: dict[str, int] = {}
        self.bundles: set[str] = set()
        self.unroutable: dict[str, torch.dtype] = {}
        self._flops = 0

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if _is_plain_norm(module) and not kwargs and not has_values(args[0]):
            if args[0].shape[1] == module.num_features:
                return torch.empty_like(args[0])
        return super().call_module(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n.name] = tuple(result.shape)
            if not result.is_floating_point():
                self.unroutable[n.name] = result.dtype
        elif any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            self.bundles.add(n.name)
        flops = self.counter.get_total_flops()
        self.macs[n.name] = (flops - self._flops) // (2 * TRACED_BATCH)
        self._flops = flops
        return result
