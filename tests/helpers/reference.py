"""An independent reference: the original modules, run eagerly, with plain-Python routing in hooks.
Shares no code with the package.

Routers are read from the converted network's parameters; everything else (pooling, tanh, threshold,
liveness, the opening of a cut `out`, weighted sums) is written again here, one instance and one
edge at a time.
"""

import math
from collections.abc import Iterable

import torch
from torch import nn


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and norm statistics, scaled so that activations neither die nor explode."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    buffers = dict(model.named_buffers())
    named = [*_routing_last(model.named_parameters()), *_routing_last(model.named_buffers())]
    for name, tensor in named:
        is_constant = name in buffers and not name.endswith(("running_mean", "running_var"))
        if is_constant or not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim >= 2 and tensor.numel() == tensor.shape[0]:
            tensor.data = 0.2 * noise
        elif tensor.ndim >= 2:
            tensor.data = noise * math.sqrt(1.5 / max(1, tensor[0].numel()))
        elif name.endswith("running_var"):
            tensor.data = 1 + 0.1 * noise.abs()
        elif name.endswith("weight"):
            tensor.data = 1 + 0.2 * noise
        elif tensor.ndim == 1:
            tensor.data = 0.1 * noise
    return model


def _routing_last(named: Iterable[tuple[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
    """What the backbone gets is the same before and after conversion."""
    return sorted(named, key=lambda pair: "dg_" in pair[0])


def randomise_routers(net: nn.Module, seed: int = 0, scale: float = 1.0) -> nn.Module:
    """Seeded random routers whose decisions depend on the image."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    for name, parameter in net.lowered.named_parameters():
        if name.startswith("dg_"):
            width = parameter.shape[-1] if parameter.ndim > 1 else 4
            parameter.data = (
                torch.randn(parameter.shape, generator=generator).to(parameter)
                * scale
                * 3
                / math.sqrt(width)
            )
    return net


def hooked(net: nn.Module, model: nn.Module, x: torch.Tensor) -> tuple[list, dict[str, list]]:
    """Run one instance at a time; returns the outputs and, per stage, each instance's {(source,
    target): weight}.
    """
    outputs, adjacency = [], {stage: [] for stage in net.graph.stages}
    handles: list = []
    stages = [
        _Stage(net, model, name, found, handles)
        for name, found in zip(net.graph.stages, net.blueprint.found, strict=True)
    ]
    try:
        for image in x.split(1):
            with torch.no_grad():
                outputs.append(model(image))
            for stage in stages:
                adjacency[stage.name].append(stage.finish())
    finally:
        for handle in handles:
            handle.remove()
    return outputs, adjacency


class _Stage:
    """What one stage has seen of the current instance."""

    def __init__(self, net, model, name, found, handles) -> None:
        self.net, self.name, self.found = net, name, found
        self.vertices = [node.name for node in net.graph.nodes(name)]
        self.lifted = net.graph.stages[name].residual == "lift"
        self.axis = found.channel_axis
        self.owner = net.lowered.get_submodule(f"dg_{name}")
        self.start()
        modules = dict(model.named_modules())
        blocks = [modules[block.path] for block in found.blocks]
        if found.kind == "concat":
            for index, block in enumerate(blocks, start=1):
                handles.append(block.register_forward_pre_hook(self._concat_hook(index)))
                handles.append(block.register_forward_hook(self._grown, prepend=True))
            after = net.lowered.graph
            last = next(
                n for n in after.nodes if n.name.startswith(f"{name}_in{len(self.vertices) - 1}")
            )
            first, *_ = last.users
            path = (
                first.target
                if first.op == "call_module"
                else list(first.meta["nn_module_stack"].values())[-1][0]
            )
            handles.append(modules[path].register_forward_pre_hook(self._concat_out))
            return
        # In front of the model's own hooks, which gather what blocks give; what is put in front
        # last runs first.
        named = [
            n
            for n in net.lowered.graph.nodes
            if n.name in found.blocks[-1].fx_nodes and n.op == "call_module"
        ]
        is_unit = isinstance(blocks[-1], nn.Conv2d)
        last = modules[named[-1].target] if is_unit else blocks[-1]
        calls = [n for n in net.lowered.graph.nodes if n.target == named[-1].target]
        self.turn = calls.index(named[-1]) if is_unit else 0  # an activation may be called twice
        handles.append(last.register_forward_hook(self._out_hook, prepend=True))
        for index, block in enumerate(blocks, start=1):
            handles.append(block.register_forward_pre_hook(self._input_hook(index)))
            if self.lifted:
                handles.append(block.register_forward_hook(self._lifted_hook(index), prepend=True))

    def start(self) -> None:
        self.values, self.inputs, self.rows, self.live, self.weights = [], {}, [], [True], {}
        self.num_out_calls = 0

    def finish(self) -> dict:
        weights = self.weights
        self.start()
        return weights

    def _add_value(self, value: torch.Tensor) -> None:
        self.values.append(value.clone())
        self._route(len(self.values) - 1)

    def _route(self, index: int) -> None:
        if index == len(self.vertices) - 1:
            return
        router = getattr(self.owner, f"router_{index}", None)
        if router is None:
            return
        value = self.values[index][0].double()
        axis = self.axis - 1 if self.axis > 0 else value.ndim - 1
        pooled = [float(value.select(axis, c).mean()) for c in range(value.shape[axis])]
        stage_wide = not hasattr(self.owner, "router_1")
        edges = (
            self.net.graph.edges(self.name)
            if stage_wide
            else self.net.graph.outgoing(self.vertices[index])
        )
        for edge, row, bias in zip(
            edges, router.weight.double().tolist(), router.bias.double().tolist(), strict=True
        ):
            logit = sum(a * b for a, b in zip(row, pooled, strict=True)) + bias
            self.weights[edge.source, edge.target] = float(edge.is_static) + math.tanh(logit)

    def _decide(self, index: int) -> list[tuple[int, float]]:
        """Active (source index, weight) pairs into vertex `index`; rewrites the weights to what is
        applied.
        """
        target = self.vertices[index]
        raw = {}
        for source in range(index):
            key = (self.vertices[source], target)
            if key in self.weights:
                raw[source] = self.weights[key]
                self.weights[key] = (
                    self.weights[key] if self.live[source] and not self.weights[key] <= 0.5 else 0.0
                )
        active = [
            (s, self.weights[self.vertices[s], target])
            for s in raw
            if self.weights[self.vertices[s], target] != 0
        ]
        if index == len(self.vertices) - 1 and not active and any(self.live[s] for s in raw):
            best = max((s for s in raw if self.live[s]), key=lambda s: (raw[s], s))
            self.weights[self.vertices[best], target] = 1.0
            active = [(best, 1.0)]
        self.live.append(bool(active))
        return active

    def _sum(self, index: int, like: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(like)
        axis = self.axis % like.ndim
        for source, weight in self._decide(index):
            value = self.values[source]
            if value.shape != like.shape:
                keep = min(value.shape[axis], like.shape[axis])
                wide = torch.zeros_like(like)
                wide.narrow(axis, 0, keep).copy_(value.narrow(axis, 0, keep))
                value = wide
            total += weight * value
        return total

    def _input_hook(self, index: int):
        def hook(_module, args):
            if index == 1 or not self.lifted:
                self._add_value(args[0])
            new = self._sum(index, self.values[0] if self.lifted else args[0])
            self.inputs[index] = new.clone()
            return (new, *args[1:])

        return hook

    def _lifted_hook(self, index: int):
        def hook(_module, _args, output):
            self._add_value(output - self.inputs[index])

        return hook

    def _out_hook(self, _module, _args, output):
        self.num_out_calls += 1
        if self.num_out_calls != self.turn + 1:
            return output
        if isinstance(output, tuple):  # MViT's blocks hand on their grid size too
            return (self._sum_out(output[0]), *output[1:])
        return self._sum_out(output)

    def _sum_out(self, output):
        if not self.lifted:
            self._add_value(output)
        return self._sum(len(self.vertices) - 1, output)

    def _gated(self, index: int) -> list[torch.Tensor]:
        gates = dict(self._decide(index))
        return [
            gates[s] * value if s in gates else torch.zeros_like(value)
            for s, value in enumerate(self.values[:index])
        ]

    def _concat_hook(self, index: int):
        def hook(_module, args):
            if index == 1:
                self._add_value(args[0][0])
            return (self._gated(index),)

        return hook

    def _grown(self, _module, _args, output):
        self._add_value(output)

    def _concat_out(self, _module, args):
        return (torch.cat(self._gated(len(self.vertices) - 1), dim=1),)
