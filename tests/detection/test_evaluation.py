"""Detectors over a set: nothing is mixed up between images, files and classes."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from small_detectors import mobilenet_fpn, seeded
from torch import Tensor, nn

import dggraph
from dggraph.detection.average_precision import average_precision
from dggraph.detection.box_data import BoxDataset
from dggraph.detection.evaluation import detect
from dggraph.detection.readers import Box, BoxImage, BoxSet
from dggraph.errors import InputError
from dggraph.evaluation.timing import sample_paths
from dggraph.losses import kept
from dggraph.network.gate_contexts import collecting_gates, pinned_gates


def squares(folder: Path, num_images: int = 5) -> BoxSet:
    """Image k has a white square of side 10 + k whose class is k modulo 2; images differ in
    size.
    """
    images = []
    for k in range(num_images):
        image = Image.new("RGB", (96 + 8 * k, 80), (25 * k, 0, 30 * k))
        image.paste((255, 255, 255), (5 * k, 20, 5 * k + 10 + k, 30 + k))
        image.save(folder / f"{k}.png")
        box = Box(corners=(5 * k, 20, 5 * k + 10 + k, 30 + k), label=k % 2, area=(10 + k) ** 2)
        images.append(
            BoxImage(
                name=f"{k}.png",
                file=folder / f"{k}.png",
                image_id=10 * k,
                width=96 + 8 * k,
                height=80,
                boxes=(box,),
            )
        )
    return BoxSet(
        name="squares",
        classes=("even", "odd"),
        category_ids=(3, 9),
        images=tuple(images),
        skipped=(),
        num_clipped=0,
    )


class Seeing(nn.Module):
    """Finds the white square, and tells its class by its side."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert not self.training
        assert not torch.is_grad_enabled()
        found = []
        for image in images:
            rows, columns = torch.nonzero(image[0] > 0.5).T
            corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            label = 1 + int(rows.max() - rows.min() + 1) % 2
            found.append(
                {
                    "boxes": torch.stack(corners)[None].float(),
                    "labels": torch.tensor([label]),
                    "scores": torch.ones(1),
                }
            )
        return found


@pytest.mark.parametrize("workers", [0, 2])
def test_who_sees_everything_has_precision_1(tmp_path: Path, workers: int) -> None:
    expected = squares(tmp_path)
    model = Seeing().train()
    found = detect(model, BoxDataset(expected.images), batch_size=2, workers=workers)
    precision = average_precision(found.detections, expected)
    assert precision.AP == 1.0
    assert precision.per_class == {"even": 1.0, "odd": 1.0}
    assert precision.small == 1.0
    assert sorted(found.detections) == [0, 10, 20, 30, 40]
    assert not found.kept
    assert model.training


def test_what_the_backbone_spends_is_told_by_image(tmp_path: Path) -> None:
    """The same as the network says of the padded batch, with another path for each image."""
    expected = squares(tmp_path, 3)
    detector = seeded(mobilenet_fpn)
    net = dggraph.convert_backbone_(detector, router="stage")
    dataset, (weights, _) = BoxDataset(expected.images), sample_paths(net, 0.7, 3)
    with pinned_gates(net, weights):
        found = detect(detector, dataset, batch_size=3)
        with torch.no_grad(), collecting_gates(net) as gates:
            outputs = detector([dataset[k][0] for k in range(3)])
    assert [found.kept[10 * k] for k in range(3)] == kept(gates[0]).tolist()
    assert len(set(found.kept.values())) == 3
    for k, output in enumerate(outputs):
        assert [one.score for one in found.detections[10 * k]] == output["scores"].double().tolist()
        assert [one.label for one in found.detections[10 * k]] == (output["labels"] - 1).tolist()


def test_a_model_that_detects_nothing(tmp_path: Path) -> None:
    class Classifier(nn.Module):
        def forward(self, images: list[Tensor]) -> Tensor:
            return torch.zeros(len(images), 10)

    with pytest.raises(
        InputError, match="the model returned Tensor for an image; a detector returns a dict"
    ):
        detect(Classifier(), BoxDataset(squares(tmp_path, 1).images))
