"""Images with boxes as torchvision's detectors take them: tensors, targets, and batches of images of one shape.

Pixels are float32 in [0, 1]: detectors normalise and resize by themselves.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2

from dggraph.errors import InputError
from dggraph.runtime.preprocessing import open_image
from dggraph.training.boxes import BoxImage
from dggraph.training.order import Place, permutation

Target = dict[str, Tensor]


class BoxDataset(Dataset[tuple[Tensor, Target]]):
    """(image (3, H, W), target) by index.

    A target has `boxes` (N, 4) float32 as corners in pixels, `labels` (N,) int64 from 1, since 0 is torchvision's background, and `image_id`.
    Crowds are left out: detectors cannot learn from them.

    Args:
        images: of a `BoxSet`; for training its `learnable` ones.
        flip: probability of a horizontal flip.

    Raises:
        InputError: (when asked for an image) it cannot be read, or has another size than its annotations say.
    """

    def __init__(self, images: Sequence[BoxImage], *, flip: float = 0.0) -> None:
        self.images = images
        self.transform = v2.Compose(
            [
                v2.RandomHorizontalFlip(flip),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.SanitizeBoundingBoxes(),
                v2.ToPureTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        entry = self.images[index]
        image = open_image(entry.file, is_turned=False)
        if image.size != (entry.width, entry.height):
            raise InputError(
                f"{str(entry.file)!r} is {image.width} x {image.height} pixels, but its annotations were drawn on {entry.width} x "
                f"{entry.height}. Boxes would be in the wrong places: fetch the images that belong to them."
            )
        known = [box for box in entry.boxes if not box.is_crowd]
        boxes = tv_tensors.BoundingBoxes(
            torch.tensor([box.corners for box in known], dtype=torch.float32).reshape(-1, 4),
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=(entry.height, entry.width),
        )
        labels = torch.tensor([box.label + 1 for box in known], dtype=torch.int64)
        tensor, target = self.transform(image, {"boxes": boxes, "labels": labels})
        return tensor, target | {"image_id": torch.tensor(entry.image_id)}


def collate(samples: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Images of a batch may differ in size, so they stay a list."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


class ShapedBatches(Sampler[list[Place]]):
    """The batches of one process in one epoch, each of images that are all wide or all tall, so that little is padded.

    A function of the seed and the epoch, like `EpochBatches`; samples that fill no global batch wait for another epoch's order.

    Args:
        is_tall: of each image: higher than wide.
        batch_size: of one process.
        seed: of the run.
        epoch: counts from 0.
        rank: of this process.
        world_size: number of processes.
        first: global batches of this epoch that are done already.
    """

    def __init__(
        self, is_tall: Sequence[bool], batch_size: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1, first: int = 0
    ) -> None:
        self.epoch, self.mine, self.first = epoch, slice(rank * batch_size, (rank + 1) * batch_size), first
        waiting: dict[bool, list[int]] = {True: [], False: []}
        self.batches: list[list[int]] = []
        for index in permutation(len(is_tall), seed, epoch).tolist():
            group = waiting[is_tall[index]]
            group.append(index)
            if len(group) == batch_size * world_size:
                self.batches.append(list(group))
                group.clear()

    def __len__(self) -> int:
        return len(self.batches) - self.first

    def __iter__(self) -> Iterator[list[Place]]:
        for batch in self.batches[self.first :]:
            yield [(self.epoch, index) for index in batch[self.mine]]
