"""Event files for TensorBoard, in RUN/tensorboard: the rows of metrics.jsonl once more.

Metrics are cut off behind the checkpoint that a run goes on from; event files cannot be cut, and
the last rows of a process that died may be missing. So a run that goes on begins a new file with
all metrics that are left, and marks it: TensorBoard drops what it read before. Where they cannot be
written, the run goes on without.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dggraph.errors import MissingExtraError
from dggraph.training.metrics import METRICS, dispensable, read_rows

EVENTS = "tensorboard"


def event_writer() -> Any:
    """torch's class that writes event files.

    Raises:
        MissingExtraError: TensorBoard is not here, or too old.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError(
            "event files need TensorBoard: pip install 'dggraph[tensorboard]'."
        ) from error
    return SummaryWriter


@contextmanager
def open_events(folder: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """What adds a row of metrics to a new event file of the run in `folder`; the rows that are
    there come first.
    """
    place, writers = folder / EVENTS, list[Any]()

    def add(row: Mapping[str, Any]) -> None:
        part = "validation" if "epoch" in row else "train"
        for key, value in row.items():
            if key not in ("step", "epoch", "num_images") and isinstance(value, (int, float)):
                for writer in writers:
                    writer.add_scalar(f"{part}/{key}", value, row["step"])

    def add_or_stop(row: Mapping[str, Any]) -> None:
        is_written = False
        with dispensable(place):
            add(row)
            is_written = True
        if not is_written:
            writers.clear()

    with dispensable(place):
        writers.append(event_writer()(str(place), purge_step=0))
    for row in read_rows(folder / METRICS)[0]:
        add_or_stop(row)
    try:
        yield add_or_stop
    finally:
        with dispensable(place):
            for writer in writers:
                writer.close()
