"""Average precision: truth as predictions, pycocotools' own numbers, and a real COCO file."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dggraph.detection import average_precision as box_evaluation
from dggraph.detection.average_precision import average_precision, write_predictions
from dggraph.detection.readers import Box, BoxImage, BoxSet, read_coco, read_voc
from dggraph.errors import InputError, MissingExtraError
from dggraph.graph.detection import Detection

INPUTS = Path(os.environ.get("DGGRAPH_INPUTS", Path.home() / ".cache/dggraph/inputs"))
EXAMPLES = INPUTS / "labelme/usr/share/doc/labelme-examples/examples"
needs_labelme = pytest.mark.skipif(
    not EXAMPLES.is_dir(), reason="needs labelme-examples: sh tests/fetch_real_inputs.sh"
)


def random_set(seed: int, num_images: int = 30) -> BoxSet:
    """Boxes of all sizes, a tenth of them crowds; some images and a class without any; image ids
    out of order.
    """
    draw = np.random.default_rng(seed)
    images = []
    for place in range(num_images):
        boxes = []
        for _ in range(draw.integers(0, 9)):
            left, top = draw.uniform(0, 300, 2)
            width, height = draw.uniform(4, 150, 2)
            boxes.append(
                Box(
                    corners=(left, top, left + width, top + height), label=int(draw.integers(0, 4)),
                    area=width * height * draw.uniform(0.5, 1), is_crowd=bool(draw.random() < 0.1),
                )
            )  # fmt: skip
        name = f"{place}.png"
        images.append(
            BoxImage(
                name=name,
                file=Path(name),
                image_id=1000 - 7 * place,
                width=500,
                height=500,
                boxes=tuple(boxes),
            )
        )
    classes, ids = ("a", "b", "c", "d", "e"), (3, 5, 8, 13, 90)
    return BoxSet(
        name="random",
        classes=classes,
        category_ids=ids,
        images=tuple(images),
        skipped=(),
        num_clipped=0,
    )


def guesses(expected: BoxSet, seed: int) -> dict[int, list[Detection]]:
    """Most objects, moved and at times of another class, and some that are not there; scores with
    ties.
    """
    draw, found = np.random.default_rng(seed), {}
    for image in expected.images:
        own = []
        for box in image.boxes:
            for _ in range(draw.integers(0, 3)):
                corners = np.array(box.corners) + draw.normal(0, 5, 4)
                corners[2:] = np.maximum(corners[2:], corners[:2] + 1)
                label = box.label if draw.random() < 0.8 else int(draw.integers(0, 5))
                own.append(
                    Detection(
                        corners=tuple(corners.tolist()),
                        label=label,
                        score=round(float(draw.random()), 2),
                    )
                )
        left, top = draw.uniform(0, 400, 2)
        own.append(
            Detection(
                corners=(left, top, left + 30, top + 50),
                label=int(draw.integers(0, 5)),
                score=float(draw.random()),
            )
        )
        found[image.image_id] = own
    return found


def truth_as_coco(expected: BoxSet) -> dict[str, object]:
    annotations = [
        {
            "id": number, "image_id": image.image_id, "category_id":
            expected.category_ids[box.label], "area": box.area,
            "bbox": [box.corners[0], box.corners[1], box.corners[2] - box.corners[0], box.corners[3]
            - box.corners[1]],
            "iscrowd": int(box.is_crowd),
        }
        for number, (image, box) in enumerate(((image, box) for image in expected.images for box in
        image.boxes), 1)
    ]  # fmt: skip
    images = [
        {"id": image.image_id, "width": image.width, "height": image.height}
        for image in expected.images
    ]
    names = [
        {"id": number, "name": name}
        for number, name in zip(expected.category_ids, expected.classes, strict=True)
    ]
    return {"info": {}, "images": images, "annotations": annotations, "categories": names}


@pytest.mark.parametrize("seed", range(3))
def test_the_numbers_are_those_of_pycocotools(seed: int, tmp_path: Path) -> None:
    expected = random_set(seed)
    found = guesses(expected, seed + 50)
    ours = average_precision(found, expected)
    write_predictions(tmp_path / "found.json", found, expected)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = truth_as_coco(expected)
        truth.createIndex()
        judge = COCOeval(
            truth, truth.loadRes(json.loads((tmp_path / "found.json").read_text())), "bbox"
        )
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    row = [ours.AP, ours.AP50, ours.AP75, ours.small, ours.medium, ours.large]
    assert 0.1 < float(judge.stats[0]) < 0.9
    np.testing.assert_allclose(np.array(row, dtype=float), judge.stats[:6], rtol=0, atol=1e-9)
    for label, name in enumerate(expected.classes):
        values = judge.eval["precision"][:, :, label, 0, -1]
        theirs = values[values > -1].mean() if (values > -1).any() else None
        mine = ours.per_class[name]
        assert (mine is None) == (theirs is None)
        assert mine is None or abs(mine - theirs) < 1e-9
    assert ours.per_class["e"] is None, "no such object: no precision"


def as_predictions(expected: BoxSet) -> dict[int, list[Detection]]:
    return {
        image.image_id: [
            Detection(corners=box.corners, label=box.label, score=1.0)
            for box in image.boxes
            if not box.is_crowd
        ]
        for image in expected.images
    }


def test_truth_is_found_whole_and_nothing_is_found_by_nothing() -> None:
    expected = random_set(7)
    assert average_precision(as_predictions(expected), expected).AP == 1.0
    nothing = average_precision({}, expected)
    assert nothing.AP == 0.0
    assert nothing.row()["per_class"]["a"] == 0.0


@needs_labelme
def test_labelmes_own_files_score_1() -> None:
    """Their annotation ids begin at 0; evaluated as they stand, truth against itself scores 0.949
    (REAL-INPUTS).
    """
    folder = EXAMPLES / "instance_segmentation/data_dataset_coco"
    expected = read_coco(folder / "annotations.json", folder)
    assert len(expected.images) == 3
    assert sum(len(image.boxes) for image in expected.images) == 12
    assert average_precision(as_predictions(expected), expected).AP == 1.0
    folder = EXAMPLES / "bbox_detection/data_dataset_voc"
    expected = read_voc(folder / "Annotations", folder / "JPEGImages")
    assert len(expected.images) == 3
    assert average_precision(as_predictions(expected), expected).AP == 1.0


def test_predictions_that_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = random_set(1, 3)
    with pytest.raises(InputError, match="predictions for image 5, which random does not have"):
        average_precision({5: []}, expected)
    with pytest.raises(InputError, match="a prediction has class 5"):
        average_precision({1000: [Detection(corners=(0, 0, 1, 1), label=5, score=1)]}, expected)
    with pytest.raises(InputError, match="not finite"):
        average_precision(
            {1000: [Detection(corners=(0, 0, 1, float("nan")), label=0, score=1)]}, expected
        )

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(box_evaluation, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"dggraph\[detection\]"):
        average_precision({}, expected)
