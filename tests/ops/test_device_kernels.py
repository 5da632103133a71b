"""Which tensors the Triton kernels take, and what is said where they are off."""

from collections.abc import Iterator

import pytest
import torch

from dggraph.ops import device_kernels

pytestmark = pytest.mark.cpu


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A card of compute capability 8.0, asked anew."""
    monkeypatch.delenv("DGGRAPH_KERNELS", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(device_kernels, "find_spec", lambda name: object())
    device_kernels.why_not.cache_clear()
    yield monkeypatch
    device_kernels.why_not.cache_clear()


def test_cpu_tensors_are_not_theirs() -> None:
    assert not device_kernels.is_usable([torch.ones(1)])


def test_recent_cards_run_them(asked: pytest.MonkeyPatch) -> None:
    assert device_kernels.why_not(torch.device("cuda:0")) == ""


def test_old_cards_do_not(asked: pytest.MonkeyPatch) -> None:
    asked.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "compute capability 7.5" in device_kernels.why_not(torch.device("cuda:0"))


def test_without_triton_they_are_off(asked: pytest.MonkeyPatch) -> None:
    asked.setattr(device_kernels, "find_spec", lambda name: None)
    assert "triton is not installed" in device_kernels.why_not(torch.device("cuda:0"))


def test_other_accelerators_stay_in_plain_torch(asked: pytest.MonkeyPatch) -> None:
    asked.setattr(torch.version, "cuda", None)
    assert "not for CUDA" in device_kernels.why_not(torch.device("cuda:0"))


def test_one_variable_turns_all_kernels_off(asked: pytest.MonkeyPatch) -> None:
    asked.setenv("DGGRAPH_KERNELS", "0")
    assert "DGGRAPH_KERNELS=0" in device_kernels.why_not(torch.device("cuda:0"))


def test_importing_the_package_does_not_import_triton() -> None:
    """It takes half a second, which the command line does not have."""
    import subprocess
    import sys

    program = "import sys, dggraph.ops.aggregation; assert 'triton' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
