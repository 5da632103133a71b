"""An fx tracer for backbones: which modules it enters, which it keeps, and what it records."""

import inspect
import sys
import types
from collections.abc import Callable, Collection
from typing import Any

from torch import fx, nn

from dggraph.compiler.answers import AnsweringTracer, Assumption
from dggraph.compiler.capture import Capture, keep_contents
from dggraph.compiler.frames import COMPILER, asking_place, plain_function
from dggraph.compiler.returns import plain
from dggraph.compiler.training_flags import Owner, Question
from dggraph.system.torch_private import tree_leaves

_GENERATED = {"torch", "getattr", "setattr", "operator", "dggraph"}


class BackboneTracer(AnsweringTracer):
    """An fx tracer that keeps Python defaults, has more leaves, and records the deepest failure."""

    def __init__(
        self,
        leaves: Collection[type[nn.Module]],
        buffers_as_proxies: bool,
        functions: frozenset[types.FunctionType],
        whole: Collection[str] = (),
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
        self.whole = frozenset(whole)
        """Paths of modules that become one op, whatever their class."""
        self.failed: tuple[str, type[nn.Module]] | None = None
        self.structured: set[str] = set()
        """Keys of calls that take or return tensors in lists, tuples or mappings."""
        self.capture = Capture()
        self.questions: dict[Owner, Question] = {}
        """Classes and functions whose code depends on `self.training`."""

    def counted(self) -> list[Assumption]:
        """Return the numbers that forward changes on its modules, as they were during tracing."""
        return [
            Assumption(where, answer, is_checked=False)
            for where, answer in self.capture.changed.items()
        ]

    def note_question(self, attempt: nn.Module, path: str) -> None:
        """Record which code asks for the `training` flag of the module at `path`.

        Questions that tracing itself asks do not count.
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
        self.questions.setdefault(owner, Question(asking_place())).paths.add(path)

    def is_leaf_module(self, m: nn.Module, modulequalified_name: str) -> bool:
        """Whether `m` becomes one op.

        Layers that only act in training (dropout, stochastic depth) and have no state are leaves
        too.
        """
        acts_in_training = "Drop" in type(m).__name__ or type(m).__name__ == "StochasticDepth"
        has_state = any(True for _ in m.children()) or bool(m._parameters) or bool(m._buffers)
        return (
            modulequalified_name in self.whole
            or isinstance(m, self.leaves)
            or (acts_in_training and not has_state)
            or super().is_leaf_module(m, modulequalified_name)
        )

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Return a function to trace and its arguments: the module and one image batch."""
        parameters = list(inspect.signature(self.root.forward).parameters.values())
        name = (
            parameters[0].name
            if parameters and parameters[0].kind.name.startswith("POSITIONAL")
            else "x"
        )
        if name in _GENERATED:  # a name that the generated code uses itself
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
        # A layer may be named `self`, which is the module in the generated code.
        """Create an fx node that records the contexts it runs in."""
        if name is None and target == "self":
            name = "self_layer"
        fx_node = super().create_node(kind, target, args, kwargs, name, type_expr)
        self.capture.note_contexts(fx_node)
        return fx_node

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """Return an attribute of a module: its value while a witness runs, else a proxy."""
        return (
            attr_val if self.is_looking else super().getattr(attr, attr_val, parameter_proxy_cache)
        )

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace a call of `m`, and record `m` if it is the deepest module that fails."""
        if self.is_looking:
            return forward(*args, **kwargs)
        if type(m).__name__ == "OptimizedModule":  # torch.compile's wrapper of the module to trace
            return m.get_submodule("_orig_mod")(*args, **kwargs)
        # A module made in forward, for example a slice of a Sequential, has no path.
        if self.witnesses and m not in (self.submodule_paths or {}):
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
