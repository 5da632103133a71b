"""Checkpoints are whole or not there: every step of a save fails once, a process dies in the
middle, bits flip.
"""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from dggraph.errors import CheckpointError, InputError
from dggraph.system import files
from dggraph.training.checkpoint import (
    delete_old_checkpoints,
    flatten_optimiser,
    list_checkpoints,
    load_checkpoint,
    restore_optimiser,
    save_checkpoint,
)
from dggraph.training.config import TrainConfig
from dggraph.training.optimisers import build_optimiser


def parts(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "model": {"w": torch.full((3, 2), value).t(), "n": torch.tensor(7)},
        "optimiser": {"0.exp_avg": torch.ones(2) * value},
    }


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 12, parts(1.5), {"best": {"top1": 3}, "rate": 0.1})
    found = load_checkpoint(tmp_path / "00000012")
    assert found.step == 12
    assert found.state == {"best": {"top1": 3}, "rate": 0.1}
    for part, named in parts(1.5).items():
        assert found.tensors[part].keys() == named.keys()
        assert all(torch.equal(found.tensors[part][key], tensor) for key, tensor in named.items())


@pytest.mark.parametrize("call", ["open", "fsync", "rename", "short write"])
def test_a_save_that_fails_anywhere_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Each call of its kind fails in turn, until a save gets through."""
    save_checkpoint(tmp_path, 1, parts(1.0), {})
    real: dict[str, Any] = {
        "open": Path.open,
        "fsync": os.fsync,
        "rename": os.rename,
        "short write": files.write_synced,
    }
    for number in range(30):
        calls = 0

        def failing(*args: Any, _number: int = number, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls - 1 == _number:
                if call == "short write":
                    args[0].write_bytes(args[1][: len(args[1]) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            return real[call](*args, **kwargs)

        with monkeypatch.context() as patch:
            if call == "short write":
                patch.setattr(files, "write_synced", failing)
            elif call == "open":
                patch.setattr(Path, "open", failing)
            else:
                patch.setattr(os, call, failing)
            refusal = ""
            try:
                save_checkpoint(tmp_path, 2, parts(2.0), {})
            except CheckpointError as error:
                refusal = str(error)
        if not refusal:
            assert number > 0
            break
        assert "No space left" in refusal
        assert "unchanged" in refusal
        assert load_checkpoint(tmp_path / "00000001").tensors["model"]["w"][0, 0] == 1.0
        # A failed sync of the folder comes after the rename.
        assert load_checkpoint(list_checkpoints(tmp_path)[-1]).step in (1, 2)
    else:
        raise AssertionError("no save got through")


def test_a_killed_save_leaves_the_old_one_and_its_rest_is_swept(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, parts(1.0), {})
    code = (
        "import os, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from dggraph.system import files\n"
        "from dggraph.training import checkpoint\n"
        "real = files.write_synced\n"
        "def write(file, content):\n"
        "    if file.name == 'state.json':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(file, content)\n"
        "files.write_synced = write\n"
        "parts = {'model': {'w': torch.ones(2)}}\n"
        "checkpoint.save_checkpoint(Path(sys.argv[1]), 2, parts, {})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert [entry.name for entry in list_checkpoints(tmp_path)] == ["00000001"]
    assert list(tmp_path.glob(".saving-*"))
    delete_old_checkpoints(tmp_path, 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["00000001"]


@pytest.mark.parametrize("file", ["model.safetensors", "state.json"])
def test_a_flipped_bit_is_named(tmp_path: Path, file: str) -> None:
    target = save_checkpoint(tmp_path, 1, parts(1.0), {"a": 1})
    content = bytearray((target / file).read_bytes())
    content[len(content) // 2] ^= 1
    (target / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"damaged: {file}"):
        load_checkpoint(target)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, step, {"model": {}}, {})
    delete_old_checkpoints(tmp_path, 2, also=(1,))
    assert [int(entry.name) for entry in list_checkpoints(tmp_path)] == [1, 3, 4]


def of_timm(name: str) -> Any:
    def make(parameters: Any) -> Any:
        return create_optimizer_v2([{"params": list(parameters)}], opt=name, lr=0.1, momentum=0.9)

    return make


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.1),
        of_timm("lamb"),  # counts steps in its groups
        of_timm("adafactorbv"),  # has a dtype among its options
        of_timm("lookahead_madgrad"),
    ],
)
def test_an_optimiser_goes_on_as_if_nothing_had_happened(tmp_path: Path, make: Any) -> None:
    def step(net: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        net(torch.ones(2, 3)).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()

    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    optimiser = make(net.parameters())
    step(net, optimiser)
    tensors, rest = flatten_optimiser(optimiser)
    save_checkpoint(
        tmp_path, 1, {"model": net.state_dict(), "optimiser": tensors}, {"optimiser": rest}
    )
    found = load_checkpoint(tmp_path / "00000001")
    twin = nn.Linear(3, 2)
    other = make(twin.parameters())
    twin.load_state_dict(found.tensors["model"])
    restore_optimiser(other, found.tensors["optimiser"], found.state["optimiser"])
    for _ in range(3):
        step(net, optimiser)
        step(twin, other)
    assert torch.equal(net.weight, twin.weight)


@pytest.mark.parametrize("opt", ["kron", "lookahead_kronw", "adahessian"])
def test_an_optimiser_that_cannot_train_is_refused_before_the_first_step(opt: str) -> None:
    with pytest.raises(InputError, match=f"opt = '{opt}' cannot train here: it "):
        build_optimiser(TrainConfig(model="", opt=opt), nn.Linear(3, 2))
