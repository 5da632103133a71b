"""A run on disk: its folder, the contents of its checkpoints, and how it resumes.

- RUN/config.json: every key.
- RUN/environment.json: versions and machine.
- RUN/sensitivity.json: with pin_divergence, the cost of leaving out each block, and which blocks
  are pinned.
- RUN/data.json: for each part of the data, how many images there are, and what was ignored and why.
- RUN/names.json.gz: the names of the images, see `identity`.
- RUN/skipped.json: bad images and boxes that were left out, if requested.
- RUN/metrics.jsonl: losses, without that of a budget whose weight adapts, rates, accuracy and
  MACs; identical for an interrupted run.
- RUN/timing.jsonl: durations.
- RUN/summary.html: a page with the curves, written with each checkpoint.
- RUN/tensorboard/: event files, if requested, see `events`.
- RUN/checkpoints/: see `checkpoint`.
- RUN/lock: locked while a process trains here, see `system.locks`.
- RUN/archive/: the trained network; for a static backbone RUN/backbone.safetensors, for a detector
  RUN/detector.safetensors.
"""

import json
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dggraph.baselines.archive import save
from dggraph.baselines.network import BaselineNetwork
from dggraph.data.sampler import seed_of
from dggraph.errors import CheckpointError, InputError, TrainingError
from dggraph.models.origins import TRAINED
from dggraph.models.preprocessing import Preprocess
from dggraph.network.gate_constraints import release_
from dggraph.network.network import DynamicNetwork, dynamic_part
from dggraph.network.standin import load_full_state_dict_, note_weights_
from dggraph.system import processes
from dggraph.system.files import write_whole
from dggraph.system.sharding import full_state_dict
from dggraph.training.checkpoint import (
    delete_old_checkpoints,
    flatten_optimiser,
    list_checkpoints,
    load_checkpoint,
    restore_optimiser,
    save_checkpoint,
)
from dggraph.training.config import TrainConfig
from dggraph.training.finite_checks import Unread
from dggraph.training.identity import Identity, describe_differences, write_names
from dggraph.training.metrics import METRICS, TIMING, cut_rows, dispensable, sync_rows, update_page

CHECKPOINTS = "checkpoints"
FORMER_THRESHOLD, FORMER_WEIGHT = 0.5, 1.0
ARCHIVE = "archive"
WEIGHTS = {"classification": "backbone.safetensors", "detection": "detector.safetensors"}


@dataclass(slots=True)
class Run:
    """The state of a run in progress."""

    model: nn.Module
    """The module that is trained: the network, static or dynamic, or the detector around it."""
    net: DynamicNetwork | None
    """The dynamic network: `model` or a part of it."""
    baseline: BaselineNetwork | None
    """The network of another method, if that is `model`."""
    frozen: tuple[str, ...]
    """Names of the parameters that are frozen in this run only."""
    identity: Identity
    """The identity of the data."""
    wrapped: nn.Module
    """`model` as a step calls it: distributed, compiled."""
    unsharded: nn.Module | None
    """If `model` is sharded, a copy on the CPU for full weights, to evaluate and save them."""
    optimiser: torch.optim.Optimizer
    schedule: Any
    average: AveragedModel | None
    scaler: torch.amp.GradScaler
    step: int
    num_evaluated: int
    """Number of epochs that were evaluated."""
    best: dict[str, Any]
    multiplier: Tensor | None = None
    """The budget's, if it adapts: 0-d float64 on the device; see `budget_multiplier`."""
    unread: Unread | None = None
    """The numbers of the last step that nobody has looked at yet."""


def run_folder(config: TrainConfig) -> Path:
    """Return the folder of this run, `output/experiment`.

    By default the experiment is the model and a digest of the keys that decide the result.
    """
    digest = seed_of(*json.dumps(config.fingerprint(), sort_keys=True).encode())
    name = (
        config.experiment
        or f"{config.model.replace(':', '-').replace('/', '-')}-{digest:016x}"[:60]
    )
    return config.output / name


def as_started(config: TrainConfig) -> TrainConfig:
    """Return `config` with numbers for the keys whose default depends on others.

    A run that has begun keeps those it began with. Older runs closed edges at 0.5, let routers
    learn at `lr` and weighed the budget by 1 where nothing else was said, and their folder is named
    after that.
    """
    if config.has_method:  # thresholds are not for it, and are refused
        return config.model_copy(update={"router_lr": config.router_rate})
    keys = ("threshold", "router_lr", "budget_weight")
    unset = [key for key in keys if getattr(config, key) is None]
    now = config.model_copy(
        update={"threshold": config.final_threshold, "router_lr": config.router_rate}
    )
    before = (
        config
        if config.threshold is not None
        else config.model_copy(update={"threshold": FORMER_THRESHOLD})
    )
    weight = config.budget_weight or FORMER_WEIGHT
    weighed, before = (one.model_copy(update={"budget_weight": weight}) for one in (now, before))
    found: dict[str, Any] = {}
    for folder in (run_folder(now), run_folder(weighed), run_folder(before)):
        try:
            stored = json.loads((folder / "config.json").read_bytes())
            found = {"threshold": stored["threshold"], "router_lr": _former_rate(stored)}
            found["budget_weight"] = stored["budget_weight"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found = {key: found[key] for key in unset}
        found |= {} if config.experiment else {"experiment": folder.name}
        break
    agreed: Any = processes.all_gather_objects(found)[0]
    return now.model_copy(update=agreed)


def _former_rate(keys: Mapping[str, Any]) -> Any:
    """Return the rate of the routers of a run; in older ones, no rate means `lr`."""
    return keys["lr"] if keys["router_lr"] is None else keys["router_lr"]


def prepare_folder(config: TrainConfig, folder: Path) -> None:
    """Create the run folder, after checking that everything in it can be written.

    Raises:
        InputError: the folder cannot be created or written, or something else is in the place of a
            file; names it.
    """
    if processes.rank() != 0:
        return
    files = ("config.json", "environment.json", METRICS, *WEIGHTS.values())
    in_the_way = [folder / name for name in files if (folder / name).is_dir()]
    in_the_way += [folder / CHECKPOINTS] if (folder / CHECKPOINTS).is_file() else []
    if in_the_way:
        raise InputError(
            f"{in_the_way[0]} is in the way of a file or folder that the run writes. Move it, or"
            " choose another output or experiment."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place in (folder, folder / CHECKPOINTS):
            if place.is_dir():
                with tempfile.TemporaryFile(dir=place):
                    pass
    except OSError as error:
        raise InputError(
            f"cannot write to the run folder {folder}: {error.strerror or error}. Choose another"
            " output."
        ) from error


def describe(run: Run, config: TrainConfig, folder: Path, notes: Mapping[str, Any]) -> None:
    """Write the files that describe the run, once it is known to be the one in `folder`."""
    if processes.rank() == 0:
        write_whole(
            folder / "config.json", json.dumps(config.model_dump(mode="json"), indent=1).encode()
        )
        versions = {
            "dggraph": version("dggraph"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        machine = {
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
            "processes": processes.world_size(),
        }
        for name, content in notes.items():
            write_whole(folder / name, json.dumps(content, indent=1).encode())
        write_names(run.identity, folder)
        write_whole(folder / "environment.json", json.dumps(versions | machine, indent=1).encode())
    processes.barrier()


def save_run(run: Run, config: TrainConfig, folder: Path) -> None:
    """Save a checkpoint of the run, delete old ones, and update the page."""
    tensors, rest = flatten_optimiser(run.optimiser)
    parts = {"model": full_state_dict(run.model), "optimiser": tensors}
    if run.average is not None:
        parts["average"] = full_state_dict(run.average)
    if processes.rank() == 0:
        state: dict[str, Any] = {
            "keys": config.fingerprint(),
            "optimiser": rest,
            "best": run.best,
            "scaler": run.scaler.state_dict(),
        }
        state |= {
            "world_size": processes.world_size(),
            "parallel": config.parallel,
            "num_judged": run.num_evaluated,
        }
        state["data"] = run.identity.document()
        if run.multiplier is not None:
            state["budget_multiplier"] = float(run.multiplier)
        state["metrics_bytes"] = sync_rows(folder / METRICS)
        save_checkpoint(folder / CHECKPOINTS, run.step, parts, state)
        delete_old_checkpoints(
            folder / CHECKPOINTS, config.checkpoint_hist, also=(run.best["step"],)
        )
        update_page(folder)
    processes.barrier()


def resume_(run: Run, config: TrainConfig, folder: Path) -> list[str]:
    """Load the last checkpoint of `folder` into `run`, if any, and truncate the metrics to it.

    Returns:
        Sentences about rows that were lost in the meantime; on the first process only.

    Raises:
        CheckpointError: the checkpoint is damaged, or of a run with other keys or data.
    """
    checkpoints = list_checkpoints(folder / CHECKPOINTS)
    if not checkpoints:
        return _cut(folder, 0)
    found = load_checkpoint(checkpoints[-1])
    wanted = config.fingerprint()
    # a run from before a key existed had its default
    former = {"threshold": FORMER_THRESHOLD, "budget_weight": FORMER_WEIGHT}
    keys = TrainConfig.model_validate({"model": ""}).fingerprint() | former | found.state["keys"]
    keys["router_lr"] = _former_rate(keys)
    different = sorted(
        key for key in keys.keys() | wanted.keys() if keys.get(key) != wanted.get(key)
    )
    if found.state["world_size"] != processes.world_size():
        different.append("number of processes")
    if found.state.get("parallel", "ddp") != config.parallel:
        different.append("parallel")
    if different:
        raise CheckpointError(
            f"{folder} has a run with other {', '.join(different)}. Continue with those, or choose"
            " another experiment."
        )
    if "data" in found.state and (
        differences := describe_differences(found.state["data"], run.identity, folder)
    ):
        raise CheckpointError(
            f"{folder} has a run that learned from other data: {'; '.join(differences)}. Continue"
            " with those, or choose another experiment."
        )
    load_full_state_dict_(run.model, found.tensors["model"])
    restore_optimiser(run.optimiser, found.tensors["optimiser"], found.state["optimiser"])
    if run.average is not None:
        load_full_state_dict_(run.average, found.tensors["average"])
    run.scaler.load_state_dict(found.state["scaler"])
    if run.multiplier is not None:
        run.multiplier.fill_(found.state["budget_multiplier"])
    run.step, run.num_evaluated, run.best = (
        found.step,
        found.state["num_judged"],
        found.state["best"],
    )
    return _cut(folder, found.state["metrics_bytes"])


def _cut(folder: Path, metrics_bytes: int) -> list[str]:
    if processes.rank() != 0:
        return []
    remarks, timing = [cut_rows(folder / METRICS, metrics_bytes)], folder / TIMING
    with dispensable(timing):
        remarks += [cut_rows(timing, timing.stat().st_size)] if timing.exists() else []
    return [sentence for sentence in remarks if sentence]


@contextmanager
def evaluated_model(run: Run) -> Iterator[nn.Module]:
    """Yield the model to evaluate: the average if there is one, in full, alike on every process.

    Every process must enter this context.
    """
    model: nn.Module = run.average.module if run.average is not None else run.model
    processes.share_buffers_(model)
    net, own = (dynamic_part(model), run.net) if run.baseline is None else (model, run.baseline)
    if net is not None and own is not None:
        now = dict(own.named_buffers())
        for name, buffer in net.named_buffers():
            # scheduled, not learned, so an average would lag behind
            if name.endswith((".threshold", ".temperature")):
                buffer.copy_(now[name])
    if run.unsharded is not None:
        run.unsharded.load_state_dict(full_state_dict(model))
        model = run.unsharded.to(processes.device())
    yield model
    if run.unsharded is not None:
        run.unsharded.cpu()


def finish(
    run: Run,
    config: TrainConfig,
    folder: Path,
    labels: Sequence[str],
    preprocess: Preprocess | None,
) -> None:
    """Write the trained network: a classifier with a method as an archive, else a state dict.

    Raises:
        TrainingError: it cannot be written; says where its weights are.
    """
    with evaluated_model(run) as model:
        if processes.rank() != 0:
            return
        try:
            _write_network(model, run, config, folder, labels, preprocess)
        except Exception as error:  # whatever failed, the trained weights exist
            part = "model" if run.average is None else "average"
            file = folder / CHECKPOINTS / f"{run.step:08d}" / f"{part}.safetensors"
            raise TrainingError(
                f"the network is trained, but could not be written: {error} Its weights are"
                f" complete in {file}, a state dict (safetensors.torch.load_file), and the same"
                " call writes the network once the cause is fixed."
            ) from error
    update_page(folder)


def _write_network(
    model: nn.Module,
    run: Run,
    config: TrainConfig,
    folder: Path,
    labels: Sequence[str],
    preprocess: Preprocess | None,
) -> None:
    net = dynamic_part(model)
    if net is not None:
        release_(net)
    if isinstance(model, DynamicNetwork | BaselineNetwork):
        for name in run.frozen:
            model.lowered.get_parameter(name).requires_grad_(True)
        note_weights_(model, TRAINED)
        save(model, folder / ARCHIVE, preprocess=preprocess, labels=labels or None)
    else:
        # clones, since safetensors rejects tied tensors
        state = {key: tensor.contiguous().clone() for key, tensor in model.state_dict().items()}
        notes = {"classes": json.dumps(list(labels))}
        write_whole(folder / WEIGHTS[config.task], safetensors.torch.save(state, notes))
