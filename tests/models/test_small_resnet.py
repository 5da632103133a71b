"""Backbones of our own."""

from pathlib import Path

import pytest
import torch
from reference import randomise, randomise_routers

import dggraph
from dggraph.errors import InputError
from dggraph.models.registry import load_model
from dggraph.models.small_resnet import build_small


def test_the_published_sizes() -> None:
    """He et al., table 6: ResNet-20 has 0.27 M parameters, ResNet-32 0.46 M, ResNet-56 0.85 M."""
    for depth, millions in ((20, 0.27), (32, 0.46), (56, 0.85)):
        parameters = sum(p.numel() for p in build_small(f"dggraph:resnet{depth}_16").parameters())
        assert parameters / 1e6 == pytest.approx(millions, abs=0.01)
    net = dggraph.convert("dggraph:resnet32_16")
    assert [stage.num_blocks for stage in net.report.stages] == [5, 4, 4]


@pytest.mark.parametrize(
    "name",
    ["resnet21_8", "resnet2_8", "resnet20_0", "resnet200_8", "resnet20", "resnet20_8; import os"],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="DEPTH"):
        build_small(f"dggraph:{name}")


def test_an_archive_is_rebuilt_from_the_name(tmp_path: Path) -> None:
    loaded = load_model("dggraph:resnet20_8")
    assert loaded.labels is None
    assert loaded.preprocess is not None
    assert loaded.preprocess.input_size == (3, 32, 32)
    net = randomise_routers(dggraph.convert(randomise(loaded.model))).eval()
    net.source = loaded.source
    dggraph.save(net, tmp_path / "a")
    x = torch.randn(2, 3, 28, 28)
    assert torch.equal(dggraph.load(tmp_path / "a")(x), net(x))
