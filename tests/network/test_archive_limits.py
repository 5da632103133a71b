"""What reading an archive may cost: files of JSON and networks have a largest size."""

import os
from pathlib import Path

import pytest
import torch
from small import Net, X

import dggraph
from dggraph.errors import ArchiveError
from dggraph.network.reconstruction import affordable_bytes

pytestmark = pytest.mark.cpu

LARGEST_JSON = 64 * 1024 * 1024


@pytest.mark.parametrize("name", ["manifest.json", "graph.json"])
def test_json_above_64_mib_is_refused_for_its_size(tmp_path: Path, name: str) -> None:
    """One of 64 MiB is read, and refused for the zeros at its end."""
    dggraph.save(dggraph.convert(Net(), X), tmp_path / "a")
    for num_bytes, message in (
        (LARGEST_JSON, "is not JSON|differs from the digest"),
        (LARGEST_JSON + 1, rf"{name} is larger than {LARGEST_JSON} bytes"),
    ):
        os.truncate(tmp_path / "a" / name, num_bytes)
        with pytest.raises(ArchiveError, match=message):
            dggraph.load(tmp_path / "a", model=Net())


def test_a_network_takes_four_times_its_weights_and_64_mib() -> None:
    assert affordable_bytes({}) == 64 * 1024 * 1024
    state = {"weight": torch.zeros(5, 2), "bias": torch.zeros(3, dtype=torch.float64)}
    assert affordable_bytes(state) == 64 * 1024 * 1024 + 4 * (40 + 24)
