"""State dicts as training scripts save them: found, fitted and read without running code; what
cannot be is named.
"""

import argparse
import functools
import pathlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from small import Net
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dggraph.errors import InputError
from dggraph.models.registry import LoadedModel, load_model, start_from_
from dggraph.models.weights import load_checkpoint_, read_checkpoint


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(3)
    return Net()


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


def forms(net: nn.Module) -> dict[str, Any]:
    state = net.state_dict()
    optimiser = torch.optim.SGD(net.parameters(), 0.1, 0.9)
    args = argparse.Namespace(lr=0.1, output=pathlib.Path("/x"), device=torch.device("cpu"))
    return {
        "plain": state,
        "references": {
            "model": state,
            "optimizer": optimiser.state_dict(),
            "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimiser, 30).state_dict(),
            "epoch": 3,
            "args": args,
        },
        "imagenet example": {
            "state_dict": prefixed(state, "module."),
            "arch": "x",
            "best_acc1": torch.tensor(1.0),
        },
        "lightning": {
            "state_dict": prefixed(state, "model."),
            "hyper_parameters": {"lr": 0.1},
            "callbacks": {"a": {"b": 1}},
        },
        "compiled in parallel": prefixed(state, "module._orig_mod."),
        "parallel in compiled": {"model": prefixed(state, "_orig_mod.module.")},
        "average alone": AveragedModel(net).state_dict(),
        "model_ema": {"model_ema": AveragedModel(net).state_dict()},
        "tutorial": {"model_state_dict": state, "optimizer_state_dict": optimiser.state_dict()},
        "unknown name": {"my_network": state, "epoch": 1},
        "nested": {"checkpoint": {"state_dict": prefixed(state, "model.module.")}},
        "numpy": {
            "model": state,
            "best": np.float64(3),
            "rng": np.random.default_rng(0).bit_generator.state,
            "curve": np.zeros(3),
        },
    }


NAMES = list(forms(Net()))


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_found(tmp_path: Path, net: nn.Module, name: str) -> None:
    torch.save(forms(net)[name], tmp_path / "x.pth")
    twin = Net()
    assert load_checkpoint_(twin, read_checkpoint(tmp_path / "x.pth")) == ()
    assert all(
        torch.equal(value, twin.state_dict()[key]) for key, value in net.state_dict().items()
    )


@pytest.mark.parametrize(
    ("plain", "average"), [("model", "model_ema"), ("state_dict", "state_dict_ema")]
)
def test_an_average_goes_first_and_is_told(
    tmp_path: Path, net: nn.Module, plain: str, average: str
) -> None:
    torch.save(
        {plain: Net().state_dict(), average: prefixed(net.state_dict(), "module.")},
        tmp_path / "x.pth",
    )
    twin = Net()
    (said,) = load_checkpoint_(twin, read_checkpoint(tmp_path / "x.pth"))
    assert average in said
    assert torch.equal(twin.stem.weight, net.stem.weight)


@pytest.mark.parametrize("name", ["x.safetensors", "blob"])
def test_safetensors_by_name_or_content(tmp_path: Path, net: nn.Module, name: str) -> None:
    safetensors.torch.save_file(prefixed(net.state_dict(), "module."), tmp_path / name)
    twin = Net()
    load_checkpoint_(twin, read_checkpoint(tmp_path / name))
    assert torch.equal(twin.stem.weight, net.stem.weight)  # type: ignore[arg-type]


def test_what_a_wrapper_has_besides_is_left_out_and_told(tmp_path: Path, net: nn.Module) -> None:
    torch.save(
        prefixed(net.state_dict(), "model.") | {"criterion.weight": torch.ones(5)},
        tmp_path / "x.pth",
    )
    (said,) = load_checkpoint_(Net(), read_checkpoint(tmp_path / "x.pth"))
    assert "1 tensors outside the network under 'model.'" in said
    assert "criterion.weight" in said


def test_two_networks_are_not_chosen_from(tmp_path: Path, net: nn.Module) -> None:
    both = prefixed(net.state_dict(), "student.") | prefixed(net.state_dict(), "teacher.")
    torch.save(both, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"2 networks.*'student.', 'teacher.'"):
        load_checkpoint_(Net(), read_checkpoint(tmp_path / "x.pth"))
    torch.save({"student": net.state_dict(), "teacher": net.state_dict()}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"2 state dicts, 'student', 'teacher'"):
        read_checkpoint(tmp_path / "x.pth")


class Trap:
    """Leaves a file where it is read with its code."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return pathlib.Path.touch, (self.file,)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (functools.partial(print, 1), "functools.partial"),
        (Net(), "small.Net"),
        (argparse.Namespace(schedule=functools.partial(print)), "functools.partial"),
    ],
)
def test_code_is_never_run_and_its_class_is_named(tmp_path: Path, value: Any, name: str) -> None:
    torch.save({"model": Net().state_dict(), "other": value}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=f"holds a {name}.*weights_only=False.*torch.save"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_trap_does_not_snap(tmp_path: Path) -> None:
    torch.save(
        {"model": Net().state_dict(), "args": argparse.Namespace(trap=Trap(tmp_path / "snapped"))},
        tmp_path / "x.pth",
    )
    with pytest.raises(InputError, match=r"x\.pth' is not a state dict in torch's format"):
        read_checkpoint(tmp_path / "x.pth")
    (tmp_path / "y.pth").write_bytes(pickle.dumps(Trap(tmp_path / "snapped")))
    with pytest.raises(InputError, match=r"y\.pth' is not a state dict"):
        read_checkpoint(tmp_path / "y.pth")
    assert not (tmp_path / "snapped").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_what_is_no_state_dict(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": {}}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="no state dict of tensors"):
        read_checkpoint(tmp_path / "x.pth")
    with pytest.raises(InputError, match="Is a directory"):
        read_checkpoint(tmp_path)
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "s.pt")  # type: ignore[no-untyped-call]
    with pytest.raises(InputError, match="TorchScript program"):
        read_checkpoint(tmp_path / "s.pt")


@pytest.mark.parametrize(
    "name", ["squeezenet1_1", "timm:resnet10t", "dggraph:resnet14_4", "test_weights:own"]
)
def test_heads_of_other_classes_begin_anew_and_nothing_else(tmp_path: Path, name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="its models are tried")
    torch.save(load_model(name, num_classes=7).model.state_dict(), tmp_path / "x.pth")
    stored = torch.load(tmp_path / "x.pth", weights_only=True)
    loaded = load_model(name, num_classes=3)
    before = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    (said,) = start_from_(loaded, tmp_path / "x.pth")
    anew = {
        key for key, value in loaded.model.state_dict().items() if value.shape != stored[key].shape
    }
    assert len(anew) == 2
    assert all(key in said for key in anew)
    assert "starts from new weights" in said
    for key, value in loaded.model.state_dict().items():
        assert torch.equal(value, before[key] if key in anew else stored[key]), key
    first = next(iter(stored))
    torch.save(stored | {first: stored[first][..., :1]}, tmp_path / "y.pth")
    with pytest.raises(InputError, match=rf"other shapes \['{first}"):
        start_from_(load_model(name, num_classes=3), tmp_path / "y.pth")
    torch.save(
        {key: value for key, value in stored.items() if key not in anew}, tmp_path / "headless.pth"
    )
    assert "not there" in start_from_(loaded, tmp_path / "headless.pth")[0]
    assert start_from_(load_model(name, num_classes=7), tmp_path / "x.pth") == ()


def own(num_classes: int = 5) -> nn.Module:
    model = Net()
    model.head[2] = nn.Linear(8, num_classes)
    return model


def deaf() -> nn.Module:
    return Net()


def test_a_function_without_classes_has_no_head_to_begin_anew(tmp_path: Path) -> None:
    torch.save(own(7).state_dict(), tmp_path / "x.pth")
    loaded: LoadedModel = load_model("test_weights:deaf")
    with pytest.raises(InputError, match="other shapes"):
        start_from_(loaded, tmp_path / "x.pth")
