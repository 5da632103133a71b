"""Names of classes become text that every JSON reader takes, or are refused by name."""

import enum
import unicodedata
from typing import Any

import numpy as np
import pytest
import torch

from dggraph.data.class_names import as_text, describe_renamed
from dggraph.errors import InputError


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        (range(2), ("0", "1")),
        ([b"cat", "dog"], ("cat", "dog")),
        ([np.int64(3), np.str_("x"), torch.tensor(4)], ("3", "x", "4")),
        ([0.5, True], ("0.5", "1")),
        (["caf\udce9", b"caf\xe9"], ("caf\\xe9", "caf\\xe9")),
        (["", "日本", "a\nb"], ("", "日本", "a\nb")),
    ],
)
def test_names_become_text(names: Any, texts: tuple[str, ...]) -> None:
    found = as_text(names)
    assert found == texts
    assert all(type(name) is str and name.encode() for name in found if name)
    assert bool(describe_renamed(names, found)) == any(
        not isinstance(name, str) or "\udce9" in name for name in names
    )


def test_accents_are_one_class() -> None:
    composed, taken_apart = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    assert composed != taken_apart
    assert as_text([composed]) == as_text([taken_apart])
    assert describe_renamed([taken_apart], as_text([taken_apart])) == []


@pytest.mark.parametrize("name", [None, ["a"], enum.Enum("Colour", "RED")["RED"], 1j])
def test_what_has_no_text_is_refused(name: object) -> None:
    with pytest.raises(InputError, match=r"class 1 is called .*not text"):
        as_text(["fine", name])
