"""What people do with a backbone, each as a function of one fresh model and a batch of images, that
returns something to compare.

The same check runs on a static model and on what it was converted into. Routing is left out of what
is compared: `without_routing`.
"""

import copy
import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.swa_utils import AveragedModel
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

Check = Callable[[nn.Module, Tensor], Any]


def without_routing(named: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in named if not name.startswith("dg_")}


def first(output: Any) -> Tensor:
    """The logits, or the last feature map."""
    if isinstance(output, Mapping):
        output = list(output.values())
    return (
        output
        if isinstance(output, Tensor)
        else output[-1]
        if isinstance(output, list)
        else output[0]
    )


def gradients(model: nn.Module, x: Tensor) -> dict[str, Any]:
    first(model(x)).square().mean().backward()
    assert all(
        parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad
    ), "a parameter without gradient"
    return without_routing((name, parameter.grad) for name, parameter in model.named_parameters())


def last_layer(model: nn.Module) -> tuple[str, nn.Linear]:
    """The last linear layer with a bias, as heads have."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module.bias is not None
    ][-1]


# Running


def forward(model: nn.Module, x: Tensor) -> Any:
    return model(x)


def forward_of_one(model: nn.Module, x: Tensor) -> Any:
    return model(x[:1])


def forward_of_another_size(model: nn.Module, x: Tensor) -> Any:
    return model(torch.cat([x, x.flip(3)], 3))


def backward_in_eval_mode(model: nn.Module, x: Tensor) -> Any:
    return gradients(model, x)


def backward_to_the_images(model: nn.Module, x: Tensor) -> Any:
    x = x.clone().requires_grad_()
    first(model(x)).sum().backward()
    return x.grad


def trained_statistics(model: nn.Module, x: Tensor) -> Any:
    """One pass in train mode, whatever is random left out."""
    for module in model.train().modules():
        if "Drop" in type(module).__name__ or isinstance(module, nn.Dropout):
            module.eval()
    model(x)
    return without_routing(model.named_buffers())


def modes(model: nn.Module, x: Tensor) -> Any:
    seen = [
        without_routing(
            (name, module.training) for name, module in model.train(mode).named_modules()
        )
        for mode in (True, False)
    ]
    return seen, model.training


def channels_last(model: nn.Module, x: Tensor) -> Any:
    return model.to(memory_format=torch.channels_last)(
        x.contiguous(memory_format=torch.channels_last)
    )


def double(model: nn.Module, x: Tensor) -> Any:
    return model.double()(x.double())


def bfloat16(model: nn.Module, x: Tensor) -> Any:
    return first(model.bfloat16()(x.bfloat16())).dtype


def autocast(model: nn.Module, x: Tensor) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return first(model(x)).dtype


# Names, attributes, states


def names(model: nn.Module, x: Tensor) -> Any:
    listed = (
        model.named_parameters(),
        model.named_buffers(),
        model.named_children(),
        model.state_dict().items(),
    )
    return [list(without_routing(named)) for named in listed]


def last_parameters(model: nn.Module, x: Tensor) -> Any:
    return [parameter.shape for parameter in list(model.parameters())[-2:]], str(
        list(model.children())[-1]
    )


def state_dict(model: nn.Module, x: Tensor) -> Any:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    model.load_state_dict(torch.load(buffer, weights_only=True))
    return model(x)


def attributes(model: nn.Module, x: Tensor) -> Any:
    wanted = (
        "num_classes",
        "num_features",
        "head_hidden_size",
        "default_cfg",
        "pretrained_cfg",
        "feature_info",
        "grad_checkpointing",
        "inplanes",
    )
    return {name: repr(getattr(model, name)) for name in wanted if hasattr(model, name)}


def looking_methods(model: nn.Module, x: Tensor) -> Any:
    classifier = str(model.get_classifier()) if hasattr(model, "get_classifier") else None
    kept = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    return classifier, sorted(name for name in kept if not name.startswith("dg_"))


def deep_copy(model: nn.Module, x: Tensor) -> Any:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        next(twin.parameters()).zero_()
    return model(x)


def average(model: nn.Module, x: Tensor) -> Any:
    averaged = AveragedModel(model, use_buffers=True)
    averaged.update_parameters(model)
    return averaged.module(x)


def empty_then_loaded(model: nn.Module, x: Tensor) -> Any:
    state = copy.deepcopy(model.state_dict())
    model.to("meta").to_empty(device="cpu")
    model.load_state_dict(state)
    return model(x)


# Changing


def new_head(model: nn.Module, x: Tensor) -> Any:
    name, layer = last_layer(model)
    torch.manual_seed(0)
    model.set_submodule(name, nn.Linear(layer.in_features, 3))
    return model(x)


def no_head(model: nn.Module, x: Tensor) -> Any:
    model.set_submodule(last_layer(model)[0], nn.Identity())
    return model(x)


def parametrised(model: nn.Module, x: Tensor) -> Any:
    torch.manual_seed(0)
    spectral_norm(next(module for module in model.modules() if isinstance(module, nn.Conv2d)))
    return model(x)


def frozen_norms(model: nn.Module, x: Tensor) -> Any:
    from timm.utils import freeze

    path = next(
        name
        for name, module in model.named_modules()
        if name and any(isinstance(m, nn.BatchNorm2d) for m in module.children())
    )
    freeze(model, [path])
    return model(x), without_routing(
        (name, parameter.requires_grad) for name, parameter in model.named_parameters()
    )


def synchronised_norms(model: nn.Module, x: Tensor) -> Any:
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)(x)


def hooked_head(model: nn.Module, x: Tensor) -> Any:
    seen: list[Tensor] = []
    last_layer(model)[1].register_forward_hook(
        lambda _module, inputs, _output: seen.append(inputs[0])
    )
    model(x)
    return seen


def swapped_weights(model: nn.Module, x: Tensor) -> Any:
    changed = {
        name: 2 * tensor for name, tensor in without_routing(model.named_parameters()).items()
    }
    return torch.func.functional_call(model, changed, (x,))


def decay_and_rates(model: nn.Module, x: Tensor) -> Any:
    from timm.optim import create_optimizer_v2

    named = {parameter: name for name, parameter in model.named_parameters()}
    found = []
    for layer_decay in (None, 0.7):
        optimiser = create_optimizer_v2(
            model, "adamw", lr=0.1, weight_decay=0.1, layer_decay=layer_decay
        )
        groups = (
            (named[p], (g["weight_decay"], g.get("lr_scale", 1.0)))
            for g in optimiser.param_groups
            for p in g["params"]
        )
        found.append(dict(sorted(without_routing(groups).items())))
    return found


def data_configuration(model: nn.Module, x: Tensor) -> Any:
    from timm.data import resolve_model_data_config

    return str(resolve_model_data_config(model))


# Compiling and exporting


def compiled(model: nn.Module, x: Tensor) -> Any:
    torch._dynamo.reset()
    with torch.no_grad():
        return torch.compile(model, backend="eager", fullgraph=True)(x)


def exported(model: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return torch.export.export(model, (x,)).module()(x)


def jit_traced_and_saved(model: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        traced, buffer = torch.jit.trace(model, x), io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)(x)


def jit_scripted(model: nn.Module, x: Tensor) -> Any:
    return torch.jit.script(model)(x)


def fx_traced(model: nn.Module, x: Tensor) -> Any:
    return fx.symbolic_trace(model)(x)


def features_extracted(model: nn.Module, x: Tensor) -> Any:
    _, nodes = get_graph_node_names(model, suppress_diff_warning=True)
    return list(create_feature_extractor(model, nodes[-1:], suppress_diff_warning=True)(x).values())


def per_image_gradients(model: nn.Module, x: Tensor) -> Any:
    state = dict(model.named_buffers())
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return (
            first(torch.func.functional_call(model, (parameters, state), (image[None],)))
            .square()
            .mean()
        )

    found = torch.func.vmap(torch.func.grad(loss), (None, 0), randomness="different")(parameters, x)
    return without_routing(found.items())


def forward_mode(model: nn.Module, x: Tensor) -> Any:
    return torch.func.jvp(lambda images: first(model(images)), (x,), (torch.ones_like(x),))[1]


# What the backbone's class can do


def children_in_a_row(model: nn.Module, x: Tensor) -> Any:
    return nn.Sequential(*list(model.children())[:-1])(x)


def layers_by_name(model: nn.Module, x: Tensor) -> Any:
    name = [name for name, _ in model.named_children()][-2]
    return IntermediateLayerGetter(model, {name: "out"})(x)["out"]


def _method(name: str, *arguments: Any) -> Check:
    def call(model: nn.Module, x: Tensor) -> Any:
        result = getattr(model, name)(
            *(x if argument is Tensor else argument for argument in arguments)
        )
        return model(x).shape if result is None else first(result)

    return call


RUN: dict[str, Check] = {
    check.__name__: check
    for check in (
        forward, forward_of_one, forward_of_another_size, backward_in_eval_mode,
        backward_to_the_images, trained_statistics, modes,
        channels_last, double, bfloat16, autocast, names, last_parameters, state_dict, attributes,
        looking_methods, deep_copy, average,
        empty_then_loaded, new_head, no_head, parametrised, frozen_norms, synchronised_norms,
        hooked_head, swapped_weights, decay_and_rates,
        data_configuration, compiled, exported, jit_traced_and_saved, per_image_gradients,
    )
}  # fmt: skip
"""What a converted network does as its backbone."""

REFUSED: dict[str, Check] = {
    check.__name__: check
    for check in (
        jit_scripted,
        fx_traced,
        features_extracted,
        forward_mode,
        children_in_a_row,
        layers_by_name,
    )
} | {
    "forward_features": _method("forward_features", Tensor),
    "forward_intermediates": _method("forward_intermediates", Tensor),
    "reset_classifier": _method("reset_classifier", 7),
    "set_grad_checkpointing": _method("set_grad_checkpointing"),
    "forward_impl": _method("_forward_impl", Tensor),
}
"""What it refuses, in one error that says what to do before converting."""
