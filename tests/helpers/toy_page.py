"""The page of `dggraph view` over a small routed network, with its images and its server."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from toy_atlas import build

from dggraph.evaluation.recording import make_predictor
from dggraph.network.network import DynamicNetwork
from dggraph.viewing.app import make_app
from dggraph.viewing.confinement import list_given
from dggraph.viewing.fragments import PageContext
from dggraph.viewing.gallery import Gallery
from dggraph.viewing.runs import Runs
from dggraph.viewing.server import bind, hosts_of, make_server
from dggraph.views.layout import lay_out

TOKEN = "a-token"
HOST = "127.0.0.1:8000"


def make_page(
    photos: Path | None,
    hosts: frozenset[str] = frozenset([HOST]),
    net: DynamicNetwork | None = None,
) -> tuple[Flask, Runs]:
    gallery = Gallery(None if photos is None else list_given(photos))
    runs = Runs(make_predictor(net or build()), gallery)
    context = PageContext(runs=runs, layout=lay_out(runs.predictor.net.graph), score=0.5)
    return make_app(context, gallery, token=TOKEN, hosts=hosts), runs


class Client:
    """Asks as the page itself does: from its host, below its token."""

    def __init__(self, app: Flask) -> None:
        self.inner: FlaskClient = app.test_client()

    def get(self, path: str, **headers: str) -> Any:
        return self.inner.get(f"/{TOKEN}/{path}", headers={"Host": HOST} | headers)

    def post(self, path: str, content: bytes, **headers: str) -> Any:
        return self.inner.post(f"/{TOKEN}/{path}", data=content, headers={"Host": HOST} | headers)


@contextmanager
def served(photos: Path | None) -> Iterator[tuple[str, Any]]:
    """The address of a page that is really served, and its server."""
    with bind(0) as bound:
        app, _ = make_page(photos, hosts_of(bound))
        server = make_server(app, bound)
        stop = threading.Event()

        def loop() -> None:
            while not stop.is_set():
                server.asyncore.loop(timeout=0.1, map=server._map, use_poll=True, count=1)

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}/{TOKEN}/", server
        finally:
            stop.set()
            thread.join(30)
            assert not thread.is_alive()
            server.task_dispatcher.shutdown()
            server.asyncore.close_all(server._map, ignore_all=True)
