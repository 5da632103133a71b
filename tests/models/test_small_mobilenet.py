"""MobileNetV2s for small images."""

from pathlib import Path

import pytest
import torch
from reference import randomise, randomise_routers

import dggraph
from dggraph.errors import InputError
from dggraph.models.registry import load_model, model_names
from dggraph.models.small_mobilenet import build_small_mobilenet


def test_sizes_by_hand() -> None:
    """With w channels before it, a stage of n blocks of o channels has its first block's
    4 w (w + 9 + o + 4) + 2 o and the others' 4 o (2 o + 9 + 4) + 2 o parameters: convolutions and
    two per channel of each norm.
    """

    def stage(num_blocks: int, w: int, o: int) -> int:
        later = 4 * o * (2 * o + 13) + 2 * o
        return 4 * w * (w + o + 13) + 2 * o + (num_blocks - 1) * later

    for num_blocks, w in ((4, 8), (2, 5), (6, 3)):
        stem = 2 * w * (27 + 2) + 2 * w * (9 + 2) + (2 * w + 2) * w
        head = (4 * w + 2) * 16 * w + (16 * w + 1) * 10
        expected = stem + stage(num_blocks, w, 2 * w) + stage(num_blocks, 2 * w, 4 * w) + head
        net = build_small_mobilenet(f"dggraph:mobilenet{num_blocks}_{w}")
        assert sum(p.numel() for p in net.parameters()) == expected


def test_its_stages_are_lifted() -> None:
    net = dggraph.convert("dggraph:mobilenet4_8")
    assert [stage.num_blocks for stage in net.report.stages] == [3, 3]
    assert "dggraph:mobilenet4_8" in model_names()


@pytest.mark.parametrize("name", ["mobilenet1_8", "mobilenet4_0", "mobilenet4_100", "mobilenet_8"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="BLOCKS"):
        build_small_mobilenet(f"dggraph:{name}")


def test_an_archive_is_rebuilt_from_the_name(tmp_path: Path) -> None:
    loaded = load_model("dggraph:mobilenet3_4")
    assert loaded.preprocess is not None
    assert loaded.preprocess.input_size == (3, 32, 32)
    net = randomise_routers(dggraph.convert(randomise(loaded.model))).eval()
    net.source = loaded.source
    dggraph.save(net, tmp_path / "a")
    x = torch.randn(2, 3, 28, 28)
    assert torch.equal(dggraph.load(tmp_path / "a")(x), net(x))
