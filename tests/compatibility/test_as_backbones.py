"""Checks of what people do with a backbone, on small models of timm and torchvision: what a static
one passes, a converted one passes with the same result, or it refuses as `docs/compatibility.md`
says. Nothing is silent.
"""

import copy
import os
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
import torchvision
from backbone_uses import REFUSED, RUN
from torch import Tensor, nn

import dggraph
from dggraph.errors import BackboneOnlyError

timm = pytest.importorskip("timm", reason="half of the models are timm's")

SIDE = 64
OF_TIMM = [
    "test_byobnet", "test_convnext", "test_convnext2", "test_efficientnet", "test_efficientnet_gn",
    "test_efficientnet_evos",
    "test_mambaout", "test_nfnet", "test_resnet", "test_vit", "test_vit2", "test_vit4",
    "test_vit_relpos", "mobilenetv3_small_050",
    "resnet10t", "regnetx_002", "repvgg_a0", "convnext_atto", "ghostnet_050", "lcnet_035",
    "tinynet_e", "pit_ti_224", "vit_tiny_patch16_224",
    "xcit_nano_12_p16_224", "edgenext_xx_small",
]  # fmt: skip
OF_TORCHVISION = [
    "resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1",
    "mnasnet0_5", "regnet_y_400mf", "regnet_x_400mf",
    "efficientnet_b0", "densenet121", "vgg11_bn", "alexnet", "googlenet", "convnext_tiny", "swin_t",
]  # fmt: skip
CHOSEN = [
    name
    for name in (*OF_TIMM, *OF_TORCHVISION)
    if name in os.environ.get("DGGRAPH_MODELS", name).split(",")
]

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@cache
def pair(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A model, what it was converted into, and two images."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, SIDE, SIDE)
    if name in OF_TORCHVISION:
        options = (
            {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
        )  # auxiliary heads are left behind
        model = torchvision.models.get_model(name, weights=None, num_classes=5, **options)
    else:
        try:
            model = timm.create_model(name, num_classes=5, img_size=SIDE)
        except TypeError:
            model = timm.create_model(name, num_classes=5)
    model = model.eval()
    return model, dggraph.convert(model, x[:1]), x


@pytest.mark.parametrize("check", [*RUN, *REFUSED])
@pytest.mark.parametrize("name", CHOSEN)
def test_as_its_backbone(name: str, check: str) -> None:
    run = (RUN | REFUSED)[check]
    model, net, x = pair(name)
    try:
        torch.manual_seed(1)
        expected = run(copy.deepcopy(model), x)
    except Exception as error:
        pytest.skip(f"the static model fails as well: {type(error).__name__}")
    torch.manual_seed(1)
    if check in REFUSED:
        with pytest.raises(
            BackboneOnlyError, match=r"[Cc]onvert|eval\(\)|reverse mode|dggraph\.export"
        ):
            run(copy.deepcopy(net), x)
        return
    assert_same(run(copy.deepcopy(net), x), expected)


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    """The same structure; tensors to 1e-4 of the largest, None where the other has None, anything
    else equal.
    """
    if isinstance(theirs, Tensor):
        scale = float(theirs.double().abs().max()) if theirs.numel() else 0.0
        torch.testing.assert_close(
            ours,
            theirs,
            rtol=1e-4,
            atol=1e-4 * scale + 1e-7,
            equal_nan=True,
            msg=lambda text: f"{where}: {text}",
        )
    elif isinstance(theirs, Mapping):
        assert list(ours) == list(theirs), where
        for key, value in theirs.items():
            assert_same(ours[key], value, f"{where}.{key}")
    elif isinstance(theirs, list | tuple) and not isinstance(theirs, torch.Size):
        assert len(ours) == len(theirs), where
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{where}[{number}]")
    else:
        assert ours == theirs, where
