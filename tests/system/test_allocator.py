"""Freed memory stays in the process where it was asked for, and nowhere else."""

import os
import subprocess
import sys
from typing import Any

import pytest
from command_line import run

import dggraph
from dggraph.system import allocator

FREED = """
import torch
import dggraph

def resident():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * 4096

dggraph.convert
{call}
blocks = [torch.ones(8 << 20) for _ in range(4)]
full = resident()
del blocks
print(full - resident())
"""


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in allocator.VARIABLES:
        monkeypatch.delenv(name, raising=False)


def returned(call: str) -> int:
    """Bytes that a process gives back when it frees 128 MB, after `call`."""
    done = subprocess.run(
        [sys.executable, "-c", FREED.format(call=call)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(allocator._glibc() is None, reason="this process does not allocate with glibc")
def test_only_the_call_keeps_freed_memory(unset: None) -> None:
    assert returned("") > 100 << 20
    assert returned("assert dggraph.keep_freed_memory()") < 10 << 20


@pytest.mark.parametrize(
    "confstr", [ValueError("unrecognized name"), OSError("no value"), AttributeError("no confstr")]
)
def test_other_systems_are_left_alone(
    unset: None, monkeypatch: pytest.MonkeyPatch, confstr: Exception
) -> None:
    """musl and macOS do not know the name; Windows has no such function."""

    def refuse(_name: str) -> None:
        raise confstr

    monkeypatch.setattr(os, "confstr", refuse, raising=False)
    assert dggraph.keep_freed_memory() is False


@pytest.mark.parametrize("name", allocator.VARIABLES)
def test_the_environment_goes_first(
    unset: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(allocator, "_glibc", lambda: pytest.fail("glibc was asked"))
    assert dggraph.keep_freed_memory() is False


@pytest.mark.parametrize("command", [["train"], ["eval", "./none"], ["bench", "./none"]])
def test_commands_that_run_networks_ask_for_it(
    unset: None, monkeypatch: pytest.MonkeyPatch, capsys: Any, command: list[str]
) -> None:
    asked = []
    monkeypatch.setattr(allocator, "_glibc", lambda: asked.append(command))
    run(capsys, *command, "--json")
    assert asked
