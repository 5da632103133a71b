"""Augmentation: evaluation is `preprocess_image` to the bit, training without chance is evaluation,
chance is torch's alone.
"""

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from dggraph.data.augmentation import (
    Augmentation,
    Transform,
    evaluation_transform,
    mix,
    training_transform,
)
from dggraph.data.sampler import SeededDataset
from dggraph.errors import InputError
from dggraph.models.preprocessing import Preprocess, preprocess_image
from dggraph.training.config import TrainConfig

SMALL = Preprocess(input_size=(3, 28, 28), crop_fraction=1.0)
GREY = Preprocess(input_size=(1, 28, 28), mean=(0.286,), std=(0.353,), crop_fraction=1.0)
EVERYTHING: dict[str, Any] = {"color_jitter": 0.4, "randaugment": (2, 9), "reprob": 0.9}


NOT_MIXED = {"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0}


def keys(**others: Any) -> Augmentation:
    return TrainConfig(model="resnet18", **others).augmentation


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
@pytest.mark.parametrize("size", [(61, 40), (28, 28), (9, 50)])
@pytest.mark.parametrize(
    "preprocess",
    [SMALL, GREY, Preprocess(input_size=(3, 24, 32), interpolation="bicubic")],
)
def test_evaluation_is_preprocess_image_to_the_bit(
    mode: str, size: tuple[int, int], preprocess: Preprocess
) -> None:
    image = photo(*size, mode)
    assert torch.equal(
        evaluation_transform(preprocess)(image), preprocess_image(image, preprocess)[0]
    )


@pytest.mark.parametrize(
    "preprocess",
    [SMALL, GREY, Preprocess(input_size=(3, 28, 28)), Preprocess(input_size=(3, 40, 32))],
)
def test_tensors_in_memory_give_what_their_images_give(preprocess: Preprocess) -> None:
    for pixels in (
        torch.arange(4 * 784).reshape(4, 1, 28, 28).to(torch.uint8)
    ):  # every value there is
        image = Image.fromarray(pixels[0].numpy())
        assert torch.equal(
            evaluation_transform(preprocess)(pixels), preprocess_image(image, preprocess)[0]
        )
    coloured = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8)
    if preprocess.input_size[0] == 3:
        image = Image.fromarray(coloured.permute(1, 2, 0).numpy())
        assert torch.equal(
            evaluation_transform(preprocess)(coloured), preprocess_image(image, preprocess)[0]
        )


@pytest.mark.parametrize(
    "preprocess", [SMALL, GREY, Preprocess(input_size=(3, 24, 20), crop_fraction=0.9)]
)
def test_training_without_chance_is_evaluation(preprocess: Preprocess) -> None:
    image = photo(50, 44)
    assert torch.equal(
        training_transform(keys(crop_padding=0, hflip=0), preprocess)(image),
        evaluation_transform(preprocess)(image),
    )
    whole = keys(scale=(1, 1), ratio=(1, 1), hflip=0)
    square = photo(preprocess.input_size[2], preprocess.input_size[2])
    if preprocess.input_size[1] == preprocess.input_size[2]:
        assert torch.equal(
            training_transform(whole, preprocess)(square), evaluation_transform(preprocess)(square)
        )


def test_shift_and_flip_is_what_torchvision_makes_of_the_same_draws() -> None:
    pixels = torch.arange(1, 785).reshape(1, 28, 28).to(torch.uint8)
    transform, seen = training_transform(keys(crop_padding=3, hflip=0.25), GREY), set()
    for seed in range(400):
        torch.manual_seed(seed)
        found = transform(pixels)
        torch.manual_seed(seed)
        down, right, flip = torch.rand(3).tolist()
        top, left, is_flipped = int(down * 7), int(right * 7), flip < 0.25
        padded = v2.functional.crop(v2.functional.pad(pixels, [3]), top, left, 28, 28)
        expected = v2.functional.horizontal_flip(padded) if is_flipped else padded
        assert torch.equal(found, evaluation_transform(GREY)(expected))
        seen.add((top, left, is_flipped))
    assert {(top, left) for top, left, _ in seen} == {
        (top, left) for top in range(7) for left in range(7)
    }
    assert {is_flipped for _, _, is_flipped in seen} == {True, False}


def test_a_picture_is_not_written_to() -> None:
    pixels = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8)
    before = pixels.clone()
    for config in (
        keys(crop_padding=0, hflip=0),
        keys(crop_padding=2, **EVERYTHING),
        keys(**EVERYTHING),
    ):
        training_transform(config, SMALL)(pixels).zero_()
    evaluation_transform(SMALL)(pixels).zero_()
    assert torch.equal(pixels, before)


class One:
    """A set of one picture."""

    def __init__(self, picture: Any, transform: Transform) -> None:
        self.picture, self.transform = picture, transform

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.picture)


@pytest.mark.parametrize("crop", [{"crop_padding": 2}, {"scale": (0.3, 1.0)}])
@pytest.mark.parametrize(
    "picture", [photo(40, 33), torch.randint(0, 256, (1, 28, 28), dtype=torch.uint8)]
)
def test_a_sample_depends_on_seed_epoch_and_index_alone(crop: dict[str, Any], picture: Any) -> None:
    transform = training_transform(keys(**crop, **EVERYTHING), SMALL)
    dataset: Any = SeededDataset(One(picture, transform), 7)  # type: ignore[arg-type]
    others = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    first = [dataset[epoch, index] for epoch in range(3) for index in range(3)]
    assert others == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index,union-attr]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    again: Any = pickle.loads(pickle.dumps(dataset))
    assert all(torch.equal(a, again[place // 3, place % 3]) for place, a in enumerate(first))
    assert len({sample.numpy().tobytes() for sample in first}) == 9
    assert all(
        sample.shape == (3, 28, 28) and sample.dtype == torch.float32 and sample.is_contiguous()
        for sample in first
    )


def test_erasing_sets_a_rectangle_to_the_mean() -> None:
    erased = training_transform(keys(crop_padding=0, hflip=0, reprob=1.0), GREY)(
        torch.full((1, 28, 28), 255, dtype=torch.uint8)
    )
    rows, columns = (erased[0] == 0).nonzero(as_tuple=True)
    height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
    assert 0.01 * 784 < height * width == len(rows) < 0.4 * 784


@pytest.mark.parametrize(
    ("config", "preprocess", "culprit"),
    [
        (keys(crop_padding=28), GREY, "crop_padding = 28"),
        (
            keys(),
            Preprocess(input_size=(1, 28, 28)),
            r"mean = .* has 3 numbers, but the network reads 1 ",
        ),
        (keys(), Preprocess(input_size=(3, 28, 28), std=(0.5, 0.5)), "std = .* has 2 numbers"),
        (keys(), Preprocess(input_size=(3, 28, 28), std=(0.5, 0.0, 0.5)), "larger than 0"),
        (keys(), Preprocess(input_size=(4, 28, 28)), "reads 4 channels"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(
    config: Augmentation, preprocess: Preprocess, culprit: str
) -> None:
    with pytest.raises(InputError, match=culprit):
        training_transform(config, preprocess)


def batch() -> tuple[Tensor, Tensor]:
    """Three images, all 1, all 2, all 4, of the classes 2, 0, 3."""
    return torch.tensor([1.0, 2.0, 4.0])[:, None, None, None].expand(
        3, 3, 8, 8
    ).clone(), torch.tensor([2, 0, 3])


def test_mixed_and_smoothed_targets_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share 0.75, smoothing 0.1, four classes: own 0.9 * 0.75 + 0.025, the other's 0.9 * 0.25 +
    0.025.
    """
    monkeypatch.setattr(v2.MixUp, "make_params", lambda self, flat_inputs: {"lam": 0.75})
    images, targets = mix(*batch(), 4, mixup=0.2, cutmix=0.0, smoothing=0.1, seed=0)
    own, other, rest = 0.7, 0.25, 0.025
    expected = torch.tensor(
        [[rest, rest, own, other], [own, rest, other, rest], [other, rest, rest, own]]
    )
    assert torch.allclose(targets, expected, rtol=0, atol=1e-7)
    assert images[:, 0, 0, 0].tolist() == [
        0.75 * 1 + 0.25 * 4,
        0.75 * 2 + 0.25 * 1,
        0.75 * 4 + 0.25 * 2,
    ]


def test_smoothing_alone_by_hand() -> None:
    images, targets = mix(*batch(), 5, mixup=0.0, cutmix=0.0, smoothing=0.1, seed=0)
    assert torch.equal(images, batch()[0])
    assert torch.allclose(
        targets, torch.full((3, 5), 0.02).scatter_(1, batch()[1][:, None], 0.92), rtol=0, atol=1e-7
    )
    logits = torch.randn(3, 5)
    assert torch.allclose(
        torch.nn.functional.cross_entropy(logits, targets),
        torch.nn.functional.cross_entropy(logits, batch()[1], label_smoothing=0.1),
    )


@pytest.mark.parametrize("key", ["mixup", "cutmix"])
def test_the_target_is_the_share_of_the_pixels(key: str) -> None:
    shares = set()
    for seed in range(20):
        images, targets = mix(*batch(), 4, **NOT_MIXED | {key: 1.0}, seed=seed)
        mean = images.mean((1, 2, 3))
        share = (mean[1] - 1) / (2 - 1)  # image 1 is 2, mixed with image 0, which is 1
        assert torch.allclose(
            mean,
            torch.tensor([1 * share + 4 * (1 - share), 1 + share, 4 * share + 2 * (1 - share)]),
            atol=1e-5,
        )
        assert torch.allclose(targets[1], torch.tensor([share, 0, 1 - share, 0]), atol=1e-5)
        values = images[1].unique()
        assert len(values) == 1 if key == "mixup" else set(values.tolist()) <= {1.0, 2.0}
        shares.add(round(float(share), 4))
    assert len(shares) > 7


def test_mixing_depends_on_its_seed_alone_and_leaves_everything_else() -> None:
    images, labels = batch()
    how = {"mixup": 0.2, "cutmix": 1.0, "smoothing": 0.0}
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    results = [mix(images, labels, 4, **how, seed=seed) for seed in range(40)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(images, batch()[0])
    assert torch.equal(labels, batch()[1])
    torch.manual_seed(99)
    assert all(
        torch.equal(a, b)
        for seed, one in enumerate(results)
        for a, b in zip(one, mix(images, labels, 4, **how, seed=seed), strict=True)
    )
    is_cut = [set(mixed.unique().tolist()) <= {1.0, 2.0, 4.0} for mixed, _ in results]
    assert 8 < sum(is_cut) < 32  # each draws one


def test_without_mixing_the_batch_is_passed_on() -> None:
    images, labels = batch()
    found = mix(images, labels, 4, **NOT_MIXED, seed=0)
    assert found[0] is images
    assert found[1] is labels


def test_a_label_without_an_output_is_refused() -> None:
    with pytest.raises(InputError, match="labels from 0 to 3, but the network has 3 outputs"):
        mix(*batch(), 3, **NOT_MIXED | {"mixup": 1.0}, seed=0)
