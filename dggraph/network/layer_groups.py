"""Parameter groups for timm's layer-wise learning rates: the backbone's, with the routers last."""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch import nn

_WITH_THE_LAST = (99999,)
"""timm's marker for matchers whose parameters join the group before."""


def with_routers(matcher: Any, shell: nn.Module) -> Any:
    """Return the `group_matcher` of a backbone, extended to routers.

    Args:
        matcher: Patterns per group, or a function of a name. Parameters that no pattern matches
            form a last group.
        shell: The module that owns the parameters of the backbone and of the routers.
    """
    if not isinstance(matcher, dict):
        return lambda name: (
            (float("inf"), *_WITH_THE_LAST) if name.startswith("dg_") else matcher(name)
        )
    found = [pattern for spec in matcher.values() for pattern in _patterns(spec)]
    is_complete = all(any(re.match(pattern, name) for pattern in found) for name in _names(shell))
    return {**matcher, "routing": [(r"dg_", _WITH_THE_LAST)]} if is_complete else matcher


def automatic(shell: nn.Module) -> Callable[[str], int]:
    """Return the groups that timm forms for a backbone without a `group_matcher`."""
    from timm.optim import auto_group_layers

    named = [(name, None) for name in _names(shell)]
    groups = auto_group_layers(
        SimpleNamespace(named_parameters=lambda: named, pretrained_cfg=shell.pretrained_cfg)
    )
    last = max(groups.values())
    return lambda name: groups.get(name, last)


def _names(shell: nn.Module) -> list[str]:
    return [name for name, _ in shell.named_parameters() if not name.startswith("dg_")]


def _patterns(spec: Any) -> list[str]:
    if spec is None:
        return []
    return [spec] if isinstance(spec, str) else [pattern for pattern, _ in spec]
