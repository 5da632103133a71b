"""Run a detector over a set: what it finds on each image, and what its backbone spends there."""

from dataclasses import dataclass

import torch
from torch import nn

from dggraph.errors import InputError
from dggraph.runtime import processes
from dggraph.runtime.modes import evaluating
from dggraph.runtime.network import DynamicNetwork, collecting_gates
from dggraph.training.box_data import BoxDataset, collate
from dggraph.training.box_evaluation import Detection
from dggraph.training.evaluation import own_batches
from dggraph.training.loading import load_batches
from dggraph.training.losses import kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Of a whole set, by `BoxImage.image_id`."""

    detections: dict[int, list[Detection]]
    kept: dict[int, float]
    """MACs of the backbone's path over the static backbone's, as they are at the traced size; empty where the backbone is static."""


def detect(model: nn.Module, dataset: BoxDataset, *, batch_size: int = 8, workers: int = 0) -> Found:
    """What `model` finds, by its own score threshold. The processes share the work, and all get all of it.

    Args:
        model: a torchvision detector, its backbone dynamic (`convert_backbone_`) or not; its mode is restored.
        dataset: the images.
        batch_size: images at a time.
        workers: loader processes.

    Raises:
        InputError: an image cannot be read, or `model` returns something else than a detector does.
    """
    net = next((module for module in model.modules() if isinstance(module, DynamicNetwork)), None)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    mine: list[tuple[int, list[Detection], float | None]] = []
    with evaluating(model):
        for images, targets in load_batches(dataset, own_batches(len(dataset), batch_size), workers=workers, collate=collate):
            images = [image.to(device) for image in images]
            if net is None:
                outputs, shares = model(images), [None] * len(images)
            else:
                with collecting_gates(net) as gates:
                    outputs = model(images)
                shares = kept(gates[0]).tolist() if len(gates) == 1 else [None] * len(images)
            mine += [
                (int(target["image_id"]), _detections(output), share)
                for target, output, share in zip(targets, outputs, shares, strict=True)
            ]
    every = [item for part in processes.gather(mine) if isinstance(part, list) for item in part]
    return Found(
        detections={image_id: detections for image_id, detections, _ in every},
        kept={image_id: share for image_id, _, share in every if share is not None},
    )


def _detections(output: object) -> list[Detection]:
    if not isinstance(output, dict) or not {"boxes", "labels", "scores"} <= output.keys():
        raise InputError(
            f"the model gave {type(output).__name__} for an image; a detector gives a dict with boxes, labels and scores, as torchvision's do."
        )
    boxes, labels, scores = (output[key].detach().cpu().double().tolist() for key in ("boxes", "labels", "scores"))
    return [
        Detection(corners=tuple(box), label=int(label) - 1, score=score)
        for box, label, score in zip(boxes, labels, scores, strict=True)
    ]
