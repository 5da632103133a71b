"""The task of detectors of torchvision's kind: boxes."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dggraph.baselines.network import BaselineNetwork
from dggraph.detection.box_data import BoxDataset, Target, collate
from dggraph.detection.evaluation import DetectionEvaluation, detect, evaluate_boxes
from dggraph.detection.readers import BoxSet
from dggraph.network.gate_contexts import collecting_gates
from dggraph.network.gates import Gates
from dggraph.network.network import DynamicNetwork
from dggraph.system import processes
from dggraph.system.devices import on_device
from dggraph.training.config import TrainConfig
from dggraph.training.identity import Identity, names_of_boxes

Part = tuple[list[Tensor], list[Target]]
"""Images (3, H, W) and their targets."""


@dataclass(frozen=True, kw_only=True)
class Detecting:
    """The `Task` of a detector."""

    config: TrainConfig
    training: BoxSet
    validation: BoxSet

    @cached_property
    def train(self) -> BoxDataset:
        """Return the training set, flipped at random."""
        return BoxDataset(self.training.learnable, flip=self.config.hflip)

    @property
    def groups(self) -> list[int]:
        """Return a group for tall images and one for wide ones, which limits padding in a batch.

        All images are in one group if either would not fill a batch.
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
        """Return the function that makes a batch from samples."""
        return collate

    @property
    def identity(self) -> Identity:
        """Return the identity of the data."""
        parts = {"train": self.train.images, "validation": self.validation.images}
        return Identity(
            classes=self.training.classes,
            sizes={name: len(images) for name, images in parts.items()},
            names={name: names_of_boxes(images) for name, images in parts.items()},
        )

    def parts(self, batch: Part, step: int) -> list[Part]:
        """Return the batch on the device, split into `grad_accum_steps` parts."""
        device, (images, targets) = processes.device(), batch
        images = [on_device(image, device) for image in images]
        targets = [
            {name: on_device(tensor, device) for name, tensor in target.items()}
            for target in targets
        ]
        size = len(images) // self.config.grad_accum_steps
        return [
            (images[start : start + size], targets[start : start + size])
            for start in range(0, len(images), size)
        ]

    def loss(
        self, model: nn.Module, net: DynamicNetwork | BaselineNetwork | None, part: Part
    ) -> tuple[Tensor, Gates | None]:
        """Return the sum of the detector's losses, and the gates of its backbone."""
        if not isinstance(net, DynamicNetwork):
            return sum(model(*part).values(), torch.zeros(())), None
        with collecting_gates(net) as gates:
            losses = model(*part)
        return sum(losses.values(), torch.zeros(())), gates[0]

    def evaluate(self, model: nn.Module) -> DetectionEvaluation:
        """Return the average precision of `model` on the validation set."""
        found = detect(
            model,
            BoxDataset(self.validation.images),
            batch_size=self.config.evaluation_batch_size,
            workers=self.config.workers,
        )
        # COCO takes seconds and a gigabyte, so one process evaluates for all
        measured = evaluate_boxes(found, self.validation) if processes.rank() == 0 else None
        (first, *_) = processes.all_gather_objects(measured)
        assert isinstance(first, DetectionEvaluation)
        return first
