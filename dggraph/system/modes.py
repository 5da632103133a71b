"""Train and eval modes of every module, put back however a context ends."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def keeping_modes(*models: nn.Module) -> Iterator[None]:
    """Modes that change within this context are as before after it, module by module."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients. Not for a generator that yields within: its caller would lose
    gradients too.
    """
    with keeping_modes(model), torch.no_grad():
        model.eval()
        yield
