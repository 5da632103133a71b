"""The task of classifiers: labels, or the outputs of a trained static network."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dggraph.baselines.network import BaselineNetwork
from dggraph.data.augmentation import mix
from dggraph.data.sampler import seed_of
from dggraph.data.sources import TrainingData
from dggraph.evaluation.accuracy import Accuracy, evaluate
from dggraph.network.gates import Gates
from dggraph.network.network import DynamicNetwork
from dggraph.ops.divergence import divergence
from dggraph.system import processes
from dggraph.system.devices import on_device
from dggraph.system.loaders import num_samples
from dggraph.training.config import TrainConfig
from dggraph.training.identity import Identity, names_of

Part = tuple[Tensor, Tensor]
"""Images (B, C, H, W), and labels (B,) or targets (B, K)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifying:
    """The `Task` of a classifier."""

    config: TrainConfig
    data: TrainingData
    """For distillation, the labels of the validation set are the teacher's predictions."""
    teacher: nn.Module | None
    """The network whose outputs are learned in distillation, else None."""
    collate: None = None

    @property
    def train(self) -> Dataset[Any]:
        """Return the training set."""
        return self.data.train

    @property
    def groups(self) -> list[int]:
        """Return one group for all samples."""
        return [0] * num_samples(self.data.train)

    @property
    def identity(self) -> Identity:
        """Return the identity of the data."""
        parts: dict[str, Any] = {"train": self.data.train, "validation": self.data.validation}
        return Identity(
            classes=self.data.classes,
            sizes={name: len(part) for name, part in parts.items()},
            names={name: names_of(part) for name, part in parts.items()},
        )

    def parts(self, batch: Any, step: int) -> list[Part]:
        """Return the batch on the device, mixed and split into `grad_accum_steps` parts."""
        config = self.config
        images, labels = (on_device(tensor, processes.device()) for tensor in batch)
        if config.channels_last:
            images = images.to(memory_format=torch.channels_last)
        num_classes = config.num_classes or len(self.data.classes)
        if self.teacher is not None:
            # placeholders: the target is the teacher's output on the mixed images
            labels, num_classes = torch.zeros_like(labels), 1
        images, targets = mix(
            images,
            labels,
            num_classes,
            mixup=config.mixup,
            cutmix=config.cutmix,
            smoothing=config.smoothing,
            seed=seed_of(config.seed, 2, step, processes.rank()),
        )
        return list(
            zip(
                images.chunk(config.grad_accum_steps),
                targets.chunk(config.grad_accum_steps),
                strict=True,
            )
        )

    def loss(
        self, model: nn.Module, net: DynamicNetwork | BaselineNetwork | None, part: Part
    ) -> tuple[Tensor, Gates | None]:
        """Return the cross-entropy or the divergence from the teacher, and the gates."""
        images, targets = part
        if isinstance(net, BaselineNetwork):
            logits, values = model(images, return_values=True)
            own = net.auxiliary_loss(values)
            loss = self._loss_of(logits, images, targets)
            return (loss if own is None else loss + own), None
        logits, gates = (model(images), None) if net is None else model(images, return_gates=True)
        return self._loss_of(logits, images, targets), gates

    def _loss_of(self, logits: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        if self.teacher is None:
            return nn.functional.cross_entropy(logits.float(), targets)
        with torch.no_grad():
            expected = self.teacher(images)
        return divergence(expected.float(), logits.float()).mean()

    def evaluate(self, model: nn.Module) -> Accuracy:
        """Return the accuracy of `model` on the validation set."""
        return evaluate(
            model,
            self.data.validation,
            batch_size=self.config.evaluation_batch_size,
            workers=self.config.workers,
        )
