"""Small encoders of other libraries, with random weights and without downloads, for `sweep.py`:
label -> (builder, side in pixels).
"""

import contextlib
import io
from collections.abc import Callable
from typing import Any

Encoders = dict[str, tuple[Callable[[], Any], int]]
WIDTHS, ONE_HEAD = [8, 16, 24, 32], [1, 1, 1, 1]
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
}
SWIN = {"image_size": 64, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}


def transformers_encoders() -> Encoders:
    """Vision models of Hugging Face's transformers, narrow, from configurations."""
    import transformers as hf

    four = {"hidden_sizes": WIDTHS, "depths": [2, 2, 3, 2]}
    pyramid = {
        "image_size": 64,
        "hidden_sizes": WIDTHS,
        "depths": [2, 2, 2, 2],
        "num_attention_heads": ONE_HEAD,
    }
    options: dict[str, dict[str, Any]] = {
        "ResNetForImageClassification": {
            "embedding_size": 8,
            "hidden_sizes": [16, 32],
            "depths": [3, 3],
        },
        "ResNetBackbone": {
            "embedding_size": 8,
            "hidden_sizes": [16, 32],
            "depths": [3, 3],
            "out_features": ["stage1", "stage2"],
        },
        "ConvNextForImageClassification": four,
        "ConvNextV2ForImageClassification": four,
        "RegNetForImageClassification": {
            "embedding_size": 8,
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 3, 3, 2],
            "groups_width": 8,
        },
        "MobileNetV1ForImageClassification": {"depth_multiplier": 0.25},
        "MobileNetV2ForImageClassification": {"depth_multiplier": 0.35},
        "EfficientNetForImageClassification": {
            "width_coefficient": 0.25,
            "depth_coefficient": 1.0,
            "image_size": 64,
            "hidden_dim": 320,
        },
        "ViTForImageClassification": VIT,
        "DeiTForImageClassification": VIT,
        "BeitForImageClassification": VIT,
        "Data2VecVisionForImageClassification": VIT,
        "Dinov2ForImageClassification": VIT | {"patch_size": 16},
        "Dinov2Backbone": VIT | {"patch_size": 16, "out_features": ["stage2", "stage3"]},
        "DINOv3ViTModel": VIT | {"patch_size": 16},
        "IJepaModel": VIT,
        "VitDetBackbone": VIT | {"pretrain_image_size": 64, "patch_size": 16},
        "CLIPVisionModel": VIT | {"patch_size": 16},
        "SiglipVisionModel": VIT | {"patch_size": 16},
        "SwinForImageClassification": SWIN,
        "SwinBackbone": SWIN | {"out_features": ["stage1", "stage2"]},
        "Swinv2ForImageClassification": SWIN,
        "DonutSwinModel": SWIN,
        "SegformerForImageClassification": pyramid,
        "SegformerForSemanticSegmentation": pyramid | {"decoder_hidden_size": 16},
        "PvtForImageClassification": pyramid,
        "PvtV2ForImageClassification": pyramid,
        "MobileViTForImageClassification": {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 12, 16, 24, 32, 48],
        },
        "MobileViTV2ForImageClassification": {"image_size": 64, "width_multiplier": 0.25},
        "LevitForImageClassification": {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [1, 2, 2],
            "depths": [2, 2, 2],
            "key_dim": [8, 8, 8],
        },
        "BitForImageClassification": {
            "embedding_size": 32,
            "hidden_sizes": [128, 256],
            "depths": [2, 3],
        },
        "PoolFormerForImageClassification": four,
        "CvtForImageClassification": {
            "embed_dim": [16, 32, 48],
            "num_heads": [1, 2, 3],
            "depth": [1, 2, 3],
        },
        "FocalNetForImageClassification": {
            "image_size": 64,
            "embed_dim": 12,
            "depths": [2, 2, 3, 2],
        },
        "SwiftFormerForImageClassification": {"embed_dims": WIDTHS, "depths": [2, 2, 3, 2]},
        "HieraForImageClassification": {
            "image_size": [64, 64],
            "embed_dim": 16,
            "depths": [1, 2, 3, 2],
            "num_heads": [1, 2, 4, 8],
        },
        "DPTForDepthEstimation": VIT
        | {
            "num_hidden_layers": 4,
            "patch_size": 16,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 8, 8, 8],
            "fusion_hidden_size": 8,
            "is_hybrid": False,
        },
        "TextNetForImageClassification": {},
    }

    def build(name: str) -> Any:
        kind = getattr(hf, name)
        return kind(kind.config_class(**options[name]))

    return {name: (lambda name=name: build(name), 64) for name in options}


def smp_encoders() -> Encoders:
    """Encoders of segmentation_models_pytorch, and two whole models."""
    import segmentation_models_pytorch as smp

    names = (
        "resnet18", "mobilenet_v2", "efficientnet-b0", "timm-regnetx_002", "densenet121",
        "se_resnet50", "mit_b0", "dpn68", "vgg11",
        "xception", "mobileone_s0", "timm-skresnet18", "tu-convnext_atto",
    )  # fmt: skip
    found: Encoders = {
        name: (lambda name=name: smp.encoders.get_encoder(name, weights=None), 64) for name in names
    }
    found["Unet(resnet18)"] = (lambda: smp.Unet("resnet18", encoder_weights=None), 64)
    found["FPN(mobilenet_v2)"] = (lambda: smp.FPN("mobilenet_v2", encoder_weights=None), 64)
    return found


def open_clip_encoders() -> Encoders:
    """Visual towers of open_clip."""
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    def vit(**options: Any) -> Callable[[], Any]:
        return lambda: VisionTransformer(
            image_size=64,
            patch_size=16,
            width=32,
            layers=3,
            heads=2,
            mlp_ratio=2,
            output_dim=16,
            **options,
        )

    return {
        "ModifiedResNet(RN50)": (
            lambda: ModifiedResNet([3, 4, 6, 3], output_dim=32, heads=4, image_size=64, width=8),
            64,
        ),
        "VisionTransformer": (vit(), 64),
        "VisionTransformer(layer scale)": (vit(ls_init_value=0.1), 64),
        "VisionTransformer(average pool)": (vit(pool_type="avg"), 64),
        "TimmModel(convnext_atto)": (
            lambda: TimmModel("convnext_atto", embed_dim=16, image_size=64),
            64,
        ),
        "TimmModel(vit_tiny_patch16_224)": (
            lambda: TimmModel("vit_tiny_patch16_224", embed_dim=16),
            224,
        ),
    }


def pytorchcv_encoders() -> Encoders:
    """Small models of pytorchcv, whose last layer is called `output`."""
    from pytorchcv.model_provider import get_model

    names = (
        "resnet10", "preresnet18", "seresnet10", "resnext14_16x4d", "resneta10", "cbam_resnet18",
        "diaresnet10", "mobilenet_wd4",
        "mobilenetv2_wd4", "mobilenetv3_small_w7d20", "shufflenetv2_wd2", "menet108_8x1_g3",
        "igcv3_wd4", "mnasnet_small", "ghostnet",
        "efficientnet_b0", "fbnet_cb", "spnasnet", "proxylessnas_cpu", "regnetx002", "densenet121",
        "squeezenet_v1_0", "vgg11",
        "selecsls42", "dla34", "hrnet_w18_small_v1",
    )  # fmt: skip

    def build(name: str) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return get_model(name, pretrained=False)

    return {name: (lambda name=name: build(name), 224) for name in names}


def monai_encoders() -> Encoders:
    """Two-dimensional networks of MONAI, narrow."""
    from monai.networks import nets

    flat = {"spatial_dims": 2}
    transformer = flat | {"hidden_size": 32, "mlp_dim": 64, "num_heads": 4}
    found: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "UNet": ((2, 3, 2, (8, 16, 32), (2, 2)), {"num_res_units": 2}),
        "BasicUNet": ((2, 3, 2), {"features": (8, 8, 16, 16, 16, 8)}),
        "DynUNet": (
            (2, 3, 2, [3, 3, 3], [1, 2, 2], [2, 2]),
            {"res_block": True, "filters": [8, 16, 32]},
        ),
        "SegResNet": ((2, 8, 3, 2), {}),
        "ResNet": (("basic", [2, 2, 2, 2], [8, 16, 32, 64]), flat | {"n_input_channels": 3}),
        "SEResNet50": ((), flat | {"in_channels": 3, "num_classes": 4}),
        "DenseNet121": ((2, 3, 4), {}),
        "EfficientNetBN": (("efficientnet-b0",), flat | {"pretrained": False}),
        "ViT": ((3, (64, 64), (16, 16)), transformer | {"num_layers": 4, "classification": True}),
        "UNETR": ((3, 2, (64, 64)), transformer | {"feature_size": 8}),
        "SwinUNETR": ((3, 2), flat | {"feature_size": 12}),
    }

    def build(name: str) -> Any:
        arguments, options = found[name]
        return getattr(nets, name)(*arguments, **options)

    return {name: (lambda name=name: build(name), 64) for name in found}


def ultralytics_encoders() -> Encoders:
    """The smallest YOLO of each version and task of ultralytics, from its own configurations."""
    from ultralytics.nn import tasks

    kinds = {
        "yolo11n-cls": "ClassificationModel",
        "yolov8n-cls": "ClassificationModel",
        "yolov5n": "DetectionModel",
        "yolov8n": "DetectionModel",
        "yolo11n": "DetectionModel",
        "yolo12n": "DetectionModel",
        "yolov8n-seg": "SegmentationModel",
        "yolov8n-pose": "PoseModel",
        "yolov8n-obb": "OBBModel",
    }

    def build(name: str) -> Any:
        return getattr(tasks, kinds[name])(f"{name}.yaml", verbose=False)

    return {name: (lambda name=name: build(name), 64) for name in kinds}


def vit_pytorch_encoders() -> Encoders:
    """Transformers of vit-pytorch, narrow."""
    from importlib import import_module

    plain = {
        "image_size": 64,
        "patch_size": 16,
        "num_classes": 5,
        "dim": 32,
        "depth": 4,
        "heads": 4,
        "mlp_dim": 64,
    }
    found: dict[str, tuple[str, dict[str, Any]]] = {
        "ViT": ("vit", plain),
        "SimpleViT": ("simple_vit", plain),
        "CaiT": ("cait", plain | {"cls_depth": 2}),
        "CCT": (
            "cct",
            {
                "img_size": 64,
                "embedding_dim": 32,
                "n_conv_layers": 2,
                "num_layers": 4,
                "num_heads": 4,
                "mlp_ratio": 2.0,
                "num_classes": 5,
            },
        ),
        "CvT": (
            "cvt",
            {"num_classes": 5, "s1_emb_dim": 16, "s2_emb_dim": 32, "s3_emb_dim": 32}
            | {"s1_depth": 1, "s2_depth": 2, "s3_depth": 3},
        ),
        "MaxViT": (
            "max_vit",
            {"num_classes": 5, "dim": 16, "depth": (1, 2), "window_size": 4, "dim_head": 8},
        ),
        "MobileViT": (
            "mobile_vit",
            {
                "image_size": (64, 64),
                "dims": [16, 24, 32],
                "channels": [8, 8, 16, 16, 24, 24, 32, 32, 32, 32, 64],
                "num_classes": 5,
            },
        ),
    }

    def build(name: str) -> Any:
        module, options = found[name]
        return getattr(import_module(f"vit_pytorch.{module}"), name)(**options)

    return {name: (lambda name=name: build(name), 64) for name in found}


ENCODERS: dict[str, Callable[[], Encoders]] = {
    "transformers": transformers_encoders,
    "smp": smp_encoders,
    "open_clip": open_clip_encoders,
    "pytorchcv": pytorchcv_encoders,
    "monai": monai_encoders,
    "ultralytics": ultralytics_encoders,
    "vit_pytorch": vit_pytorch_encoders,
}
