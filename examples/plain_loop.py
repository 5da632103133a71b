"""A converted network in a plain loop, on one process or several, with images made up on the spot;
some seconds on one core.

    python examples/plain_loop.py ARCHIVE
    torchrun --nproc-per-node 2 examples/plain_loop.py ARCHIVE
"""

import os
import sys

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import dggraph
from dggraph.models.preprocessing import Preprocess
from dggraph.training.optimisers import param_groups

STEPS, BATCH, KEPT, THRESHOLD = 60, 32, 0.7, 0.5
COLUMNS = tuple(f"column {number}" for number in range(10))


def draw(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright column: where it is says the class."""
    labels, images = torch.randint(10, (number,)), torch.randn(number, 3, 16, 16)
    images[torch.arange(number), :, :, labels] += 3
    return images, labels


def main(archive: str) -> None:
    if "RANK" in os.environ:
        dist.init_process_group()
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.manual_seed(0)  # the same weights everywhere
    net = dggraph.convert("dggraph:resnet14_4", torch.zeros(1, 3, 16, 16), threshold=0).train()
    model = DistributedDataParallel(net) if dist.is_initialized() else net
    optimiser = torch.optim.AdamW(param_groups(net, weight_decay=0.05), lr=5e-3)
    torch.manual_seed(1 + rank)  # other images everywhere
    for step in range(STEPS):
        net.set_threshold(
            min(THRESHOLD, 2 * THRESHOLD * step / STEPS)
        )  # annealed in over the first half
        images, labels = draw(BATCH)
        logits, gates = model(images, return_gates=True)
        loss = F.cross_entropy(logits, labels) + dggraph.losses.budget(gates, KEPT)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if rank == 0 and (step % 10 == 0 or step == STEPS - 1):
            print(
                f"step {step} loss {loss:.3f} kept {dggraph.losses.kept(gates).mean():.3f}",
                flush=True,
            )
    if rank == 0:
        dggraph.save(net, archive, preprocess=Preprocess(input_size=(3, 16, 16)), labels=COLUMNS)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
