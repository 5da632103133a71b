"""Fixtures shared by all tests: a fixed seed, the real MobileNetV2 checkpoint, real photos."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("fixed", derandomize=True)  # the same examples in every run
settings.load_profile("fixed")

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # workers share the processors, and so do the processes that tests start
    num_threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    torch.set_num_threads(num_threads)


ON_DEVICE = ("ops", "network", "test_losses.py")
"""Rooms and files of tests whose arithmetic runs on the device that `--device` names."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        choices=["cpu", "cuda"],
        help="where tensors of the numeric tests live; tests about the CPU are skipped elsewhere",
    )


def pytest_configure(config: pytest.Config) -> None:
    """From here on tensors and networks are made on the device, those of test modules too."""
    device = config.getoption("--device")
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise pytest.UsageError(f"--device {device}: torch finds no GPU on this machine")
    torch.set_default_device(device)
    # TensorFloat-32 keeps 10 bits, and other algorithms for other batches would hide behind it
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    device = config.getoption("--device")
    if device == "cpu":
        return
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).parts[0] not in ON_DEVICE:
            item.add_marker(pytest.mark.skip(reason=f"no arithmetic for --device {device}"))
        elif item.get_closest_marker("cpu"):
            item.add_marker(pytest.mark.skip(reason="about the CPU"))


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
