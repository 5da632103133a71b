"""A run goes on with the data it began with, or says what is another; runs from before it was
written down go on.
"""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from toy_boxes import write_coco
from toy_runs import keys

from dggraph.detection.readers import Box, BoxImage
from dggraph.errors import CheckpointError
from dggraph.training import checkpoint, loop
from dggraph.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from dggraph.training.config import TrainConfig
from dggraph.training.identity import (
    NAMES,
    Identity,
    describe_differences,
    names_of_boxes,
    write_names,
)
from dggraph.training.loop import train


def folders(root: Path, classes: tuple[str, ...] = ("cat", "dog"), number: int = 8) -> Path:
    for part in ("train", "val"):
        for name in classes:
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for place in range(number):
                Image.new("RGB", (16, 16), (20 * place, 90, 30)).save(
                    root / part / name / f"{place}.png"
                )
    return root


def stopped(monkeypatch: pytest.MonkeyPatch, config: TrainConfig) -> Path:
    real = loop.take_step

    def step(run: Any, *args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(run, *args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", step)
        result = train(config)
    assert not result.is_finished
    assert result.step == 1
    return result.folder


def swap(root: Path) -> None:
    for part in ("train", "val"):
        (root / part / "cat").rename(root / part / "zebra")


def add(root: Path) -> None:
    shutil.copy(root / "train/cat/0.png", root / "train/cat/zz.png")


def remove(root: Path) -> None:
    (root / "val/dog/3.png").unlink()


def rename(root: Path) -> None:
    (root / "train/dog/2.png").rename(root / "train/dog/2b.png")


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (swap, ["other classes (removed 'cat'; new 'zebra')"]),
        (
            add,
            [
                "16 images of train before, 17 now",
                "image 8 of train was 'dog/0.png' and now is 'cat/zz.png'",
            ],
        ),
        (
            remove,
            [
                "16 images of validation before, 15 now",
                "image 11 of validation was 'dog/3.png' and now is 'dog/4.png'",
            ],
        ),
        (rename, ["image 10 of train was 'dog/2.png' and now is 'dog/2b.png'"]),
    ],
)
def test_other_images_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, messages: list[str]
) -> None:
    data = {
        "dataset": "imagefolder",
        "data_dir": folders(tmp_path / "d"),
        "num_classes": None,
        "model": "toy_data:plain_net",
    }
    config = keys(tmp_path / "o", **data, epochs=1, batch_size=4, mixup=0.0, model_ema=False)
    folder = stopped(monkeypatch, config)
    before = (folder / "metrics.jsonl").read_bytes()
    change(tmp_path / "d")
    with pytest.raises(CheckpointError, match="learned from other data") as caught:
        train(config)
    assert all(message in str(caught.value) for message in messages)
    assert (folder / "metrics.jsonl").read_bytes() == before
    shutil.rmtree(tmp_path / "d")
    folders(tmp_path / "d")
    assert train(config).is_finished, "what is as it was goes on"


def test_a_checkpoint_from_before_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = keys(tmp_path, epochs=1, model="toy_data:plain_net")
    folder = stopped(monkeypatch, config)
    (last,) = list_checkpoints(folder / "checkpoints")
    found = load_checkpoint(last)
    assert found.state["data"] == {
        "classes": ["a", "b", "c", "d"],
        "sizes": {"train": 72, "validation": 40},
        "names": {"train": None, "validation": None},
    }
    save_checkpoint(
        last.parent,
        found.step,
        found.tensors,
        {key: value for key, value in found.state.items() if key != "data"},
    )
    assert train(config).is_finished
    assert (
        checkpoint.load_checkpoint(list_checkpoints(folder / "checkpoints")[-1]).state["data"]
        == found.state["data"]
    )


def identity(*names: str, classes: tuple[str, ...] = ("a", "b")) -> Identity:
    return Identity(classes=classes, sizes={"train": len(names)}, names={"train": names})


def test_differences_in_words(tmp_path: Path) -> None:
    before = identity("a/1.png", "b/é.png")
    write_names(before, tmp_path)
    document = json.loads(json.dumps(before.document()))
    assert describe_differences(document, before, tmp_path) == []
    assert describe_differences(
        document, identity("a/1.png", "b/é.png", classes=("b", "a")), tmp_path
    ) == ["other classes (the same ones in another order)"]
    assert describe_differences(document, identity("a/1.png"), tmp_path) == [
        "2 images of train before, 1 now",
        "image 1 of train was 'b/é.png' and now is nothing",
    ]
    (tmp_path / NAMES).write_bytes(b"damaged")
    assert describe_differences(document, identity("a/1.png", "c"), tmp_path) == [
        "other names of images of train"
    ]


def test_other_boxes_are_other_data(tmp_path: Path) -> None:
    def image(right: float) -> BoxImage:
        boxes = (Box(corners=(0.0, 0.0, right, 5.0), label=0, area=5 * right),)
        return BoxImage(
            name="x.png", file=Path("x.png"), image_id=1, width=9, height=9, boxes=boxes
        )

    before, after = (identity(*names_of_boxes([image(right)])) for right in (4.0, 5.0))
    write_names(before, tmp_path)
    assert describe_differences(before.document(), after, tmp_path) == [
        "the annotations of 'x.png' in train have changed"
    ]


def test_a_detector_s_run_knows_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faster_coco_eval", reason="detectors are judged by it")
    write_coco(tmp_path / "squares", 4)
    given = {
        "task": "detection",
        "model": "toy_boxes:detector",
        "data_dir": tmp_path / "squares",
        "dataset": "coco",
        "epochs": 1,
    }
    given |= {
        "batch_size": 2,
        "input_size": 64,
        "warmup_epochs": 0,
        "lr": 0.01,
        "output": tmp_path,
        "experiment": "run",
    }
    config = TrainConfig(**given)  # type: ignore[arg-type]
    stopped(monkeypatch, config)
    (file,) = (tmp_path / "squares" / "annotations").glob("instances_train*")
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] -= 1
    file.write_text(json.dumps(content))
    with pytest.raises(
        CheckpointError,
        match=r"learned from other data: the annotations of '.*' in train have changed",
    ):
        train(config)
