"""Signals that ask a process to end are noted, so that it can save its work first."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals that ask a process to end; the last one means that its terminal was closed."""


@contextmanager
def noting_signals() -> Iterator[list[int]]:
    """Yield a list that `ENDING` signals are appended to; a second signal ends the process.

    Ignored signals, such as SIGHUP under nohup, stay ignored.
    """
    received: list[int] = []
    previous: dict[signal.Signals, Any] = {}

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        for one, handler in previous.items():
            signal.signal(one, handler)

    try:
        for number in ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, note)
    except ValueError:  # not the main thread, where the caller handles signals
        pass
    try:
        yield received
    finally:
        for one, handler in previous.items():
            signal.signal(one, handler)
