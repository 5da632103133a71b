"""The interface of a task to the training loop: batches, their loss, and evaluation.

`classifying` and `detecting` implement it.
"""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset

from dggraph.baselines.network import BaselineNetwork
from dggraph.network.gates import Gates
from dggraph.network.network import DynamicNetwork
from dggraph.training.identity import Identity


class Evaluation(Protocol):
    """The result of evaluating a model on the validation set."""

    @property
    def score(self) -> float:
        """Higher is better; the best checkpoint is the one with the highest score."""

    def row(self) -> dict[str, Any]:
        """Return the row for the metrics file."""


class Task(Protocol):
    """Data, a loss and an evaluation."""

    @property
    def train(self) -> Dataset[Any]:
        """Samples by index, augmented at random."""

    @property
    def groups(self) -> list[int]:
        """The group of each sample; the samples of a batch are of one group."""

    @property
    def collate(self) -> Callable[[list[Any]], Any] | None:
        """A function that makes a batch from samples; None stacks them."""

    @property
    def identity(self) -> Identity:
        """The identity of the data, the same in all processes and whenever the run resumes."""

    def parts(self, batch: Any, step: int) -> list[Any]:
        """Return a batch on the device, mixed and split into `grad_accum_steps` parts."""

    def loss(
        self, model: nn.Module, net: DynamicNetwork | BaselineNetwork | None, part: Any
    ) -> tuple[Tensor, Gates | None]:
        """Return the 0-d loss of one part, and the gates of its forward pass.

        `model` is called once, in train mode, and contains `net`. What a baseline adds to the loss
        is included.
        """

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Evaluate `model` on the validation set; every process must call this."""
