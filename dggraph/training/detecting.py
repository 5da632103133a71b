"""Learn boxes: a `Task` for detectors of torchvision's kind."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dggraph.detection.box_data import BoxDataset, Target, collate
from dggraph.detection.evaluation import DetectionEvaluation, detect, evaluate_boxes
from dggraph.detection.readers import BoxSet
from dggraph.network.gate_contexts import collecting_gates
from dggraph.network.gates import Gates
from dggraph.network.network import DynamicNetwork
from dggraph.system import processes
from dggraph.training.config import TrainConfig
from dggraph.training.identity import Identity, names_of_boxes

Part = tuple[list[Tensor], list[Target]]
"""Images (3, H, W) and what is on them."""


@dataclass(frozen=True, kw_only=True)
class Detecting:
    """A `Task`."""

    config: TrainConfig
    training: BoxSet
    validation: BoxSet

    @cached_property
    def train(self) -> BoxDataset:
        return BoxDataset(self.training.learnable, flip=self.config.hflip)

    @property
    def groups(self) -> list[int]:
        """Tall images and wide ones: batches of both would be mostly padding. One group where
        either would not fill a batch.
        """
        is_tall = [int(image.height > image.width) for image in self.train.images]
        global_size = self.config.batch_size * processes.world_size()
        return (
            is_tall
            if min(sum(is_tall), len(is_tall) - sum(is_tall)) >= global_size
            else [0] * len(is_tall)
        )

    @property
    def collate(self) -> Any:
        return collate

    @property
    def identity(self) -> Identity:
        parts = {"train": self.train.images, "validation": self.validation.images}
        return Identity(
            classes=self.training.classes,
            sizes={name: len(images) for name, images in parts.items()},
            names={name: names_of_boxes(images) for name, images in parts.items()},
        )

    def parts(self, batch: Part, step: int) -> list[Part]:
        device, (images, targets) = processes.device(), batch
        images = [image.to(device) for image in images]
        targets = [
            {name: tensor.to(device) for name, tensor in target.items()} for target in targets
        ]
        size = len(images) // self.config.grad_accum_steps
        return [
            (images[start : start + size], targets[start : start + size])
            for start in range(0, len(images), size)
        ]

    def loss(
        self, model: nn.Module, net: DynamicNetwork | None, part: Part
    ) -> tuple[Tensor, Gates | None]:
        if net is None:
            return sum(model(*part).values(), torch.zeros(())), None
        with collecting_gates(net) as gates:
            losses = model(*part)
        return sum(losses.values(), torch.zeros(())), gates[0]

    def evaluate(self, model: nn.Module) -> DetectionEvaluation:
        found = detect(
            model,
            BoxDataset(self.validation.images),
            batch_size=self.config.judged_at_a_time,
            workers=self.config.workers,
        )
        judged = (
            evaluate_boxes(found, self.validation) if processes.rank() == 0 else None
        )  # seconds and a gigabyte for COCO
        (first, *_) = processes.all_gather_objects(judged)
        assert isinstance(first, DetectionEvaluation)
        return first
