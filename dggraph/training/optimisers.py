"""Optimisers and learning-rate schedules from timm, and parameter groups."""

from typing import Any

import torch
from torch import nn

from dggraph.compiler.lowered import routing_of
from dggraph.errors import InputError, MissingExtraError
from dggraph.network.network import dynamic_part
from dggraph.training.config import TrainConfig

ON_SHARES = (
    "adafactor",
    "adam",
    "adamw",
    "adan",
    "lars",
    "lion",
    "momentum",
    "nadamw",
    "rmsprop",
    "rmsproptf",
    "sgd",
)
"""Optimisers that take the same steps on shards of the weights, to 1e-6.

Some of timm's others fail on shards.
"""
UNFIT = {
    "adahessian": "it needs second derivatives, which a step does not compute",
    "kron": "it draws from a generator of its own, so that a run could not resume exactly",
}
"""Optimisers of timm that cannot train here, by the beginning of their names, and why."""


def param_groups(
    model: nn.Module, weight_decay: float, *, router_lr: float | None = None
) -> list[dict[str, Any]]:
    """Return parameter groups for any torch optimiser.

    Weights decay; norms, biases and all parameters of routers do not.

    Args:
        model: a converted network, a model that contains one, or a static one, which has no
            routers.
        weight_decay: weight decay of the weights.
        router_lr: learning rate of the routers; by default the optimiser's own.

    Returns:
        Up to three groups, none of them empty, without frozen parameters.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> groups = dggraph.training.param_groups(net, weight_decay=5e-4)
        >>> optimiser = torch.optim.SGD(groups, lr=0.1)
        >>> [group["weight_decay"] for group in groups]
        [0.0005, 0.0, 0.0]
    """
    net = dynamic_part(model)
    of_routers = (
        {
            id(parameter)
            for stage in net.graph.stages
            for parameter in routing_of(net.lowered, stage).parameters()
        }
        if net
        else set()
    )
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    routers: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (
                routers
                if id(parameter) in of_routers
                else decayed
                if parameter.ndim > 1
                else others
            ).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups.append(
        {"params": routers, "weight_decay": 0.0} | ({} if router_lr is None else {"lr": router_lr})
    )
    return [group for group in groups if group["params"]]


def build_optimiser(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimiser that `config.opt` names.

    Raises:
        MissingExtraError: timm is not installed.
        InputError: timm has no optimiser of that name, or it is one of `UNFIT`.
    """
    name = config.opt.lower().removeprefix("lookahead_")
    for unfit, reason in UNFIT.items():
        if name.startswith(unfit):
            raise InputError(f"opt = {config.opt!r} cannot train here: {reason}. Choose another.")
    create, groups = (
        _timm("optim").create_optimizer_v2,
        param_groups(model, config.weight_decay, router_lr=config.router_rate),
    )
    try:
        optimiser: torch.optim.Optimizer = create(
            groups, opt=config.opt, lr=config.lr, momentum=config.momentum
        )
    except (ValueError, AssertionError, KeyError) as error:
        raise InputError(
            f"opt = {config.opt!r}: {error}. `timm.optim.list_optimizers()` lists all names."
        ) from error
    return optimiser


def build_schedule(
    config: TrainConfig, optimiser: torch.optim.Optimizer, steps_per_epoch: int
) -> Any:
    """Build the schedule that `config.sched` names.

    `schedule.step_update(step)` sets the rates as a function of `step` alone, so there is no state
    to save.

    Raises:
        MissingExtraError: timm is not installed.
        InputError: there is no schedule of that name, or it depends on results.
    """
    if config.sched == "plateau":
        raise InputError(
            "sched = 'plateau' depends on results, so it cannot resume exactly; choose cosine,"
            " step, multistep, poly or tanh."
        )
    schedule, _ = _timm("scheduler").create_scheduler_v2(
        optimiser,
        sched=config.sched,
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=min(config.warmup_lr, config.lr),
        warmup_prefix=False,
        min_lr=config.min_lr,
        decay_epochs=config.decay_epochs,
        decay_milestones=list(config.decay_milestones),
        decay_rate=config.decay_rate,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    if schedule is None:
        raise InputError(
            f"sched = {config.sched!r}: timm has no schedule of that name; choose cosine, step,"
            " multistep, poly or tanh."
        )
    return schedule


def remarks_on_warmup(config: TrainConfig) -> list[str]:
    """Return a sentence about a warm-up that is as long as the run."""
    if config.warmup_epochs < config.epochs:
        return []
    return [
        f"the warm-up takes {config.warmup_epochs:g} epochs and the run {config.epochs}, so the"
        f" learning rate only rises, to {config.epochs / config.warmup_epochs:.0%} of"
        f" lr = {config.lr:g}, and never falls; set warmup_epochs below {config.epochs}"
    ]


def _timm(part: str) -> Any:
    try:
        import timm.optim
        import timm.scheduler
    except ImportError as error:
        raise MissingExtraError(
            "training uses timm's optimisers and schedules: pip install 'dggraph[timm]'."
        ) from error
    return getattr(timm, part)
