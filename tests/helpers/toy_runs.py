"""Configurations of short runs on `toy_data`, and what their folders hold."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from dggraph.training import loop
from dggraph.training.config import TrainConfig

FILES = (
    "checkpoints/00000018/model.safetensors",
    "checkpoints/00000018/optimiser.safetensors",
    "checkpoints/00000018/state.json",
)


def keys(output: Path, **others: Any) -> TrainConfig:
    base: dict[str, Any] = {
        "model": "dggraph:resnet14_4",
        "num_classes": 4,
        "input_size": 16,
        "dataset": "toy_data:make",
    }
    base |= {
        "epochs": 2,
        "batch_size": 8,
        "warmup_epochs": 0,
        "lr": 0.05,
        "log_interval": 1,
        "mixup": 0.2,
        "budget": 0.8,
    }
    base |= {
        "output": output,
        "experiment": "run",
        "checkpoint_steps": 4,
        "model_ema": True,
        "model_ema_decay": 0.9,
    }
    return TrainConfig(**base | others)


def contents(
    folder: Path,
    names: tuple[str, ...] = (*FILES, "metrics.jsonl", "checkpoints/00000018/average.safetensors"),
) -> list[bytes]:
    return [(folder / name).read_bytes() for name in names]


def stop_after(monkeypatch: pytest.MonkeyPatch, *steps: int) -> set[int]:
    """Make training stop by a signal after each of `steps`, once; return those still to come."""
    real, stops = loop.take_step, set(steps)

    def step(run: Any, *args: Any) -> Any:
        row = real(run, *args)
        if run.step in stops:
            stops.remove(run.step)
            os.kill(os.getpid(), signal.SIGTERM)
        return row

    monkeypatch.setattr(loop, "take_step", step)
    return stops


TOY = (
    'model = "toy_data:plain_net"\nnum_classes = 4\ninput_size = 16\ndataset ='
    ' "toy_data:make"\nepochs = 1\nwarmup_epochs = 0\n'
)
