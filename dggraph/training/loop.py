"""The training loop: from a configuration to an archive, on one or several processes.

It can resume from any checkpoint. All randomness of a step (order, augmentation, mixing, dropout)
follows from the seed and the step alone, so a checkpoint holds no generator states. The order
within a step is: threshold and rate, forward, loss, a check that it is finite, backward, clip,
step, average. `runs` describes the files.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dggraph.baselines.archive import refuse_unsavable
from dggraph.baselines.network import BaselineNetwork
from dggraph.data.sampler import EpochBatches, SeededDataset
from dggraph.errors import InputError
from dggraph.network.network import DynamicNetwork, dynamic_part
from dggraph.system import processes
from dggraph.system.loaders import load_batches
from dggraph.system.locks import locked
from dggraph.system.sharding import local_tensors, shard_
from dggraph.system.signals import noting_signals
from dggraph.training.budget_multiplier import first_multiplier
from dggraph.training.budget_verdict import BudgetVerdict, judge_budget, remarks_on_budget
from dggraph.training.config import TrainConfig
from dggraph.training.events import event_writer, open_events
from dggraph.training.identity import Identity
from dggraph.training.metrics import METRICS, TIMING, append_row, dispensable, read_rows
from dggraph.training.optimisers import (
    ON_SHARES,
    build_optimiser,
    build_schedule,
    remarks_on_warmup,
)
from dggraph.training.preparing import Prepared, prepare
from dggraph.training.runs import (
    ARCHIVE,
    Run,
    as_started,
    describe,
    evaluated_model,
    finish,
    prepare_folder,
    resume_,
    run_folder,
    save_run,
)
from dggraph.training.steps import refuse_unread, take_step
from dggraph.training.tasks import Evaluation, Task

Log = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """What is about to be trained."""

    folder: Path
    step: int
    """Steps of this run that are done already."""
    num_steps: int
    """Steps of the whole run."""
    num_classes: int
    num_images: tuple[int, ...]
    """Images of the training part and of the validation part."""
    num_parameters: int
    router_fraction: float
    """Share of the parameters that are the routers'."""
    weights_origin: str
    """Where the weights that the run began with come from."""
    device: str
    num_processes: int
    budget: float | None
    """None without one, or if the network has no paths."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The end of a run.

    Example:
        >>> from pathlib import Path
        >>> from dggraph.training import TrainResult
        >>> result = TrainResult(folder=Path("run"), step=10, is_finished=False, evaluation=None)
        >>> result.is_finished
        False
    """

    folder: Path
    step: int
    is_finished: bool
    """False if a signal ended the run; the same call continues it."""
    evaluation: Evaluation | None
    """That of the last epoch in this call; None without one, or if it had finished before."""
    model: nn.Module | None = field(default=None, repr=False)
    """The trained network, or the average of its weights; None if the run is not finished."""
    budget: BudgetVerdict | None = None
    """Whether the budget was met; None without one, or if the run is not finished."""


def train(
    config: TrainConfig,
    log: Log = lambda row: None,
    *,
    begin: Callable[[RunStart], None] = lambda start: None,
) -> TrainResult:
    """Train as `config` says, or resume from the last checkpoint in the run folder.

    Args:
        config: the keys of the run.
        log: called with every row that is written to metrics.jsonl. Before them it is called with
            the number of bad images and annotations left out, if any, and with {"note": sentence}
            for each fact that users may not expect.
        begin: called once, on the first process, before the first step.

    Returns:
        Where the run ended: finished, or interrupted by SIGINT, SIGTERM or SIGHUP, after a
        checkpoint.

    Raises:
        MissingExtraError: a package that a key needs is not installed.
        InputError: keys do not fit each other, the data or the model; or another process trains in
            this folder.
        CheckpointError: the folder holds a run with other keys, or a damaged checkpoint.
        TrainingError: a loss is not finite, and no step was taken with it; or the processes have
            different keys or data.

    Example:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from dggraph.training import TrainConfig, train
        >>> for number, name in enumerate(("train/cat", "train/dog", "val/cat", "val/dog") * 2):
        ...     Path("photos", name).mkdir(parents=True, exist_ok=True)
        ...     Image.new("RGB", (40, 40), (9 * number, 0, 0)).save(f"photos/{name}/{number}.png")
        >>> keys = {"data_dir": "photos", "epochs": 1, "batch_size": 2, "warmup_epochs": 0}
        >>> train(TrainConfig(model="dggraph:resnet20_8", **keys)).is_finished
        True
    """
    if config.tensorboard:
        event_writer()  # raises before anything is loaded
    config = as_started(config)
    folder = run_folder(config)
    prepared = prepare(config)
    if isinstance(prepared.model, DynamicNetwork | BaselineNetwork):
        refuse_unsavable(
            prepared.model, folder / ARCHIVE, prepared.preprocess, prepared.labels or None
        )
    per_epoch = len(_batches(config, prepared.task))
    if not prepared.task.groups:
        raise InputError(
            f"the training part of {config.dataset} has no images to learn from. Add images, or"
            " choose another data set."
        )
    if per_epoch == 0:
        raise InputError(
            f"the training set has {len(prepared.task.groups)} images, fewer than one batch of"
            f" {config.batch_size} on each of {processes.world_size()} processes. Lower batch_size."
        )
    identity = prepared.task.identity
    facts = {"images of the two sets": tuple(identity.sizes.values()), "classes": identity.classes}
    facts["names of the images"] = identity.document()["names"]
    processes.assert_same_on_all_ranks(config.fingerprint() | {"parallel": config.parallel} | facts)
    if config.epoch_steps is not None and per_epoch < config.epoch_steps:
        raise InputError(
            f"epoch_steps = {config.epoch_steps}, but the training set has only {per_epoch}"
            f" complete batches of {config.batch_size} on each of {processes.world_size()}"
            " processes. Lower epoch_steps and set more epochs, or lower batch_size."
        )
    run = _start(config, prepared, identity, per_epoch)
    prepare_folder(config, folder)
    with locked(folder) if processes.rank() == 0 else nullcontext():
        processes.barrier()
        remarks = resume_(run, config, folder)
        processes.assert_same_on_all_ranks({"step of the last checkpoint": run.step})
        describe(run, config, folder, prepared.notes)
        if processes.rank() == 0:
            if prepared.notes.get("skipped.json"):
                log({"bad entries left out": len(prepared.notes["skipped.json"])})
            on_keys = (*remarks_on_budget(config), *remarks_on_warmup(config))
            for sentence in (*remarks, *prepared.remarks, *on_keys):
                log({"note": sentence})
        if processes.rank() == 0:
            begin(_start_facts(run, config, prepared, folder, per_epoch))
        result = _loop(run, config, prepared.task, folder, per_epoch, log)
        if result.is_finished:
            finish(run, config, folder, prepared.labels, prepared.preprocess)
            budget = judge_budget(config, read_rows(folder / METRICS)[0])
            with evaluated_model(run) as model:
                result = replace(result, model=model, budget=budget)
        processes.barrier()
    return result


def _start_facts(
    run: Run, config: TrainConfig, prepared: Prepared, folder: Path, per_epoch: int
) -> RunStart:
    sizes = {
        name: parameter.numel()
        for name, parameter in (run.unsharded or run.model).named_parameters()
    }
    routers = sum(size for name, size in sizes.items() if "dg_" in name)
    return RunStart(
        folder=folder,
        step=run.step,
        num_steps=per_epoch * config.epochs,
        num_classes=len(run.identity.classes),
        num_images=tuple(run.identity.sizes.values()),
        num_parameters=sum(sizes.values()),
        router_fraction=routers / max(sum(sizes.values()), 1),
        weights_origin=prepared.weights_origin,
        device=str(processes.device()),
        num_processes=processes.world_size(),
        budget=None if run.net is None else config.budget,
    )


def _start(config: TrainConfig, prepared: Prepared, identity: Identity, per_epoch: int) -> Run:
    model, unsharded = prepared.model, None
    average = _average(model, config.model_ema_decay) if config.model_ema else None
    if config.parallel == "fsdp" and processes.world_size() > 1:
        _refuse_with_shards(config)
        unsharded = deepcopy(model).cpu()
        shard_(model)
        if average is not None:
            shard_(average.module)
        wrapped = model
    else:
        wrapped = processes.distribute(model)
    optimiser = build_optimiser(config, model)
    return Run(
        model=model,
        net=dynamic_part(model),
        baseline=model if isinstance(model, BaselineNetwork) else None,
        frozen=prepared.frozen,
        identity=identity,
        wrapped=torch.compile(wrapped) if config.torchcompile else wrapped,  # type: ignore[arg-type]
        unsharded=unsharded,
        optimiser=optimiser,
        schedule=build_schedule(config, optimiser, per_epoch),
        average=average,
        scaler=torch.amp.GradScaler(processes.device().type, enabled=config.amp == "float16"),
        step=0,
        num_evaluated=0,
        best={"score": None, "step": -1},
        multiplier=first_multiplier(config, processes.device()),
    )


def _refuse_with_shards(config: TrainConfig) -> None:
    reasons = {
        "torchcompile": "the hooks that gather the weights would break the compiled graph",
        "channels_last": "weights are sharded in contiguous layout",
    }
    for key, reason in reasons.items():
        if getattr(config, key):
            raise InputError(
                f"{key} does not work with parallel = 'fsdp': {reason}. Leave it out, or choose"
                " parallel = 'ddp'."
            )
    if config.opt.lower() not in ON_SHARES:
        raise InputError(
            f"opt = {config.opt!r} does not work with parallel = 'fsdp': it may need complete"
            " weights, and then fails or takes wrong steps on shards. Choose one of"
            f" {', '.join(ON_SHARES)}, which were tested to take the same steps, or parallel ="
            " 'ddp'."
        )


def _average(model: nn.Module, decay: float) -> AveragedModel:
    follow = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def follow_locally(
        averages: Sequence[Tensor], values: Sequence[Tensor], num_averaged: Tensor | int
    ) -> None:
        if averages[0].is_floating_point():
            follow(local_tensors(averages), local_tensors(values), num_averaged)
            return
        # counters and indices, whose mean would be truncated to integers
        for average, value in zip(averages, values, strict=True):
            average.copy_(value)

    average: AveragedModel = AveragedModel(model, multi_avg_fn=follow_locally, use_buffers=True)
    return average


def _batches(config: TrainConfig, task: Task, epoch: int = 0, first: int = 0) -> EpochBatches:
    where = {"rank": processes.rank(), "world_size": processes.world_size()}
    return EpochBatches(
        task.groups,
        config.batch_size,
        seed=config.seed,
        epoch=epoch,
        first=first,
        most=config.epoch_steps,
        **where,
    )


def _loop(
    run: Run, config: TrainConfig, task: Task, folder: Path, per_epoch: int, log: Log
) -> TrainResult:
    def write(row: Mapping[str, Any]) -> None:
        if processes.rank() == 0:
            append_row(folder / METRICS, row)
            note(row)
            log(row)

    seeded, is_gpu = SeededDataset(task.train, config.seed), processes.device().type == "cuda"
    evaluation, total = None, per_epoch * config.epochs
    is_noted = config.tensorboard and processes.rank() == 0
    with (
        noting_signals() as stopped,
        open_events(folder) if is_noted else nullcontext(lambda row: None) as note,
    ):
        while run.num_evaluated < config.epochs:
            if run.step == (run.num_evaluated + 1) * per_epoch:
                refuse_unread(run, config)
                with evaluated_model(run) as model:
                    evaluation = task.evaluate(model)
                run.num_evaluated += 1
                if run.best["score"] is None or evaluation.score > run.best["score"]:
                    run.best = {"score": evaluation.score, "step": run.step}
                write({"step": run.step, "epoch": run.num_evaluated, **evaluation.row()})
                save_run(run, config, folder)
                continue
            batches = _batches(
                config, task, run.num_evaluated, run.step - run.num_evaluated * per_epoch
            )
            loaded = load_batches(
                seeded, batches, workers=config.workers, pin_memory=is_gpu, collate=task.collate
            )
            start, begun = time.perf_counter(), run.step
            for batch in loaded:
                row = take_step(run, config, task, batch, total)
                if run.step % config.log_interval == 0 or run.step == total:
                    write(row())
                if processes.any_rank(bool(stopped)):
                    refuse_unread(run, config)
                    save_run(run, config, folder)
                    return TrainResult(folder, run.step, False, evaluation)
                if (
                    config.checkpoint_steps
                    and run.step % config.checkpoint_steps == 0
                    and run.step % per_epoch
                ):
                    refuse_unread(run, config)
                    save_run(run, config, folder)
            if processes.rank() == 0:
                seconds = time.perf_counter() - start
                images_per_second = (
                    (run.step - begun) * config.batch_size * processes.world_size() / seconds
                )
                with dispensable(folder / TIMING):
                    append_row(
                        folder / TIMING,
                        {
                            "epoch": run.num_evaluated,
                            "seconds": seconds,
                            "images_per_second": images_per_second,
                        },
                    )
    return TrainResult(folder, run.step, True, evaluation)
