"""Event files for TensorBoard, in RUN/tensorboard: the rows of metrics.jsonl in another form.

When a run resumes, metrics are truncated to its checkpoint. Event files cannot be truncated, and
may lack the last rows of a process that died. So a resumed run starts a new file with all remaining
metrics, and marks it such that TensorBoard drops what it read before. If the files cannot be
written, the run goes on without them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dggraph.errors import MissingExtraError
from dggraph.training.metrics import METRICS, dispensable, read_rows

EVENTS = "tensorboard"


def event_writer() -> Any:
    """Return the class `SummaryWriter`, which writes event files.

    Raises:
        MissingExtraError: TensorBoard is not installed, or too old.
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
    """Yield a function that adds a row of metrics to a new event file of the run in `folder`.

    The existing rows are added first.
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
