"""Where a model computes: its first floating weight, else buffer, says it."""

import torch
from torch import Tensor, nn

from dggraph.system.devices import channels_last_, first_weight, outside_autocast


class Counter(nn.Module):
    """Numbers of other types come before the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Parameter(torch.zeros(1, dtype=torch.int8), requires_grad=False)
        self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))


def test_whole_numbers_say_nothing() -> None:
    model = Counter()
    assert first_weight(model).dtype == torch.get_default_dtype()
    model.register_buffer("scale", torch.ones(1, dtype=torch.float64))
    assert first_weight(model) is model.scale
    model.weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16, device="meta"))
    assert first_weight(model) is model.weight


def test_a_model_without_any_computes_on_the_cpu() -> None:
    with torch.device("meta"):
        assert first_weight(nn.Identity()).device.type == "cpu"


def test_channels_last_is_for_weights_of_four_axes() -> None:
    model = nn.Conv2d(2, 3, 3)
    model.kernels = nn.Parameter(torch.rand(4, 3, 2, 3, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    channels_last_(model)
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.kernels.is_contiguous()
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


def product(x: Tensor) -> Tensor:
    with outside_autocast(x.device.type):
        return x @ x


def test_nothing_is_rounded_outside_autocast() -> None:
    x = torch.full((2, 2), 1 + 2**-20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        assert product(x).dtype == torch.float32


def test_leaving_autocast_is_traced_whole() -> None:
    traced = torch.compile(product, backend="eager", fullgraph=True)
    x = torch.full((2, 2), 1 + 2**-20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(traced(x), product(x))


def test_devices_without_autocast_have_nothing_to_leave() -> None:
    assert product(torch.ones(2, 2, device="meta")).dtype == torch.float32
