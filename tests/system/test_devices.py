"""Where a model computes: its first floating weight, else buffer, says it."""

import torch
from torch import nn

from dggraph.system.devices import channels_last_, first_weight


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
