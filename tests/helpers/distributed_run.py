"""Run by two processes that torchrun starts: gradients, parameters and counts against one process.
Prints what held.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from reference import randomise_routers
from toy_data import Toy, plain_net

import dggraph
from dggraph.evaluation.accuracy import evaluate
from dggraph.losses import budget
from dggraph.system import processes
from dggraph.system.sharding import full_tensor, shard_
from dggraph.training.checkpoint import flatten_optimiser, restore_optimiser
from dggraph.training.config import TrainConfig
from dggraph.training.loop import train
from dggraph.training.optimisers import ON_SHARES, build_optimiser


def network(seed: int = 0) -> dggraph.network.network.DynamicNetwork:
    torch.manual_seed(seed)
    return randomise_routers(
        dggraph.convert(plain_net(), torch.zeros(1, 3, 16, 16)).double(), 1
    ).train()


def loss_of(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(net(images), labels)


def check_gradients() -> None:
    torch.manual_seed(3)
    images, labels = torch.randn(8, 3, 16, 16, dtype=torch.float64), torch.randint(4, (8,))
    alone = network()
    loss_of(alone, images, labels).backward()
    shared = network()
    part = slice(4 * processes.rank(), 4 * processes.rank() + 4)
    wrapped = processes.distribute(shared)
    loss_of(wrapped, images[part], labels[part]).backward()
    for (name, one), other in zip(alone.named_parameters(), shared.parameters(), strict=True):
        assert one.grad is not None, name
        assert other.grad is not None, name
        assert float((one.grad - other.grad).abs().max()) <= 1e-12 * max(
            1.0, float(one.grad.abs().max())
        ), name
    print("gradients", flush=True)


def check_parameters() -> None:
    """After 50 steps on images of its own, with paths of its own, each process holds the same
    weights to the bit.
    """
    net = network()
    wrapped, optimiser = (
        processes.distribute(net),
        torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
    )
    torch.manual_seed(10 + processes.rank())
    paths: list[tuple[bool, ...]] = []
    for _ in range(50):
        output, gates = wrapped(torch.randn(4, 3, 16, 16, dtype=torch.float64), return_gates=True)
        paths.extend(
            tuple((row != 0).tolist()) for weights in gates.weights.values() for row in weights
        )
        (output.square().mean() + budget(gates, 0.7)).backward()
        optimiser.step()
        optimiser.zero_grad()
    mine, theirs = processes.all_gather_objects(paths)
    assert mine != theirs
    flat = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
    both = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(both, flat)
    assert torch.equal(*both)
    print("parameters", flush=True)


def check_sharded() -> None:
    """The gradients; then each optimiser that may step on them takes the steps of one process, its
    state saved and restored on the way.
    """
    torch.manual_seed(3)
    images, labels = torch.randn(8, 3, 16, 16, dtype=torch.float64), torch.randint(4, (8,))
    part = slice(4 * processes.rank(), 4 * processes.rank() + 4)

    def stepped(opt: str, net: torch.nn.Module, part: slice) -> list[torch.Tensor]:
        config = TrainConfig(model="", opt=opt, lr=0.01, weight_decay=0.05)
        optimiser = build_optimiser(config, net)
        for step in range(4):
            if step == 2:
                tensors, rest = flatten_optimiser(optimiser)
                optimiser = build_optimiser(config, net)
                restore_optimiser(optimiser, tensors, json.loads(json.dumps(rest)))
            optimiser.zero_grad()
            loss_of(net, images[part], labels[part]).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            optimiser.step()
        return [
            full_tensor(tensor.detach()) for one in net.parameters() for tensor in (one, one.grad)
        ]

    for opt in ON_SHARES:
        alone, sharded = (
            network(),
            network(processes.rank()),
        )  # whose weights become those of process 0
        shard_(sharded)
        both = zip(stepped(opt, alone, slice(8)), stepped(opt, sharded, part), strict=True)
        worst = max(float((one - other).abs().max()) for one, other in both)
        assert worst <= 1e-6, (opt, worst)
    print("sharded", flush=True)


def check_counts(expected: list[int]) -> None:
    found = evaluate(network().eval(), Double(), batch_size=8)
    assert [found.top1, found.top5, found.num_images, found.num_paths] == expected, found
    print("counts", flush=True)


class Double(Toy):
    def __init__(self) -> None:
        super().__init__(43, False, 2)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = super().__getitem__(index)
        return image.double(), label


def check_training(folder: Path) -> None:
    base = {
        "model": "toy_data:plain_net",
        "num_classes": 4,
        "input_size": 16,
        "dataset": "toy_data:make",
        "epochs": 1,
    }
    config = TrainConfig(
        **base, batch_size=8, warmup_epochs=0, output=folder, experiment="two", lr=0.05
    )
    result = train(config)
    assert result.is_finished
    assert (folder / "two" / "archive").is_dir()
    print("training", flush=True)


if __name__ == "__main__":
    expected = [int(number) for number in sys.argv[2].split(",")]
    with processes.process_group():
        check_gradients()
        check_parameters()
        check_sharded()
        check_counts(expected)
        check_training(Path(sys.argv[1]))
    processes.leave(0)
