"""Hooks on modules that the flat graph does not call: blocks and containers such as `layer4`.

Every module of the backbone keeps its hooks in tables that notice a new one (`watch_`). If the
module has a place in the graph, two nodes are inserted there: `enter` runs pre-hooks on the input,
`leave` runs forward hooks on the output, and together they set up backward hooks, all as in
`nn.Module.__call__`. If it has no place, registering a hook is an error that names modules to hook
instead. Without hooks nothing is added to the graph, and nothing runs.

A lifted block returns F(x) alone, and its skip is edges: hooks on it see x + F(x) without gradient,
and cannot replace it.
"""

import warnings
import weakref
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import fx, nn

from dggraph.compiler.calls import STACK, Site, find_sites, stand_in
from dggraph.compiler.contexts import called_modules
from dggraph.compiler.hooked_calls import enter, entered, leave
from dggraph.compiler.naming import read_taken_names_
from dggraph.errors import DggraphWarning, HookError

_PRE, _FORWARD, _BACKWARD, _BACKWARD_PRE = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


_IS_HOOKED = "dg_is_hooked"
KINDS = (_PRE, _FORWARD, _BACKWARD, _BACKWARD_PRE)
FORWARD_KINDS = (_PRE, _FORWARD)
"""Those that run without gradients."""


class HookTable(OrderedDict[int, Any]):
    """The hooks of one kind on one module.

    A new hook is reported to the graph or refused, as long as the module is part of it. A copy is a
    plain dictionary. Two empty tables differ, as modules do.
    """

    __eq__, __ne__ = object.__eq__, object.__ne__

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
        if graph_module is not None and self._is_part_of(graph_module):
            if self.refusal:
                raise HookError(self.refusal)
            if self.warning:
                warnings.warn(self.warning, DggraphWarning, stacklevel=3)
            _note_(graph_module, self.path)
        super().__setitem__(number, hook)

    def _is_part_of(self, graph_module: fx.GraphModule) -> bool:
        module = _module_at(graph_module, self.path)
        return module is not None and any(vars(module)[kind] is self for kind in KINDS)

    def __reduce__(self) -> Any:
        return OrderedDict, (), None, None, iter(self.items())


def watch_(graph_module: fx.GraphModule) -> None:
    """Make every module of the backbone in `graph_module` notice new hooks.

    Raises:
        HookError: a module already has hooks that cannot run.
    """
    called = _called(graph_module)
    sites = find_sites(graph_module.graph)
    by_module: dict[int, list[Site]] = {}
    for site in sites.values():
        by_module.setdefault(id(_module_at(graph_module, site.path)), []).append(site)
    vars(graph_module)[_IS_HOOKED] = any(
        fx_node.target is enter for fx_node in graph_module.graph.nodes
    )
    for path, module in _watched(graph_module):
        is_run = _is_run(graph_module, path, called)
        own = by_module.get(id(module), [])
        for kind in KINDS:
            refusal, warning = (
                ("", "")
                if is_run
                else _refusal_and_warning(graph_module, path, own, sites, called, kind)
            )
            if not vars(module)[kind]:
                vars(module)[kind] = HookTable(graph_module, path, refusal=refusal, warning=warning)
            elif refusal:
                raise HookError(refusal)
        if has_hooks(module):
            _note_(graph_module, path)


def watch_new_(graph_module: fx.GraphModule) -> None:
    """Call `watch_` if there are modules that it has not seen, as those that replaced others."""
    for _, module in _watched(graph_module):
        table = vars(module)[_FORWARD]
        if not isinstance(table, HookTable) or table.graph_module() is not graph_module:
            watch_(graph_module)
            return


def _watched(graph_module: fx.GraphModule) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that may have hooks, and their paths.

    The others are routing, and lists of modules, which the backbone does not call either.
    """
    for path, module in graph_module.named_modules():
        if not path.startswith("dg_") and type(module).forward is not nn.Module.forward:
            yield path, module


def is_hooked(graph_module: fx.GraphModule) -> bool:
    """Whether a module has a hook, or had one since the last `drop_idle_calls_`."""
    return bool(vars(graph_module)[_IS_HOOKED])


def has_hooks(module: nn.Module) -> bool:
    """Whether `module` has hooks around its forward or backward."""
    return any(vars(module)[kind] for kind in KINDS)


def drop_idle_calls_(graph_module: fx.GraphModule) -> None:
    """Remove `enter` and `leave` of modules whose hooks were all removed."""
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


def _note_(graph_module: fx.GraphModule, path: str) -> None:
    """Record that there are hooks, and put `enter` and `leave` around every call of the module.

    The module at `path` needs no such ops if the graph calls it, or a module around it.
    """
    vars(graph_module)[_IS_HOOKED] = True
    graph, module = graph_module.graph, graph_module.get_submodule(path)
    if _is_run(graph_module, path, _called(graph_module)) or any(
        fx_node.target is enter and _module_at(graph_module, str(fx_node.args[0].target)) is module
        for fx_node in graph.nodes
    ):
        return
    if module._is_full_backward_hook is False:
        module._is_full_backward_hook = None  # its value before register_backward_hook
        raise HookError(
            f"register_backward_hook on {path!r} would see the gradients of its last op alone. Use"
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


def _refusal_and_warning(
    graph_module: fx.GraphModule,
    path: str,
    own: Sequence[Site],
    sites: Mapping[str, Site],
    called: Collection[nn.Module | None],
    kind: str,
) -> tuple[str, str]:
    """Return why a hook of `kind` cannot run on the module at `path`, and a warning if it can.

    Each is empty if there is nothing to report.
    """
    if not path:
        return (
            (
                "hooks on net.lowered do not see the ops that the sparse executor runs. Hook the"
                " network itself."
            ),
            "",
        )
    name = f"{path!r} ({type(graph_module.get_submodule(path)).__name__})"
    if not own:
        inner = [
            name
            for name, child in graph_module.get_submodule(path).named_modules()
            if child in called
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
                f"{name} is not called itself, nor does the backbone call it, so a hook on it does"
                f" not run. Hook {f'{path}.{inner[-1]}'!r}."
            ),
        )
    others = f"Hook {_others(graph_module.graph, own[0], sites)} instead"
    problem = next((problem for site in own if (problem := _problem(site))), "")
    if problem:
        return f"{name} {problem}, so a hook on it cannot run. {others}.", ""
    if not any(site.is_lifted for site in own):
        return "", ""
    why = f"the residual of {name} is lifted: it returns F(x) alone, and its skip is edges"
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
        return "takes or returns feature maps in a list, tuple or mapping"
    for ends, verb in ((site.entries, "takes"), (site.exits, "returns")):
        if len(ends) != 1:
            return f"{verb} {len(ends) or 'no'} feature maps in the flat graph"
    return ""


def _others(graph: fx.Graph, site: Site, sites: Mapping[str, Site]) -> str:
    """Return text that names the nearest hookable module around `site` and the last layer in it."""
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
    """Return the module at `path`, or None if it was deleted."""
    try:
        return graph_module.get_submodule(path)
    except AttributeError:
        return None


def _is_run(graph_module: fx.GraphModule, path: str, called: Collection[nn.Module | None]) -> bool:
    """Whether the module at `path`, or one around it, is among the `called` ones."""
    parts = path.split(".")
    ends = range(1, len(parts) + 1) if path else ()
    return any(_module_at(graph_module, ".".join(parts[:end])) in called for end in ends)


def _called(graph_module: fx.GraphModule) -> set[nn.Module | None]:
    """Return the modules that the graph calls directly."""
    paths = set(called_modules(graph_module.graph.nodes))
    return {_module_at(graph_module, path) for path in paths}
