"""A process that reads what strangers sent: an audit hook refuses what reading must never do, and
each reading is measured.
"""

import contextlib
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

CANARY = "canary_of_the_attacks"
"""Stands in every hostile name and every hostile line of code, so that none is compiled unseen."""
STARTING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
            "os.forkpty", "pty.spawn", "os.startfile")  # fmt: skip
CHANGING = {"os.rename": (0, 1), "os.remove": (0,), "os.mkdir": (0,), "os.rmdir": (0,),
            "os.link": (1,), "os.symlink": (1,), "os.truncate": (0,), "os.chmod": (0,),
            "os.chown": (0,), "os.utime": (0,), "shutil.rmtree": (0,)}  # fmt: skip
"""Audit events that change a file system, and which of their arguments are the changed paths."""


class Guard:
    """Refuses to start programs, to open sockets, to run strangers' code, to write elsewhere."""

    def __init__(self, writable: Path) -> None:
        self.writable = os.path.realpath(writable)
        self.known = set(sys.stdlib_module_names) | set(packages_distributions())
        self.known |= {name.partition(".")[0] for name in sys.modules}
        self.is_on = False
        self.refused: list[str] = []
        gc.collect()
        gc.freeze()  # what is there already need not be gone through before each measurement
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        self.is_on = False  # its own work does not count
        try:
            why = self._why_not(event, arguments)
        finally:
            self.is_on = True
        if why is not None:
            self.refused.append(why)
            raise PermissionError(f"refused by the audit hook: {why}")

    def _why_not(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event in STARTING or event.startswith("socket."):
            return f"{event} {arguments!r}"[:300]
        if event == "import":
            name = str(arguments[0])
            top = name.partition(".")[0]  # of an optional package that is missing, nothing is run
            is_strange = top not in self.known and PathFinder.find_spec(top) is not None
            return f"import {name}" if is_strange else None
        if event == "compile":
            source = arguments[0]
            text = source.decode(errors="replace") if isinstance(source, bytes) else str(source)
            return f"compile {text[:100]!r}" if CANARY in text else None
        if event == "exec":
            file = str(getattr(arguments[0], "co_filename", ""))
            own = file.startswith("<") or not self._is_inside(file)
            return None if own else f"exec {file}"
        if event == "open":
            file, mode, flags = arguments
            is_writing = any(sign in str(mode or "") for sign in "wax+") or (
                isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            )
            return self._outside(event, file) if is_writing else None
        for place in CHANGING.get(event, ()):
            why = self._outside(event, arguments[place])
            if why is not None:
                return why
        return None

    def _outside(self, event: str, file: object) -> str | None:
        if isinstance(file, int) or os.fspath(file) == os.devnull:  # type: ignore[call-overload]
            return None
        return None if self._is_inside(file) else f"{event} {file!r} outside {self.writable}"

    def _is_inside(self, file: Any) -> bool:
        real = os.path.realpath(os.fsdecode(file))
        return real == self.writable or real.startswith(self.writable + os.sep)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        self.refused = []
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False


def measured(guard: Guard, call: Callable[[], Any]) -> dict[str, Any]:
    """Call, guarded; the value or error, CPU seconds, and how far the peak of memory rose."""
    gc.collect()
    before = _reset_peak()
    start = time.process_time()
    found: dict[str, Any] = {"value": None, "error": None, "message": ""}
    try:
        with guard.watching():
            found["value"] = call()
    except BaseException as error:  # an exit or an interrupt is a finding, too
        found |= {"error": type(error).__name__, "message": str(error)[:600]}
        found["kinds"] = [kind.__name__ for kind in type(error).__mro__]
    found["seconds"] = time.process_time() - start
    found["megabytes"] = (_peak() - before) / 1e6
    found["refused"] = list(guard.refused)
    return found


def _reset_peak() -> int:
    """Forget the peak of this process's memory where the system can, and return what it holds."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """Bytes of the peak since it was forgotten; 0 where the system does not say."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return 1024 * int(text.partition("VmHWM:")[2].split()[0])
