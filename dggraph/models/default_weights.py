"""The weights that torchvision and timm publish, fetched once into those libraries' caches."""

from dataclasses import dataclass
from typing import Any

import torchvision

from dggraph.errors import DownloadError, InputError, MissingExtraError
from dggraph.models.preprocessing import Preprocess
from dggraph.models.weights import Weights

TO_ONE = {"googlenet", "inception_v3"}
"""torchvision scales the input of these two to [-1, 1] inside the model, where it has its own
weights. Here the preprocessing does.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultWeights:
    """Published weights with what is known of them."""

    weights: Weights
    origin: str
    """For example `torchvision IMAGENET1K_V2`."""
    preprocess: Preprocess | None
    """How images become the input; None where the model says it of itself (timm)."""
    labels: tuple[str, ...] | None


def fetch_default(name: str) -> DefaultWeights:
    """The default weights of a torchvision or timm name.

    Raises:
        InputError: nobody has published weights for it.
        DownloadError: they are not in the cache, and cannot be fetched.
        MissingExtraError: a timm name without timm.
    """
    if name.startswith("timm:"):
        return _fetch_timm(name)
    if ":" in name:
        raise InputError(
            f"there are no published weights of {name}. Give a file with --checkpoint"
            f"{'' if name.startswith('dggraph:') else ', or let the function load them'}."
        )
    published: Any = torchvision.models.get_model_weights(name).DEFAULT
    weights, origin = _fetch_torchvision(name, published)
    preset = published.transforms()
    half = (0.5, 0.5, 0.5)
    (crop,), (resized,) = preset.crop_size, preset.resize_size
    preprocess = Preprocess(
        input_size=(3, crop, crop),
        mean=half if name in TO_ONE else tuple(preset.mean),
        std=half if name in TO_ONE else tuple(preset.std),
        interpolation=preset.interpolation.value,
        crop_fraction=crop / resized,
        antialias=bool(preset.antialias),
    )
    return DefaultWeights(
        weights=weights,
        origin=origin,
        preprocess=preprocess,
        labels=tuple(published.meta["categories"]),
    )


def fetch_detector(name: str) -> tuple[Weights, str]:
    """The default weights of one of torchvision's detectors, and where they come from.

    Raises:
        DownloadError: they are not in the cache, and cannot be fetched.
    """
    return _fetch_torchvision(name, torchvision.models.get_model_weights(name).DEFAULT)


def _fetch_torchvision(name: str, published: Any) -> tuple[Weights, str]:
    try:
        tensors = published.get_state_dict(progress=False, check_hash=True)
    except Exception as error:
        raise _unreachable(name, published.url, error) from error
    weights = Weights(f"{name}'s {published.name}", dict(tensors), ())
    return weights, f"torchvision {published.name}"


def _fetch_timm(name: str) -> DefaultWeights:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError(f"{name} needs timm: pip install 'dggraph[timm]'.") from error
    architecture = name.removeprefix("timm:")
    config: Any = timm.get_pretrained_cfg(architecture)
    if config is None or not config.has_weights:
        raise InputError(
            f"timm has published no weights of {architecture}. Give a file with --checkpoint, or"
            " choose another model."
        )
    try:
        tensors = timm.create_model(architecture, pretrained=True).state_dict()
    except Exception as error:
        raise _unreachable(name, config.hf_hub_id or config.url, error) from error
    tag = f" {config.tag}" if config.tag else ""
    return DefaultWeights(
        weights=Weights(f"{name}'s default weights", dict(tensors), ()),
        origin=f"timm{tag}",
        preprocess=None,
        labels=None,
    )


def _unreachable(name: str, place: str, error: Exception) -> DownloadError:
    why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
    return DownloadError(
        f"the default weights of {name} cannot be fetched from {place}: {why}. Without a network,"
        " give a file that you have with --checkpoint."
    )
