"""What a forward keeps by the size of its images is computed again; what it keeps of their values
is guarded.
"""

import pytest
import torch
from small import Net, X
from torch import Tensor

import dggraph
from dggraph.errors import BranchError


class Gridded(Net):
    """Adds a grid that it keeps for the next images of this size, as YOLO's heads do."""

    def __init__(self) -> None:
        super().__init__()
        self.shape: torch.Size | None = None
        self.grid: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        if self.shape != shape:
            rows = torch.arange(shape[2]).type_as(x)[:, None]
            self.grid = rows + x.new_full((1, shape[3]), 2.0)
            self.shape = shape
        return super().forward(x + self.grid)


class Summing(Net):
    """Starts its sum anew with each size, and adds up what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shape: torch.Size | None = None
        self.sum: Tensor = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        if self.shape != shape:
            self.sum = x.mean() * 0
            self.shape = shape
        self.sum = self.sum + x.mean()
        return super().forward(x) + self.sum


class SummingInPlace(Net):
    """As above, in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.shape: torch.Size | None = None
        self.register_buffer("sum", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        if self.shape != shape:
            self.sum.zero_()
            self.shape = shape
        self.sum.add_(x.mean())
        return super().forward(x) + self.sum


class SummingInList(Net):
    """As above, in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.shape: torch.Size | None = None
        self.sums: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        if self.shape != shape:
            self.sums = [x.mean() * 0]
            self.shape = shape
        self.sums = [self.sums[0] + x.mean()]
        return super().forward(x) + self.sums[0]


class Doubling(Net):
    """Compares the size with a number, and keeps it for other reasons."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 0

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[3]
        if width != 20:
            x = 2 * x
        self.width = width
        return super().forward(x)


SEEN, OTHER = torch.rand(1, 3, 12, 20), torch.rand(2, 3, 20, 12)


@pytest.mark.parametrize("executor", ["dense", "sparse"])
def test_a_cache_by_size_is_computed_again(executor: str) -> None:
    model = Gridded().eval()
    model(SEEN)  # the model remembers this size, and conversion sees another one
    net = dggraph.convert(model, X).eval()
    net.executor = executor
    assert not net.report.assumptions
    with torch.no_grad():
        for x in (SEEN, SEEN, OTHER, OTHER, SEEN, X):
            assert torch.equal(net(x), model(x))
            assert torch.equal(net.grid, model.grid)


@pytest.mark.parametrize("kind", [Summing, SummingInPlace, SummingInList, Doubling])
def test_what_is_no_cache_by_size_is_guarded(kind: type[Net]) -> None:
    model = kind().eval()
    model(SEEN)
    net = dggraph.convert(model, X).eval()
    assert net.report.assumptions
    with (
        torch.no_grad(),
        pytest.raises(BranchError, match=r"if (self\.shape != shape|width != 20)"),
    ):
        net(SEEN)
