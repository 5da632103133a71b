"""Every form of dynamic wiring and every baseline on four torchvision networks: does it convert,
start as it says, learn, come back from an archive, and run alike under every executor?

    OMP_NUM_THREADS=1 python benchmarks/four_networks.py forms
    OMP_NUM_THREADS=1 python benchmarks/four_networks.py baselines

Rows are written to docs/tables as they come, and those that are there are not measured again.
Images are random, since the question is whether each one works, not how well.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dggraph
from dggraph.baselines import BASELINES, BaselineNetwork
from dggraph.models.registry import load_model
from dggraph.network.gates import static_weights
from dggraph.network.network import DynamicNetwork
from dggraph.training import param_groups

MODELS = ("mobilenet_v2", "regnet_y_400mf", "resnet50", "resnext50_32x4d")
TABLES = Path(__file__).resolve().parents[1] / "docs" / "tables"
SIDE, BATCH, STEPS, CLASSES = 64, 8, 50, 10
RATE, ROUTER_RATE, MOMENTUM, CLIP = 0.01, 0.001, 0.9, 5.0

FORMS: dict[str, dict[str, Any]] = {
    "node": {},
    "stage": {"router": "stage"},
    "content": {"router": "content"},
    "tied": {"router": "tied"},
    "constant": {"router": "constant"},
    "stage(16, inputs=pool+std, norm=rms)": {"router": "stage(16, inputs=pool+std, norm=rms)"},
    "node(gradient=stop)": {"router": "node(gradient=stop)"},
    "node, shrink": {"gate": "shrink", "threshold": 0.5},
    "stage, scaled": {"router": "stage", "gate": "scaled"},
    "stage, softmax": {"router": "stage", "gate": "softmax"},
    "node, 8 groups": {"granularity": 8},
    "stage(16), channel": {"router": "stage(16)", "granularity": "channel"},
    "node, pixel": {"granularity": "pixel"},
    "constant, channel": {"router": "constant", "granularity": "channel"},
    "stage, additive": {"router": "stage", "aggregation": "additive"},
    "node, dilated(2, 2)": {"wiring": "dilated(2, 2)"},
    "node, window(2)+entry": {"wiring": "window(2)+entry"},
}
"""Options of `convert` for each form; the threshold is 0 where none is given."""


def measure(kind: str, form: str, model: str) -> dict[str, Any]:
    """Return the row of one form or method on one network."""
    torch.manual_seed(0)
    loaded = load_model(model, num_classes=CLASSES)
    x, labels = torch.randn(BATCH, 3, SIDE, SIDE), torch.arange(BATCH) % CLASSES
    with torch.no_grad():
        expected = loaded.model.eval()(x)
    before = sum(parameter.numel() for parameter in loaded.model.parameters())
    start = time.process_time()
    net: Any
    if kind == "forms":
        net = dggraph.convert(loaded, x[:1], **({"threshold": 0.0} | FORMS[form])).eval()
    else:
        net = BASELINES[form](loaded, x[:1]).eval()
    row: dict[str, Any] = {"model": model, "form": form}
    row["seconds"] = round(time.process_time() - start, 2)
    with torch.no_grad():
        row["difference"] = _relative(net(x), expected)
        alone = torch.cat([net(one) for one in x.split(1)])
        row["one_by_one"] = _relative(net(x), alone)
    row["added_parameters"] = sum(parameter.numel() for parameter in net.parameters()) - before
    losses, row["without_gradient"] = learn_(net, x, labels)
    row["first_losses"], row["last_losses"] = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        dggraph.save(net, Path(folder, "archive"))
        row["archive"] = torch.equal(dggraph.load(Path(folder, "archive"))(x), net.eval()(x))
    return row | (executors(net, x) if kind == "forms" else {})


def learn_(net: nn.Module, x: Tensor, labels: Tensor) -> tuple[list[float], list[str]]:
    """Take `STEPS` steps, and return the losses and the parameters that had no gradient in three.

    A hidden layer gets its first one in the second step, after a last layer that starts at zero.
    """
    net.train()
    is_dynamic = isinstance(net, DynamicNetwork)
    parameters = param_groups(net, 0.0, router_lr=ROUTER_RATE) if is_dynamic else net.parameters()
    optimiser = torch.optim.SGD(parameters, lr=RATE, momentum=MOMENTUM)
    losses: list[float] = []
    silent = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    for step in range(STEPS):
        own: Tensor | None = None
        if isinstance(net, BaselineNetwork):
            net.anneal_(step / STEPS)
            output, values = net(x, return_values=True)
            own = net.auxiliary_loss(values)
        else:
            output = net(x)
        task = nn.functional.cross_entropy(output, labels)
        optimiser.zero_grad()
        (task if own is None else task + own).backward()
        if step < 3:
            given = {name: parameter.grad for name, parameter in net.named_parameters()}
            silent -= {name for name, grad in given.items() if grad is not None and grad.any()}
        nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimiser.step()
        losses.append(float(task.detach()))
    return losses, sorted(silent)


def executors(net: DynamicNetwork, x: Tensor) -> dict[str, Any]:
    """Return how far executors differ with some edges closed, how many are open, and the paths.

    The threshold is the lowest quarter of the weights of the backbone's edges.
    """
    with torch.no_grad():
        _, gates = net.eval()(x, return_gates=True)
        static = static_weights(net.graph)
        weights = torch.cat([raw[:, static[s] == 1].flatten() for s, raw in gates.raw.items()])
        net.set_threshold(min(max(float(weights.quantile(0.25)), 0.0), 0.999))
        net.executor = "dense"
        expected, gates = net(x, return_gates=True)
        net.executor = "sparse"
        sparse, alone = net(x), torch.cat([net(one) for one in x.split(1)])
    opened = torch.cat(list(gates.open.values()), 1)
    return {
        "sparse": max(_relative(sparse, expected), _relative(alone, expected)),
        "open": float(opened.double().mean()),
        "paths": len({tuple(row) for row in opened.tolist()}),
    }


def _relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def page(kind: str, rows: list[Mapping[str, Any]]) -> str:
    """Return the rows as a page."""
    title, num_forms, columns = _HEADS[kind]
    lines = [
        f"# {title} on four networks",
        "",
        f"Random weights, {SIDE} x {SIDE} pixels, a batch of {BATCH} random images, {STEPS} steps"
        f" of SGD at {RATE} with momentum on that batch. Differences are relative to the largest"
        f" output, in float32. {len(rows)} of {len(MODELS) * num_forms} pairs have been measured"
        + ("." if len(rows) == len(MODELS) * num_forms else "; the command measures the others."),
        "",
        *(f"- **{name}**: {meaning}" for name, meaning in columns.items()),
        "",
        "<!-- not run: trains for hours -->",
        "",
        "```bash",
        f"OMP_NUM_THREADS=1 python benchmarks/four_networks.py {kind}",
        "```",
    ]
    for model in MODELS:
        own = [row for row in rows if row["model"] == model]
        if own:
            lines += ["", f"## {model}", "", _line(("Form", *columns))]
            lines += ["|---" * (len(columns) + 1) + "|", *(_line(_cells(kind, row)) for row in own)]
    return "\n".join(lines) + "\n"


def _cells(kind: str, row: Mapping[str, Any]) -> list[str]:
    cells = [f"`{row['form']}`", _amount(row["difference"]), _amount(row["one_by_one"])]
    cells += [f"{row['added_parameters']:,}", str(len(row["without_gradient"]))]
    cells += [f"{row['first_losses']:.2f}, {row['last_losses']:.2f}"]
    cells += ["bitwise" if row["archive"] else "differs"]
    if kind == "forms":
        cells += [_amount(row["sparse"]), f"{row['open']:.2f}", str(row["paths"])]
    return cells


_COLUMNS = {
    "Start": "the largest difference from the backbone's output before training",
    "One by one": "the difference of a batch from the same images one by one",
    "Added": "parameters that the backbone has not",
    "Silent": "parameters that had no gradient in the first three steps",
    "Loss": "means of the first five steps and of the last five",
    "Archive": "the output of the saved and loaded network",
}
_PATHS = {
    "Sparse": "the difference of the sparse executor, and of images one by one, from the dense one,"
    " at a threshold that closes some edges",
    "Open": "the share of candidate edges that are open there",
    "Paths": f"different paths of {BATCH} images there",
}
_DEAD = {
    "Silent": f"{_COLUMNS['Silent']}; the only hidden unit of a narrow layer of"
    " `squeeze_excitation` may be dead from the start"
}
_HEADS = {
    "forms": ("Forms of dynamic wiring", len(FORMS), _COLUMNS | _PATHS),
    "baselines": ("Baselines", len(BASELINES), _COLUMNS | _DEAD),
}


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _amount(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def main() -> None:
    """Measure the rows that are missing, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=sorted(_HEADS))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    kind, file = arguments.kind, TABLES / f"{arguments.kind}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    forms, begun = list(FORMS if kind == "forms" else BASELINES), time.monotonic()
    for model in MODELS:
        for form in forms:
            is_there = any((row["model"], row["form"]) == (model, form) for row in rows)
            if is_there or time.monotonic() - begun > arguments.seconds:
                continue
            rows.append(measure(kind, form, model))
            with file.open("a") as stream:
                stream.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    rows.sort(key=lambda row: (MODELS.index(row["model"]), forms.index(row["form"])))
    (TABLES / f"{kind}.md").write_text(page(kind, rows))


if __name__ == "__main__":
    main()
