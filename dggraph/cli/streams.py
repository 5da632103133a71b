"""Standard output and error that never end a command.

Characters that the encoding lacks are escaped. Once the reader is gone, output is dropped.
"""

import errno
import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO, cast

from dggraph.errors import DggraphWarning

GONE = {errno.EPIPE, errno.EIO, errno.ECONNRESET, errno.ESHUTDOWN}
"""A pipe or a terminal that somebody closed, which is their right; anything else is output lost."""


class Steady:
    """A text stream whose failures end its telling, not the work that it tells of.

    Args:
        stream: what it writes to; all but writing is asked of it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure: OSError | None = None
        """Why nothing is written any more."""

    def write(self, text: str | bytes) -> int:
        """As for any text stream; click writes completions as bytes."""
        text = text.decode() if isinstance(text, bytes) else text
        try:
            return self.stream.write(text)
        except OSError as error:
            self._end(error)
            return len(text)

    def flush(self) -> None:
        """As for any text stream."""
        try:
            self.stream.flush()
        except OSError as error:
            self._end(error)

    def _end(self, error: OSError) -> None:
        """What is still buffered goes nowhere, or Python would fail with it once more at exit."""
        self.failure = self.failure or error
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # click writes past an ASCII stream into its buffer, and so past us
            raise AttributeError(name)
        return getattr(self.stream, name)


@contextmanager
def steady_streams() -> Iterator[list[OSError]]:
    """Make stdout and stderr `Steady` within this context, and our warnings plain lines.

    After the context, the list holds the reasons why output was lost.
    """
    lost: list[OSError] = []
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.showwarning = _showing(warnings.showwarning)
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:  # closed by who called us
                continue
            if isinstance(stream, io.TextIOWrapper) and stream.errors in (
                "strict",
                "surrogateescape",
            ):
                stream.reconfigure(errors="backslashreplace")
            steady = Steady(stream)
            setattr(sys, name, cast(TextIO, steady))
            stack.callback(setattr, sys, name, stream)
            stack.callback(_settle, steady, lost if name == "stdout" else [])
        yield lost


def _settle(steady: Steady, lost: list[OSError]) -> None:
    steady.flush()
    if steady.failure is not None and steady.failure.errno not in GONE:
        lost.append(steady.failure)


def _showing(usual: Any) -> Any:
    def show(
        message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        if issubclass(category, DggraphWarning) and sys.stderr is not None:
            sys.stderr.write(f"dggraph: {message}\n")
        else:
            usual(message, category, filename, lineno, file, line)

    return show
