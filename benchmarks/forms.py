"""Forms of routers and gates on torchvision's networks: do they convert, start as the backbone,
give every parameter a gradient, learn, survive an archive, and run alike under every executor?

    OMP_NUM_THREADS=1 python benchmarks/forms.py --model resnet50

Each form makes 50 steps on one batch of noise with random labels, which a network that learns
memorises. It prints a row of JSON for each.
"""

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import dggraph
from dggraph.network.gates import static_weights
from dggraph.network.network import DynamicNetwork
from dggraph.training import param_groups

MODELS = ("resnet50", "mobilenet_v2", "resnext50_32x4d", "regnet_y_400mf")
FORMS = (
    ("node", "anchored", 0.0),
    ("node", "shrink", 0.5),
    ("stage", "scaled", 0.0),
    ("stage", "softmax", 0.0),
    ("stage(16, inputs=pool+std, norm=rms)", "anchored", 0.0),
    ("node(gradient=stop)", "anchored", 0.0),
    ("tied", "anchored", 0.0),
    ("constant", "anchored", 0.0),
)
SIDE, BATCH, STEPS, CLASSES = 48, 8, 50, 10


def measure(name: str, router: str, gate: str, threshold: float) -> dict[str, Any]:
    torch.manual_seed(0)
    backbone = torchvision.models.get_model(name, weights=None, num_classes=CLASSES).eval()
    x, labels = torch.randn(BATCH, 3, SIDE, SIDE), torch.arange(BATCH) % CLASSES
    net = dggraph.convert(backbone, x[:1], router=router, gate=gate, threshold=threshold)
    with torch.no_grad():
        is_exact = torch.equal(net.eval()(x), backbone(x))
    losses, silent = train(net, x, labels)
    row = {"model": name, "router": router, "gate": gate, "threshold": threshold}
    row |= {"exact": is_exact, "without gradient": silent, "losses": losses}
    row["archive"] = is_kept(net, backbone, x)
    row |= executors(net, x)
    return row


def train(net: DynamicNetwork, x: Tensor, labels: Tensor) -> tuple[list[float], list[str]]:
    """Return the first and last loss, and the parameters that never had a gradient."""
    groups = param_groups(net.train(), 1e-4, router_lr=0.01)
    optimiser = torch.optim.SGD(groups, lr=0.02, momentum=0.9)
    losses: list[float] = []
    silent = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    for _ in range(STEPS):
        loss = nn.functional.cross_entropy(net(x), labels)
        optimiser.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        if len(losses) <= 3:
            silent -= {
                name
                for name, parameter in net.named_parameters()
                if parameter.grad is not None and parameter.grad.any()
            }
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
    return [losses[0], losses[-1]], sorted(silent)


def is_kept(net: DynamicNetwork, backbone: nn.Module, x: Tensor) -> bool:
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        dggraph.save(net, Path(folder) / "net")
        again = dggraph.load(Path(folder) / "net", model=backbone)
        return torch.equal(again.eval()(x), net.eval()(x))


def executors(net: DynamicNetwork, x: Tensor) -> dict[str, Any]:
    """Largest differences from the dense executor, over the largest output; open edges, paths.

    The threshold is the lowest quarter of the weights of the backbone's edges, so that some close.
    """
    with torch.no_grad():
        _, gates = net.eval()(x, return_gates=True)
        static = static_weights(net.graph)
        weights = torch.cat(
            [raw[:, static[stage] == 1].flatten() for stage, raw in gates.raw.items()]
        )
        net.set_threshold(min(max(float(weights.quantile(0.25)), 0.0), 0.999))
        net.executor = "dense"
        expected, gates = net.eval()(x, return_gates=True)
        net.executor = "sparse"
        outputs = {"sparse": net(x), "one by one": torch.cat([net(one) for one in x.split(1)])}
    scale = float(expected.abs().max())
    opened = torch.cat(list(gates.open.values()), 1)
    return {
        **{name: float((one - expected).abs().max()) / scale for name, one in outputs.items()},
        "open": float(opened.double().mean()),
        "paths": len({tuple(row) for row in opened.tolist()}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, help="This one only.")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in MODELS if arguments.model is None else (arguments.model,):
        for form in FORMS:
            start = time.process_time()
            row = measure(name, *form)
            print(json.dumps(row | {"cpu_seconds": time.process_time() - start}), flush=True)


if __name__ == "__main__":
    main()
