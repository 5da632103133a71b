"""Trace a backbone into a flat `torch.fx` graph whose nodes know which module calls they came from.

Default `fx` traces 240 of 279 small timm models. Four things close most of the gap: the backbone's
optional arguments keep their Python defaults instead of becoming placeholders (`if mask is not
None` would take the wrong branch silently); timm's own registries name what must stay a leaf;
modules that act differently in training stay leaves, so that tracing in eval mode does not erase
them; and a module that cannot be traced becomes a leaf, deepest first, until the rest goes through.

Where a forward decides by `self.training`, the other branch is looked at too (`training_flags`):
what acts differently in training is kept as one call, and where that would be the whole backbone,
the trace says so.
"""

import copy
import hashlib
import inspect
import re
import sys
import traceback
import types
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from dggraph.compiler.answers import (
    COMPILER,
    AnsweringTracer,
    Assumption,
    KeepWhole,
    answered_builtins,
    failed_function,
    is_module_s,
    is_others,
    place,
    plain_function,
)
from dggraph.compiler.calls import mark_structured
from dggraph.compiler.capture import CHECKPOINT_FLAGS, Capture, capturing, keep, keep_contents
from dggraph.compiler.copying import copy_model, rebind_
from dggraph.compiler.profiling import quiet, unchanged
from dggraph.compiler.returns import plain
from dggraph.compiler.training_flags import Owner, Question, can_keep, follow_training, set_flags_
from dggraph.compiler.wrapping import FACTORIES, called_whole
from dggraph.errors import InputError, TraceError
from dggraph.ops.guards import hold
from dggraph.system.torch_private import tree_leaves

MAX_OPAQUE = 16
TENSOR_CONSTANT = "_tensor_constant"
_GENERATED = {"torch", "getattr", "setattr", "operator", "dggraph"}
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Opaque:
    """A module class or a function that is called as a whole, because it cannot be traced."""

    name: str
    """Name of the class or function."""
    module_path: str
    """Path of the module whose forward could not be traced, or of the one that calls the
    function.
    """
    place: str
    """File and line."""
    reason: str

    def __str__(self) -> str:
        where = f" ({self.module_path})" if self.module_path else ""
        return f"{self.name}{where} at {self.place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Trace:
    """A backbone and its flat graph."""

    module: nn.Module
    """A deep copy of the backbone, in eval mode; the graph's targets are paths in it."""
    graph: fx.Graph
    """Every fx node's `meta["nn_module_stack"]` maps call keys to (module path, class), outermost
    first.
    """
    opaque: tuple[Opaque, ...] = ()
    """What became one call because it could not be traced."""
    assumptions: tuple[Assumption, ...] = ()
    """Answers that the backbone's Python got from the example, and went by."""
    hooks: tuple[str, ...] = ()
    """Paths of modules (empty: the backbone itself) whose hooks the graph does not run and the copy
    no longer has.
    """
    returned: Any = None
    """What forward returned, in the types it returned it in; proxies stand for values. None where
    the graph was there already.
    """
    checkpointed: tuple[str, ...] = ()
    """Paths of modules (empty: the backbone itself) that ask for gradient checkpointing, which the
    graph does not do.
    """
    eval_only: tuple[str, ...] = ()
    """Places where forward decides by `self.training`, in what is too large to be one call: the
    graph does as in eval mode.
    """


def trace(
    model: nn.Module, leaves: Collection[type[nn.Module]] = (), example: Tensor | None = None
) -> Trace:
    """Trace a deep copy of `model` in eval mode; what acts differently in training is kept as one
    call.

    See `trace_eval` for arguments and errors.
    """
    return _trace(model, leaves, example, is_followed=example is not None)


def trace_eval(
    model: nn.Module, leaves: Collection[type[nn.Module]] = (), example: Tensor | None = None
) -> Trace:
    """Trace a deep copy of `model` in eval mode, whatever it would do in training: older archives
    have such a trace.

    Args:
        model: a backbone whose first argument is a batched image tensor.
        leaves: module classes to keep as single calls, besides `torch.nn`, timm's registries and
            whatever fails to trace.
        example: (1 or more, C, H, W), what the backbone's Python sees of a batch where it asks.
            Without one every question fails, as it did before there were answers: archives from
            then have such a trace.

    Raises:
        TraceError: the backbone's own forward has data-dependent control flow; names module, line,
            reason and way out.
        InputError: the backbone cannot be copied, or is no longer made of modules.
    """
    return _trace(model, leaves, example, is_followed=False)


def _trace(
    model: nn.Module,
    leaves: Collection[type[nn.Module]],
    example: Tensor | None,
    *,
    is_followed: bool,
) -> Trace:
    module = copy_model(model)
    module.eval()  # may be its own, and answer anything
    _refuse_foreign(module)
    if isinstance(module, fx.GraphModule) and any(
        "nn_module_stack" in fx_node.meta for fx_node in module.graph.nodes
    ):
        graph = copy.deepcopy(module.graph)
        return Trace(module, graph, hooks=_drop_hooks(module, graph))
    opaque: dict[type | types.FunctionType, Opaque] = {}
    settled: set[Owner] = set()
    eval_only: list[str] = []
    checkpointed: list[str] = []
    while True:
        tracer, error = _try(module, leaves, opaque, example)
        if error is not None:
            kept = _culprit(tracer, error)
            if kept is None or kept in opaque or len(opaque) == MAX_OPAQUE:
                raise _explain(module, tracer.failed, error) from error
            opaque[kept] = _describe(kept, tracer.failed, error)
            continue
        for owner, question in tracer.questions.items() if is_followed else ():
            if owner in settled:
                continue
            settled.add(owner)
            other, error = _try(module, leaves, opaque, example, question.paths)
            if error is None and fingerprint(other.graph) == fingerprint(tracer.graph):
                checkpointed += other.capture.checkpointed
            elif can_keep(owner, module) and len(opaque) < MAX_OPAQUE:
                opaque[owner] = Opaque(
                    name=owner.__name__,
                    module_path=min(question.paths),
                    place=question.place,
                    reason="it acts differently in training",
                )
                break
            else:
                eval_only.append(question.place)
        else:
            return _finished(
                module, tracer, example, tuple(opaque.values()), checkpointed, eval_only
            )


def _finished(
    module: nn.Module,
    tracer: "_BackboneTracer",
    example: Tensor | None,
    opaque: tuple[Opaque, ...],
    checkpointed: Iterable[str],
    eval_only: Iterable[str],
) -> Trace:
    for name, value in vars(tracer.root).items():
        if name.startswith(TENSOR_CONSTANT):
            module.register_buffer(name, value, persistent=False)
    tracer.capture.checkpointed += checkpointed
    return Trace(
        module,
        tracer.graph,
        opaque,
        (*tracer.assumptions, *tracer.counted()) if example is not None else (),
        _drop_hooks(module, tracer.graph),
        tracer.capture.returned,
        _checkpointed(module, tracer.graph, tracer.capture),
        tuple(eval_only),
    )


def _try(
    module: nn.Module,
    leaves: Collection[type[nn.Module]],
    opaque: Collection[type | types.FunctionType],
    example: Tensor | None,
    trained: Collection[str] = (),
) -> tuple["_BackboneTracer", BaseException | None]:
    """Trace with `opaque` kept whole and the modules at `trained` in training mode. Returns the
    tracer, which has the graph, and why it failed where it did.
    """
    classes = {kept for kept in opaque if isinstance(kept, type)}
    functions = frozenset(kept for kept in opaque if isinstance(kept, types.FunctionType))
    for buffers_as_proxies in (True, False):
        # Tracing runs the model's own Python: anything it caches holds proxies, so each try gets a
        # copy of its own.
        tracer = _BackboneTracer({*leaves, *classes}, buffers_as_proxies, functions)
        attempt = _copy_to_trace(module)
        set_flags_(attempt, partial(tracer.note_question, attempt), trained)
        try:
            with _prepared(tracer, module, attempt, example):
                tracer.trace(attempt)
        except KeepWhole as error:
            return tracer, error
        except Exception as error:
            failure = error
            continue
        if example is not None:
            tracer.forget()
        follow_training(tracer.graph)
        mark_structured(tracer.graph, tracer.structured)
        return tracer, None
    return tracer, failure


@contextmanager
def _prepared(
    tracer: "_BackboneTracer", module: nn.Module, attempt: nn.Module, example: Tensor | None
) -> Iterator[None]:
    """What a trace needs around it: no warnings, and where there is an example, answers and
    functions that are called as a whole.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(capturing(tracer.capture, tracer, attempt))
        if example is not None:
            stack.enter_context(quiet())
            tracer.begin(module, attempt, example)
            stack.enter_context(called_whole((*FACTORIES, *tracer.cannot_keep)))
            stack.enter_context(answered_builtins())
            stack.enter_context(unchanged(module))
        yield


def _culprit(tracer: "_BackboneTracer", error: BaseException) -> type | types.FunctionType | None:
    """What to call as a whole next: a helper that failed between a module's own code and torch,
    else the deepest module's class.
    """
    if isinstance(error, KeepWhole):
        return error.function
    helper = failed_function(error) if tracer.witnesses else None
    if helper is not None and helper not in tracer.cannot_keep:
        return helper
    return tracer.failed[1] if tracer.failed is not None else None


def _describe(
    kept: type | types.FunctionType,
    culprit: tuple[str, type[nn.Module]] | None,
    error: BaseException,
) -> Opaque:
    return Opaque(
        name=kept.__name__,
        module_path=culprit[0] if culprit else "",
        place=_where(error),
        reason=_reason(error),
    )


def fingerprint(graph: fx.Graph) -> str:
    """SHA-256 of the graph's structure: names, targets, arguments. Equal for two traces of one
    architecture.
    """
    digest = hashlib.sha256()
    for fx_node in graph.nodes:
        if fx_node.target is keep:  # archives written before these were traced stay readable
            continue
        target = (
            fx_node.target if isinstance(fx_node.target, str) else qualified_name(fx_node.target)
        )
        args = (
            fx_node.args[:-1] if fx_node.target is hold else fx_node.args
        )  # lines move from version to version
        digest.update(
            f"{fx_node.op} {fx_node.name} {target} {args!r} {fx_node.kwargs!r}\n".encode()
        )
    return digest.hexdigest()


class _BackboneTracer(AnsweringTracer):
    """An fx tracer that keeps Python defaults, knows more leaves, and remembers the deepest module
    that failed.
    """

    def __init__(
        self,
        leaves: Collection[type[nn.Module]],
        buffers_as_proxies: bool,
        functions: frozenset[types.FunctionType],
    ) -> None:
        unlooked: tuple[Callable[..., Any], ...] = ()
        classes: tuple[type[nn.Module], ...] = ()
        if "timm" in sys.modules:
            from timm.models import get_notrace_functions, get_notrace_modules

            unlooked, classes = tuple(get_notrace_functions()), tuple(get_notrace_modules())
        super().__init__(autowrap_functions=unlooked)
        self.proxy_buffer_attributes = buffers_as_proxies
        self.cannot_keep = functions
        self.leaves = (*leaves, *classes)
        self.failed: tuple[str, type[nn.Module]] | None = None
        self.structured: set[str] = set()
        """Keys of calls that take or give tensors in lists, tuples or mappings."""
        self.capture = Capture()
        self.questions: dict[Owner, Question] = {}
        """Who decides by `self.training`."""

    def counted(self) -> list[Assumption]:
        """The numbers that forward changes on its modules, as they were while it was traced."""
        return [
            Assumption(where, answer, is_checked=False)
            for where, answer in self.capture.changed.items()
        ]

    def note_question(self, attempt: nn.Module, path: str) -> None:
        """Remember who asks for the `training` of the module at `path`; what tracing itself asks
        does not count.
        """
        asker = sys._getframe(2)
        if asker.f_code.co_filename.startswith(COMPILER) or self.is_looking:
            return
        function = plain_function(asker)
        owner: Owner = (
            type(attempt.get_submodule(path))
            if function is None or function in self.cannot_keep
            else function
        )
        self.questions.setdefault(owner, Question(place())).paths.add(path)

    def is_leaf_module(self, m: nn.Module, modulequalified_name: str) -> bool:
        acts_in_training = "Drop" in type(m).__name__ or type(m).__name__ == "StochasticDepth"
        has_state = any(True for _ in m.children()) or bool(m._parameters) or bool(m._buffers)
        return (
            isinstance(m, self.leaves)
            or (acts_in_training and not has_state)
            or super().is_leaf_module(m, modulequalified_name)
        )

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        parameters = list(inspect.signature(self.root.forward).parameters.values())
        name = (
            parameters[0].name
            if parameters and parameters[0].kind.name.startswith("POSITIONAL")
            else "x"
        )
        if name in _GENERATED:  # the generated code needs what is called so
            name = f"{name}_image"
        image = self.create_proxy("placeholder", name, (), {})

        def run(root: nn.Module, image: fx.Proxy) -> Any:
            self.capture.returned = (
                root.forward(image) if "forward" in vars(root) else root_fn(root, image)
            )
            if self.witnesses:
                keep_contents(self, root)
            return plain(self.capture.returned)

        return run, [self.root, image]

    def create_node(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
    ) -> fx.Node:
        if (
            name is None and target == "self"
        ):  # a layer of this name; in the generated code `self` is the module
            name = "self_layer"
        fx_node = super().create_node(kind, target, args, kwargs, name, type_expr)
        self.capture.note_contexts(fx_node)
        return fx_node

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        return (
            attr_val if self.is_looking else super().getattr(attr, attr_val, parameter_proxy_cache)
        )

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.is_looking:
            return forward(*args, **kwargs)
        if (
            type(m).__name__ == "OptimizedModule"
        ):  # torch.compile's wrapper: its module is what there is to trace
            return m.get_submodule("_orig_mod")(*args, **kwargs)
        if self.witnesses and m not in (
            self.submodule_paths or {}
        ):  # made in forward, as a slice of a Sequential is
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, self._noting_structure(forward), args, kwargs)
        except BaseException:
            if self.failed is None:
                self.failed = (self.path_of_module(m), type(m))
            raise

    def _noting_structure(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any, **kwargs: Any) -> Any:
            result = forward(*args, **kwargs)
            packed = [
                argument
                for argument in (*args, *kwargs.values())
                if not isinstance(argument, fx.Proxy)
            ]
            if not isinstance(result, fx.Proxy) or any(
                isinstance(leaf, fx.Proxy) for leaf in tree_leaves(packed)
            ):
                self.structured.add(next(reversed(self.module_stack)))
            return result

        return noting


def _copy_to_trace(module: nn.Module) -> nn.Module:
    """A copy whose hooks of the caller's are gone: none of them sees a proxy. Parameters, which
    nothing writes to, are shared.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in module.parameters()}
    attempt = copy.deepcopy(module, memo)
    for inner in attempt.modules():
        rebind_(inner, memo)
        _clear_foreign_hooks(inner)
    return attempt


def _clear_foreign_hooks(module: nn.Module) -> bool:
    """Remove the hooks around `module`'s forward and backward that its own package did not put
    there; True where there were any.
    """
    hooks = [held for name, held in vars(module).items() if name in _HOOKS]
    foreign = {
        key
        for held in hooks
        for key, hook in held.items()
        if callable(hook) and not _is_own(hook, module)
    }
    for held in hooks:
        for key in foreign.intersection(held):
            del held[key]
    return bool(foreign)


def _is_own(hook: Any, module: nn.Module) -> bool:
    """True for a hook that belongs to the forward, as where transformers gathers hidden states with
    some: from the class's own package.
    """
    package, dot, _ = (getattr(hook, "__module__", None) or "").partition(".")
    return bool(dot) and package == type(module).__module__.partition(".")[0]


def _drop_hooks(module: nn.Module, graph: fx.Graph) -> tuple[str, ...]:
    """Clear the hooks of every module that the graph does not call as a whole: they would never
    run. Those of its own were traced.
    """
    called = {str(fx_node.target) for fx_node in graph.nodes if fx_node.op == "call_module"}
    inside = tuple(f"{path}." for path in called)
    dropped = {
        path: inner
        for path, inner in module.named_modules()
        if path not in called and not path.startswith(inside)
    }
    reported = tuple(path for path, inner in dropped.items() if _clear_foreign_hooks(inner))
    for inner in dropped.values():
        for name in _HOOKS:
            getattr(inner, name, {}).clear()
    return reported


def _checkpointed(module: nn.Module, graph: fx.Graph, capture: Capture) -> tuple[str, ...]:
    """Where gradient checkpointing was asked for, by a flag or in forward, outside of modules that
    are called as a whole.
    """
    asked = {
        path
        for path, inner in module.named_modules()
        if any(getattr(inner, flag, False) is True for flag in CHECKPOINT_FLAGS)
    }
    called = tuple(f"{fx_node.target}." for fx_node in graph.nodes if fx_node.op == "call_module")
    return tuple(
        sorted(
            path for path in asked.union(capture.checkpointed) if not f"{path}.".startswith(called)
        )
    )


def _refuse_foreign(module: nn.Module) -> None:
    """Name what can never be traced: scripted and exported modules, and forwards that need more
    than an image.
    """
    for path, inner in module.named_modules():
        if isinstance(inner, torch.jit.ScriptModule):
            where, name = (
                repr(path) if path else "the backbone",
                getattr(inner, "original_name", "ScriptModule"),
            )
            raise TraceError(
                f"{where} is a scripted module ({name}): its Python is gone, so there is nothing to"
                " trace. Convert the module that it was scripted from."
            )
    if isinstance(module, fx.GraphModule):
        if any(
            getattr(fx_node.target, "namespace", "") == "aten" for fx_node in module.graph.nodes
        ):
            raise InputError(
                "this is the module of an exported program: its module calls are gone, so there are"
                " no blocks to find. Convert the module that it was exported from."
            )
        return
    parameters = list(inspect.signature(module.forward).parameters.values())
    if not parameters:
        raise TraceError(
            f"{type(module).__name__}.forward takes no input; a backbone takes a batch of images"
            " first."
        )
    required = [p.name for p in parameters[1:] if p.default is p.empty and "VAR" not in p.kind.name]
    if required or parameters[0].kind in (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    ):
        extra = ", ".join(repr(name) for name in required) or "keyword arguments only"
        raise TraceError(
            f"{type(module).__name__}.forward needs {extra} besides the images; a backbone is"
            " called with one batch of images. Give these arguments defaults, or wrap the model in"
            " a module whose forward fills them in."
        )


def qualified_name(function: Any) -> str:
    """Module and name of a function or class."""
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', getattr(function, '__name__', '?'))}"


def _explain(
    module: nn.Module, culprit: tuple[str, type[nn.Module]] | None, error: BaseException
) -> TraceError:
    path, leaf = culprit if culprit is not None else ("", type(module))
    name = f"{path!r} ({leaf.__name__})" if path else f"the backbone itself ({leaf.__name__})"
    why = (
        " Its control flow depends on the input." if isinstance(error, fx.proxy.TraceError) else ""
    )
    way_out = (
        f"Pass `leaves=({leaf.__name__},)` to keep that module as one opaque block"
        if path
        else (
            "Move the part that cannot be traced into a module of its own and pass its class in"
            " `leaves=`"
        )
    )
    return TraceError(f"cannot trace {name} at {_where(error)}: {_reason(error)}.{why} {way_out}.")


def _where(error: BaseException) -> str:
    """File and line of the backbone's own code that failed: the innermost module's, not a library's
    that it calls.
    """
    frames = [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not is_others(frame)
    ]
    own = [(frame, line) for frame, line in frames if is_module_s(frame)] or frames
    return f"{own[-1][0].f_code.co_filename}:{own[-1][1]}" if own else "unknown line"


def _reason(error: BaseException) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].removesuffix(".")
    if reason.startswith("argument of type"):
        reason = (
            f"{reason}: forward returns or hands on what is not a tensor, number, text, list,"
            " tuple, dict, named tuple or dataclass"
        )
    if isinstance(error, KeyError):
        reason = f"there is no {reason}; what a hook puts there does not come along"
    if "INTERNAL ASSERT FAILED" in reason or "__torch_dispatch__" in reason:
        reason = (
            "it calls what transforms functions (torch.vmap, torch.cond), which torch.fx cannot"
            " trace"
        )
    return re.sub(
        r"<class '[\w.]*(Proxy|Attribute)'>|'?\b(Asked)?(Proxy|Attribute)\b'?( object)?",
        "a traced value",
        reason,
    )
