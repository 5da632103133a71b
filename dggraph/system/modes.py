"""Train and eval modes of modules, restored however a context ends."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def keeping_modes(*models: nn.Module) -> Iterator[None]:
    """Restore the mode of every module at the end of this context."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run in eval mode without gradients within this context.

    It must not surround the `yield` of a generator, whose caller would lose gradients too.
    """
    with keeping_modes(model), torch.no_grad():
        model.eval()
        yield
