"""Self-checks of the forward pass: equality with the backbone, and the start of the routers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dggraph.compiler.lowered import routing_of
from dggraph.compiler.profiling import TIED_IMAGES, TRACED_BATCH, unchanged
from dggraph.errors import DggraphError, InputError, LoweringError
from dggraph.network.gate_contexts import decided_edges, pinned_gates, static_path
from dggraph.network.gates import Gates, static_weights
from dggraph.network.network import DynamicNetwork
from dggraph.network.outputs import no_tensors, structure_of, tensors_in
from dggraph.ops.additive import Gain
from dggraph.ops.content_router import ContentRouter
from dggraph.ops.granularity import ChannelGate, PositionGate

Init = Literal["preserve", "scratch"]
CHECK_BATCH = 3
SMALL_SIDES = (64, 96)
LIFT_TOLERANCE = 1e-5


def check_forward(
    net: DynamicNetwork, reference: nn.Module, example: Tensor, init: Init | None = None
) -> tuple[float, Tensor]:
    """Compare with the backbone, in eval mode, at a batch size that was not traced.

    A batch of small images and a single one of full size are compared. If the backbone needs its
    own size, or differs on small images, it is a batch of full size.

    Args:
        net: A converted network.
        reference: Its backbone.
        example: (1 or more, C, H, W).
        init: How untrained routers must start; None for routers that may be trained.

    Returns:
        max |backbone - lowered| with every static edge at weight 1, and images (B, C, H, W) for
        further checks, small if possible.

    Raises:
        LoweringError: They differ (beyond 1e-5 max |y| if several residuals of a block were
            lifted), or equality was not proved.
        InputError: The backbone cannot run on a batch of 3, or returns no tensor; or a router or
            gate has the wrong width, or does not start as `init` says.
    """
    x = check_input(example)
    for side in SMALL_SIDES:
        small = x[..., :side, :side]
        if small.shape == x.shape:
            break
        # An error here has other reasons than the conversion, or comes again at full size.
        with suppress(Exception):
            difference = _check_static(net, reference, small, init)
            _run_all_open(net, small[:1])
            return max(difference, _check_static(net, reference, x[:1], init)), small
    return _check_static(net, reference, x, init), x


def _run_all_open(net: DynamicNetwork, x: Tensor) -> None:
    """Run every block and edge; fails if blocks round up small maps, unlike the skips."""
    open_edges = {
        stage: torch.ones_like(static_E) for stage, static_E in static_weights(net.graph).items()
    }
    with unchanged(net.lowered), pinned_gates(net, open_edges):
        _run(net, x)


def _check_static(net: DynamicNetwork, reference: nn.Module, x: Tensor, init: Init | None) -> float:
    with unchanged(reference):
        returned = _run_reference(net, reference, x)
        buffers = {name: buffer.detach().clone() for name, buffer in reference.named_buffers()}
    started = _started(net, x, buffers) if init == "preserve" else None
    given, changed = started or _pinned(net, x, buffers)
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
        if init is not None and started is None:
            _check_start(net, x, init, actual)
        return difference
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
        f" {len(x)} (traced at 2), so it is "
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


def _started(
    net: DynamicNetwork, x: Tensor, buffers: Mapping[str, Tensor]
) -> tuple[Any, list[str]] | None:
    """Run with the routers' own weights.

    Returns:
        The output and the names of buffers that the pass changes differently; or None if the
        weights are not those of the backbone, or the pass fails.
    """
    try:
        with unchanged(net.lowered), torch.no_grad():
            given, gates = net(x.clone(), return_gates=True)
            changed = [name for name, buffer in buffers.items() if _is_other(net, name, buffer)]
    except Exception:  # `_pinned` or `_check_start` finds the reason
        return None
    static = static_weights(net.graph)
    is_static = all(
        torch.equal(raw_BE, static[stage].to(raw_BE).expand_as(raw_BE))
        for stage, raw_BE in gates.raw.items()
    ) and not any(bool(one.gain) for one in net.lowered.modules() if isinstance(one, Gain))
    return (given, changed) if is_static else None


def _pinned(net: DynamicNetwork, x: Tensor, buffers: Mapping[str, Tensor]) -> tuple[Any, list[str]]:
    """Run with the backbone's weights; returns what `_started` returns."""
    try:
        with unchanged(net.lowered), _watched(net), static_path(net):
            given = _run(net, x)
            return given, [name for name, old in buffers.items() if _is_other(net, name, old)]
    except DggraphError:
        raise
    except Exception as error:
        raise LoweringError(
            f"the lowered {net.graph.name} fails at batch {len(x)} (traced at 2): {error}"
        ) from error


def _check_start(net: DynamicNetwork, x: Tensor, init: Init, static: Sequence[Tensor]) -> None:
    """Check in one forward pass that the untrained routers start as `init` requires.

    `static` are the outputs with the backbone's weights.

    Raises:
        InputError: With `preserve` the outputs differ; with `scratch` a stage has no open edge.
    """
    if not net.graph.stages:
        return
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
    return max(
        (
            float((a if a.is_floating_point() else _wide(a)).abs().max())
            for a in tensors
            if a.numel()
        ),
        default=0.0,
    )


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
            f"{net.graph.name} itself fails on a batch of {len(x)}: {reason}"
        ) from error
    expected = tensors_in(output)
    if not expected:
        raise no_tensors(net.graph.name)
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
            router, gate, num_edges = routing.router(index), routing.gate(index), len(places)
            num_logits = num_edges
            if isinstance(gate, ChannelGate):
                num_logits = num_edges * gate.num_groups
            if isinstance(gate, ChannelGate | PositionGate):
                gate = gate.gate
            deciders = [(f"the gate {net.blueprint.gate!r}", gate, num_edges)]
            is_own = isinstance(routing.gate(index), PositionGate) or isinstance(
                router, ContentRouter
            )
            if not is_own:
                deciders.append((f"the router {net.blueprint.router!r}", router, num_logits))
            for label, decider, wanted in deciders:
                watch = partial(_check_width, label=label, stage=stage, wanted=wanted)
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
