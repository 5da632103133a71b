"""Data sets with which one of two processes gets into trouble, while the other does not."""

import os
import signal

from torch.utils.data import Dataset
from toy_data import Toy

from dggraph.errors import InputError

Data = tuple[Dataset, Dataset, tuple[str, ...]]


class _Trouble(Toy):
    """Toy images; from the 50th on, that is in the second epoch, something happens."""

    num_read = 0

    def __init__(self, kind: str) -> None:
        super().__init__(72, False, 0)
        self.kind = kind

    def __getitem__(self, index: int):
        image, label = super().__getitem__(index)
        self.num_read += 1
        if self.num_read == 50:
            if self.kind == "unreadable":
                raise InputError("cannot read the image 'roses/7.png'.")
            if self.kind == "infinite":
                image = image * float("inf")
            if self.kind == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "stopped":
                os.kill(os.getppid(), signal.SIGTERM)  # torchrun
        return image, label


def _for_rank(trouble: int, kind: str) -> Data:
    mine = _Trouble(kind) if int(os.environ["RANK"]) == trouble else Toy(72, False, 0)
    return mine, Toy(40, False, 1), ("a", "b", "c", "d")


def unreadable(config: object) -> Data:
    return _for_rank(1, "unreadable")


def infinite(config: object) -> Data:
    return _for_rank(1, "infinite")


def killed(config: object) -> Data:
    return _for_rank(0, "killed")


def stopped(config: object) -> Data:
    return _for_rank(1, "stopped")


def quiet(config: object) -> Data:
    """The images of `stopped`, and nothing happens."""
    return _for_rank(-1, "none")


def uneven(config: object) -> Data:
    return Toy(72 + 8 * int(os.environ["RANK"]), False, 0), Toy(40, False, 1), ("a", "b", "c", "d")


def missing(config: object) -> Data:
    """The files are on one machine only."""
    if os.environ["RANK"] == "1":
        raise InputError("there is no folder /data/flowers.")
    return _for_rank(0, "none")
