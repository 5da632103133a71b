"""Loader processes outlive signals that were not meant for them, and end when their parent says
so.
"""

import multiprocessing
import subprocess
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from dggraph.errors import InputError
from dggraph.system.loaders import load_batches, num_samples


class Numbers(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        if index == 13:
            raise InputError("number 13 cannot be read.")
        return index


@pytest.mark.filterwarnings(
    "ignore:.*fork.*:DeprecationWarning"
)  # Python 3.12 warns of torch's threads
def test_a_signal_to_all_processes_does_not_end_loaders() -> None:
    batches = load_batches(
        Numbers(), [[start, start + 1] for start in range(14, 114, 2)], workers=2
    )
    found: list[Any] = [next(batches), next(batches)]  # one of each loader: both are under way
    loaders = multiprocessing.active_children()
    assert len(loaders) == 2
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", *(str(loader.pid) for loader in loaders)], check=True)
    found.extend(batches)
    assert torch.cat(found).tolist() == list(range(14, 114))
    assert not any(loader.is_alive() for loader in loaders)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_loaders_end_with_their_parent_s_signal() -> None:
    batches = load_batches(Numbers(), [[0], [1]], workers=1)
    next(batches)
    (loader,) = multiprocessing.active_children()
    batches.close()
    loader.terminate()
    loader.join(timeout=300)
    assert not loader.is_alive()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_ours_come_without_torch_s_traceback(workers: int) -> None:
    with pytest.raises(InputError, match=r"^number 13 cannot be read\.$"):
        list(load_batches(Numbers(), [[13]], workers=workers))


def test_a_set_without_a_length_is_named() -> None:
    assert num_samples([1, 2, 3]) == 3  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"Numbers has no length.*Give it __len__"):
        num_samples(Numbers())
