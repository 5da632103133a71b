"""Batches from loader processes, which heed nobody's signals but their parent's, and whose errors
read as ours.

torchrun passes SIGTERM on to every process that its workers have started, and a terminal does so
with Ctrl-C. Loader processes that ended then would take the step with them that training wants to
finish and save.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from dggraph.errors import DggraphError, InputError

ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals that ask a process to end; the last one says that its terminal was closed."""


def num_samples(dataset: Dataset[Any]) -> int:
    """The length of `dataset`, which torch's type does not promise.

    Raises:
        InputError: it has none.
    """
    if not isinstance(dataset, Sized):
        raise InputError(
            f"{type(dataset).__name__} has no length, and its images are asked for by index. Give"
            " it __len__ and __getitem__."
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
    """The batches of `dataset` whose indices `batches` lists.

    Args:
        dataset: asked by index.
        batches: indices of each batch.
        workers: loader processes; 0 loads in this one.
        pin_memory: for a GPU.
        collate: makes a batch of samples; by default they are stacked.

    Raises:
        DggraphError: what the data set raised, without the traceback that torch makes its message.
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
    """Signals are blocked, and a thread looks who sent them."""
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)

    def listen() -> None:
        while signal.sigwaitinfo(ENDING).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
