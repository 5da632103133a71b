"""Keep torch's global state around a conversion from leaking into its result.

Notebooks convert within `torch.inference_mode()`, under autocast, or after
`torch.set_default_device("cuda")`. Routers made in that state would be tensors that cannot be
trained, or would be on another device than the backbone, and a trace would write that device into
its graph. A trace also replaces functions of Python and torch for the whole process, so threads
convert in turns.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode

_turn = threading.RLock()


@contextmanager
def ordinary_surroundings(device: torch.device) -> Iterator[None]:
    """Make tensors trainable, on `device`, and of the dtype that the code asks for.

    Other threads wait here until this context ends.
    """
    with _turn, ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for kind in dict.fromkeys(("cpu", device.type)):
            if torch.amp.is_autocast_available(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() != device:  # each call of torch costs more within
            stack.enter_context(device)
            stack.enter_context(_ProxiesPassBy())
        yield


class _ProxiesPassBy(TorchFunctionMode):
    """Records a call on traced values unchanged.

    A default device would otherwise be written into the graph.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if any(issubclass(kind, fx.Proxy) for kind in types):
            return fx.Proxy.__torch_function__(func, types, args, kwargs or {})
        return func(*args, **(kwargs or {}))
