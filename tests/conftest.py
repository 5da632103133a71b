"""Fixtures shared by all tests: a fixed seed, the real MobileNetV2 checkpoint, real photos."""

import os
import random
from pathlib import Path

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
def _seed() -> None:
    """Every test starts from the same seeds, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def mobilenet_checkpoint() -> Path:
    """torchvision's IMAGENET1K_V1 weights, as `tests/fetch_real_inputs.sh` fetches them."""
    cache = Path(os.environ.get("DGGRAPH_INPUTS", Path.home() / ".cache/dggraph/inputs"))
    found = sorted(cache.glob("mobilenet/**/mobilenet_v2-*.pth"))
    if not found:
        pytest.skip("the real MobileNetV2 checkpoint is not here: run tests/fetch_real_inputs.sh")
    return found[0]
