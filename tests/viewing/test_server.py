"""The server: many at once and slow ones do not stop it, and Ctrl-C does."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from command_line import run

pytest.importorskip("flask", reason="Flask is not here: pip install 'dggraph[view]'")
pytest.importorskip("waitress", reason="waitress is not here: pip install 'dggraph[view]'")

from toy_atlas import paint
from toy_page import served

from dggraph.cli import view
from dggraph.errors import InputError
from dggraph.viewing.server import IDLE_SECONDS, NUM_THREADS, REQUEST_SECONDS, bind, hosts_of


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("set") / "photos", 2)


def read(address: str) -> tuple[int, Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=900) as answer:
        return answer.status, json.loads(answer.read())


@pytest.mark.parametrize(("port", "is_left_out"), [(80, True), (8080, False)])
def test_browsers_leave_out_the_port_of_http(port: int, is_left_out: bool) -> None:
    bound = Mock(spec=socket.socket)
    bound.getsockname.return_value = ("127.0.0.1", port)
    hosts = hosts_of(bound)
    assert {f"127.0.0.1:{port}", f"localhost:{port}"} <= hosts
    assert ({"127.0.0.1", "localhost"} <= hosts) == is_left_out


def test_a_hundred_at_once_beside_slow_ones_are_all_answered(photos: Path) -> None:
    with served(photos) as (address, _):
        host, port = re.findall(r"//([\d.]+):(\d+)", address)[0]
        slow = [socket.create_connection((host, int(port))) for _ in range(40)]
        for one in slow:
            one.sendall(b"POST /a-token/images HTTP/1.1\r\nContent-Length: 1000\r\n")
        wanted = [f"{address}images/{n % 6}/path?step={n % 30}" for n in range(100)]
        with ThreadPoolExecutor(100) as pool:
            answers = list(pool.map(read, wanted))
            names = [one.name for one in threading.enumerate() if "waitress" in one.name]
        assert {code for code, _ in answers} == {200}
        assert len(names) == NUM_THREADS
        alone = [read(address)[1] for address in wanted[::7]]
        assert [facts for _, facts in answers][::7] == alone, "none got another's path"
        for one in slow:
            one.close()


def test_a_request_that_never_ends_is_closed(photos: Path) -> None:
    """A byte now and then is not silence; the time is the server's own clock, set forward."""
    with served(photos) as (address, server):
        host, port = re.findall(r"//([\d.]+):(\d+)", address)[0]
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(b"GET /a-token/images HT")
            wait_for(lambda: any(one.request for one in server.active_channels.values()))
            (channel,) = server.active_channels.values()
            now = time.time()
            server.maintenance(now)
            assert not channel.will_close
            for seconds in range(5, REQUEST_SECONDS + 10, 5):
                channel.last_activity = now + seconds
                server.maintenance(now + seconds)
            assert channel.will_close
            slow.settimeout(30)
            assert slow.recv(100) == b"", "the connection is closed"
        assert read(f"{address}images")[0] == 200


def test_silence_is_closed_too(photos: Path) -> None:
    with served(photos) as (address, server):
        host, port = re.findall(r"//([\d.]+):(\d+)", address)[0]
        with socket.create_connection((host, int(port))) as silent:
            wait_for(lambda: len(server.active_channels) == 1)
            server.maintenance(time.time() + IDLE_SECONDS + 1)
            silent.settimeout(30)
            assert silent.recv(100) == b""


def wait_for(is_so: Any) -> None:
    deadline = time.monotonic() + 30
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_so()


def test_a_port_that_is_taken_is_named() -> None:
    with bind(0) as bound:
        port = bound.getsockname()[1]
        assert bound.getsockname()[0] == "127.0.0.1"
        with pytest.raises(InputError, match=f"port {port} cannot be used"):
            bind(port)


def test_the_command_serves_until_ctrl_c(photos: Path) -> None:
    command = [sys.executable, "-m", "dggraph", "view", "dggraph:resnet20_8", str(photos)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "http://" in line)
        assert read(f"{line.split()[-1]}images/0/path")[0] == 200
        process.send_signal(signal.SIGINT)
        rest, complaints = process.communicate(timeout=900)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert "Stopped." in rest
    assert complaints == ""


def test_without_the_packages_the_extra_is_named(
    photos: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "find_spec", lambda name: None)
    code, _, complaint = run(capsys, "view", "dggraph:resnet20_8", str(photos))
    assert code == 4
    assert "pip install 'dggraph[view]'" in complaint
    assert "flask and waitress" in complaint
