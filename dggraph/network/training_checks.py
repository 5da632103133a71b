"""Self-checks of training: backward and autocast passes equal those of the backbone."""

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from dggraph.compiler.profiling import unchanged
from dggraph.errors import DggraphError, LoweringError
from dggraph.network.gate_contexts import static_path
from dggraph.network.network import DynamicNetwork
from dggraph.network.outputs import tensors_in
from dggraph.network.static_checks import are_equal, largest, largest_difference

Module = TypeVar("Module", bound=nn.Module)
GRADIENT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""As a fraction of a parameter's largest gradient: aggregation sums gradients in another order."""
CAST_TOLERANCE = 2**-6
"""As a fraction of the largest output: two units in the last place of bfloat16.

Sums may be computed in another order.
"""


def check_gradients(net: DynamicNetwork, reference: nn.Module, x: Tensor) -> None:
    """Compare the gradient of every parameter in eval mode, with every static edge at weight 1.

    Nothing is compared if the backbone itself cannot be trained, or if its gradients are not
    finite.

    Args:
        net: The converted network.
        reference: Its backbone, which is not changed.
        x: Images, (B, C, H, W).

    Raises:
        LoweringError: A parameter has a different gradient, or has one in only one of the two.
    """
    expected = _reference_gradients(reference, x[:1])
    if expected is not None and not _are_finite(expected):
        # For example if it divides by the variance over the images.
        expected = _reference_gradients(reference, x)
        if expected is None or not _are_finite(expected):
            return
    else:
        x = x[:1]
    if expected is None:
        return
    actual = _gradients_of(net, x)
    if all(_is_same(wanted, actual.get(name)) for name, wanted in expected.items()):
        return
    scale = largest([one for one in expected.values() if one is not None])
    wrong = _wrong_gradients(expected, actual, scale)
    if not wrong:
        return
    # Compare these again in float64, since rounding errors grow in deep networks, and on copies
    # whose eval mode is set again, since modules may cache values in it. One network at a time,
    # to save memory.
    is_there, names = {name: expected[name] is not None for name in wrong}, list(wrong)
    del expected, actual
    x = x.double() if x.dtype == torch.float32 else x
    precise = _reference_gradients(_anew(reference, x), x, names)
    if precise is not None:
        wrong = _wrong_gradients(precise, _gradients_of(_anew(net, x), x, names), scale)
    if wrong:
        name, difference = max(
            wrong.items(), key=lambda one: float("inf") if one[1] is None else one[1]
        )
        what = (
            f"differs from the backbone's by {difference:.3g} of its size"
            if difference is not None
            else (
                f"is {'None' if is_there[name] else 'there'}, in the backbone"
                f" {'there' if is_there[name] else 'None'}"
            )
        )
        raise LoweringError(
            f"the gradient of {name} in the lowered {net.graph.name} {what}, so it would not train"
            " as the backbone does and is not returned. Keep the module with the special backward"
            " as a single call: pass its class in `leaves=`."
        )


def _are_finite(gradients: Mapping[str, Tensor | None]) -> bool:
    # The extremes of numbers that are not all finite are not finite either, and need no memory.
    return all(
        bool(torch.stack(_real(gradient).aminmax()).isfinite().all())
        for gradient in gradients.values()
        if gradient is not None and gradient.numel()
    )


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def check_autocast(net: DynamicNetwork, reference: nn.Module, x: Tensor) -> None:
    """Compare outputs under autocast to bfloat16 in eval mode, with every static edge at weight 1.

    Raises:
        LoweringError: They differ, for example because a part that casts for itself was lost.
    """
    device = x.device.type
    if x.dtype != torch.float32 or device == "meta" or not torch.amp.is_autocast_available(device):
        return
    try:
        expected = _cast(reference, x)
    except Exception:  # the backbone itself fails under autocast
        return
    with static_path(net):
        actual = _cast(net, x)
    scale = largest(expected)
    if (
        not are_equal(expected, actual)
        and not largest_difference(expected, actual) <= CAST_TOLERANCE * scale
    ):
        if not are_equal(expected, _cast(reference, x)):
            return
        raise LoweringError(
            f"under autocast the lowered {net.graph.name} differs from the backbone by"
            f" {largest_difference(expected, actual):.3g} of {scale:.3g}, so it is not returned."
            " Keep the module that casts for itself as a single call: pass its class in `leaves=`."
        )


def _cast(module: nn.Module, x: Tensor) -> list[Tensor]:
    with unchanged(module), torch.no_grad(), torch.autocast(x.device.type, dtype=torch.bfloat16):
        return tensors_in(module(x.clone()))


def _anew(module: Module, x: Tensor) -> Module:
    """Return a copy in the precision of `x`, with eval mode set again."""
    twin = copy.deepcopy(module)
    if x.dtype == torch.float64:
        twin.double()
    twin.train()
    twin.eval()
    return twin


def _reference_gradients(
    reference: nn.Module, x: Tensor, names: Collection[str] = ()
) -> dict[str, Tensor | None] | None:
    """Return the gradients of the backbone, or None if it cannot be trained itself.

    An in-place op on values that backward needs prevents it, for example.
    """
    try:
        return _gradients(reference, dict(reference.named_parameters()), x, names)
    except Exception:
        return None


def _gradients_of(
    net: DynamicNetwork, x: Tensor, names: Collection[str] = ()
) -> dict[str, Tensor | None]:
    try:
        with static_path(net):
            return _gradients(net, dict(net.lowered.named_parameters()), x, names) or {}
    except DggraphError:
        raise
    except Exception as error:
        raise LoweringError(
            f"the lowered {net.graph.name} fails with gradients enabled, and the backbone does not:"
            f" {error}"
        ) from error


def _gradients(
    module: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor, names: Collection[str]
) -> dict[str, Tensor | None] | None:
    """Return {name: gradient} of a fixed random weighting of all outputs.

    The keys are all parameters, or those in `names`. The result is None if no output has a
    gradient.
    """
    generator = torch.Generator().manual_seed(0)
    asked = {
        name: parameter for name, parameter in parameters.items() if name in names or not names
    }
    learned = {name: parameter for name, parameter in asked.items() if parameter.requires_grad}
    with unchanged(module), torch.enable_grad():
        outputs = [output for output in tensors_in(module(x.clone())) if output.requires_grad]
        if not outputs or not learned:
            return None
        wide = [output.abs() if output.is_complex() else output for output in outputs]
        weights = [
            torch.rand(output.shape, generator=generator, dtype=torch.float64) for output in wide
        ]
        loss = torch.stack(
            [
                (output * weight.to(output)).sum().double()
                for output, weight in zip(wide, weights, strict=True)
            ]
        ).sum()
        found: Sequence[Tensor | None] = torch.autograd.grad(
            loss, list(learned.values()), allow_unused=True
        )
    return dict.fromkeys(asked) | dict(zip(learned, found, strict=True))


def _is_same(wanted: Tensor | None, given: Tensor | None) -> bool:
    if wanted is None or given is None:
        return wanted is given
    return torch.equal(wanted, given)


def _wrong_gradients(
    expected: Mapping[str, Tensor | None], actual: Mapping[str, Tensor | None], scale: float
) -> dict[str, float | None]:
    """Return {parameter: relative difference} for gradients that differ from the backbone's.

    The difference is relative to the size of the gradient, or None if only one of the two exists.
    `scale` is the largest gradient of any parameter: differences are tolerated up to the tolerance
    times a hundredth of it.
    """
    wrong: dict[str, float | None] = {}
    for name, wanted in expected.items():
        given = actual.get(name)
        if _is_same(wanted, given):
            continue
        if wanted is None or given is None:
            is_zero = all(one is None or not one.count_nonzero() for one in (wanted, given))
            if not (wanted is None and is_zero):
                wrong[name] = None
            continue
        difference, size = float((wanted - given).abs().max()), float(wanted.abs().max())
        tolerance = GRADIENT_TOLERANCE.get(wanted.dtype, 5e-2)
        if not difference <= tolerance * max(size, 0.01 * scale):
            wrong[name] = difference / max(size, 1e-30)
    return wrong
