"""Telling ends no command: readers that go away, encodings that lack letters, disks that are
full.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import click
import pytest
from pages import ROOT
from toy_runs import TOY

import dggraph
from dggraph.cli.main import main
from dggraph.cli.streams import steady_streams
from dggraph.system.locks import locked

COMMAND = [sys.executable, "-c", "from dggraph.cli.main import main; main()", "train", "--help"]


def abandoned() -> io.TextIOWrapper:
    """A stream whose reader has gone away."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", encoding="utf-8")


@pytest.mark.parametrize("names", [("stderr",), ("stdout", "stderr")])
def test_a_run_whose_reader_goes_away_goes_on_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    (tmp_path / "toy.toml").write_text(
        TOY + 'batch_size = 8\nlog_interval = 1\nexperiment = "run"\n'
    )
    with monkeypatch.context() as patch:
        for name in names:
            patch.setattr(sys, name, abandoned())
        with pytest.raises(SystemExit) as ended:
            main(["train", str(tmp_path / "toy.toml"), "--output", str(tmp_path)])
        for name in names:
            getattr(sys, name).close()
    assert ended.value.code == 0
    assert dggraph.load(
        tmp_path / "run" / "archive", model=__import__("toy_data").plain_net()
    ).labels == ("a", "b", "c", "d")
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 10


def test_output_without_a_reader_is_no_error_and_output_on_a_full_disk_is() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(COMMAND, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert ended.returncode == 0
    assert ended.stderr == ""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full to write to")
    with open("/dev/full", "w") as full:
        ended = subprocess.run(COMMAND, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 4
    assert "what was printed is lost: No space left on device" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_what_an_encoding_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console
    from rich.table import Table

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with steady_streams() as lost:
        click.echo("Äpfel \udcff …")
        table = Table()
        table.add_column("日本")
        table.add_row("é" * 200)
        Console(width=40).print(table)
    assert lost == []
    # newer versions of click replace lone surrogates themselves
    assert re.search(rb"\\xc4pfel (\\udcff|\?) \\u2026", raw.getvalue())
    assert b"\\u65e5\\u672c" in raw.getvalue()


def test_streams_are_as_before_afterwards(capsys: Any) -> None:
    before = sys.stdout, sys.stderr, warnings.showwarning
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert (sys.stdout, sys.stderr, warnings.showwarning) == before


def test_a_command_without_streams_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0


@pytest.mark.filterwarnings("default")
def test_our_warnings_are_plain_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def no_locks(*_args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with steady_streams(), locked(tmp_path):
        pass
    err = capsys.readouterr().err
    assert err.startswith("dggraph: the file system of")
    assert err.count("\n") == 1


def test_an_interrupted_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def interrupt(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dggraph.models.registry.load_model", interrupt)
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "resnet18", "--json"])
    assert ended.value.code == 130
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "Interrupted"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands(shell: str) -> None:
    """By words that click writes past text streams, as bytes."""
    asked = {"COMP_WORDS": "dggraph co", "COMP_CWORD": "1" if shell != "fish" else "co"}
    environment = {**os.environ, **asked, "_DGGRAPH_COMPLETE": f"{shell}_complete"}
    program = [sys.executable, "-c", "from dggraph.cli.main import main; main()"]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "compare" in done.stdout
    assert "convert" in done.stdout
    assert "train" not in done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_the_line_of_the_page_completes_in_bash(tmp_path: Path) -> None:
    """Commands, options of a command, and files."""
    page = (ROOT / "docs/command-line.md").read_text()
    line = re.search(r"`(eval [^`]*bash_source[^`]*)`", page)
    assert line is not None
    (tmp_path / "dggraph").write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "from dggraph.cli.main import main; main()" "$@"\n'
    )
    (tmp_path / "dggraph").chmod(0o755)
    asks = "".join(
        f"COMPREPLY=(); COMP_WORDS=(dggraph {words}); COMP_CWORD={len(words.split())}\n"
        '_dggraph_completion dggraph; echo "${COMPREPLY[@]}"\n'
        for words in ("do", "doctor --j", "doctor --b")
    )
    done = subprocess.run(
        ["bash", "-c", f"{line[1]}\n{asks}"],
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["doctor", "--json", "--build-kernels"], done.stderr
