"""What a row says about a trained network: its size, times, and what its paths are worth.

Times are ratios to the static network of the same family, in one process: both take turns, and the
median of the ratios counts. Seconds depend on what else the machine does; ratios hardly.
"""

import resource
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from dggraph.baselines.network import BaselineNetwork
from dggraph.evaluation.swapped_gates import swap_gates
from dggraph.evaluation.timing import CLOCKS, compare, wait_for
from dggraph.network.network import DynamicNetwork
from dggraph.system.devices import first_weight
from dggraph.system.loaders import num_samples
from dggraph.system.modes import evaluating, keeping_modes
from dggraph.system.tensor_memory import peak_bytes

BATCH_SIZES = (1, 16)
NUM_SINGLE = 8
"""Images that are timed one by one; their paths differ."""
ROUNDS = 15
SWAPPED_IMAGES = 4000
MACS_IMAGES = 500
"""Images whose MACs are counted, where a method other than ours decides on them."""


def measure(
    model: nn.Module,
    static: nn.Module,
    dataset: Dataset[Any],
    *,
    batch_size: int,
    kept: float | None,
    memory_format: torch.memory_format = torch.contiguous_format,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """Return the facts about a trained network, by the names of a row.

    Args:
        model: the network.
        static: the static network of its family, with any weights, on the same device.
        dataset: images to evaluate on, as (image, label).
        batch_size: images in a training step.
        kept: mean MACs ratio of its images, None for a network without paths.
        memory_format: layout of the images.
        rounds: rounds of each timing.
    """
    device = first_weight(model).device
    count = min(max(batch_size, *BATCH_SIZES, NUM_SINGLE), num_samples(dataset))
    samples = [dataset[index] for index in range(count)]
    images = torch.stack([image for image, _ in samples]).to(device, memory_format=memory_format)
    labels = torch.tensor([label for _, label in samples], device=device)
    batch = images[:batch_size], labels[:batch_size]
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "MACs": lambda: _macs(model, static, dataset, kept),
        "training": lambda: _training_costs(model, static, *batch, rounds),
    }
    for size in BATCH_SIZES:
        batches = torch.split(images[: max(size, NUM_SINGLE)], size)
        name = f"inference_time_ratio_{size}"
        parts[name] = partial(_inference_ratio, name, model, static, batches, rounds)
    if isinstance(model, DynamicNetwork):
        parts["swapped adjacencies"] = partial(_swapped, model, dataset)
    facts: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters())
    }
    for name, part in parts.items():
        try:
            facts |= part()
        except Exception as error:  # a trained network is worth its row without this part
            message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            facts["unmeasured"] = facts.get("unmeasured", {}) | {name: message}
    return facts


def _macs(
    model: nn.Module, static: nn.Module, dataset: Dataset[Any], kept: float | None
) -> dict[str, float]:
    """Return the MACs of the static network and those of the mean image."""
    limit = min(MACS_IMAGES, num_samples(dataset))
    device = first_weight(model).device
    images = torch.stack([dataset[index][0] for index in range(limit)]).to(device)
    if isinstance(model, DynamicNetwork):
        assert kept is not None
        macs = kept * model.macs_table.static
    elif isinstance(model, BaselineNetwork):
        with evaluating(model):
            macs = float(model.macs(images).mean())
    else:
        macs = count_macs(model, images[:1])
    return {"static_macs": count_macs(static, images[:1]), "macs": macs}


def _swapped(net: DynamicNetwork, dataset: Dataset[Any]) -> dict[str, float]:
    swapped = swap_gates(net, dataset, limit=SWAPPED_IMAGES)
    return {
        "swap_images": swapped.num_images,
        "own_paths_accuracy": swapped.accuracy,
        "mean_adjacency_accuracy": swapped.change("mean").accuracy,
        "other_image_accuracy": swapped.change("other").accuracy,
    }


def count_macs(model: nn.Module, images: Tensor) -> int:
    """Return the multiply-accumulates of one image through a plain network."""
    with evaluating(model), FlopCounterMode(display=False) as counter:
        model(images)
    return int(counter.get_total_flops()) // 2 // len(images)


def peak_memory(device: torch.device) -> int:
    """Return the most memory that this process has used so far, in bytes.

    On a GPU it is what torch has allocated there; on the CPU the resident memory of the process,
    with the data set and torch itself.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def clock_of(device: torch.device) -> Callable[[], float]:
    """Return CPU time, or wall-clock time where the work is done elsewhere."""
    return CLOCKS["cpu" if device.type == "cpu" else "wall"]


def _training_costs(
    model: nn.Module, static: nn.Module, images: Tensor, labels: Tensor, rounds: int
) -> dict[str, float]:
    """Return time and memory of forward, loss and backward."""

    def step(one: nn.Module) -> Callable[[], None]:
        def once() -> None:
            nn.functional.cross_entropy(one(images), labels).backward()  # type: ignore[no-untyped-call]
            one.zero_grad()
            wait_for(images.device)

        return once

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with keeping_modes(model, static):
            model.train()
            static.train()
            return {
                "training_time_ratio": _ratio(step(static), step(model), images.device, rounds),
                "training_memory_bytes": peak_bytes(step(model)),
            }
    finally:
        now = dict(model.named_buffers())
        for name, buffer in buffers.items():  # statistics of norms have moved
            now[name].copy_(buffer)


def _inference_ratio(
    name: str, model: nn.Module, static: nn.Module, batches: tuple[Tensor, ...], rounds: int
) -> dict[str, float]:
    def run(one: nn.Module) -> Callable[[], None]:
        def once() -> None:
            for batch in batches:
                one(batch)
            wait_for(batches[0].device)

        return once

    with keeping_modes(model, static), torch.no_grad():
        model.eval()
        static.eval()
        return {name: _ratio(run(static), run(model), batches[0].device, rounds)}


def _ratio(
    baseline: Callable[[], None], own: Callable[[], None], device: torch.device, rounds: int
) -> float:
    _, timing = compare(baseline, {"own": own}, rounds=rounds, clock=clock_of(device))
    return timing.ratio
