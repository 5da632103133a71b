"""What a row says about a trained network: its size, times, and what its paths are worth.

Times are ratios to the static network of the same family, in one process: both take turns, and the
median of the ratios counts. Seconds depend on what else the machine does; ratios hardly.
"""

import resource
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from dggraph.comparing.memory import peak_bytes
from dggraph.evaluation.swapped_gates import swap_gates
from dggraph.evaluation.timing import CLOCKS, compare, wait_for
from dggraph.network.network import DynamicNetwork
from dggraph.system.devices import first_weight
from dggraph.system.modes import evaluating, keeping_modes

BATCH_SIZES = (1, 16)
NUM_SINGLE = 8
"""Images that are timed one by one; their paths differ."""
ROUNDS = 15
SWAPPED_IMAGES = 4000


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
    count = min(max(batch_size, *BATCH_SIZES, NUM_SINGLE), len(dataset))  # type: ignore[arg-type]
    samples = [dataset[index] for index in range(count)]
    images = torch.stack([image for image, _ in samples]).to(device, memory_format=memory_format)
    labels = torch.tensor([label for _, label in samples], device=device)
    static_macs = count_macs(static, images[:1])
    own_macs = count_macs(model, images[:1])
    facts: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "static_macs": static_macs,
        "macs": own_macs if kept is None else kept * own_macs,
        **_training_costs(model, static, images[:batch_size], labels[:batch_size], rounds),
    }
    for size in BATCH_SIZES:
        facts[f"inference_time_ratio_{size}"] = _inference_ratio(
            model, static, torch.split(images[: max(size, NUM_SINGLE)], size), rounds
        )
    if isinstance(model, DynamicNetwork):
        swapped = swap_gates(model, dataset, limit=SWAPPED_IMAGES)
        facts |= {
            "swap_images": swapped.num_images,
            "own_paths_accuracy": swapped.own,
            "mean_adjacency_accuracy": swapped.mean,
            "other_image_accuracy": swapped.other,
        }
    return facts


def count_macs(model: nn.Module, images: Tensor) -> int:
    """Return the multiply-accumulates of one image with every block; routers and sums included."""
    if isinstance(model, DynamicNetwork):
        return model.macs_table.static
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


def _clock(device: torch.device) -> Callable[[], float]:
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
    model: nn.Module, static: nn.Module, batches: tuple[Tensor, ...], rounds: int
) -> float:
    def run(one: nn.Module) -> Callable[[], None]:
        def once() -> None:
            for batch in batches:
                one(batch)
            wait_for(batches[0].device)

        return once

    with keeping_modes(model, static), torch.no_grad():
        model.eval()
        static.eval()
        return _ratio(run(static), run(model), batches[0].device, rounds)


def _ratio(
    baseline: Callable[[], None], own: Callable[[], None], device: torch.device, rounds: int
) -> float:
    _, timing = compare(baseline, {"own": own}, rounds=rounds, clock=_clock(device))
    return timing.ratio
