"""Detectors trained and judged by command: the loss is torchvision's own, runs go on to the byte,
and what is read back finds the same.
"""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from command_line import run
from PIL import Image
from toy_boxes import detector, sets, write_coco, write_voc

import dggraph
from dggraph.detection.box_data import BoxDataset, collate, open_boxes, open_validation_boxes
from dggraph.detection.evaluation import Found, by_category, detect, evaluate_boxes
from dggraph.detection.recording import make_detector_predictor
from dggraph.detection.registry import load_detector
from dggraph.errors import ArchiveError, InputError, TrainingError
from dggraph.graph.detection import Detection
from dggraph.models.feature_pyramids import freeze_norms_
from dggraph.network.gate_contexts import collecting_gates
from dggraph.network.network import dynamic_part
from dggraph.training import loop
from dggraph.training.config import TrainConfig
from dggraph.training.detecting import Detecting
from dggraph.training.detector_runs import build_detector, is_detector_run, open_detector
from dggraph.training.loop import train
from dggraph.training.preparing import prepare

MODEL = "toy_boxes:detector"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"))


def keys(data: Path, output: Path, **others: Any) -> TrainConfig:
    base: dict[str, Any] = {
        "task": "detection",
        "model": MODEL,
        "dataset": "coco",
        "data_dir": data,
        "input_size": 64,
        "epochs": 2,
    }
    base |= {
        "batch_size": 2,
        "warmup_epochs": 0,
        "lr": 0.01,
        "clip_grad": 5.0,
        "log_interval": 1,
        "budget": 0.9,
        "router": "stage",
    }
    return TrainConfig(
        **base | {"output": output, "experiment": "run", "checkpoint_steps": 2} | others
    )


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, with an average that is judged."""
    return train(
        keys(data, tmp_path_factory.mktemp("runs"), model_ema=True, model_ema_decay=0.5)
    ).folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_is_torchvisions_and_the_budget_is_that_of_its_gates(
    data: Path, tmp_path: Path
) -> None:
    prepared = prepare(keys(data, tmp_path, seed=3))
    net = dynamic_part(prepared.model)
    batch = collate([prepared.task.train[index] for index in range(4)])
    (part,) = prepared.task.parts(batch, 0)
    torch.manual_seed(5)
    loss, gates = prepared.task.loss(prepared.model, net, part)
    torch.manual_seed(5)
    with collecting_gates(net) as collected:
        expected = prepared.model(*batch)
    assert torch.equal(loss, sum(expected.values()))
    assert len(expected) == 4
    assert gates is not None
    assert all(torch.equal(gates.raw[stage], collected[0].raw[stage]) for stage in gates.raw)
    assert len(next(iter(gates.raw.values()))) == 4
    halves = prepare(keys(data, tmp_path, grad_accum_steps=2)).task.parts(batch, 0)
    assert [len(images) for images, _ in halves] == [2, 2]
    assert halves[1][0][0] is batch[0][2]


def test_what_was_trained_is_read_back(data: Path, trained: Path) -> None:
    """The last row's precision, to the bit, from the folder alone."""
    assert is_detector_run(trained)
    assert not is_detector_run(data)
    assert not (trained / "archive").exists()
    found = open_detector(trained, MODEL)
    assert found.classes == ("dark", "light")
    assert found.net is not None
    assert not found.model.training
    validation = open_validation_boxes(found.config.source)
    judged = evaluate_boxes(
        detect(found.model, BoxDataset(validation.images), batch_size=1), validation
    )
    assert judged.row() == {
        key: value for key, value in rows(trained)[-1].items() if key not in ("step", "epoch")
    }
    assert judged.kept is not None
    assert judged.num_images == 6
    steps = [row for row in rows(trained) if "epoch" not in row]
    assert len(steps) == 2 * (4 // 2 + 8 // 2), "batches of tall images and of wide ones"
    assert sum(row["loss"] for row in steps[-3:]) < sum(row["loss"] for row in steps[:3])


def test_a_stopped_run_goes_on_to_the_byte(
    data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.take_step

    def step(run: Any, *rest: Any) -> Any:
        if run.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, *rest)

    config = keys(data, tmp_path, model_ema=True, model_ema_decay=0.5)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "take_step", step)
        assert not train(config).is_finished
    with pytest.raises(
        ArchiveError,
        match=(
            r"no finished run of a detector: detector.safetensors is missing. Continue the run"
            r" with the command that started it"
        ),
    ):
        open_detector(tmp_path / "run", MODEL)
    assert is_detector_run(tmp_path / "run")
    assert train(config).is_finished
    for name in (
        "detector.safetensors",
        "metrics.jsonl",
        "checkpoints/00000012/optimiser.safetensors",
    ):
        assert (tmp_path / "run" / name).read_bytes() == (trained / name).read_bytes(), name


def test_a_static_detector_trains_by_the_same_recipe(data: Path, tmp_path: Path) -> None:
    result = train(
        keys(data, tmp_path, router="none", budget=None, epochs=1, dataset="toy_boxes:sets")
    )
    assert "kept" not in rows(result.folder)[-1]
    assert open_detector(result.folder, MODEL).net is None


def test_blocks_as_one(data: Path, tmp_path: Path) -> None:
    result = train(
        keys(
            data,
            tmp_path,
            decide="blocks",
            router_lr=1.0,
            budget=0.8,
            budget_weight=50.0,
            epochs=3,
            tune="routers",
        )
    )
    start, (last, *_) = rows(result.folder)[0], rows(result.folder)[::-1]
    assert last["kept"] < start["kept"], "the heads learn, and of the backbone routers alone"
    assert judge_again(result.folder) == last["AP"]


def judge_again(folder: Path) -> float | None:
    found = open_detector(folder, MODEL)
    validation = open_validation_boxes(found.config.source)
    return evaluate_boxes(
        detect(found.model, BoxDataset(validation.images), batch_size=1), validation
    ).precision.AP


def test_voc_says_the_same_as_coco(data: Path, tmp_path: Path) -> None:
    config = keys(data, tmp_path)
    coco = open_boxes(config.source)
    voc = open_boxes(
        config.model_copy(
            update={"dataset": "voc", "data_dir": write_voc(tmp_path / "voc", coco)}
        ).source
    )
    for one, other in zip(coco, voc, strict=True):
        assert one.classes == other.classes
        assert [image.boxes for image in one.images] == [
            tuple(other_box for other_box in image.boxes) for image in other.images
        ]
    (tmp_path / "voc" / "Annotations" / "train-7.xml").unlink()
    config = config.model_copy(update={"dataset": "voc", "data_dir": tmp_path / "voc"})
    with pytest.raises(
        InputError, match=r"train.txt lists 'train-7', which has no annotations \(1 in total\)"
    ):
        open_boxes(config.source)
    left, _ = open_boxes(config.model_copy(update={"on_bad_box": "skip"}).source)
    assert len(left.images) == 11
    assert left.skipped == ("train.txt lists 'train-7', which has no annotations",)
    assert coco == sets(config.model_copy(update={"data_dir": data}))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"mixup": 0.2}, r"mixup = 0.2 means nothing for detection"),
        ({"objective": "distill"}, "objective = 'distill' means nothing for detection"),
        (
            {"task": "classification", "max_size": 9},
            "max_size = 9 means nothing for classification",
        ),
        ({"dataset": "imagefolder"}, "no dataset 'imagefolder' of boxes; choose one of coco, voc"),
        (
            {"dataset": "toy_boxes:write_coco"},
            "write_coco failed when it was called with the configuration: TypeError",
        ),
        ({"dataset": "builtins:repr"}, "repr does not return sets of boxes"),
        ({"data_dir": None}, "coco needs data_dir"),
        ({"num_classes": 1}, "has 2 categories, but num_classes = 1"),
        (
            {"num_classes": 3},
            "has 2 categories, but num_classes = 3. The background is not counted",
        ),
        ({"model": "maskrcnn_resnet50_fpn"}, "also learns masks or keypoints"),
        ({"model": "ssdlite320_mobilenet_v3_large"}, r"only reads images of \(320, 320\) pixels"),
        (
            {"model": "fasterrcnn_resnet5_fpn"},
            "there is no model 'fasterrcnn_resnet5_fpn'. Did you mean fasterrcnn",
        ),
        ({"parallel": "fsdp", "batch_size": 50}, "fewer than one batch of 50"),
    ],
)
def test_keys_that_make_no_sense(
    data: Path, tmp_path: Path, others: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(keys(data, tmp_path, **others))


def test_folders_that_are_no_set(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "coco"
    shutil.copytree(data, folder)
    config = keys(folder, tmp_path)
    shutil.copy(
        folder / "annotations/instances_train2017.json",
        folder / "annotations/instances_train2014.json",
    )
    with pytest.raises(
        InputError, match=r"there are 2: instances_train2014.json, instances_train2017.json"
    ):
        open_boxes(config.source)
    (folder / "annotations/instances_train2014.json").unlink()
    content = json.loads((folder / "annotations/instances_val2017.json").read_text())
    content["categories"][0]["name"] = "pale"
    (folder / "annotations/instances_val2017.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"different categories, for example \['dark', 'pale'\]"):
        open_boxes(config.source)
    (folder / "images").mkdir()
    shutil.move(folder / "val2017", folder / "images/val2017")
    (folder / "annotations/instances_train2017.json").unlink()
    assert len(open_validation_boxes(config.source).images) == 6, (
        "a validation part alone, its images in another usual place"
    )


def test_eval_of_a_run(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    code, out, err = run(
        capsys, "eval", str(trained), "--backbone", MODEL, "--json", "--predictions", str(file)
    )
    document = json.loads(out)
    assert code == 0
    assert not err
    assert document["AP"] == rows(trained)[-1]["AP"]
    assert document["kept"] == rows(trained)[-1]["kept"]
    assert {one["category_id"] for one in json.loads(file.read_text())} <= {
        3,
        9,
    }, "COCO's own numbers"
    code, out, _ = run(
        capsys, "eval", str(trained), "--backbone", MODEL, "--limit", "2", "--on-bad-box", "skip"
    )
    assert code == 0
    assert "Boxes on 2 images" in out
    assert "dark" in out
    assert "at the traced size" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 4, f"is run only where you name it: --backbone {MODEL}"),
        (["--backbone", MODEL, "--budget", "0.8"], 2, "--budget is for classifiers"),
        (["--backbone", MODEL, "--domains", "D0"], 2, "--domains is for classifiers"),
        (["--backbone", MODEL, "--router", "stage"], 2, "--router does not go with a detector"),
        (["--backbone", MODEL, "--input-size", "64"], 2, "--input-size does not go with a run"),
        (["--backbone", MODEL, "--dataset", "voc"], 4, "there is no XML file in"),
    ],
)
def test_eval_that_makes_no_sense(
    trained: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    found, _, err = run(capsys, "eval", str(trained), *arguments)
    assert found == code
    assert message in err


def test_a_detector_of_a_name_takes_no_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    name = "fasterrcnn_mobilenet_v3_large_fpn"
    code, _, err = run(capsys, "eval", name, "--dataset", "coco", "--backbone", MODEL)
    assert code == 2
    assert f"--backbone goes with a run, and {name} is none" in err


def test_a_run_with_code_of_its_own_is_not_run_unasked(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dataset": "os:abort"}))
    _, _, err = run(capsys, "eval", str(folder), "--backbone", MODEL)
    assert "'os:abort', which is run only where you name it" in err
    (folder / "config.json").write_text(json.dumps(config | {"model": "regnet_y_400mf"}))
    with pytest.raises(InputError, match="built by name; leave --backbone out"):
        open_detector(folder, MODEL)
    with pytest.raises(ArchiveError, match="does not fit regnet_y_400mf"):
        open_detector(folder)
    for damage in (b"", b"{}", b"[1]"):
        (folder / "config.json").write_bytes(damage)
        with pytest.raises((ArchiveError, InputError), match=r"damaged|'model' is missing"):
            open_detector(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ArchiveError, match=r"config.json is missing"):
        open_detector(folder)


def test_categories_by_number(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Detectors that are not of a run have COCO's category ids for labels, gaps and all, as
    torchvision's trained ones.
    """
    expected = open_validation_boxes(keys(data, tmp_path).source)
    corners = (0.0, 0.0, 1.0, 1.0)
    raw = [Detection(corners=corners, label=number - 1, score=0.5) for number in (9, 3, 4)]
    found = by_category(Found(detections={0: raw}, kept={}), expected)
    assert [one.label for one in found.detections[0]] == [1, 0]
    code, out, err = run(
        capsys, "eval", "fasterrcnn_mobilenet_v3_large_320_fpn", "--dataset", "coco", "--data-dir",
        str(data), "--limit", "1",
        "--input-size", "64", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["num_images"] == 1
    assert "kept" not in json.loads(out)


def test_detectors_by_name_read_the_size_asked_for() -> None:
    torch.manual_seed(0)
    model: Any = load_detector("regnet_y_400mf", 3, input_size=60).model
    assert model.transform.min_size == (60,)
    assert model.transform.max_size == 100
    assert model.roi_heads.box_predictor.cls_score.out_features == 4
    again: Any = load_detector(MODEL, 2, max_size=80).model
    assert again.transform.min_size == (64,)
    assert again.transform.max_size == 80
    assert type(again) is type(detector(2))
    assert dggraph.convert_backbone_(model).graph.stages


def test_another_number_of_classes_starts_the_last_layers_anew(data: Path, tmp_path: Path) -> None:
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    torch.manual_seed(0)
    trained = load_detector(name, 90).model
    torch.save(trained.state_dict(), tmp_path / "coco.pth")
    with pytest.raises(InputError, match="other shapes"):
        load_detector(name, 2, checkpoint=tmp_path / "coco.pth")
    prepared = prepare(
        keys(
            data, tmp_path, model=name, checkpoint=tmp_path / "coco.pth", router="none", budget=None
        )
    )
    expected, found = trained.state_dict(), prepared.model.state_dict()
    different = {key for key, tensor in found.items() if not torch.equal(tensor, expected[key])}
    heads = {
        f"roi_heads.box_predictor.{layer}.{kind}"
        for layer in ("cls_score", "bbox_pred")
        for kind in ("weight", "bias")
    }
    assert different == heads
    assert len(found["roi_heads.box_predictor.cls_score.bias"]) == 3


def test_what_is_left_out_is_told(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "coco"
    shutil.copytree(data, folder)
    file = folder / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][4]["bbox"][2] = -3
    file.write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r"instances_train2017.json has 1 bad entries: annotation 4"
    ):
        train(keys(folder, tmp_path, epochs=1))
    told: list[Any] = []
    result = train(keys(folder, tmp_path, epochs=1, on_bad_box="skip"), told.append)
    (left,) = json.loads((result.folder / "skipped.json").read_text())
    assert left.startswith("instances_train2017.json: annotation 4")
    assert told[0] == {"bad entries left out": 1}


def test_norms_are_frozen_where_what_was_trained_had_them_so(tmp_path: Path) -> None:
    """By torchvision's own rule: a trained backbone is frozen, a random one is not; and a run's
    detector is built as it was trained.
    """

    def frozen(model: torch.nn.Module) -> set[bool]:
        return {
            type(module).__name__ == "FrozenBatchNorm2d"
            for module in model.modules()
            if "BatchNorm2d" in type(module).__name__
        }

    data = write_coco(tmp_path / "few", num_train=2, num_val=2)
    torch.manual_seed(0)
    classifier = torchvision.models.regnet_y_400mf()
    torch.save(classifier.state_dict(), tmp_path / "regnet.pth")
    for keys_of_model, expected in (
        ({}, {False}),
        ({"checkpoint": tmp_path / "regnet.pth"}, {True}),
    ):
        config = keys(
            data,
            tmp_path,
            model="regnet_y_400mf",
            input_size=32,
            epochs=1,
            experiment=str(expected),
            **keys_of_model,
        )
        assert frozen(prepare(config).model) == expected
        folder = train(config).folder
        again = open_detector(folder)
        assert frozen(again.model) == expected
        validation = open_validation_boxes(config.source)
        found = evaluate_boxes(
            detect(again.model, BoxDataset(validation.images), batch_size=1), validation
        )
        assert rows(folder)[-1]["AP"] == found.precision.AP
    trained: Any = torchvision.models.get_model(
        "fasterrcnn_mobilenet_v3_large_320_fpn", weights=None, weights_backbone=None
    )
    assert frozen(load_detector("fasterrcnn_mobilenet_v3_large_320_fpn", 2).model) == {False}
    freeze_norms_(trained.backbone)
    torch.save(trained.state_dict(), tmp_path / "frozen.pth")
    loaded = load_detector(
        "fasterrcnn_mobilenet_v3_large_320_fpn", 90, checkpoint=tmp_path / "frozen.pth"
    ).model
    assert frozen(loaded) == {True}
    assert all(
        torch.equal(one, other)
        for one, other in zip(
            loaded.state_dict().values(), trained.state_dict().values(), strict=True
        )
    )


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "fcos_resnet50_fpn"])
def test_heads_that_also_answer_background(data: Path, tmp_path: Path, name: str) -> None:
    """Their logits count label 0 among the classes; what they call that is not an object."""
    detected: Any = with_even_scores(name, data, tmp_path)
    image = Image.open(data / "val2017" / "2.png")
    with torch.no_grad():
        (output,) = detected.model(
            [torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255]
        )
    labels = output["labels"].tolist()
    prediction = make_detector_predictor(
        detected.model, detected.net, classes=detected.classes, name="n"
    ).predict(image)
    assert prediction.detected is not None
    assert 0 in labels
    assert len(prediction.detected.objects) == sum(label > 0 for label in labels) > 0
    assert [one.name for one in prediction.detected.objects] == [
        detected.classes[label - 1] for label in labels if label
    ]
    with pytest.raises(InputError, match=r"its class \d, but there are names for 0 classes"):
        make_detector_predictor(detected.model, detected.net, classes=(), name="n").predict(image)
    validation = open_validation_boxes(keys(data, tmp_path).source)
    found = detect(detected.model, BoxDataset(validation.images[2:3]))
    assert [one.label for one in found.detections[14]] == [label - 1 for label in labels if label]


def with_even_scores(name: str, data: Path, output: Path) -> Any:
    torch.manual_seed(0)
    detector = build_detector(keys(data, output, model=name, input_size=64), ("dark", "light"))
    head: Any = detector.model.get_submodule("head.classification_head.cls_logits")
    torch.nn.init.zeros_(head.bias)
    return detector


def test_batches_of_few_tall_images_are_not_lost(data: Path, tmp_path: Path) -> None:
    training, validation = open_boxes(keys(data, tmp_path).source)
    tall = [int(image.height > image.width) for image in training.learnable]
    config = keys(data, tmp_path)
    assert Detecting(config=config, training=training, validation=validation).groups == tall
    assert sum(tall) == 4
    config = config.model_copy(update={"batch_size": 5})
    assert Detecting(config=config, training=training, validation=validation).groups == [0] * 12


def test_a_gradient_that_is_not_finite_changes_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    real = Detecting.loss

    def loss(self: Detecting, model: Any, net: Any, part: Any) -> Any:
        found, gates = real(self, model, net, part)
        weight = model.backbone.fpn.layer_blocks[0][0].bias
        seen.append((weight, weight.detach().clone()))
        return (
            found
            + (0.0 * weight[0] if len(seen) < 3 else (weight[0] - weight[0].detach()).abs().sqrt()),
            gates,
        )

    monkeypatch.setattr(Detecting, "loss", loss)
    with pytest.raises(
        TrainingError, match=r"a gradient of step 2 is not finite, so no step was taken with it"
    ):
        train(keys(data, tmp_path, grad_accum_steps=1))
    weight, before = seen[-1]
    assert len(seen) == 3
    assert torch.equal(weight.detach(), before)


def test_an_empty_set_has_nothing_to_be_found(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "coco"
    shutil.copytree(data, folder)
    file = folder / "annotations/instances_val2017.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    with pytest.raises(InputError, match="no boxes on 6 images, so there is nothing to detect"):
        train(keys(folder, tmp_path))
