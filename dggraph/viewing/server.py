"""The server of the page: on this computer's own address alone, with few threads and time limits.

waitress takes requests in with one thread and hands them to others when they are complete, so a
slow client costs a connection and no thread.
"""

import logging
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

from flask import Flask
from waitress.server import create_server

from dggraph.errors import InputError
from dggraph.viewing.confinement import MAX_BYTES

LOOPBACK = "127.0.0.1"
NUM_THREADS, NUM_CONNECTIONS, BACKLOG = 4, 160, 1024
IDLE_SECONDS, REQUEST_SECONDS = 20, 40
"""How long a connection may be silent, and how long a request may take to arrive."""


def bind(port: int) -> socket.socket:
    """Return a socket that listens on a port of this computer's own address; 0 is any free port.

    Raises:
        InputError: the port is taken, or may not be used.
    """
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        one.bind((LOOPBACK, port))
        one.listen(BACKLOG)  # at once: a browser may ask before the threads are there
    except OSError as error:
        one.close()
        raise InputError(
            f"port {port} cannot be used: {error.strerror or error}. Leave --port out for a free"
            " one."
        ) from error
    return one


def hosts_of(bound: socket.socket) -> frozenset[str]:
    """Return the names and ports by which a browser on this computer asks for the page."""
    port = bound.getsockname()[1]
    names = (LOOPBACK, "localhost")
    # browsers leave out the port that HTTP has anyway
    return frozenset(f"{name}:{port}" for name in names) | (set(names) if port == 80 else set())


def serve(app: Flask, bound: socket.socket) -> None:
    """Serve until SIGINT (Ctrl-C) or SIGTERM, then close every connection and return."""
    server = make_server(app, bound)
    is_main = threading.current_thread() is threading.main_thread()
    # a shell's background jobs ignore SIGINT, so Python would not raise
    kinds = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    before = {kind: signal.signal(kind, signal.default_int_handler) for kind in kinds}
    try:
        server.run()  # returns at a KeyboardInterrupt, when its threads have ended
    finally:
        server.close()
        for kind, handler in before.items():
            signal.signal(kind, handler)


def make_server(app: Flask, bound: socket.socket) -> Any:
    """Return a waitress server with bounds, listening on `bound`."""
    logging.getLogger("waitress").setLevel(logging.ERROR)  # it warns of every full queue
    server: Any = create_server(
        app,
        sockets=[bound],
        threads=NUM_THREADS,
        connection_limit=NUM_CONNECTIONS,
        backlog=BACKLOG,
        channel_timeout=IDLE_SECONDS,
        cleanup_interval=5,
        max_request_body_size=MAX_BYTES + 2**16,  # a little more is answered in words
        max_request_header_size=2**14,
        asyncore_use_poll=True,
        ident=None,
        clear_untrusted_proxy_headers=True,
    )
    server.maintenance = _closing_slow(server, server.maintenance)
    return server


def _closing_slow(server: Any, maintain: Callable[[float], None]) -> Callable[[float], None]:
    """Return a `maintenance` that also closes connections whose request is too long on its way.

    waitress only closes silent ones, and a byte now and then is not silence.
    """
    arriving: dict[int, tuple[Any, float]] = {}

    def maintenance(now: float) -> None:
        maintain(now)
        seen = dict(arriving)
        arriving.clear()
        for channel in list(server.active_channels.values()):
            if channel.request is None:
                continue
            request, since = seen.get(id(channel), (channel.request, now))
            since = since if request is channel.request else now
            arriving[id(channel)] = channel.request, since
            if now - since > REQUEST_SECONDS:
                channel.will_close = True

    return maintenance
