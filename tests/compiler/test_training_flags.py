"""What a forward decides by `self.training`: followed, kept as one call, or said, and never lost in
silence.
"""

from collections.abc import Callable

import pytest
import torch
from small import Block, Net, X
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import dggraph
from dggraph.compiler.fingerprints import fingerprint
from dggraph.compiler.tracing import trace, trace_eval


class Inner(Block):
    def inner(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv1(x)))


class Doubling(Inner):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.inner(x))
        if self.training:
            y = 2 * y
        return x + y


class Choosing(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(functional.dropout(self.inner(x), 0.5 if self.training else 0.0))


class Counting(Inner):
    """The flag is a number."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.inner(x)) * (1 + self.training)


class Norm(nn.BatchNorm2d):
    """No layer of torch's, with torch's forward, which asks."""


class OwnNorm(Block):
    def __init__(self) -> None:
        super().__init__()
        self.norm = Norm(8)


def jitter(x: Tensor, training: bool) -> Tensor:
    if not training:
        return x
    return x + torch.rand_like(x)


class Helped(Inner):
    """A function is handed the flag."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(jitter(self.inner(x), self.training))


class Jitter(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x) if self.training else x


class Layered(Inner):
    def __init__(self) -> None:
        super().__init__()
        self.jitter = Jitter()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.jitter(self.inner(x)))


DIFFERENT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "statement": (Doubling, "Doubling"),
    "expression": (Choosing, "Choosing"),
    "number": (Counting, "Counting"),
    "a norm of one's own": (OwnNorm, "Norm"),
    "helper": (Helped, "jitter"),
    "layer": (Layered, "Jitter"),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_what_training_does_differently_comes_along(kind: str) -> None:
    block, kept = DIFFERENT[kind]
    backbone = Net(block)
    net = dggraph.convert(backbone, X[:1])
    assert [opaque.name for opaque in net.report.opaque] == [kept]
    assert not net.report.eval_only
    for mode in (True, False):
        for module in (backbone, net):
            module.train(mode)
            module.zero_grad()
        torch.manual_seed(0)
        expected = backbone(X)
        torch.manual_seed(0)
        given = net(X)
        assert torch.allclose(given, expected, atol=1e-5)
        expected.square().sum().backward()
        given.square().sum().backward()
        for name, parameter in backbone.named_parameters():
            assert torch.allclose(
                net.get_parameter(name).grad, parameter.grad, rtol=1e-3, atol=1e-3
            ), name  # type: ignore[arg-type]


def test_a_question_whose_answer_does_not_matter_changes_nothing() -> None:
    class Asking(Inner):
        rate = 0.0

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv2(
                functional.dropout(
                    self.inner(x), self.rate if self.training else 0.0, self.training
                )
            )

    net = dggraph.convert(Net(Asking), X[:1])
    assert not net.report.opaque
    assert not net.report.eval_only
    assert net.graph.stages["blocks"].residual == "lift"


def test_the_backbone_itself_cannot_be_one_call_so_the_report_says_what_it_loses() -> None:
    class Noisy(Net):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                x = x + torch.rand_like(x)
            return super().forward(x)

    (place,) = dggraph.convert(Noisy(), X[:1]).report.eval_only
    assert "test_training_flags.py" in place
    assert "if self.training" in place


def test_checkpointing_asked_for_in_training_alone_is_reported() -> None:
    class Saving(Inner):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                return x + checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[no-any-return]
            return x + self.inner(x)

    net = dggraph.convert(Net(Saving), X[:1])
    assert net.report.checkpointed == ("blocks.0", "blocks.1", "blocks.2")
    assert not net.report.opaque


def test_archives_of_what_was_traced_in_eval_mode_alone_load(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Net(Doubling).eval()
    assert fingerprint(trace(backbone, example=X[:1]).graph) != fingerprint(
        trace_eval(backbone, example=X[:1]).graph
    )
    with monkeypatch.context() as before:
        before.setattr("dggraph.network.conversion.trace", trace_eval)
        net = dggraph.convert(backbone, X[:1])
    dggraph.save(net, f"{tmp_path}/archive")
    with torch.no_grad():
        assert torch.equal(dggraph.load(f"{tmp_path}/archive", model=backbone)(X), backbone(X))
