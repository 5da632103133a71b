"""Event files for TensorBoard, in RUN/tensorboard: the rows of metrics.jsonl once more.

Metrics are cut off behind the checkpoint that a run goes on from; event files cannot be cut, and the last rows of a process that died may be
missing. So a run that goes on begins a new file with all metrics that are left, and marks it: TensorBoard drops what it read before.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dggraph.errors import MissingExtraError
from dggraph.training.metrics import METRICS, read_rows

EVENTS = "tensorboard"


def event_writer() -> Any:
    """torch's class that writes event files.

    Raises:
        MissingExtraError: TensorBoard is not here, or too old.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("event files need TensorBoard: pip install 'dggraph[tensorboard]'.") from error
    return SummaryWriter


@contextmanager
def open_events(folder: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """What adds a row of metrics to a new event file of the run in `folder`; the rows that are there come first."""
    with event_writer()(str(folder / EVENTS), purge_step=0) as writer:

        def add(row: Mapping[str, Any]) -> None:
            part = "validation" if "epoch" in row else "train"
            for key, value in row.items():
                if key not in ("step", "epoch", "num_images") and isinstance(value, (int, float)):
                    writer.add_scalar(f"{part}/{key}", value, row["step"])

        for row in read_rows(folder / METRICS)[0]:
            add(row)
        yield add
