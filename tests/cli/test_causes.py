"""Errors of others: each known one has a cause and a remedy, and what is not known is told as
ours.
"""

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from toy_runs import TOY

from dggraph.cli.causes import CAUSES, REMEDIES, explain
from dggraph.cli.main import main
from dggraph.errors import InputError, MissingExtraError
from dggraph.models.registry import import_function
from dggraph.system.loaders import load_batches

KNOWN = [
    (
        RuntimeError("DataLoader worker (pid 9) is killed by signal: Killed. "),
        "LoaderError",
        "lack of memory",
    ),
    (
        RuntimeError("DataLoader worker (pid(s) 9, 10) exited unexpectedly"),
        "LoaderError",
        "workers = 0",
    ),
    (
        RuntimeError(
            "DataLoader worker (pid 9) is killed by signal: Bus error. It is possible that ..."
        ),
        "LoaderError",
        "--shm-size",
    ),
    (
        RuntimeError("unable to write to file </torch_12_34_0>: No space left on device (28)"),
        "LoaderError",
        "/dev/shm",
    ),
    (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        "MemoryError",
        "batch_size",
    ),
    (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"
        ),
        "MemoryError",
        "batch_size",
    ),
    (MemoryError(), "MemoryError", "not enough memory"),
    (
        RuntimeError("stack expects each tensor to be equal size, but got [3, 4, 4] at entry 0"),
        "InputError",
        "different sizes",
    ),
    (IndexError("Target 7 is out of bounds."), "InputError", "not a class"),
    (RuntimeError("Class values must be smaller than num_classes."), "InputError", "not a class"),
    (OverflowError("Python int too large to convert to C long"), "InputError", "64 bits"),
    (RuntimeError("Overflow when unpacking long long"), "InputError", "64 bits"),
    (ModuleNotFoundError("No module named 'nowhere'"), "MissingExtraError", "nowhere"),
    (
        RuntimeError("CUDA error: device-side assert triggered"),
        "RuntimeError",
        "CUDA_LAUNCH_BLOCKING",
    ),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "InputError", "UTF-8"),
]


@pytest.mark.parametrize(("error", "kind", "word"), KNOWN, ids=lambda value: type(value).__name__)
def test_what_is_known_has_a_cause(error: Exception, kind: str, word: str) -> None:
    found = explain(error)
    assert found is not None
    assert found[0] == kind
    assert word in found[1]
    assert "\n" not in found[1]


def test_every_row_of_the_table_is_met() -> None:
    told = [found[1] for error, _, _ in KNOWN if (found := explain(error)) is not None]
    missing = [
        cause.pattern
        for cause in CAUSES[1:]
        if not any(text.startswith(cause.meaning[1:9], 1) for text in told)
    ]
    assert not missing


@pytest.mark.parametrize("number", [*REMEDIES, errno.EXDEV])
def test_errors_of_the_system_name_the_file_and_a_way_out(number: int) -> None:
    found = explain(OSError(number, "what the system says", "/some/file"))
    assert found is not None
    assert found[1].startswith("what the system says: '/some/file'. ")
    assert found[1].endswith(".")


def test_the_rest_is_ours() -> None:
    def broken() -> None:
        raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError, match="by zero") as caught:
        broken()
    found = explain(caught.value)
    assert found is not None
    assert "test_causes.py" in found[1]
    assert "in broken" in found[1], "code that is neither ours nor a library's"
    assert explain(ZeroDivisionError("never raised")) is None


class Broken(Dataset[Any]):
    """Raises as a data set of a user's may."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return {}["missing key"] if index == 2 else (torch.zeros(3, 4, 4 + index), 0)


@pytest.mark.filterwarnings(
    "ignore:.*fork.*:DeprecationWarning"
)  # Python 3.12 warns of torch's threads
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("batch", "words"),
    [([2], ("KeyError", "test_causes.py", "__getitem__")), ([0, 1], ("different sizes",))],
)
def test_a_data_set_of_a_user_s_is_told_as_theirs(
    workers: int, batch: list[int], words: tuple[str, ...]
) -> None:
    with pytest.raises((KeyError, RuntimeError), match=r"missing key|equal size") as caught:
        list(load_batches(Broken(), [batch], workers=workers))
    found = explain(caught.value)
    assert found is not None
    assert all(word in found[1] for word in words)
    assert "\n" not in found[1]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_loader_is_told_as_one() -> None:
    with pytest.raises(RuntimeError, match="DataLoader worker") as caught:
        list(load_batches(Killed(), [[0]], workers=1))
    found = explain(caught.value)
    assert found is not None
    assert found[0] == "LoaderError"


class Killed(Dataset[Any]):
    """Ends its process as the system does for lack of memory."""

    def __getitem__(self, index: int) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def test_missing_modules_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needy.py").write_text("import package_of_nobody\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingExtraError, match="needy:f needs the package 'package_of_nobody'"):
        import_function("needy:f")
    for name in ("module_of_nobody:f", "dggraph.nothing:f"):
        with pytest.raises(InputError, match=r"there is no module.*importable from"):
            import_function(name)
    (tmp_path / "plain.py").write_text("f = dict\n")
    for name in ("plain.py:f", "./plain.py:f"):
        with pytest.raises(InputError, match="Write plain:f: the name of a module"):
            import_function(name)
    with pytest.raises(InputError, match=r"no attribute 'ff'\. Did you mean plain:f\?"):
        import_function("plain:ff")


class Normed(nn.Module):
    """Ends in batch norm of 1 x 1 pixel."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(3))
        )
        self.pool, self.norm = nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.pool(self.body(x))).flatten(1))
        return logits


def normed(num_classes: int = 4) -> nn.Module:
    return Normed(num_classes)


@pytest.mark.parametrize("keys", ["batch_size = 1\n", "batch_size = 8\ngrad_accum_steps = 8\n"])
def test_batch_norm_of_one_value_names_the_keys(tmp_path: Path, capsys: Any, keys: str) -> None:
    (tmp_path / "toy.toml").write_text(
        TOY.replace("toy_data:plain_net", "test_causes:normed") + f'output = "{tmp_path}"\n' + keys
    )
    with pytest.raises(SystemExit) as ended:
        main(["train", str(tmp_path / "toy.toml")])
    err = capsys.readouterr().err
    assert ended.value.code == 4
    assert "batch_size" in err
    assert "input_size" in err
    assert "please report" not in err
