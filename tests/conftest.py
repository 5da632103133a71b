"""Fixtures shared by all tests: a fixed seed, the real MobileNetV2 checkpoint, real photos."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # workers share the processors, and so do the processes that tests start
    num_threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    torch.set_num_threads(num_threads)


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Every test starts from the same seeds and leaves torch's settings as they were, so that none
    depends on those before it.
    """
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    before = _settings()
    yield
    assert _settings() == before, "the test has changed a setting of all of torch"


def _settings() -> dict[str, Any]:
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "threads": torch.get_num_threads(),
    }


@pytest.fixture(scope="session")
def mobilenet_checkpoint() -> Path:
    """torchvision's IMAGENET1K_V1 weights, as `tests/fetch_real_inputs.sh` fetches them."""
    cache = Path(os.environ.get("DGGRAPH_INPUTS", Path.home() / ".cache/dggraph/inputs"))
    found = sorted(cache.glob("mobilenet/**/mobilenet_v2-*.pth"))
    if not found:
        pytest.skip("the real MobileNetV2 checkpoint is not here: run tests/fetch_real_inputs.sh")
    return found[0]
