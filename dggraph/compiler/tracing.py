"""Trace a backbone into a flat `torch.fx` graph whose nodes record their module calls.

Default `fx` traces 240 of 279 small timm models. Four changes close most of the gap:

1. The backbone's optional arguments keep their Python defaults instead of becoming placeholders.
   Otherwise `if mask is not None` would silently take the wrong branch.
2. timm's own registries name modules and functions that must stay leaves.
3. Modules that act differently in training stay leaves, so tracing in eval mode does not erase
   them.
4. A module that cannot be traced becomes a leaf, deepest first, until the rest can be traced.

If a forward decides by `self.training`, the other branch is traced too (`training_flags`). A module
or function that acts differently in training is kept as a single call. If that would be the entire
backbone, the trace reports it.
"""

import copy
import types
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, fx, nn

from dggraph.compiler.answers import Assumption, KeepWhole
from dggraph.compiler.asked import answered_builtins
from dggraph.compiler.backbone_tracer import BackboneTracer
from dggraph.compiler.calls import mark_structured
from dggraph.compiler.capture import CHECKPOINT_FLAGS, Capture, capturing
from dggraph.compiler.copying import copy_model
from dggraph.compiler.fingerprints import fingerprint
from dggraph.compiler.foreign_hooks import copy_to_trace, drop_hooks
from dggraph.compiler.frames import failed_function
from dggraph.compiler.profiling import quiet, unchanged
from dggraph.compiler.trace_errors import explain, reason_of, refuse_untraceable, where
from dggraph.compiler.training_flags import Owner, can_keep, follow_training, set_flags_
from dggraph.compiler.wrapping import FACTORIES, called_whole

MAX_OPAQUE = 16
TENSOR_CONSTANT = "_tensor_constant"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opaque:
    """A module class or a function that is called as a single op because it cannot be traced."""

    name: str
    """Name of the class or function."""
    module_path: str
    """Path of the module whose forward could not be traced, or that calls the function."""
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
    """The flat graph.

    `meta["nn_module_stack"]` of each fx node maps call keys to (module path, class), outermost
    first.
    """
    opaque: tuple[Opaque, ...] = ()
    """Modules and functions that became one call because they could not be traced."""
    assumptions: tuple[Assumption, ...] = ()
    """Answers that the backbone's Python code got for the example, and that the graph relies on."""
    hooks: tuple[str, ...] = ()
    """Paths of modules (empty: the backbone itself) whose hooks the graph does not run.

    The copy no longer has these hooks.
    """
    returned: Any = None
    """What forward returned, in its own types, with proxies for values.

    None if the model was traced already.
    """
    checkpointed: tuple[str, ...] = ()
    """Paths of modules (empty: the backbone itself) that ask for gradient checkpointing.

    The graph does not checkpoint.
    """
    eval_only: tuple[str, ...] = ()
    """Places where forward decides by `self.training` in a part too large to be one call.

    The graph acts there as in eval mode.
    """


def trace(
    model: nn.Module,
    leaves: Collection[type[nn.Module]] = (),
    example: Tensor | None = None,
    *,
    whole: Collection[str] = (),
) -> Trace:
    """Trace a deep copy of `model` in eval mode.

    A module or function that acts differently in training is kept as a single call. See
    `trace_eval` for arguments and errors.
    """
    return _trace(model, leaves, example, whole, is_followed=example is not None)


def trace_eval(
    model: nn.Module,
    leaves: Collection[type[nn.Module]] = (),
    example: Tensor | None = None,
    *,
    whole: Collection[str] = (),
) -> Trace:
    """Trace a deep copy of `model` in eval mode, whatever it would do in training.

    Older archives have traces of this kind.

    Args:
        model: a backbone whose first argument is a batched image tensor.
        leaves: module classes to keep as single calls, in addition to `torch.nn`, timm's registries
            and modules that cannot be traced.
        example: (1 or more, C, H, W), from which the questions of the backbone's Python code are
            answered. Without it every question fails, as in traces of archives written before there
            were answers.
        whole: paths of modules to keep as single calls, whatever their class.

    Raises:
        TraceError: the backbone's own forward has data-dependent control flow; the message names
            the module, the line, the reason and a way to fix it.
        InputError: the backbone cannot be copied, or no longer consists of modules.
    """
    return _trace(model, leaves, example, whole, is_followed=False)


def _trace(
    model: nn.Module,
    leaves: Collection[type[nn.Module]],
    example: Tensor | None,
    whole: Collection[str],
    *,
    is_followed: bool,
) -> Trace:
    module = copy_model(model)
    module.eval()  # the model may override it and return anything
    refuse_untraceable(module)
    if isinstance(module, fx.GraphModule) and any(
        "nn_module_stack" in fx_node.meta for fx_node in module.graph.nodes
    ):
        graph = copy.deepcopy(module.graph)
        return Trace(module, graph, hooks=drop_hooks(module, graph))
    opaque: dict[type | types.FunctionType, Opaque] = {}
    settled: set[Owner] = set()
    eval_only: list[str] = []
    checkpointed: list[str] = []
    while True:
        tracer, error = _try(module, leaves, opaque, example, whole)
        if error is not None:
            kept = _culprit(tracer, error)
            if kept is None or kept in opaque or len(opaque) == MAX_OPAQUE:
                raise explain(module, tracer.failed, error) from error
            opaque[kept] = _describe(kept, tracer.failed, error)
            continue
        for owner, question in tracer.questions.items() if is_followed else ():
            if owner in settled:
                continue
            settled.add(owner)
            other, error = _try(module, leaves, opaque, example, whole, question.paths)
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
    tracer: "BackboneTracer",
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
        drop_hooks(module, tracer.graph),
        tracer.capture.returned,
        _checkpointed(module, tracer.graph, tracer.capture),
        tuple(eval_only),
    )


def _try(
    module: nn.Module,
    leaves: Collection[type[nn.Module]],
    opaque: Collection[type | types.FunctionType],
    example: Tensor | None,
    whole: Collection[str],
    trained: Collection[str] = (),
) -> tuple["BackboneTracer", BaseException | None]:
    """Trace with `opaque` kept as single calls and the modules at `trained` in training mode.

    Returns:
        The tracer, which has the graph, and the error if tracing failed.
    """
    classes = {kept for kept in opaque if isinstance(kept, type)}
    functions = frozenset(kept for kept in opaque if isinstance(kept, types.FunctionType))
    for buffers_as_proxies in (True, False):
        # Tracing runs the model's own Python: anything it caches holds proxies, so each try gets a
        # new copy.
        tracer = BackboneTracer({*leaves, *classes}, buffers_as_proxies, functions, whole)
        attempt = copy_to_trace(module)
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
    tracer: "BackboneTracer", module: nn.Module, attempt: nn.Module, example: Tensor | None
) -> Iterator[None]:
    """Set up everything that a trace needs.

    Warnings are off. If there is an example, traced values answer, and some functions are called as
    single ops.
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


def _culprit(tracer: "BackboneTracer", error: BaseException) -> type | types.FunctionType | None:
    """Return the module class or function to call as a single op next.

    A helper function that failed between a module's own code and torch comes first, then the class
    of the deepest module.
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
        place=where(error),
        reason=reason_of(error),
    )


def _checkpointed(module: nn.Module, graph: fx.Graph, capture: Capture) -> tuple[str, ...]:
    """Return the paths of modules that ask for gradient checkpointing, by a flag or in forward.

    Modules inside a single call do not count.
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
