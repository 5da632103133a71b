"""Two processes on gloo do what one does; the checks themselves are in `distributed_run.py`, which
torchrun starts.
"""

import os
import subprocess
from pathlib import Path

import torch
from command_line import ON_TWO_PROCESSES
from distributed_run import Double, network

from dggraph.evaluation.accuracy import evaluate
from dggraph.training.checkpoint import load_checkpoint
from dggraph.training.config import TrainConfig
from dggraph.training.loop import train

HELPERS = Path(__file__).parents[1] / "helpers"


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    alone = evaluate(network().eval(), Double(), batch_size=8)
    expected = f"{alone.top1},{alone.top5},{alone.num_images},{alone.num_paths}"
    command = [*ON_TWO_PROCESSES]
    environment = {
        **os.environ,
        "PYTHONPATH": str(HELPERS),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    done = subprocess.run(
        [*command, str(HELPERS / "distributed_run.py"), str(tmp_path), expected],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for held in ("gradients", "parameters", "sharded", "counts", "training"):
        assert done.stdout.count(held) == 2, done.stdout
    base = {
        "model": "toy_data:plain_net",
        "num_classes": 4,
        "input_size": 16,
        "dataset": "toy_data:make",
        "epochs": 1,
    }
    train(
        TrainConfig(
            **base, batch_size=16, warmup_epochs=0, output=tmp_path, experiment="one", lr=0.05
        )
    )
    one, two = (
        load_checkpoint(tmp_path / name / "checkpoints" / "00000004").tensors["model"]
        for name in ("one", "two")
    )
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-6)
