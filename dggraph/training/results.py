"""What finished runs measured, read from their folders, for a model card."""

import json
from pathlib import Path
from typing import Any

from dggraph.errors import InputError
from dggraph.system.files import read_at_most
from dggraph.system.paths import locate
from dggraph.training.budget_verdict import judge_budget
from dggraph.training.checkpoint import list_checkpoints, load_checkpoint
from dggraph.training.commands import command_of
from dggraph.training.config import TrainConfig, read_config
from dggraph.training.metrics import METRICS, read_rows
from dggraph.training.runs import CHECKPOINTS
from dggraph.views.model_card import TrainingResults

_OWN = {"seed": 0, "output": Path("runs"), "experiment": ""}


def read_results(*folders: str | Path) -> TrainingResults:
    """Read the results of finished runs that differ by their seed alone.

    Args:
        folders: run folders of `dggraph train`, that of the network first.

    Raises:
        InputError: none is given; one is not a finished run; or they differ in more than their
            seed; names the keys.

    Example:
        >>> from dggraph.training import read_results
        >>> read_results("runs/flowers")  # doctest: +SKIP
    """
    if not folders:
        raise InputError("there is no run to read results from. Name at least one run folder.")
    places = [locate(folder) for folder in folders]
    configs, lasts = [], []
    for folder in places:
        config = _config(folder)
        rows, _ = read_rows(folder / METRICS)
        last = [row for row in rows if row.get("epoch") == config.epochs]
        if not last:
            raise InputError(
                f"the run in {folder} is not finished. Continue it with the command that began it."
            )
        configs.append(config)
        lasts.append((last[-1], judge_budget(config, rows)))
    first, *others = [config.model_copy(update=_OWN).model_dump() for config in configs]
    different = sorted(key for key in first for other in others if other[key] != first[key])
    if different:
        raise InputError(
            f"these runs differ in {', '.join(dict.fromkeys(different))}, so they are not seeds of"
            " one recipe. Give runs that differ in seed alone."
        )
    measure = "AP" if configs[0].task == "detection" else "accuracy"
    if configs[0].objective == "distill":
        measure = "agreement"
    key = "AP" if measure == "AP" else "accuracy"
    parts = _sizes(places[0])
    return TrainingResults(
        command=command_of(_without_folders(configs[0])),
        dataset=configs[0].dataset,
        num_training=parts.get("train"),
        num_validation=lasts[0][0].get("num_images", parts.get("validation")),
        seeds=tuple(config.seed for config in configs),
        measure=measure,
        scores=tuple(float(row[key]) for row, _ in lasts),
        kept=tuple(float(row["kept"]) for row, _ in lasts if "kept" in row),
        versions={
            str(name): str(value)
            for name, value in _document(places[0] / "environment.json").items()
            if name in ("dggraph", "torch", "python")
        },
        remarks=tuple(dict.fromkeys(one.message for _, one in lasts if one and not one.is_met)),
    )


def _config(folder: Path) -> TrainConfig:
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a run folder: it has no config.json. Check the path.")
    # with the weights that it began with, which the command names
    return read_config(None, _document(folder / "config.json"))


def _without_folders(config: TrainConfig) -> TrainConfig:
    """Return `config` with bare names for paths: where they are on this machine is private."""
    paths = {"data_dir": config.data_dir, "checkpoint": config.checkpoint}
    names = {key: Path(path.name) for key, path in paths.items() if path is not None}
    return config.model_copy(update=names)


def _sizes(folder: Path) -> dict[str, int]:
    """Return how many images each part of the data has, as the last checkpoint knows."""
    checkpoints = list_checkpoints(folder / CHECKPOINTS)
    if not checkpoints:
        return {}
    sizes = load_checkpoint(checkpoints[-1]).state.get("data", {}).get("sizes", {})
    return {part: size for part, size in sizes.items() if isinstance(size, int)}


def _document(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_at_most(file))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {file}: {error}. The run folder is damaged.") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} is not a table of keys. The run folder is damaged.")
    return found
