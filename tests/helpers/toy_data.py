"""A data set of noise with a pattern a class, for tests of training."""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dggraph.models.registry import load_model


class Toy(Dataset):
    """(3, 16, 16) images; class c has a bright column c. A random shift stands for augmentation."""

    def __init__(self, num_images: int, is_augmented: bool, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(4, (num_images,), generator=generator)
        self.images = torch.randn((num_images, 3, 16, 16), generator=generator)
        for image, label in zip(self.images, self.labels.tolist(), strict=True):
            image[:, :, 4 * label] += 3
        self.is_augmented = is_augmented

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        if self.is_augmented:
            image = image + 0.3 * torch.randn(image.shape)
        return image, int(self.labels[index])


def make(config: object) -> tuple[Dataset, Dataset, tuple[str, ...]]:
    return Toy(72, True, 0), Toy(40, False, 1), ("a", "b", "c", "d")


def unequal(config: object) -> tuple[Dataset, Dataset, tuple[str, ...]]:
    """Images of contrasts so far apart that their paths differ."""
    sets = Toy(72, True, 0), Toy(40, False, 1)
    for one in sets:
        one.images *= torch.linspace(0.1, 4, len(one))[:, None, None, None]
    return *sets, ("a", "b", "c", "d")


class Plain(nn.Module):
    """No norm: an instance's gradient does not depend on its neighbours."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.body = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()) for _ in range(3))
        )
        self.head = nn.Linear(6, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def plain_net(num_classes: int = 4) -> nn.Module:
    return Plain(num_classes)


class Wide(nn.Module):
    """A small ResNet in float64, where rounding moves no value over the kink of a ReLU, and none
    over a threshold.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = load_model("dggraph:resnet14_4", num_classes=num_classes).model.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.double()).float()


def wide_net(num_classes: int = 4) -> nn.Module:
    return Wide(num_classes)
