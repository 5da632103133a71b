"""What a run learns, as the loop sees it: batches, their loss, and how good the model is. See
`classifying` and `detecting`.
"""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset

from dggraph.network.gates import Gates
from dggraph.network.network import DynamicNetwork
from dggraph.training.identity import Identity


class Evaluation(Protocol):
    """What a validation set says of a model."""

    @property
    def score(self) -> float:
        """Higher is better; decides which checkpoint is the best."""

    def row(self) -> dict[str, Any]:
        """For metrics."""


class Task(Protocol):
    """Images, what is to be said of them, and how well that is done."""

    @property
    def train(self) -> Dataset[Any]:
        """Samples by index, augmented at random."""

    @property
    def groups(self) -> list[int]:
        """The group of each sample; a batch holds samples of one group."""

    @property
    def collate(self) -> Callable[[list[Any]], Any] | None:
        """Makes a batch of samples; None stacks them."""

    @property
    def identity(self) -> Identity:
        """What it learns from, the same for all processes and whenever the run goes on."""

    def parts(self, batch: Any, step: int) -> list[Any]:
        """A batch on the device, mixed, and split into `grad_accum_steps` parts."""

    def loss(
        self, model: nn.Module, net: DynamicNetwork | None, part: Any
    ) -> tuple[Tensor, Gates | None]:
        """0-d loss of one part, and the gates it passed; `model` is called once, in train mode, and
        `net` is in it.
        """

    def evaluate(self, model: nn.Module) -> Evaluation:
        """How good `model` is on the validation set; every process must ask for it."""
