"""A setting of glibc's allocator that keeps freed memory in the process.

By default glibc returns a large block to the system when it is freed, and requests it again for the
next tensor. The system then clears every page anew. Feature maps are such blocks, and each pass
makes dozens of them.
"""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h
NEVER = -1
"""As trim threshold: the top of the heap is never returned."""
MMAP_THRESHOLDS = (1 << 30, 1 << 25)
"""Bytes from which a block gets pages of its own; some versions of glibc accept 32 MB at most."""
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Keep freed memory in this process from now on, where the C library is glibc.

    Passes on the CPU get faster, and more so for dynamic networks, which make more tensors. The
    price is memory: the process stays as large as it ever was, until it ends. Processes forked
    later have the setting too. It cannot be taken back.

    Nothing else in dggraph's API calls this. The commands `train`, `eval` and `bench` do. If one of
    glibc's own variables (`MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_`, `GLIBC_TUNABLES`) is
    in the environment, that choice stays.

    Returns:
        Whether the setting was made. On macOS and Windows, with musl, with another allocator loaded
        before glibc's (jemalloc, tcmalloc), and if the environment has one of the variables, this
        does nothing.

    Example:
        >>> import dggraph
        >>> isinstance(dggraph.keep_freed_memory(), bool)
        True
    """
    if any(name in os.environ for name in VARIABLES):
        return False
    libc = _glibc()
    if libc is None or not libc.mallopt(M_TRIM_THRESHOLD, NEVER):
        return False
    return any(libc.mallopt(M_MMAP_THRESHOLD, size) for size in MMAP_THRESHOLDS)


def _glibc() -> ctypes.CDLL | None:
    """Return glibc if this process allocates with it, else None."""
    try:
        is_glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
        libc, process = ctypes.CDLL("libc.so.6"), ctypes.CDLL(None)
    except (AttributeError, OSError, TypeError, ValueError):  # no confstr, name, or library
        return None
    own, used = (ctypes.cast(one.malloc, ctypes.c_void_p).value for one in (libc, process))
    return libc if is_glibc and own == used else None
