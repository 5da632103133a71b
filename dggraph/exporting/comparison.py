"""What an exported file gives, compared with the network that it was made from.

Shape suffixes: B images, O outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dggraph.baselines.network import BaselineNetwork
from dggraph.errors import CheckError, InputError
from dggraph.exporting.formats import Run, tensors_of
from dggraph.network.network import DynamicNetwork
from dggraph.system.devices import first_weight

TOLERANCE = 1e-4
"""Largest difference, as a share of the largest output."""
MARGIN = 1e-4
"""Images with a weight so close to its threshold may take another path elsewhere."""
NUM_IMAGES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One tensor that the file gives."""

    shape: tuple[int, ...]
    """For one image."""
    dtype: str
    difference: float
    """max |file - network| over the compared images."""
    largest: float
    """max |network| over them."""


def comparison_images(net: DynamicNetwork | BaselineNetwork, images: Tensor | None) -> Tensor:
    """Return at least two images in the type of the weights: those given, or noise.

    Raises:
        InputError: `images` is not a batch (B, C, H, W) of numbers of that type.
    """
    shape = net.blueprint.input_shape if isinstance(net, DynamicNetwork) else net.input_shape
    if images is None:
        generator = torch.Generator("cpu").manual_seed(0)
        noise = torch.randn(NUM_IMAGES, *shape, generator=generator, device="cpu")
        # routers see colour, so that images of one colour take different paths
        colours = torch.randn(NUM_IMAGES, shape[0], 1, 1, generator=generator, device="cpu")
        images = noise + 2 * colours
    check_images(images, shape[0])
    images = images if len(images) > 1 else images.repeat(2, 1, 1, 1)
    return images.to(first_weight(net))


def check_images(images: Any, channels: int) -> None:
    """Raise InputError unless `images` is a batch (B, C, H, W) of prepared images."""
    if not isinstance(images, Tensor):
        raise InputError(
            f"images must be a tensor (B, {channels}, H, W), not {type(images).__name__}. Prepare"
            " image files first, as net.preprocess describes."
        )
    if images.ndim != 4 or not len(images) or images.shape[1] != channels:
        raise InputError(
            f"images must be a batch (B, {channels}, H, W) of at least one, got"
            f" {tuple(images.shape)}."
        )
    if not images.is_floating_point():
        raise InputError(
            f"images have the type {images.dtype}, and networks take floating-point numbers."
            " Prepare them first, as net.preprocess describes."
        )


def compare(
    net: nn.Module, run: Run, chunks: Sequence[Tensor], margins: Sequence[float]
) -> tuple[tuple[Output, ...], int]:
    """Return how the outputs of the file compare, and how many images sit at a threshold.

    Raises:
        CheckError: an image has another answer, and none of its weights is at its threshold.
    """
    differences: list[list[Tensor]] = []
    sizes: list[list[float]] = []
    wanted: list[Tensor] = []
    for chunk in chunks:
        wanted = tensors_of(net(chunk))
        try:
            found = run(chunk)
        except Exception as error:
            raise CheckError(
                f"the file cannot run on {len(chunk)} images of {tuple(chunk.shape[1:])}: {error}"
                " Nothing was left of it."
            ) from error
        if [one.shape for one in found] != [one.shape for one in wanted]:
            raise CheckError(
                f"the file gives outputs of {[tuple(one.shape) for one in found]}, and the network"
                f" {[tuple(one.shape) for one in wanted]}. Nothing was left of it."
            )
        differences.append(
            [
                _of_each(one - own.to(one.device), len(chunk))
                for one, own in zip(found, wanted, strict=True)
            ]
        )
        sizes.append([float(own.abs().max()) for own in wanted])
    difference_OB = [torch.cat(rows) for rows in zip(*differences, strict=True)]
    largest = [max(one) for one in zip(*sizes, strict=True)]
    is_wrong_B = torch.zeros_like(difference_OB[0], dtype=torch.bool)
    for difference_B, most in zip(difference_OB, largest, strict=True):
        is_wrong_B |= ~(difference_B <= TOLERANCE * most)  # NaN is wrong
    is_close_B = is_wrong_B.new_tensor(
        [margin < MARGIN for margin in margins] or [False] * len(is_wrong_B)
    )
    faults = (is_wrong_B & ~is_close_B).nonzero().flatten().tolist()
    if faults or is_wrong_B.all():
        worst = [
            f"{float(d.max()):.3g} of {m:.3g}" for d, m in zip(difference_OB, largest, strict=True)
        ]
        raise CheckError(
            f"the file gives other answers than the network for {int(is_wrong_B.sum())} of"
            f" {len(is_wrong_B)} images: the largest differences are {', '.join(worst)}, and"
            f" {TOLERANCE:g} of the largest output is allowed. Nothing was left of it. Try the"
            " other format or mode; if a plain export of the backbone differs too, it is a fault"
            " of the exporter."
        )
    outputs = tuple(
        Output(
            shape=(1, *one.shape[1:]) if one.ndim else (),
            dtype=str(one.dtype).removeprefix("torch."),
            difference=float(difference_B[~is_wrong_B].max()),
            largest=most,
        )
        for one, difference_B, most in zip(wanted, difference_OB, largest, strict=True)
    )
    return outputs, int(is_wrong_B.sum())


def _of_each(difference: Tensor, num_images: int) -> Tensor:
    """Return the largest absolute difference of each image, (B,)."""
    if difference.ndim and len(difference) == num_images:
        return difference.abs().flatten(1).amax(1) if difference.ndim > 1 else difference.abs()
    return difference.abs().max().expand(num_images)
