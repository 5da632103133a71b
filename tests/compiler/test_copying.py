"""Copies: what a former forward left is detached and reported; what cannot be copied is named with
its own way out.
"""

from typing import Any

import pytest
import torch
from small import Block, Net, X
from torch import Tensor, nn
from torch.nn.utils import prune

import dggraph
from dggraph.compiler.copying import copy_model, stored_activations
from dggraph.errors import InputError


class Keeps(Block):
    """Leaves what it computed on itself, in one form or another."""

    form = "tensor"

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(torch.relu(self.norm(self.conv1(x))))
        self.kept = {"tensor": y, "list": [y, y + 1], "dict": {"deep": (y,)}}[self.form]
        return x + y


@pytest.mark.parametrize("form", ["tensor", "list", "dict"])
def test_a_stored_activation_is_no_obstacle(form: str) -> None:
    model = Net(type("Form", (Keeps,), {"form": form})).eval()
    expected = model(X)
    assert stored_activations(model) == ("blocks.0.kept", "blocks.1.kept", "blocks.2.kept")
    net = dggraph.convert(model, X)
    assert torch.equal(net(X), expected)
    assert net.report.detached == stored_activations(model)


def test_a_buffer_computed_from_weights_is_detached() -> None:
    model = Net()
    model.register_buffer("scale", model.head[2].bias * 2)
    twin = copy_model(model)
    assert torch.equal(twin.scale, model.scale)
    assert twin.scale.is_leaf
    assert stored_activations(model) == ("scale",)
    assert twin._buffers.keys() == model._buffers.keys()
    assert not model.scale.is_leaf


class Holder:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _in_an_object(model: Any) -> None:
    model.blocks[0].held = Holder(model.head[2].bias * 2)


def _pruned(model: Any) -> None:
    prune.l1_unstructured(model.blocks[0].conv1, "weight", 0.5)


def _pruned_and_run(model: Any) -> None:
    _pruned(model)
    with torch.no_grad():
        model(X)


def _sparse(model: Any) -> None:
    model.table = nn.Parameter(torch.eye(3).to_sparse())


def _rows(model: Any) -> None:
    with pytest.warns(UserWarning, match="Sparse CSR"):
        model.register_buffer("table", torch.eye(3).to_sparse_csr())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_in_an_object, r"lies in 'blocks\.0'.*no_grad"),
        (_pruned, r"blocks\.0\.conv1\.weight is computed.*L1Unstructured.*prune\.remove"),
        (_pruned_and_run, r"blocks\.0\.conv1\.weight is computed.*prune\.remove"),
        (_sparse, r"table is stored as torch\.sparse_coo"),
        (_rows, r"table is stored as torch\.sparse_csr"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_what_cannot_be_copied_is_named(spoil: Any, message: str) -> None:
    model = Net()
    spoil(model)
    with pytest.raises(InputError, match=message):
        dggraph.convert(model, X)
