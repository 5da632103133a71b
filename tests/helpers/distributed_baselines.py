"""Run by two processes that torchrun starts: three steps of each method under plain DDP, on images
of each process's own. Prints the methods whose weights stayed equal.
"""

import torch
import torch.distributed as dist
from small import Net

from dggraph.baselines import BASELINES
from dggraph.system import processes


def train(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    net = BASELINES[name](Net(depth=3), torch.zeros(1, 3, 16, 16)).train()
    wrapped = processes.distribute(net)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
    torch.manual_seed(10 + processes.rank())
    for _ in range(3):
        x = torch.randn(4, 3, 16, 16)
        if name == "static_edges":
            loss = wrapped(x).square().mean()
        else:
            output, values = wrapped(x, return_values=True)
            own = net.auxiliary_loss(values)
            loss = output.square().mean() + (0 if own is None else own)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return net


with processes.process_group():
    for name in BASELINES:
        parameters = train(name).parameters()
        flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
        both = [torch.empty_like(flat) for _ in range(2)]
        dist.all_gather(both, flat)
        if torch.equal(*both) and processes.rank() == 0:
            print(name, flush=True)
