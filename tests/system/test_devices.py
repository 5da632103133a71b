"""Where a model computes: its first floating weight, else buffer, says it."""

import torch
from torch import nn

from dggraph.system.devices import first_weight


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
