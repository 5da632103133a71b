"""What modules of known classes compute in eval mode, as functions of weights and settings."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from dggraph.ops.gating import AnchoredGate, ScaledGate, ShrinkGate, SigmoidGate, SoftmaxGate
from dggraph.ops.routing import ConstantRouter, LinearRouter
from dggraph.system.torch_private import activations

Read = Callable[[str], Any]
"""Takes the name of a parameter, buffer or setting of a module, and returns its value."""
Rule = Callable[[fx.Node, Read], tuple[Callable[..., Any], tuple[Any, ...]] | None]
"""Takes the input of a module call and a reader of the module.

Returns a function and its arguments, or None for a module that returns its input.
"""


_CONVOLUTION = ("weight", "bias", "stride", "padding", "dilation", "groups")


def _norm(x: fx.Node, read: Read) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    tensors = map(read, ("weight", "bias", "running_mean", "running_var"))
    args = (x, *tensors, False, 0.0, read("eps"), torch.backends.cudnn.enabled)
    return torch.batch_norm, args


def _function(function: Callable[..., Any], *names: str) -> Rule:
    return lambda x, read: (function, (x, *map(read, names)))


def _activation(name: str, *settings: str) -> Rule:
    """Return a rule for an activation that has a form in place."""
    plain, in_place = activations(name)
    return lambda x, read: (in_place if read("inplace") else plain, (x, *map(read, settings)))


RULES: dict[type[nn.Module], Rule] = {
    nn.Conv1d: _function(torch.conv1d, *_CONVOLUTION),
    nn.Conv2d: _function(torch.conv2d, *_CONVOLUTION),
    nn.Conv3d: _function(torch.conv3d, *_CONVOLUTION),
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.BatchNorm3d: _norm,
    nn.LayerNorm: _function(functional.layer_norm, "normalized_shape", "weight", "bias", "eps"),
    nn.GroupNorm: _function(functional.group_norm, "num_groups", "weight", "bias", "eps"),
    nn.Linear: _function(functional.linear, "weight", "bias"),
    nn.ReLU: _activation("relu"),
    nn.ReLU6: _activation("hardtanh", "min_val", "max_val"),
    nn.SiLU: _activation("silu"),
    nn.Hardswish: _activation("hardswish"),
    nn.Hardsigmoid: _activation("hardsigmoid"),
    nn.Sigmoid: _function(torch.sigmoid),
    nn.AdaptiveAvgPool2d: _function(functional.adaptive_avg_pool2d, "output_size"),
    nn.Dropout: lambda x, read: None,
    nn.Identity: lambda x, read: None,
    StochasticDepth: lambda x, read: None,
}
"""For each exact class, the function that a module of it computes in eval mode."""


def is_norm(rule: Rule | None) -> bool:
    """Whether `rule` is that of batch norms, which need statistics."""
    return rule is _norm


_DECIDERS = (
    *(LinearRouter, ConstantRouter),
    *(AnchoredGate, ShrinkGate, ScaledGate, SoftmaxGate, SigmoidGate),
)
METHODS = [
    (cls, name, getattr(cls, name))
    for cls in (nn.Module, *RULES, *_DECIDERS)
    for name in ("forward", "_conv_forward", "__call__")
    if name in vars(cls) or (cls is not nn.Module and name == "forward")
]
"""Class, name and function of each method that inlining replaces."""


def is_patched() -> bool:
    """Whether a class of `RULES` has other methods than torch's, as under some profilers."""
    patched = [getattr(cls, name) is not function for cls, name, function in METHODS]
    return any(patched)
