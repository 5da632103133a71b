"""Domains: each attribute on an object small enough to follow by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray

from dggraph.data.domains import FAMILIES, NUM_VALUES, draw_attributes, render, sketch
from dggraph.errors import InputError

OBJECT = np.array([[200, 0], [0, 0]], np.uint8)
"""One bright pixel, in the upper left of two by two."""


def attributes(**values: int) -> dict[str, NDArray[np.uint8]]:
    return {name: np.array([values.get(name, 0)], np.uint8) for name in NUM_VALUES}


def made(
    source: NDArray[np.uint8], *, numbers: dict[int, float] | None = None, **values: int
) -> NDArray[np.uint8]:
    uniforms = np.zeros((1, 11))
    for place, number in (numbers or {}).items():
        uniforms[0, place] = number
    photo = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) % 256
    (image,) = render(source[None], attributes(**values), uniforms, photos=[photo.astype(np.uint8)])
    return image


def test_an_object_is_padded_to_the_middle() -> None:
    image = made(OBJECT)
    assert image.shape == (32, 32)
    assert np.argwhere(image).tolist() == [[15, 15]]
    assert image[15, 15] == 200


@pytest.mark.parametrize(
    ("turns", "place"), [(0, (15, 15)), (1, (16, 15)), (2, (16, 16)), (3, (15, 16))]
)
def test_quarter_turns_go_to_the_left(turns: int, place: tuple[int, int]) -> None:
    assert np.argwhere(made(OBJECT, rotation=turns)).tolist() == [list(place)]


def test_a_negative_is_inverted_with_its_background() -> None:
    image = made(OBJECT, negative=1)
    assert image[15, 15] == 55
    assert (np.delete(image.ravel(), 15 * 32 + 15) == 255).all()


def test_a_sketch_is_the_sobel_magnitude_over_its_maximum() -> None:
    """Around one pixel of value v: 2 v beside it, sqrt(2) v at its corners, 0 on it."""
    (image,) = sketch(np.pad(np.array([[100]], np.uint8), 2)[None])
    corner = round(255 * 2**0.5 / 2)
    assert image[1:4, 1:4].tolist() == [[corner, 255, corner], [255, 0, 255], [corner, 255, corner]]
    assert not image[[0, -1]].any()
    blank = np.full((1, 5, 5), 7, np.uint8)
    assert not sketch(blank).any()


def test_an_object_lies_on_a_darkened_patch_by_its_mask() -> None:
    image = made(OBJECT, photo=1, numbers={9: 0.99, 10: 0.5})
    top, left = 8, 9  # of 9 rows and 19 columns that a patch may begin in
    expected = [
        [200 if (y, x) == (15, 15) else round(0.7 * ((50 * (top + y) + left + x) % 256) + 1e-9)
         for x in range(32)]
        for y in range(32)
    ]  # fmt: skip
    assert image.tolist() == expected


def test_dim_pixels_are_background() -> None:
    dim = np.array([[15, 16], [0, 0]], np.uint8)
    image = made(dim, photo=1)
    assert image[15, 15] == round(0.7 * ((50 * 15 + 15) % 256))
    assert image[15, 16] == 16


def test_a_scaled_object_is_smaller_and_elsewhere() -> None:
    square = np.full((20, 20), 90, np.uint8)
    smallest = made(square, scaled=1)
    assert (smallest[:11, :11] == 90).all()
    assert smallest.sum() == 11 * 11 * 90
    largest = made(square, scaled=1, numbers={5: 0.999, 6: 0.999, 7: 0.0})
    assert (largest[17:, :15] == 90).all()
    assert largest.sum() == 15 * 15 * 90


def test_families_share_the_attributes_that_both_vary() -> None:
    uniforms = np.random.default_rng(0).random((800, 11))
    drawn = {name: draw_attributes(family, uniforms) for name, family in FAMILIES.items()}
    for name, family in FAMILIES.items():
        for attribute, values in drawn[name].items():
            if attribute in family.varied:
                assert np.array_equal(values, drawn["D4"][attribute])
                counts = np.bincount(values, minlength=NUM_VALUES[attribute])
                assert counts.min() > 800 / NUM_VALUES[attribute] * 0.7
            else:
                assert (values == (attribute in family.always)).all()
    domains = {tuple(row) for row in np.stack(list(drawn["D4"].values()), 1).tolist()}
    assert len(domains) == 64
    assert {len(f.varied) for f in FAMILIES.values()} == {0, 1, 3, 4, 5}


def test_missing_photographs_and_large_objects_are_refused() -> None:
    with pytest.raises(InputError, match="Give photos"):
        render(OBJECT[None], attributes(photo=1), np.zeros((1, 11)))
    with pytest.raises(InputError, match="33 x 33"):
        render(np.zeros((1, 33, 33), np.uint8), attributes(), np.zeros((1, 11)))
