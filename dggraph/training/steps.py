"""One optimiser step: forward, loss, a check that it is finite, backward, clip, step, average."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dggraph.data.sampler import seed_of
from dggraph.losses import budget_of, kept, refuse_out_of_reach
from dggraph.network.gates import Gates
from dggraph.ops.gating import find_gate
from dggraph.system import processes
from dggraph.system.sharding import full_tensor, gradient_sync
from dggraph.training.budget_multiplier import adapt_, press
from dggraph.training.config import TrainConfig
from dggraph.training.finite_checks import guard_, reads_later, refuse_loss, refuse_norm
from dggraph.training.runs import Run
from dggraph.training.schedules import target_at, temperature_at, threshold_at
from dggraph.training.tasks import Task


def take_step(
    run: Run, config: TrainConfig, task: Task, batch: Any, total: int
) -> Callable[[], dict[str, Any]]:
    """Take one optimiser step, and return a function for the row of metrics.

    Only that function waits for the device, and `finite_checks` says how no step is taken with what
    is not finite.
    """
    done, device = run.step / total, processes.device()
    torch.manual_seed(seed_of(config.seed, 1, run.step, processes.rank()))
    run.schedule.step_update(run.step)
    if run.net is not None:
        run.net.set_threshold(threshold_at(done, config.final_threshold, config.threshold_warmup))
        start = find_gate(run.net.blueprint.gate).start_temperature
        if config.temperature != start:
            run.net.set_temperature(temperature_at(done, start, config.temperature))
    if run.baseline is not None:
        run.baseline.anneal_(done)
    # a gradient scaler reads its own flag in every step
    is_late = reads_later(device) and not run.scaler.is_enabled()
    loss_sum, kept_sum = torch.zeros((), device=device), None
    pull_sum = torch.zeros((), device=device)
    parts, net = task.parts(batch, run.step), run.net if run.baseline is None else run.baseline
    for number, part in enumerate(parts, start=1):
        with gradient_sync(run.wrapped, number == len(parts)), _autocast(config, device):
            loss, gates = task.loss(run.wrapped, net, part)
            if gates is not None:
                kept_B = kept(gates)
                kept_sum = kept_B.detach().mean() / len(parts) + (
                    0 if kept_sum is None else kept_sum
                )
                if config.budget is not None:
                    pull = _budget_loss(run, config, kept_B, gates, done).to(loss.dtype)
                    loss = loss + pull
                    if run.multiplier is not None:  # its scale changes, so it would hide the rest
                        pull_sum += pull.detach() / len(parts)
            loss = loss / len(parts)
            if not is_late:
                refuse_loss(float(loss.detach()), run.step, config)
            run.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        loss_sum += loss.detach()
    learning = [parameter for parameter in run.model.parameters() if parameter.grad is not None]
    run.scaler.unscale_(run.optimiser)
    gradients = [parameter.grad for parameter in learning if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    # with a gradient scaler, such steps are skipped and its factor falls
    if not (is_late or run.scaler.is_enabled()):
        refuse_norm(float(full_tensor(norm)), run.step, config)
    if config.clip_grad is not None:
        nn.utils.clip_grads_with_norm_(learning, config.clip_grad, norm)
    before, run.unread = run.unread, None
    if is_late:
        run.unread = guard_(gradients, loss_sum, full_tensor(norm), run.step)
    run.scaler.step(run.optimiser)
    run.scaler.update()
    run.optimiser.zero_grad()
    if run.average is not None:
        run.average.update_parameters(run.model)
    if before is not None:
        before.refuse(config)
    multiplier = None
    if run.multiplier is not None and kept_sum is not None:
        everywhere = processes.all_reduce_sum(kept_sum.double()) / processes.world_size()
        multiplier = run.multiplier.clone()
        adapt_(run.multiplier, everywhere - _target(config, done), total)
    run.step += 1
    rate = run.optimiser.param_groups[0]["lr"]
    step = run.step

    def row() -> dict[str, Any]:
        refuse_unread(run, config)
        values = {"step": step, "loss": float(loss_sum - pull_sum), "lr": rate}
        values |= {} if kept_sum is None else {"kept": float(kept_sum)}
        return values if multiplier is None else values | {"budget_multiplier": float(multiplier)}

    return row


def _target(config: TrainConfig, done: float) -> float:
    assert config.budget is not None
    return target_at(done, config.budget, config.threshold_warmup)


def _budget_loss(
    run: Run, config: TrainConfig, kept_B: Tensor, gates: Gates, done: float
) -> Tensor:
    assert config.budget is not None
    if run.multiplier is None:
        assert config.budget_weight is not None
        return config.budget_weight * budget_of(kept_B, gates.table, config.budget)
    refuse_out_of_reach(gates.table, config.budget)
    return press(kept_B.mean() - _target(config, done), run.multiplier)


def refuse_unread(run: Run, config: TrainConfig) -> None:
    """Wait for the last step, before anything is made of it.

    Raises:
        TrainingError: its loss or a gradient was not finite.
    """
    if run.unread is not None:
        unread, run.unread = run.unread, None
        unread.refuse(config)


def _autocast(config: TrainConfig, device: torch.device) -> Any:
    if config.amp == "none":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, config.amp))
