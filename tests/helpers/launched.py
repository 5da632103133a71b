"""Start commands on two processes by torchrun's own agent, once a misuse, and print what a user
would see; then make atlases.

Processes are forked from one that has imported everything, so that a launch takes a second. Usage:
launched.py FOLDER
"""

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from toy_boxes import detector, write_coco
from toy_data import plain_net

import dggraph
import dggraph.training.loop  # forked processes have it
from dggraph.cli.main import main
from dggraph.system.locks import locked

FOLDER = Path(sys.argv[1])
ASSETS = Path(dggraph.__file__).parent / "assets"
BASE = {
    "model": "toy_data:plain_net",
    "num_classes": 4,
    "input_size": 16,
    "epochs": 2,
    "warmup_epochs": 0,
    "batch_size": 8,
}


def command(dataset: str, **keys: object) -> list[str]:
    flags = (
        BASE
        | {"dataset": dataset, "output": FOLDER, "experiment": dataset.partition(":")[2]}
        | keys
    )
    dashed = {key.replace("_", "-"): value for key, value in flags.items()}
    return [
        "train",
        *(f"--{key}" if value is True else f"--{key}={value}" for key, value in dashed.items()),
    ]


ROUTED: dict[str, object] = {
    "model": "toy_data:wide_net", "gate": "sigmoid", "init": "scratch", "threshold": 0.7,
    "threshold_warmup": 0, "lr": 0.1, "router_lr": 1,
    "budget": 0.8, "budget_weight": 1, "mixup": 0.2,
    "clip_grad": 1, "grad_accum_steps": 2, "model_ema": True,
    "model_ema_decay": 0.5, "log_interval": 1,
    "epochs": 4,
}  # fmt: skip
"""Gates that start so near the threshold that images take different paths from the second step
on.
"""
FROZEN: dict[str, object] = {
    "objective": "distill", "tune": "routers", "router": "stage", "opt": "adamw", "lr": 0.02,
    "budget": 0.7, "budget_weight": 20,
    "clip_grad": 0.1, "model_ema": True, "model_ema_decay": 0.5, "log_interval": 1,
}  # fmt: skip


def boxes(name: str, parallel: str) -> list[str]:
    keys: dict[str, object] = {
        "task": "detection",
        "model": "toy_boxes:detector",
        "data-dir": FOLDER / "squares",
        "num-classes": 2,
    }
    keys |= {
        "epochs": 1,
        "batch-size": 2,
        "input-size": 64,
        "router": "stage",
        "budget": 0.9,
        "model-ema": True,
        "log-interval": 1,
    }
    flags = [f"--{key}" if value is True else f"--{key}={value}" for key, value in keys.items()]
    common = [
        f"--experiment={name}",
        f"--parallel={parallel}",
        f"--output={FOLDER}",
        "--dataset=coco",
        "--warmup-epochs=0",
        "--lr=0.01",
    ]
    return ["train", *flags, *common]


def start(arguments: list[str]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the agent's handler comes with a fork only
    torch.set_num_threads(1)
    torch.seed()  # forked processes would draw the same weights
    main(arguments)


def launch(name: str, arguments: list[str], num_processes: int = 2) -> None:
    """Run to the end; print one line of JSON: everything on stdout and stderr, exit codes,
    seconds.
    """
    log = FOLDER / f"{name}.txt"
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=num_processes, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=name, start_method="fork", max_restarts=0, monitor_interval=0.05,
    )  # fmt: skip
    sys.stdout.flush()
    kept, codes, begun = [os.dup(1), os.dup(2)], {}, time.perf_counter()
    with log.open("wb") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
        try:
            elastic_launch(config, start)(arguments)
        except ChildFailedError as error:
            codes = {failure.local_rank: failure.exitcode for failure in error.failures.values()}
        except SignalException as error:
            codes = {"torchrun": int(error.sigval)}
        finally:
            for number, one in zip((1, 2), kept, strict=True):
                os.dup2(one, number)
    beginnings = ("dggraph:", "finished", "stopped", "Report", "{")
    said = [line for line in log.read_text().splitlines() if line.startswith(beginnings)]
    print(
        json.dumps(
            {"name": name, "said": said, "codes": codes, "seconds": time.perf_counter() - begun}
        ),
        flush=True,
    )


def warm_up() -> None:
    """Let this process import and cache what conversions and runs need, so that its forks have it.

    No backward pass: autograd's threads do not survive a fork.
    """
    for model, side in ((plain_net(), 16), (detector(2).backbone, 64)):
        dggraph.convert(model.requires_grad_(False), torch.zeros(1, 3, side, side))
    for package in ("timm.optim", "torch.distributed.fsdp", "torchvision.transforms.v2"):
        importlib.import_module(package)


if __name__ == "__main__":
    warm_up()
    launch("same", command("toy_data:make", batch_size=50))
    launch("json", [*command("toy_data:make", batch_size=50), "--json"])
    for kind in ("unreadable", "infinite", "killed", "uneven", "missing"):
        launch(kind, command(f"misbehaving:{kind}"))
    with locked(FOLDER / "killed"):
        launch("occupied", command("misbehaving:killed"))
    for name in ("stopped", "continued"):
        launch(name, command("misbehaving:stopped", epochs=3))
    for parallel in ("ddp", "fsdp"):
        launch(
            parallel, command("toy_data:unequal", experiment=parallel, parallel=parallel, **ROUTED)
        )
        launch(
            f"{parallel}-frozen",
            command(
                "toy_data:unequal", experiment=f"{parallel}-frozen", parallel=parallel, **FROZEN
            ),
        )
    for before, after in (("ddp", "fsdp"), ("fsdp", "ddp")):
        launch(
            f"{before}-then-{after}",
            command("toy_data:unequal", experiment=before, parallel=after, **ROUTED),
        )
    write_coco(FOLDER / "squares", 24)
    for parallel in ("ddp", "fsdp"):
        launch(f"boxes-{parallel}", boxes(f"boxes-{parallel}", parallel))
    launch(
        "fsdp-infinite",
        command("misbehaving:infinite", experiment="fsdp-infinite", parallel="fsdp"),
    )
    shorter = ROUTED | {"parallel": "fsdp", "epochs": 2, "checkpoint_hist": 1}
    for name in ("fsdp-stopped", "fsdp-continued"):
        launch(name, command("misbehaving:stopped", experiment="fsdp-stopped", **shorter))
    launch("fsdp-whole", command("misbehaving:quiet", experiment="fsdp-whole", **shorter))
    for key, value in (("torchcompile", True), ("channels_last", True), ("opt", "adamp")):
        launch(key, command("toy_data:make", experiment=key, parallel="fsdp", **{key: value}))
    launch("fine", command("toy_data:make"))
    launch("fewer", command("toy_data:make"), num_processes=1)
    launch(
        "untrained",
        [
            "eval",
            "dggraph:resnet14_4",
            "--num-classes=4",
            "--input-size=16",
            "--dataset=toy_data:make",
        ],
    )
    atlas = ["atlas", str(ASSETS / "fashion_mnist"), str(FOLDER / "photos"), "--instances=4"]
    for name, number in (("two", 2), ("three", 3)):
        launch(
            f"atlas-{name}",
            [*atlas, "-o", str(FOLDER / f"{name}.html"), "--on-bad-image=skip"],
            number,
        )
    launch("atlas-bad", [*atlas, "-o", str(FOLDER / "bad.html")])
