"""Running statistics of batch norms, computed from live rows only.

Training runs every block for every image and masks closed edges. The norms of a block therefore see
a row of zeros for each image that does not reach it. If half the rows are dead, the variance
becomes 0.67 of that of the live rows. The sparse executor runs a block only on the images that
reach it, so one sparse pass sees the right rows.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import (
    _BatchNorm,
)  # no public name covers 1d, 2d, 3d and SyncBatchNorm; update_bn imports it too

from dggraph.compiler.contexts import called_modules
from dggraph.errors import HookError, InputError
from dggraph.network.network import DynamicNetwork
from dggraph.network.requirements import require_converted
from dggraph.system.devices import first_weight
from dggraph.system.modes import keeping_modes

NORMS: tuple[type[nn.Module], ...] = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Classes of norms; timm's and torchvision's are subclasses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalibration:
    """The norms that `recalibrate_norms_` updated or kept, by their path in `net.lowered`.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> result = dggraph.recalibrate_norms_(net, [torch.rand(8, 3, 32, 32)])
        >>> type(result).__name__
        'Recalibration'
    """

    updated: tuple[str, ...]
    kept: tuple[str, ...]
    """Norms with fewer than two values per channel, whose statistics did not change.

    A norm that is only called in training, as in an auxiliary head, gets none.
    """
    mixed: tuple[str, ...]
    """Norms that were updated from live and dead rows.

    They are in stages whose blocks only run on full batches (`StagePlan.dense_only`).
    """


def recalibrate_norms_(net: DynamicNetwork, batches: Iterable[Any]) -> Recalibration:
    """Set the running statistics of batch norms to those of the live rows of `batches`. In place.

    Like `torch.optim.swa_utils.update_bn`, each norm normalises by the batch it sees, everything
    else is in eval mode, and there are no gradients. Unlike there, the statistics are the exact
    mean and variance over all live values, not a mean of the batches' variances. A batch in which
    two images reach a block therefore counts as two images. Modes, momentum and the executor are
    restored; after an error, so are the statistics.

    Weights that were trained with dead rows in their batch statistics are adapted to them. Compare
    both on held-out data (docs/benchmarks/norms.md).

    Args:
        net: A converted network.
        batches: Tensors (B, C, H, W), or tuples that begin with one. Larger batches are closer to
            training.

    Raises:
        InputError: There are no batches, or a norm saw values that are not finite.
        GateError: An edge weight is NaN.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> result = dggraph.recalibrate_norms_(net, [torch.rand(8, 3, 32, 32)])
        >>> type(result).__name__
        'Recalibration'
    """
    require_converted(net, "recalibrate_norms_")
    norms = {
        name: module
        for name, module in net.lowered.named_modules()
        if isinstance(module, _BatchNorm)
    }
    norms = {name: norm for name, norm in norms.items() if norm.running_mean is not None}
    before = {
        name: {key: value.clone() for key, value in norm.named_buffers(recurse=False)}
        for name, norm in norms.items()
    }
    device = first_weight(net).device
    seen = {name: _Moments() for name in norms}
    num_batches = 0
    try:
        with torch.no_grad(), _watched(net, norms, seen):
            for batch in batches:
                images = batch[0] if isinstance(batch, list | tuple) else batch
                net.forward(
                    images.to(device)
                )  # not net(...): a network compiled in place would run dense
                num_batches += 1
    finally:
        for name, norm in norms.items():
            for key, value in before[name].items():
                norm.get_buffer(key).copy_(value)
    if not num_batches:
        raise InputError(
            "there are no batches to take statistics from. Pass a data loader, not an exhausted"
            " iterator."
        )
    updated = [name for name in norms if seen[name].count >= 2]
    for name in updated:
        seen[name].store(norms[name])
    whole = _run_on_whole_batches(net)
    inside = {
        name
        for name in updated
        if any(name == path or name.startswith(f"{path}.") for path in whole)
    }
    return Recalibration(
        updated=tuple(name for name in updated if name not in inside),
        kept=tuple(name for name in norms if name not in updated),
        mixed=tuple(name for name in updated if name in inside),
    )


class _Moments:
    """Count, mean and sum of squared deviations per channel, merged call by call."""

    def __init__(self) -> None:
        self.count = self.num_calls = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64, device="cpu")

    def add(self, features: Tensor) -> int:
        """Merge `features`, (R, C, ...), and return their number of values per channel.

        The update is that of Chan, Golub and LeVeque (1979).
        """
        values_C = (
            features.to(torch.promote_types(features.dtype, torch.float32))
            .transpose(0, 1)
            .flatten(1)
        )
        count = values_C.shape[1]
        variance_C, mean_C = (
            moment.double() for moment in torch.var_mean(values_C, dim=1, correction=0)
        )
        total, step = self.count + count, mean_C - self.mean
        self.squares = (
            self.squares + count * variance_C + step.square() * (self.count * count / total)
        )
        self.mean = self.mean + step * (count / total)
        self.count, self.num_calls = total, self.num_calls + 1
        return count

    def store(self, norm: _BatchNorm) -> None:
        """Write the moments into the running statistics of `norm`. In place.

        The variance is the unbiased one.
        """
        norm.get_buffer("running_mean").copy_(self.mean)
        norm.get_buffer("running_var").copy_(self.squares / (self.count - 1))
        norm.get_buffer("num_batches_tracked").fill_(self.num_calls)


@contextmanager
def _watched(
    net: DynamicNetwork, norms: Mapping[str, _BatchNorm], seen: Mapping[str, _Moments]
) -> Iterator[None]:
    """Collect in `seen` what the norms of `net` see within this context.

    The network runs sparse in eval mode, and its norms normalise by their batch.
    """
    momenta, executor = {name: norm.momentum for name, norm in norms.items()}, net.executor
    handles = []

    def watch(name: str, norm: nn.Module) -> None:
        def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            module.training = (
                seen[name].add(args[0]) > 1
            )  # one value per channel has no variance, so the old statistics are used
            if not seen[name].mean.isfinite().all():
                raise InputError(
                    f"norm {name!r} saw values that are not finite. Look for a diverged run or a"
                    " broken image."
                )

        def rest(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            module.training = False  # with a norm in train mode the next batch would run dense

        handles.append(norm.register_forward_pre_hook(look))
        handles.append(norm.register_forward_hook(rest))

    try:
        net.executor = "sparse"
        for name, norm in norms.items():
            norm.momentum = 0.0
            with suppress(HookError):  # never called in eval mode, as in an auxiliary head
                watch(name, norm)
        with keeping_modes(net):
            net.eval()
            yield
    finally:
        for handle in handles:
            handle.remove()
        for name, norm in norms.items():
            norm.momentum = momenta[name]
        net.executor = executor


def _run_on_whole_batches(net: DynamicNetwork) -> set[str]:
    """Return the paths of modules in blocks that the sparse executor does not run alone."""
    inside = {
        name
        for stage in net.plan
        if stage.dense_only
        for block in stage.blocks
        for name in block.fx_nodes
    }
    fx_nodes = net.lowered.graph.nodes
    return set(called_modules(fx_node for fx_node in fx_nodes if fx_node.name in inside))
