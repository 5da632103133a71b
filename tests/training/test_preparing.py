"""What would end a run after its last step is found before its first."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy_data import make, plain_net
from toy_runs import keys

import dggraph
from dggraph.errors import ArchiveError, InputError, TrainingError
from dggraph.training import loop, runs
from dggraph.training.config import TrainConfig
from dggraph.training.loop import train


@pytest.fixture
def no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "take_step", lambda *_args: pytest.fail("a step was done"))


def own(output: Path, **others: Any) -> TrainConfig:
    return keys(
        output,
        **{
            "model": "toy_data:plain_net",
            "num_classes": None,
            "epochs": 1,
            "mixup": 0.0,
            "model_ema": False,
        }
        | others,
    )


def numbered(config: object) -> Any:
    return *make(config)[:2], range(4)


def nameless(config: object) -> Any:
    return *make(config)[:2], ("a", None, "c", "d")


def strange(config: object) -> Any:
    return *make(config)[:2], ("caf\udce9", b"\xff", "c", "d")


def five_outputs() -> nn.Module:
    return plain_net(5)


def of_features() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        *(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(3)),
    )


class Raising(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = plain_net(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] < 32:
            raise ValueError("I take 32 pixels")
        return self.net(x)  # type: ignore[no-any-return]


def raising() -> nn.Module:
    return Raising()


@pytest.mark.usefixtures("no_step")
@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"num_classes": 10}, r"has 4 classes, but num_classes = 10.*Leave num_classes out"),
        ({"num_classes": 3}, r"has 4 classes, but num_classes = 3"),
        ({"dataset": "test_preparing:nameless"}, "class 1 is called None"),
        (
            {"model": "test_preparing:five_outputs"},
            "returns 5 outputs for the 4 classes of toy_data:make",
        ),
        ({"model": "test_preparing:of_features"}, r"a tensor of \(1, 4, 14, 14\) for one image"),
        (
            {"model": "test_preparing:raising"},
            "fails on an image of 3 x 16 x 16: ValueError: I take 32 pixels",
        ),
    ],
)
@pytest.mark.parametrize("router", ["node", "none"])
def test_networks_and_names_that_do_not_fit(
    tmp_path: Path, others: dict[str, Any], message: str, router: str
) -> None:
    budget = {"budget": None} if router == "none" else {}
    with pytest.raises(InputError, match=message):
        train(own(tmp_path, router=router, **others, **budget))


@pytest.mark.usefixtures("no_step")
@pytest.mark.parametrize(
    "name",
    [
        "archive",
        "archive/",
        "checkpoints",
        "config.json/",
        "metrics.jsonl/",
        "backbone.safetensors/",
    ],
)
def test_what_is_in_the_way(tmp_path: Path, name: str) -> None:
    place = tmp_path / "run" / name.rstrip("/")
    if name.endswith("/"):
        place.mkdir(parents=True)
    else:
        place.parent.mkdir()
        place.write_text("mine")
    with pytest.raises((InputError, ArchiveError), match=place.name):
        train(own(tmp_path))
    assert place.exists()


@pytest.mark.usefixtures("no_step")
def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(**_options: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(runs.tempfile, "TemporaryFile", read_only)
    with pytest.raises(InputError, match=r"cannot write to the run folder.*Read-only file system"):
        train(own(tmp_path))
    with pytest.raises(InputError, match="cannot write to the run folder"):
        train(own(Path("/proc/nowhere")))


@pytest.mark.parametrize(
    ("name", "labels", "note"),
    [
        ("numbered", ("0", "1", "2", "3"), "names of 4 classes"),
        ("strange", ("caf\\xe9", "\\xff", "c", "d"), "names of 2 classes"),
    ],
)
def test_names_that_can_be_text_become_it(
    tmp_path: Path, name: str, labels: tuple[str, ...], note: str
) -> None:
    told: list[Any] = []
    result = train(own(tmp_path, dataset=f"test_preparing:{name}"), told.append)
    assert dggraph.load(result.folder / "archive", model=plain_net()).labels == labels
    assert [note in row["note"] for row in told if "note" in row] == [True]


@pytest.mark.parametrize("router", ["node", "none"])
def test_fine_tuning_on_other_classes_begins_with_a_new_head(tmp_path: Path, router: str) -> None:
    torch.save({"model": plain_net(9).state_dict()}, tmp_path / "nine.pth")
    told: list[Any] = []
    budget = {"budget": None} if router == "none" else {}
    result = train(
        own(tmp_path, checkpoint=tmp_path / "nine.pth", router=router, **budget), told.append
    )
    (note,) = (row["note"] for row in told if "note" in row)
    assert result.is_finished
    assert "head.weight, head.bias ((9, 6) there, (4, 6) here)" in note
    again = train(own(tmp_path, checkpoint=tmp_path / "nine.pth", router=router, **budget))
    assert again.is_finished
    assert again.step == result.step, "the same call finds the run finished"


@pytest.mark.parametrize("average", [True, False])
def test_a_trained_network_is_never_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: bool
) -> None:
    def full(*_args: Any, **_options: Any) -> None:
        raise ArchiveError("cannot write the archive: No space left on device.")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "save", full)
        with pytest.raises(
            TrainingError,
            match=r"is trained, but could not be written: .*No space left.*the same call",
        ) as caught:
            train(own(tmp_path, model_ema=average))
    file = Path(str(caught.value).partition("complete in ")[2].partition(",")[0])
    assert file.is_file()
    assert file.name == ("average.safetensors" if average else "model.safetensors")
    result = train(own(tmp_path, model_ema=average))
    assert result.is_finished
    assert dggraph.load(result.folder / "archive", model=plain_net()).labels == ("a", "b", "c", "d")
