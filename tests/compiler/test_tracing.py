"""Tracing: what follows the mode, what is refused and why, and whose hooks run."""

from typing import Any

import pytest
import torch
from small import Net, X
from torch import Tensor, nn
from torch.nn import functional

import dggraph
from dggraph.errors import InputError, TraceError


class FunctionalNorms(nn.Module):
    """One norm frozen by a constant, one that follows the mode, by position and by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        for name in ("frozen", "first", "second"):
            self.register_buffer(f"{name}_mean", torch.zeros(8))
            self.register_buffer(f"{name}_var", torch.full((8,), 4.0))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.batch_norm(self.conv1(x), self.frozen_mean, self.frozen_var, training=False)
        y = functional.batch_norm(y, self.first_mean, self.first_var, None, None, self.training)
        y = functional.batch_norm(
            self.conv2(torch.relu(y)), self.second_mean, self.second_var, training=self.training
        )
        return x + y


@pytest.mark.parametrize("block", [None, FunctionalNorms])
@pytest.mark.parametrize("training", [True, False])
def test_both_modes_are_the_backbone_s(block: Any, training: bool) -> None:
    """Outputs and running statistics: a constant `training=False` stays one, `self.training` is
    followed.
    """
    model = (Net(block) if block else Net()).train(training)
    net = dggraph.convert(model, X)
    assert net.training == training
    for _ in range(2):
        assert torch.equal(net(X), model(X))
    state = net.lowered.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


class TwoInputs(Net):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x * mask)


class KeywordInput(Net):
    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x * mask)


class CountsWithValues(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[: int(x.sum())])


def test_reasons_are_the_real_ones() -> None:
    for model in (TwoInputs(), KeywordInput()):
        with pytest.raises(TraceError, match=r"needs 'mask' in addition to the images") as error:
            dggraph.convert(model, X)
        assert "control flow" not in str(error.value)
    with pytest.raises(TraceError, match="leaves") as error:
        dggraph.convert(CountsWithValues(), X)
    assert "Proxy" not in str(error.value)
    with pytest.raises(InputError, match="exported program"):
        dggraph.convert(torch.export.export(Net().eval(), (X,)).module(), X)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_scripted_models_are_named() -> None:
    with pytest.raises(TraceError, match="scripted module"):
        dggraph.convert(torch.jit.script(Net()), X)


def test_a_compiled_wrapper_is_its_model() -> None:
    model = Net().eval()
    assert torch.equal(dggraph.convert(torch.compile(model), X)(X), model(X))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_computed_tensors_name_the_way_out() -> None:
    model = Net()
    torch.nn.utils.weight_norm(model.blocks[0].conv1)
    with pytest.raises(InputError, match=r"blocks\.0\.conv1\.weight is computed.*parametrizations"):
        dggraph.convert(model, X)
    model = Net()
    torch.nn.utils.parametrizations.weight_norm(model.blocks[0].conv1)
    assert dggraph.convert(model.eval(), X).report.num_blocks == 3


def test_hooks_are_reported_and_never_see_a_proxy() -> None:
    model, seen = Net().eval(), []
    for module in (model, model.blocks[0], model.blocks[0].conv1):
        module.register_forward_hook(lambda _module, _args, output: seen.append(type(output)))
    net = dggraph.convert(model, X)
    assert seen
    assert all(issubclass(kind, Tensor) for kind in seen)
    assert net.report.hooks == ("", "blocks.0")
    assert len(model._forward_hooks) == len(model.blocks[0]._forward_hooks) == 1
    seen.clear()
    net(X)
    assert len(seen) == 1  # the convolution is called as a whole
