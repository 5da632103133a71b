"""The self-checks of what training does: a backward pass and an autocast pass of a converted network equal its backbone's."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dggraph.compiler.profiling import unchanged
from dggraph.errors import DggraphError, LoweringError
from dggraph.network.network import DynamicNetwork, pinned_gates, static_weights
from dggraph.network.outputs import tensors_in
from dggraph.network.static_checks import are_equal, largest, largest_difference

GRADIENT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""As a fraction of a parameter's largest gradient: aggregation sums gradients in another order."""
CAST_TOLERANCE = 2**-6
"""As a fraction of the largest output: two units in the last place of bfloat16, for sums in another order."""


def check_gradients(net: DynamicNetwork, reference: nn.Module, x: Tensor) -> None:
    """Compare the gradient of every parameter, every static edge at weight 1; both in eval mode.

    Args:
        net: the converted network.
        reference: its backbone, of which it may use up nothing.
        x: images, (B, C, H, W).

    Raises:
        LoweringError: a parameter has a gradient in one and none in the other, or another one. Where the backbone itself cannot be
            trained, or its gradients are not finite, there is nothing to compare.
    """
    expected = _reference_gradients(reference, x[:1])
    if expected is not None and not _are_finite(expected):  # as where it divides by what several images differ in
        expected = _reference_gradients(reference, x)
    else:
        x = x[:1]
    if expected is None or not _are_finite(expected):
        return
    wrong = _wrong_gradient(expected, _gradients_of(net, x))
    if not wrong:
        return
    # Look again, in float64, since deep networks round far, and with whatever eval mode had kept on modules made anew.
    backbone, twin = copy.deepcopy(reference), copy.deepcopy(net)
    if x.dtype == torch.float32:
        x = x.double()
        backbone.double()
        twin.double()
    backbone.train().eval()
    twin.train().eval()
    precise = _reference_gradients(backbone, x)
    if precise is not None:
        wrong = _wrong_gradient(precise, _gradients_of(twin, x))
    if wrong:
        name, difference = wrong
        what = (
            f"differs from the backbone's by {difference:.3g} of its size"
            if difference is not None
            else f"is {'None' if expected[name] is not None else 'there'}, in the backbone {'None' if expected[name] is None else 'there'}"
        )
        raise LoweringError(
            f"the gradient of {name} in the lowered {net.graph.name} {what}, so it would not train as the backbone does and is not "
            "handed out. Keep the module whose backward is special as one call: pass its class in `leaves=`."
        )


def _are_finite(gradients: Mapping[str, Tensor | None]) -> bool:
    return all(bool(gradient.isfinite().all()) for gradient in gradients.values() if gradient is not None)


def check_autocast(net: DynamicNetwork, reference: nn.Module, x: Tensor) -> None:
    """Compare outputs under autocast to bfloat16, every static edge at weight 1; both in eval mode.

    Raises:
        LoweringError: they differ, as they do where a part that casts for itself was lost.
    """
    device = x.device.type
    if x.dtype != torch.float32 or device == "meta" or not torch.amp.is_autocast_available(device):
        return
    try:
        expected = _cast(reference, x)
    except Exception:  # a backbone that cannot be cast is not ours to mend
        return
    with pinned_gates(net, static_weights(net.graph)):
        actual = _cast(net, x)
    scale = largest(expected)
    if not are_equal(expected, actual) and not largest_difference(expected, actual) <= CAST_TOLERANCE * scale:
        if not are_equal(expected, _cast(reference, x)):
            return
        raise LoweringError(
            f"under autocast the lowered {net.graph.name} differs from the backbone by {largest_difference(expected, actual):.3g} of "
            f"{scale:.3g}, so it is not handed out. Keep the module that casts for itself as one call: pass its class in `leaves=`."
        )


def _cast(module: nn.Module, x: Tensor) -> list[Tensor]:
    with unchanged(module), torch.no_grad(), torch.autocast(x.device.type, dtype=torch.bfloat16):
        return tensors_in(module(x.clone()))


def _reference_gradients(reference: nn.Module, x: Tensor) -> dict[str, Tensor | None] | None:
    """Gradients of every parameter of the backbone; None where it cannot be trained itself, as with an in-place op on what backward needs."""
    try:
        return _gradients(reference, dict(reference.named_parameters()), x)
    except Exception:
        return None


def _gradients_of(net: DynamicNetwork, x: Tensor) -> dict[str, Tensor | None]:
    try:
        with pinned_gates(net, static_weights(net.graph)):
            return _gradients(net, dict(net.lowered.named_parameters()), x) or {}
    except DggraphError:
        raise
    except Exception as error:
        raise LoweringError(
            f"the lowered {net.graph.name} fails where gradients are on, and the backbone does not: {error}"
        ) from error


def _gradients(module: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor) -> dict[str, Tensor | None] | None:
    """{name: gradient} of a fixed random weighting of all outputs; None where no output has a gradient."""
    generator = torch.Generator().manual_seed(0)
    learned = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    with unchanged(module), torch.enable_grad():
        outputs = [output for output in tensors_in(module(x.clone())) if output.requires_grad]
        if not outputs or not learned:
            return None
        wide = [output.abs() if output.is_complex() else output for output in outputs]
        weights = [torch.rand(output.shape, generator=generator, dtype=torch.float64) for output in wide]
        loss = torch.stack(
            [(output * weight.to(output)).sum().double() for output, weight in zip(wide, weights, strict=True)]
        ).sum()
        found: Sequence[Tensor | None] = torch.autograd.grad(loss, list(learned.values()), allow_unused=True)
    return dict.fromkeys(parameters) | dict(zip(learned, found, strict=True))


def _is_same(wanted: Tensor | None, given: Tensor | None) -> bool:
    if wanted is None or given is None:
        return wanted is given
    return torch.equal(wanted, given)


def _wrong_gradient(expected: Mapping[str, Tensor | None], actual: Mapping[str, Tensor | None]) -> tuple[str, float | None] | None:
    """The parameter that is furthest from the backbone's, and how far in parts of its size (None: one has none)."""
    others = [name for name, wanted in expected.items() if not _is_same(wanted, actual.get(name))]
    if not others:
        return None
    largest = max(
        (float(gradient.abs().max()) for gradient in expected.values() if gradient is not None and gradient.numel()), default=0.0
    )
    worst: tuple[str, float | None] | None = None
    for name in others:
        wanted, given = expected[name], actual.get(name)
        if wanted is None or given is None:
            is_zero = all(one is None or not one.count_nonzero() for one in (wanted, given))
            if wanted is not given and not (wanted is None and is_zero):
                return name, None
            continue
        difference, size = (
            float((wanted - given).abs().max()) if wanted.numel() else 0.0,
            float(wanted.abs().max()) if wanted.numel() else 0.0,
        )
        tolerance = GRADIENT_TOLERANCE.get(wanted.dtype, 5e-2)
        if not difference <= tolerance * max(size, 0.01 * largest):
            share = difference / max(size, 1e-30)
            worst = (name, share) if worst is None or worst[1] is None or share > worst[1] else worst
    return worst
