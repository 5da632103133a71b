"""What cannot be shared out is refused before any process waits for another; the rest is in
`launched.py` and `distributed_run.py`.
"""

import pytest
import torch
from torch import nn
from toy_data import plain_net

from dggraph.errors import InputError
from dggraph.system.sharding import shard_


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (torch.tensor(1.0), "scale is a single number"),
        (torch.zeros(2, 3).T, "scale is not contiguous in memory"),
    ],
)
def test_parameters_without_shares(parameter: torch.Tensor, message: str) -> None:
    net = plain_net()
    net.scale = nn.Parameter(parameter)
    with pytest.raises(
        InputError,
        match=(
            f"the parameter {message}, so it cannot be sharded over processes. Choose parallel ="
            " 'ddp'"
        ),
    ):
        shard_(net)
