"""Hooks on modules that the flat graph does not call: blocks, containers such as `layer4`.

Every module of the backbone keeps its hooks in tables that notice a new one (`watch_`). Where the
module has a place in the graph, the graph gets two nodes there: `enter` runs pre-hooks on what goes
in, `leave` runs forward hooks on what comes out, and between them they set up backward hooks, all
as `nn.Module.__call__` does. Where it has none, registering is an error that names modules to hook
instead. Without hooks nothing is added to the graph, and nothing runs.

A lifted block hands on F(x) alone, and the skip is edges: its hooks look at x + F(x) without
gradient, and cannot replace it.
"""

import warnings
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn
from torch.utils.hooks import (
    BackwardHook,
)  # not documented, torch 2.10 to 2.15; what nn.Module.__call__ uses

from dggraph.compiler.calls import STACK, Site, find_sites, stand_in
from dggraph.compiler.naming import read_taken_names_
from dggraph.compiler.planning import StagePlan
from dggraph.errors import DggraphWarning, HookError

_PRE, _FORWARD, _BACKWARD, _BACKWARD_PRE = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_IS_HOOKED = "dg_is_hooked"
_KINDS = (_PRE, _FORWARD, _BACKWARD, _BACKWARD_PRE)


class HookTable(OrderedDict[int, Any]):
    """The hooks of one kind of one module. Lets the graph know of a new one, or refuses it; a copy
    is a plain table.
    """

    def __init__(
        self, graph_module: fx.GraphModule, path: str, *, refusal: str, warning: str
    ) -> None:
        super().__init__()
        self.graph_module, self.path, self.refusal, self.warning = (
            weakref.ref(graph_module),
            path,
            refusal,
            warning,
        )

    def __setitem__(self, number: int, hook: Any) -> None:
        graph_module = self.graph_module()
        if graph_module is not None:
            if self.refusal:
                raise HookError(self.refusal)
            if self.warning:
                warnings.warn(self.warning, DggraphWarning, stacklevel=3)
            _note_(graph_module, self.path)
        super().__setitem__(number, hook)

    def __reduce__(self) -> Any:
        return OrderedDict, (), None, None, iter(self.items())


def watch_(graph_module: fx.GraphModule) -> None:
    """Let every module of the backbone in `graph_module` notice hooks from now on.

    Raises:
        HookError: a module comes with hooks where none can run.
    """
    called = _called(graph_module)
    inside = tuple(f"{path}." for path, module in graph_module.named_modules() if module in called)
    sites = find_sites(graph_module.graph)
    by_module: dict[int, list[Site]] = {}
    for site in sites.values():
        by_module.setdefault(id(_module_at(graph_module, site.path)), []).append(site)
    vars(graph_module)[_IS_HOOKED] = False
    for path, module in graph_module.named_modules():
        if path.startswith((*inside, "dg_")) or type(module).forward is nn.Module.forward:
            # Run by the module around it; routing; or a list of modules, which the backbone does
            # not call either.
            continue
        own = by_module.get(id(module), [])
        for kind in _KINDS:
            refusal, warning = (
                ("", "") if module in called else _judge(graph_module, path, own, sites, kind)
            )
            if not vars(module)[kind]:
                vars(module)[kind] = HookTable(graph_module, path, refusal=refusal, warning=warning)
            elif refusal:
                raise HookError(refusal)
        if has_hooks(module):
            _note_(graph_module, path)


def is_hooked(graph_module: fx.GraphModule) -> bool:
    """Whether a module has, or had since the last `drop_idle_calls_`, a hook."""
    return bool(vars(graph_module)[_IS_HOOKED])


def has_hooks(module: nn.Module) -> bool:
    """Whether `module` has hooks around its forward or backward."""
    return any(vars(module)[kind] for kind in _KINDS)


def drop_idle_calls_(graph_module: fx.GraphModule) -> None:
    """Take `enter` and `leave` of modules whose hooks are all gone out of the graph again."""
    graph, size = graph_module.graph, len(graph_module.graph.nodes)
    for call in [fx_node for fx_node in graph.nodes if fx_node.target is enter]:
        owner, value, _ = call.args
        module = _module_at(graph_module, str(owner.target))
        if module is not None and has_hooks(module):
            continue
        for user in list(call.users):
            user.replace_all_uses_with(user.args[1] if user.target is leave else value)
            graph.erase_node(user)
        graph.erase_node(call)
        graph.erase_node(owner)
    if len(graph.nodes) < size:
        graph_module.recompile()
    vars(graph_module)[_IS_HOOKED] = any(
        has_hooks(module)
        for path, module in graph_module.named_modules()
        if path and not path.startswith("dg_")
    )


def hooked_blocks(graph_module: fx.GraphModule, plan: Sequence[StagePlan]) -> tuple[StagePlan, ...]:
    """`plan`, with the stages that `enter` or `leave` stand in on whole batches."""
    ends = [
        fx_node for fx_node in graph_module.graph.nodes if fx_node.target in (enter, entered, leave)
    ]
    touched = {user.name for end in ends for user in end.users} | {
        read.name for end in ends for read in end.all_input_nodes
    }
    return tuple(
        _on_whole_batches(stage) if not _inside(stage).isdisjoint(touched) else stage
        for stage in plan
    )


def hooked_layers(graph_module: fx.GraphModule, plan: Sequence[StagePlan]) -> tuple[StagePlan, ...]:
    """`plan`, with the stages in whose blocks a layer that the graph calls has hooks on whole
    batches.
    """
    hooked = {
        fx_node.name
        for fx_node in graph_module.graph.nodes
        if fx_node.op == "call_module"
        and has_hooks(graph_module.get_submodule(str(fx_node.target)))
    }
    return tuple(
        _on_whole_batches(stage) if not _inside(stage).isdisjoint(hooked) else stage
        for stage in plan
    )


@dataclass(slots=True)
class HookedCall:
    """One call of a hooked module, between its two ends."""

    module: nn.Module
    args: tuple[Any, ...]
    """What its hooks see."""
    input: Any
    """What goes in."""
    backward: Any
    is_lifted: bool


def enter(module: nn.Module, x: Tensor, is_lifted: bool) -> HookedCall:
    """Run the pre-hooks of `module` on its input, the features (B, ...) that its place in the graph
    gets.

    Raises:
        HookError: a pre-hook gives other than one tensor, or replaces the input of a lifted block.
    """
    args: tuple[Any, ...] = (x.detach() if is_lifted else x,)
    for number, hook in module._forward_pre_hooks.items():
        takes_keywords = number in module._forward_pre_hooks_with_kwargs
        given = hook(module, args, {}) if takes_keywords else hook(module, args)
        if given is None:
            continue
        _refuse_replacing(module, is_lifted, "input")
        args = given[0] if takes_keywords else given if isinstance(given, tuple) else (given,)
        if len(args) != 1 or not isinstance(args[0], Tensor) or (takes_keywords and given[1]):
            raise HookError(
                f"a forward pre-hook of a {type(module).__name__} gives other arguments than one"
                " tensor; in a converted network its modules take the one tensor that their place"
                " in the graph gets."
            )
    full, before = list(module._backward_hooks.values()), list(module._backward_pre_hooks.values())
    backward: Any = BackwardHook(module, full, before) if full or before else None
    if backward is not None:
        args = backward.setup_input_hook(args)
    return HookedCall(module, args, x if is_lifted else args[0], backward, is_lifted)


def entered(call: HookedCall) -> Any:
    """What `enter` lets in."""
    return call.input


def leave(call: HookedCall, y: Any) -> Any:
    """Run the forward hooks of the call on its output; what they give replaces it.

    Raises:
        HookError: one replaces the output of a lifted block.
    """
    module, result = call.module, (call.args[0] + y).detach() if call.is_lifted else y
    for number, hook in module._forward_hooks.items():
        takes_keywords = number in module._forward_hooks_with_kwargs
        given = (
            hook(module, call.args, {}, result)
            if takes_keywords
            else hook(module, call.args, result)
        )
        if given is not None:
            _refuse_replacing(module, call.is_lifted, "output")
            result = given
    if call.is_lifted:
        return y
    return result if call.backward is None else call.backward.setup_output_hook(result)


def _refuse_replacing(module: nn.Module, is_lifted: bool, what: str) -> None:
    if is_lifted:
        raise HookError(
            f"a hook replaces the {what} of a {type(module).__name__} whose residual is lifted: it"
            " hands on F(x) alone, the skip is edges. Let the hook return None, hook a module"
            ' inside it, or convert with residual="keep".'
        )


def _note_(graph_module: fx.GraphModule, path: str) -> None:
    """Remember that there are hooks; put `enter` and `leave` around every call of the module at
    `path`, unless the graph calls it itself.
    """
    vars(graph_module)[_IS_HOOKED] = True
    graph, module = graph_module.graph, graph_module.get_submodule(path)
    if module in _called(graph_module) or any(
        fx_node.target is enter and _module_at(graph_module, str(fx_node.args[0].target)) is module
        for fx_node in graph.nodes
    ):
        return
    if module._is_full_backward_hook is False:
        module._is_full_backward_hook = None  # as it was before register_backward_hook
        raise HookError(
            f"hooks of the old kind see the gradients of the last op of {path!r} alone. Use"
            " register_full_backward_hook."
        )
    for key in [
        key
        for key, site in find_sites(graph).items()
        if _module_at(graph_module, site.path) is module
    ]:
        _write_call(graph, find_sites(graph)[key])
    read_taken_names_(graph)
    graph_module.recompile()


def _write_call(graph: fx.Graph, site: Site) -> None:
    (source,), (value,) = site.entries, site.exits
    first = next(
        fx_node
        for fx_node in graph.nodes
        if fx_node in site.inside and source in fx_node.all_input_nodes
    )
    name = f"dg_hooks_{value.name}"
    with graph.inserting_before(first):
        owner = graph.create_node("get_attr", site.path, name=f"{name}_module")
        call = graph.create_node(
            "call_function", enter, (owner, source, site.is_lifted), name=f"{name}_call"
        )
        new_input = graph.create_node("call_function", entered, (call,), name=f"{name}_input")
    for fx_node in site.inside:
        fx_node.replace_input_with(source, new_input)
    with graph.inserting_after(value):
        new_output = graph.create_node("call_function", leave, (call, value), name=f"{name}_output")
    for user in list(value.users):
        if user not in site.inside and user is not new_output:
            user.replace_input_with(value, new_output)
    for fx_node in (owner, call, new_input, new_output):
        fx_node.meta[STACK] = dict(site.around)
    stand_in(new_input, source)
    stand_in(new_output, value)


def _judge(
    graph_module: fx.GraphModule,
    path: str,
    own: Sequence[Site],
    sites: Mapping[str, Site],
    kind: str,
) -> tuple[str, str]:
    """Why a hook of this kind cannot run on the module at `path`, and what to say where it can;
    each empty otherwise.
    """
    if not path:
        return (
            (
                "hooks on net.lowered do not see what the sparse executor runs. Hook the network"
                " itself."
            ),
            "",
        )
    name = f"{path!r} ({type(graph_module.get_submodule(path)).__name__})"
    if not own:
        inner = [
            name
            for name, child in graph_module.get_submodule(path).named_modules()
            if child in _called(graph_module)
        ]
        if not inner:
            return (
                (
                    f"{name} is never called by the forward that was traced in eval mode, so a hook"
                    " on it cannot run."
                ),
                "",
            )
        return (
            "",
            (
                f"{name} is not called itself, in the backbone neither, so a hook on it does not"
                f" run. Hook {f'{path}.{inner[-1]}'!r}."
            ),
        )
    others = f"Hook {_others(graph_module.graph, own[0], sites)} instead"
    problem = next((problem for site in own if (problem := _problem(site))), "")
    if problem:
        return f"{name} {problem}, so a hook on it cannot run. {others}.", ""
    if not any(site.is_lifted for site in own):
        return "", ""
    why = f"the residual of {name} is lifted: it hands on F(x) alone, and the skip is edges"
    keep = 'convert with residual="keep"'
    if kind in (_BACKWARD, _BACKWARD_PRE):
        return f"{why}, so no gradient flows through its output. {others}, or {keep}.", ""
    return (
        "",
        (
            f"{why}. Hooks on it see x and x + F(x) without gradient, and cannot replace them."
            f" {others} for more, or {keep}."
        ),
    )


def _problem(site: Site) -> str:
    if site.is_structured:
        return "takes or gives feature maps in a list, tuple or mapping"
    for ends, verb in ((site.entries, "takes"), (site.exits, "gives")):
        if len(ends) != 1:
            return f"{verb} {len(ends) or 'no'} feature maps in the flat graph"
    return ""


def _others(graph: fx.Graph, site: Site, sites: Mapping[str, Site]) -> str:
    """The nearest module around `site` that can be hooked, and the last layer in it."""
    outer = [
        sites[key].path
        for key in reversed(list(site.around))
        if sites[key].has_place and not sites[key].is_lifted
    ]
    layers = [
        str(fx_node.target)
        for fx_node in graph.nodes
        if fx_node in site.inside and fx_node.op == "call_module"
    ]
    layers = [target for target in layers if not target.startswith("dg_")]
    return " or ".join(
        [
            *(f"{path!r}, around it," for path in outer[:1]),
            *(f"{path!r}, inside it," for path in layers[-1:]),
        ]
    ).rstrip(",") or ("another module")


def _module_at(graph_module: fx.GraphModule, path: str) -> nn.Module | None:
    """The module at `path`, None where it was deleted since."""
    try:
        return graph_module.get_submodule(path)
    except AttributeError:
        return None


def _called(graph_module: fx.GraphModule) -> set[nn.Module | None]:
    """The modules that the graph calls as they are."""
    targets = {
        str(fx_node.target) for fx_node in graph_module.graph.nodes if fx_node.op == "call_module"
    }
    return {_module_at(graph_module, target) for target in targets}


def _inside(stage: StagePlan) -> set[str]:
    """Names of the fx nodes that the sparse executor runs in `stage`; what it hands on is read
    outside.
    """
    return {*stage.own, *(name for block in stage.blocks for name in block.fx_nodes)} - {
        stage.output
    }


def _on_whole_batches(stage: StagePlan) -> StagePlan:
    """Hooks see every instance, in its place."""
    return replace(
        stage, dense_only=stage.dense_only or "a module in it has hooks, which see whole batches"
    )
