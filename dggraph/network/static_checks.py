"""Self-checks of the forward pass: equality with the backbone, and the start of the routers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dggraph.compiler.lowered import routing_of
from dggraph.compiler.profiling import TIED_IMAGES, TRACED_BATCH, unchanged
from dggraph.errors import DggraphError, InputError, LoweringError
from dggraph.network.gate_contexts import decided_edges, pinned_gates
from dggraph.network.gates import Gates, static_weights
from dggraph.network.network import DynamicNetwork
from dggraph.network.outputs import structure_of, tensors_in

CHECK_BATCH = 3
SMALL_SIDE = 96
LIFT_TOLERANCE = 1e-5


def check_static(
    net: DynamicNetwork, reference: nn.Module, example: Tensor
) -> tuple[float, list[Tensor]]:
    """Compare with the backbone at an untraced batch size, with every static edge at weight 1.

    Both are in eval mode.

    Returns:
        max |backbone - lowered|, and the lowered network's outputs.

    Raises:
        LoweringError: They differ (beyond 1e-5 max |y| if several residuals of a block were
            lifted), or equality was not proved.
        InputError: The backbone cannot run on a batch of 3, or returns no tensor; or a router or
            gate has the wrong width.
    """
    x = check_input(example)
    with unchanged(reference):
        returned = _run_reference(net, reference, x)
        buffers = {name: buffer.detach().clone() for name, buffer in reference.named_buffers()}
    try:
        with unchanged(net.lowered), _watched(net), pinned_gates(net, static_weights(net.graph)):
            given = _run(net, x)
            changed = [name for name, buffer in buffers.items() if _is_other(net, name, buffer)]
    except DggraphError:
        raise
    except Exception as error:
        raise LoweringError(
            f"the lowered {net.graph.name} fails at batch {CHECK_BATCH} (traced at 2): {error}"
        ) from error
    expected, actual = tensors_in(returned), tensors_in(given)
    difference = largest_difference(expected, actual)
    scale = largest(expected)
    is_lifted = any(stage.residual == "lift" for stage in net.graph.stages.values())
    if are_equal(expected, actual) or (is_lifted and difference <= LIFT_TOLERANCE * scale):
        _refuse_other_form(net, returned, given)
        if changed:
            raise LoweringError(
                f"forward updates the buffer {changed[0]!r}, and the lowered {net.graph.name}"
                " updates it differently, so it is not returned. Move the update into its own"
                " module and pass the class of that in `leaves=`."
            )
        return difference, actual
    with unchanged(reference):
        again = tensors_in(_run(reference, x))
    if not are_equal(expected, again):
        raise LoweringError(
            f"{net.graph.name} gives two outputs for one input in eval mode, so nothing can be"
            " compared with it. Turn off random operations in its forward (dropout with"
            " training=True, torch.rand), or state that changes from call to call."
        )
    hooks = ", ".join(name or "the backbone itself" for name in net.report.hooks)
    raise LoweringError(
        f"the lowered {net.graph.name} differs from the backbone by {difference:.3g} at batch"
        f" {CHECK_BATCH} (traced at 2), so it is "
        + (
            f"not returned. Hooks are not converted (on {hooks}): if one changes a value, move"
            " that into the forward."
            if hooks
            else (
                "not returned. The forward may read the batch size or change state. Try"
                ' residual="keep", or leave the stage out with `stages=`.'
            )
        )
    )


def _is_other(net: DynamicNetwork, name: str, buffer: Tensor) -> bool:
    """Whether a pass changes the buffer `name` differently in `net` than in the backbone.

    After lifted residuals, it may differ by rounding.
    """
    own = net.lowered.get_buffer(name)
    if are_equal([buffer], [own]):
        return False
    is_lifted = any(stage.residual == "lift" for stage in net.graph.stages.values())
    return not (
        is_lifted and largest_difference([buffer], [own]) <= LIFT_TOLERANCE * largest([buffer])
    )


def check_start(
    net: DynamicNetwork,
    example: Tensor,
    init: Literal["preserve", "scratch"],
    static: Sequence[Tensor],
) -> None:
    """Check in one forward pass that the untrained routers start as `init` requires.

    `static` are the outputs returned by `check_static`.

    Raises:
        InputError: With `preserve` the outputs differ; with `scratch` a stage has no open edge.
    """
    if not net.graph.stages:
        return
    x = check_input(example)
    with unchanged(net.lowered), torch.no_grad():
        started, gates = net(x.clone(), return_gates=True)
    made_by = f"router {net.blueprint.router!r} with gate {net.blueprint.gate!r}"
    if init == "scratch":
        _refuse_closed(net, gates, made_by)
        return
    if not are_equal(tensors_in(started), static):
        raise InputError(
            f"{made_by} does not start as the backbone: it differs by"
            f" {largest_difference(tensors_in(started), static):.3g}. Let the router start at"
            " logits of 0 and the gate give 1 there on static edges and 0 on others, or pass"
            ' init="scratch".'
        )


def check_input(example: Tensor) -> Tensor:
    """Return a fixed batch of 3 random images in [-1, 1)."""
    generator = torch.Generator("cpu").manual_seed(0)
    return (
        torch.rand((CHECK_BATCH, *example.shape[1:]), generator=generator, device="cpu").to(example)
        * 2
        - 1
    )


def are_equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Whether all tensors are bitwise equal, with NaN equal to NaN."""
    return len(ours) == len(theirs) and all(
        a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(ours, theirs, strict=True)
    )


def largest(tensors: Sequence[Tensor]) -> float:
    """Return max |a| over all tensors, also of booleans and integers."""
    return max((float(_wide(a).abs().max()) for a in tensors if a.numel()), default=0.0)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_complex() else tensor.double()


def largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return max |a - b|, or infinity if the shapes differ."""
    if [a.shape for a in ours] != [b.shape for b in theirs]:
        return float("inf")
    return max(
        (
            float((_wide(a) - _wide(b)).abs().max())
            for a, b in zip(ours, theirs, strict=True)
            if a.numel()
        ),
        default=0.0,
    )


def check_images(net: DynamicNetwork, reference: nn.Module, example: Tensor) -> Tensor:
    """Return images for the checks that need many passes.

    They are small if the backbone accepts small images and the network equals it on them.
    """
    x = check_input(example)
    small = x[..., :SMALL_SIDE, :SMALL_SIDE]
    if small.shape == x.shape:
        return x
    try:
        with unchanged(reference):
            expected = tensors_in(_run(reference, small))
        with unchanged(net.lowered), pinned_gates(net, static_weights(net.graph)):
            given = tensors_in(_run(net, small))
        open_edges = {
            stage: torch.ones_like(static_E)
            for stage, static_E in static_weights(net.graph).items()
        }
        with unchanged(net.lowered), pinned_gates(net, open_edges):
            _run(net, small)  # fails if blocks round up the size of small maps, unlike the skips
        return small if are_equal(expected, given) else x
    except Exception:  # the backbone needs one fixed size
        return x


def _run(module: Callable[[Tensor], Any], x: Tensor) -> Any:
    with torch.no_grad():
        return module(x.clone())


def _refuse_other_form(net: DynamicNetwork, returned: Any, given: Any) -> None:
    if structure_of(returned) != structure_of(given):
        raise LoweringError(
            f"{net.graph.name} returns {type(returned).__name__}, and the lowered network"
            f" {type(given).__name__} with the same tensors, so code written for the backbone would"
            " fail. Return a tensor, a dict, a named tuple or a dataclass."
        )


def _run_reference(net: DynamicNetwork, reference: nn.Module, x: Tensor) -> Any:
    try:
        with torch.no_grad():
            output = reference(x.clone())
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if _runs(reference, x[:TRACED_BATCH]):
            reason = f"{reason}. It runs on {TRACED_BATCH}. {TIED_IMAGES}"
        raise InputError(
            f"{net.graph.name} itself fails on a batch of {CHECK_BATCH}: {reason}"
        ) from error
    expected = tensors_in(output)
    if not expected:
        raise InputError(
            f"{net.graph.name} returns {type(output).__name__}, in which no tensor was found, so"
            " nothing can be compared. Return a tensor, or tensors in a dict, a tuple or a"
            " dataclass."
        )
    if not all(bool(tensor.isfinite().all()) for tensor in expected):
        raise LoweringError(
            f"the output of {net.graph.name} itself is not finite on random images in {x.dtype}, so"
            " comparing proves nothing. Check its weights, or convert in float32."
        )
    return output


def _runs(reference: nn.Module, x: Tensor) -> bool:
    try:
        with torch.no_grad():
            reference(x.clone())
    except Exception:
        return False
    return True


@contextmanager
def _watched(net: DynamicNetwork) -> Iterator[None]:
    """Check within this context that routers and gates return one number per edge they decide."""
    handles = []
    for stage in net.graph.stages:
        routing = routing_of(net.lowered, stage)
        for index, places in decided_edges(net, stage).items():
            deciders = {
                f"the router {net.blueprint.router!r}": routing.router(index),
                f"the gate {net.blueprint.gate!r}": routing.gate(index),
            }
            for label, decider in deciders.items():
                watch = partial(_check_width, label=label, stage=stage, wanted=len(places))
                handles.append(decider.register_forward_hook(watch))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_width(
    _module: nn.Module, _args: Any, output: Any, *, label: str, stage: str, wanted: int
) -> None:
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] != wanted:
        given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"{label} gives {given} in stage {stage!r}, where {wanted} edges are decided. It must"
            " give one number per edge, (B, edges)."
        )


def _refuse_closed(net: DynamicNetwork, gates: Gates, made_by: str) -> None:
    for stage, raw_BE in gates.raw.items():
        threshold = float(gates.thresholds[stage])
        if bool((raw_BE <= threshold).all()):
            raise InputError(
                f"{made_by} starts stage {stage!r} with weights up to {float(raw_BE.max()):.3g}, so"
                f" the threshold {threshold:.3g} closes every edge and no router would get a"
                " gradient. Choose a lower threshold."
            )
