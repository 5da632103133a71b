"""Detection of blocks that train as several branches and run as one (RepVGG, MobileOne).

Their branches should be fused before conversion, which keeps the modules that it finds.
"""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

_BRANCHED = ("reparameterize", "switch_to_deploy")
_MAYBE_BRANCHED = ("fuse",)
"""Some models also use this name for fusing a single convolution with its norm."""


def advice(model: nn.Module) -> str:
    """Return which method to call first if `model` has branches that can be fused, else ""."""
    found = list(_found(model))
    if not found:
        return ""
    path, module, method = found[0]
    is_timm = type(model).__module__.startswith("timm.")
    call = (
        "timm.utils.reparameterize_model(model)"
        if is_timm
        else f"{method}() of each, for example model.{path}.{method}()"
    )
    return (
        f"{len(found)} blocks, for example {path!r} ({type(module).__name__}), still have the"
        " branches that they were trained with. Unless you train them further, reparameterise"
        f" first: {call}, in eval mode, then convert"
    )


def _found(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    for path, module in model.named_modules():
        if not path:
            continue
        methods = [
            name
            for name in (*_BRANCHED, *_MAYBE_BRANCHED)
            if callable(getattr(type(module), name, None))
        ]
        inner = list(module.modules())
        norms = [one for one in inner if isinstance(one, _BatchNorm)]
        convolutions = [one for one in inner if isinstance(one, _ConvNd)]
        if methods and norms and (methods[0] in _BRANCHED or len(convolutions) > 1):
            yield path, module, methods[0]
