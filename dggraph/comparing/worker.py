"""One run of a comparison, in a process of its own: train, measure, write the row.

`python -m dggraph.comparing.worker FOLDER` reads FOLDER/job.json and writes FOLDER/row.json. The
queue holds the other end of its standard input. Where that closes, the queue is gone, and the
worker ends at once: a new queue may begin the same run, which goes on from its last checkpoint.
"""

import json
import os
import platform
import shutil
import statistics
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from dggraph.comparing.measuring import clock_of, measure, peak_memory
from dggraph.data.augmentation import Augmentation
from dggraph.data.sources import open_data
from dggraph.errors import DggraphError, TrainingError
from dggraph.models.preprocessing import require_preprocess
from dggraph.models.registry import load_model, takes_num_classes
from dggraph.system import processes
from dggraph.system.allocator import keep_freed_memory
from dggraph.system.files import write_whole
from dggraph.training.config import TrainConfig, configured
from dggraph.training.loop import train
from dggraph.training.metrics import METRICS, append_row, read_rows
from dggraph.training.runs import CHECKPOINTS

JOB, ROW, STEP_TIMES = "job.json", "row.json", "step_times.jsonl"
STOPPED = 130
"""Exit code of a run that was asked to stop and saved a checkpoint."""
LAST = 0.1
"""Share of the steps at the end of training whose mean loss is the train loss."""


@dataclass(slots=True)
class StepTimes:
    """Seconds between two rows of metrics, without evaluations, kept for a resumed run."""

    file: Path
    clock: Callable[[], float]
    before: tuple[int, float] | None = field(default=None)

    def note(self, row: Mapping[str, Any]) -> None:
        """Take a row of the training loop."""
        if "loss" not in row:
            self.before = None  # an evaluation
            return
        now = (int(row["step"]), self.clock())
        if self.before is not None and now[0] > self.before[0]:
            seconds = (now[1] - self.before[1]) / (now[0] - self.before[0])
            append_row(self.file, {"step": now[0], "seconds": seconds})
        self.before = now

    def median(self) -> float | None:
        """Seconds of a step; None if no two rows of metrics followed each other."""
        rows, _ = read_rows(self.file)
        return statistics.median(row["seconds"] for row in rows) if rows else None


def work(folder: Path) -> int:
    """Do the job in `folder`, and return the exit code: 0 with a row, 130 without."""
    job = json.loads((folder / JOB).read_bytes())
    config = TrainConfig.model_validate(job["config"])
    device = None if job["device"] is None else torch.device(job["device"])
    try:
        with processes.computing_on(device):
            facts = _train_and_measure(config, folder, job["baseline_model"])
    except Exception as error:  # whatever fails, the queue goes on with the next run
        facts = {"error": {"type": type(error).__name__, "message": _message(error)}}
    if facts is None:
        return STOPPED
    row = job["row"] | facts | {"versions": _versions(), "machine": _machine(device)}
    write_whole(folder / ROW, json.dumps(row).encode())
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return 0


def _train_and_measure(
    config: TrainConfig, folder: Path, baseline_model: str
) -> dict[str, Any] | None:
    times = StepTimes(folder / STEP_TIMES, clock_of(processes.device()))
    result = train(config, times.note)
    if not result.is_finished:
        return None
    assert result.model is not None
    device = processes.device()
    memory = peak_memory(device)
    rows, _ = read_rows(folder / METRICS)
    judged = [row for row in rows if "accuracy" in row][-1]
    losses = [
        row["loss"] for row in rows if "loss" in row and row["step"] > (1 - LAST) * result.step
    ]
    if not losses:
        raise TrainingError(
            f"no loss was logged in the last {LAST:.0%} of {result.step} steps. Lower log_interval."
        )
    dataset = _validation(config)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    facts = measure(
        result.model,
        _static(config, baseline_model, result.model, dataset).to(memory_format=layout),
        dataset,
        batch_size=config.batch_size,
        kept=judged.get("kept"),
        memory_format=layout,
    )
    names = ("accuracy", "num_images", "kept", "num_paths", "path_entropy_bits")
    return (
        {"steps": result.step, "train_loss": statistics.fmean(losses)}
        | {name: judged.get(name) for name in names}
        | {"seconds_per_step": times.median(), "peak_memory_bytes": memory}
        | facts
    )


def _validation(config: TrainConfig) -> Dataset[Any]:
    loaded = load_model(config.model, num_classes=config.num_classes, input_size=config.input_size)
    preprocess = configured(require_preprocess(loaded.preprocess), config)
    return open_data(config.source, preprocess, Augmentation()).validation


def _static(config: TrainConfig, name: str, model: nn.Module, dataset: Dataset[Any]) -> nn.Module:
    """Build the static network of the family, with as many outputs as the trained one."""
    image, _ = dataset[0]
    with torch.no_grad():
        outputs = model.eval()(image[None].to(processes.device())).shape[1]
    number = outputs if takes_num_classes(name) else None
    static = load_model(name, num_classes=number, input_size=config.input_size).model
    return static.to(processes.device())


def _message(error: Exception) -> str:
    text = " ".join(str(error).split())[:1000]
    return text if isinstance(error, DggraphError) else f"{type(error).__name__}: {text}"


def _versions() -> dict[str, str]:
    return {
        "dggraph": version("dggraph"),
        "source": source_digest(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def source_digest() -> str:
    """Return a digest of the package's code, which changes between two releases too."""
    package = Path(__file__).parents[1]
    digest = blake2b(digest_size=6)
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _machine(device: torch.device | None) -> dict[str, Any]:
    with processes.computing_on(device):
        where = processes.device()
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else platform.machine()
    return {
        "device": str(where),
        "name": name,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }


def end_with_queue(end: Callable[[], None]) -> None:
    """Call `end` once standard input closes; a thread waits for it."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        end()

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    end_with_queue(lambda: os._exit(STOPPED))
    keep_freed_memory()
    sys.exit(work(Path(sys.argv[1])))
