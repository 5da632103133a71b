"""Batches from loader processes that ignore signals from outside and report errors clearly.

torchrun passes SIGTERM to every process that its workers have started, and a terminal does the same
with Ctrl-C. Loader processes that ended then would interrupt the step that training has to finish
and save. They therefore only react to signals from their parent.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from dggraph.errors import DggraphError, InputError
from dggraph.system.signals import ENDING


def num_samples(dataset: Dataset[Any]) -> int:
    """Return the length of `dataset`, which torch's type does not guarantee.

    Raises:
        InputError: The data set has no length.
    """
    if not isinstance(dataset, Sized):
        raise InputError(
            f"{type(dataset).__name__} has no length, but its images are read by index. Give it"
            " __len__ and __getitem__."
        )
    return len(dataset)


def load_batches(
    dataset: Dataset[Any],
    batches: Sampler[Any] | Sequence[Any],
    *,
    workers: int,
    pin_memory: bool = False,
    collate: Callable[[list[Any]], Any] | None = None,
) -> Iterator[Any]:
    """Yield the batches of `dataset` whose indices `batches` lists.

    Args:
        dataset: A data set that is read by index.
        batches: The indices of each batch.
        workers: Number of loader processes; 0 loads in this process.
        pin_memory: Whether to use pinned memory, for a GPU.
        collate: Makes a batch of samples; by default they are stacked.

    Raises:
        DggraphError: An error of the data set, without the traceback that torch adds to its
            message.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=collate,
        worker_init_fn=_heed_parent,
    )
    try:
        yield from loader
    except DggraphError as error:
        if str(error).startswith("Caught "):
            raise type(error)(str(error).strip().splitlines()[-1].partition(": ")[2]) from error
        raise


def _heed_parent(_number: int) -> None:
    """Block signals in a loader process, and end it when its parent sends one."""
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)

    def listen() -> None:
        while signal.sigwaitinfo(ENDING).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
