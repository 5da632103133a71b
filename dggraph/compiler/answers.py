"""Questions that Python asks of a batch while a forward is traced, and their answers.

A traced value has no data, but its rank, sizes, dtype, device and number of parts are known from a
fake batch that runs through the graph as far as somebody asks: `Witness`. `isinstance(x,
torch.Tensor)`, `if x.dtype != w.dtype`, `for part in x.chunk(2, 1)` then go the way they go on real
images, while `x.shape[0]` stays a node, so that other batches and image sizes still run. An answer
that may differ on another batch is looked at again on each (`ops/guards`); one that depends on the
batch size alone is none.
"""

import builtins
import copy
import dis
import linecache
import operator
import os
import sys
import traceback
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from dggraph.ops.guards import hold
from dggraph.system.torch_private import FakeTensorMode, tree_leaves

_RANK = {
    "dim",
    "ndim",
    "ndimension",
    "layout",
    "is_floating_point",
    "is_complex",
    "is_sparse",
    "is_nested",
    "is_quantized",
}
_GRADIENTS = {"requires_grad", "is_leaf", "grad_fn", "grad", "is_inference"}
_STRIDES = {"is_contiguous", "stride"}
COMPILER = str(Path(__file__).parent)
_OTHERS_FILES = (str(Path(torch.__file__).parent), COMPILER)


@dataclass(frozen=True, slots=True)
class Assumption:
    """An answer that the traced graph relies on."""

    place: str
    """File, line and source of the question."""
    answer: str
    is_checked: bool
    """True where each batch is asked again; False for gradients, strides and numbers that forward
    counts.
    """


class Unanswered(fx.proxy.TraceError):
    """What was asked depends on the values of the images, or on how many there are."""


@dataclass(frozen=True, slots=True)
class _Unknown:
    """A value that could not be computed on the fake batch."""

    reason: str


class Witness:
    """A batch that follows the graph: fake, so that it costs nothing, and real from where a module
    kept whole looks at values.
    """

    def __init__(
        self, module: nn.Module, attempt: nn.Module, example: Tensor, num_images: int
    ) -> None:
        """`module` runs, `attempt` is what is traced: it holds the constants that tracing puts
        away.
        """
        self.module, self.attempt = module, attempt
        self.real = example[:1].expand(num_images, *example.shape[1:]).contiguous()
        self.mode: FakeTensorMode | None = FakeTensorMode(allow_non_fake_inputs=True)
        self.batch: Tensor = self.mode.from_tensor(self.real)
        self.values: dict[fx.Node, Any] = {}
        self.is_running = False

    def value(self, fx_node: fx.Node) -> Any:
        """What `fx_node` gives.

        Raises:
            Unanswered: it could not be computed.
        """
        if fx_node not in self.values:
            self._follow(fx_node.graph)
        if isinstance(self.values[fx_node], _Unknown) and self.mode is not None:
            self.mode, self.batch, self.values = None, self.real.clone(), {}
            self.module = copy.deepcopy(
                self.module
            )  # what it counts and caches is no matter of the module's that is converted
            self._follow(fx_node.graph)
        value = self.values[fx_node]
        if isinstance(value, _Unknown):
            raise Unanswered(value.reason)
        return value

    def _follow(self, graph: fx.Graph) -> None:
        self.is_running = True
        try:
            with torch.no_grad(), self.mode or nullcontext():
                for fx_node in graph.nodes:
                    if fx_node not in self.values:
                        self.values[fx_node] = self._compute(fx_node)
        finally:
            self.is_running = False

    def _compute(self, fx_node: fx.Node) -> Any:
        unknown = [
            source
            for source in fx_node.all_input_nodes
            if isinstance(self.values.get(source), _Unknown)
        ]
        if unknown:
            return self.values[unknown[0]]
        args = fx.node.map_aggregate(fx.map_arg(fx_node.args, self.values.__getitem__), _plain)
        kwargs = fx.node.map_aggregate(fx.map_arg(fx_node.kwargs, self.values.__getitem__), _plain)
        try:
            if fx_node.op == "placeholder":
                return self.batch
            if fx_node.op == "get_attr":
                found = operator.attrgetter(str(fx_node.target))(self.attempt)
                if not issubclass(type(found), fx.Proxy):
                    return found
                return operator.attrgetter(str(fx_node.target))(
                    self.module
                ).clone()  # forward has written on `attempt`
            if fx_node.op == "call_method":
                return getattr(args[0], str(fx_node.target))(*args[1:], **kwargs)
            target: Any = (
                self.module.get_submodule(str(fx_node.target))
                if fx_node.op == "call_module"
                else fx_node.target
            )
            return None if target is hold else target(*args, **kwargs)
        except Exception as error:
            return _Unknown((str(error).strip().splitlines() or [type(error).__name__])[0])


class KeepWhole(BaseException):
    """A plain function asks its input: better call it as a whole, where its own Python answers,
    than fix a branch.
    """

    def __init__(self, function: types.FunctionType, reason: str) -> None:
        super().__init__(reason)
        self.function, self.reason = function, reason


class Asked(fx.Proxy):
    """What passes through a forward instead of a tensor: a value that answers."""

    tracer: Any

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data":
            self.detach().copy_(value.detach())
        elif name == "requires_grad":
            self.requires_grad_(value)
        else:
            super().__setattr__(name, value)

    def __format__(self, specification: str) -> str:
        return (  # for a message, written before there is a value
            f"<{vars(self).get('attr') or self.node.name}>"
        )

    def part(self, key: Any) -> Any:
        """`self[key]`."""
        return self.tracer.create_proxy("call_function", operator.getitem, (self, key), {})

    def peek(self) -> Any:
        """The value on the fake batch."""
        return self.tracer.witnesses[0].value(self.node)

    def __getattr__(self, name: str) -> Any:
        if name in ("_is_param", "_is_buffer"):
            return False
        if not hasattr(Tensor, name) and not self.has(name):
            raise AttributeError(f"a traced value has no attribute {name!r}")
        return AskedAttribute(self, name)

    def has(self, name: str) -> bool:
        """Whether the value has an attribute of that name; True where it is not known."""
        try:
            return hasattr(self.peek(), name)
        except Unanswered:
            return True

    def __bool__(self) -> bool:
        answer: bool = self.tracer.answer(self, bool)
        return answer

    def __int__(self) -> int:
        answer: int = self.tracer.answer(self, int)
        return answer

    def __index__(self) -> int:
        answer: int = self.tracer.answer(self, operator.index)
        return answer

    def __float__(self) -> float:
        answer: float = self.tracer.answer(self, float)
        return answer

    def __len__(self) -> int:
        num_parts: int = self.tracer.count(self)
        return num_parts

    def __contains__(self, item: Any) -> bool:
        if isinstance(value := self.peek(), Mapping):
            return item in value
        return any(item is each or bool(item == each) for each in self)

    def __iter__(self) -> Iterator[Any]:
        if (wanted := _unpacked(sys._getframe(1))) is not None:
            return iter([self.part(index) for index in range(wanted)])
        if isinstance(value := self.peek(), Mapping):
            return iter(list(value))
        return iter([self.part(index) for index in range(self.tracer.count(self))])

    def keys(self) -> Any:
        """A mapping's own keys."""
        return (
            list(value)
            if isinstance(value := self.peek(), Mapping)
            else AskedAttribute(self, "keys")()
        )

    @classmethod
    def __torch_function__(
        cls, function: Any, classes: Any, args: Any = None, kwargs: Any = None
    ) -> Any:
        return fx.Proxy.__torch_function__.__func__(fx.Proxy, function, classes, args, kwargs)  # type: ignore[attr-defined]


def _class_of(asked: Any) -> type:
    try:
        return type(asked.peek())
    except Unanswered:
        return type(asked)


def _told_class(asked: Any) -> type:
    """What Python code reads as `asked.__class__`, and what `case torch.Tensor():` matches.

    Calls get the truth: a function in C that took a traced value for a tensor would crash the
    process.
    """
    frame = sys._getframe(1)
    is_read = dis.opname[frame.f_code.co_code[frame.f_lasti]] in ("LOAD_ATTR", "MATCH_CLASS")
    return _class_of(asked) if is_read else type(asked)


@contextmanager
def answered_builtins() -> Iterator[None]:
    """Within this context `isinstance` knows what traced values stand for, and `len` of a traced
    tensor is traced.
    """
    ordinary, ordinary_len = builtins.isinstance, builtins.len

    def answered_len(value: Any, /) -> Any:
        if (
            type(value) in (AskedProxy, AskedAttribute)
            and issubclass(_class_of(value), Tensor)
            and not is_others(sys._getframe(1))
        ):
            return value.size(0)
        return ordinary_len(value)

    def answered(value: Any, classes: Any, /) -> bool:
        if ordinary(value, classes):
            return True
        return type(value) in (AskedProxy, AskedAttribute) and issubclass(_class_of(value), classes)

    builtins.isinstance, builtins.len = answered, answered_len
    try:
        yield
    finally:
        builtins.isinstance, builtins.len = ordinary, ordinary_len


class AskedProxy(Asked):
    """The value of an fx node."""

    __class__ = property(_told_class)


class AskedAttribute(Asked, fx.proxy.Attribute):
    """An attribute of a traced value; it becomes a node where an op reads it, not where Python
    asks.
    """

    __class__ = property(_told_class)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        root: Any = self.root
        if self.attr in ("values", "items") and isinstance(mapping := root.peek(), Mapping):
            parts = [(key, root.part(key)) for key in mapping]
            return parts if self.attr == "items" else [part for _, part in parts]
        return super().__call__(*args, **kwargs)

    def peek(self) -> Any:
        value = self.root.peek()
        try:
            return getattr(value, self.attr)
        except AttributeError as error:
            raise Unanswered(str(error)) from error


class AnsweringTracer(fx.Tracer):
    """An fx tracer whose values answer where it has witnesses, and are silent where it has none."""

    witnesses: tuple[Witness, ...] = ()
    """Two fake batches of different sizes, or none."""
    cannot_keep: frozenset[types.FunctionType] = frozenset()
    """Functions that are called as a whole already."""

    def begin(self, module: nn.Module, attempt: nn.Module, example: Tensor) -> None:
        """Let values answer from now on, as those of `example` would."""
        self.witnesses = tuple(Witness(module, attempt, example, number) for number in (2, 1))
        self.assumptions: dict[Assumption, None] = {}
        self.asked: list[fx.Node] = []

    @property
    def is_looking(self) -> bool:
        """True while a witness runs: nothing is traced then."""
        return any(witness.is_running for witness in self.witnesses)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return AskedProxy(node, self) if self.witnesses else super().proxy(node)

    def create_arg(self, a: Any) -> Any:
        return a.node if isinstance(a, fx.Proxy) else super().create_arg(a)

    def answer(self, asked: Asked, read: Any) -> Any:
        """`asked` as a Python bool, int or float.

        Raises:
            Unanswered: it depends on the images' values or number.
            KeepWhole: a plain function asks for what may change.
        """
        value = asked.peek()
        if isinstance(value, Tensor):
            raise Unanswered("what it does next depends on the values of the images")
        answer = read(value)
        reads = self._reads(asked)
        if isinstance(value, tuple | list | Mapping) or value is None or reads <= _RANK:
            self._forget_later(asked)
            return answer
        if reads <= _RANK | _GRADIENTS | _STRIDES:
            self.assumptions[Assumption(place(), repr(answer), is_checked=False)] = None
            self._forget_later(asked)
            return answer
        self._hold(
            asked,
            read,
            answer,
            is_plain=isinstance(value, bool) or read is operator.index,
            is_type=reads - _RANK == {"dtype"},
        )
        return answer

    def count(self, asked: Asked) -> int:
        """How many parts `asked` has.

        Raises:
            Unanswered: as many as there are images, or it has none.
        """
        value = asked.peek()
        try:
            number = len(value)
        except TypeError as error:
            raise Unanswered(str(error)) from error
        if isinstance(value, Tensor) or (
            isinstance(value, tuple | list) and _may_vary(asked.node, number)
        ):
            self._hold(asked, len, number, is_plain=False, is_type=False)
        elif self._other(asked, len, number) != number:
            raise Unanswered("what it does next depends on the number of images in the batch")
        return number

    def forget(self) -> None:
        """Remove questions that nothing else reads from the graph."""
        for fx_node in reversed(self.asked):
            self._erase(fx_node)

    def _erase(self, fx_node: fx.Node) -> None:
        if (
            fx_node.users
            or fx_node.op not in ("call_function", "call_method")
            or _holds_tensors(self.witnesses[0].value(fx_node))
        ):
            return
        sources = fx_node.all_input_nodes
        fx_node.graph.erase_node(fx_node)
        for source in sources:
            self._erase(source)

    def _forget_later(self, asked: Asked) -> None:
        if isinstance(asked, AskedProxy) and asked.node not in self.asked:
            self.asked.append(asked.node)

    def _hold(self, asked: Asked, read: Any, answer: Any, *, is_plain: bool, is_type: bool) -> None:
        """Ask again on every batch; types change under autocast, where the check of a conversion
        has shown that it does not matter.
        """
        where = place()
        function = plain_function(sys._getframe(1))
        if function is not None and function not in self.cannot_keep:
            raise KeepWhole(function, f"it asks its input at {where}")
        if self._other(asked, read, answer) != answer:
            raise Unanswered("what it does next depends on the number of images in the batch")
        question = (
            asked.node if is_plain else self.create_node("call_function", read, (asked.node,), {})
        )
        self.create_node(
            "call_function", hold, (question, answer, where), {"is_type": True} if is_type else {}
        )
        self.assumptions[Assumption(where, repr(answer), is_checked=True)] = None

    def _other(self, asked: Asked, read: Any, answer: Any) -> Any:
        """The answer at another batch size; the same where that one cannot run at all."""
        try:
            return read(self.witnesses[1].value(asked.node))
        except Unanswered:
            return answer

    def _reads(self, asked: Asked) -> set[str]:
        """What of tensors `asked` was computed from: `size`, `dtype`, `dim`."""
        if isinstance(asked, AskedAttribute):
            if _holds_tensors(asked.root.peek()):
                return {asked.attr}
            root: Any = asked.root
            return self._reads(root)
        found, seen, open_ends = set[str](), set[fx.Node](), [asked.node]
        while open_ends:
            fx_node = open_ends.pop()
            if fx_node in seen:
                continue
            seen.add(fx_node)
            for source in fx_node.all_input_nodes:
                if _holds_tensors(self.witnesses[0].value(source)):
                    is_getattr = fx_node.op == "call_function" and fx_node.target is getattr
                    name = (
                        fx_node.args[1]
                        if is_getattr
                        else getattr(fx_node.target, "__name__", fx_node.target)
                    )
                    found.add(str(name))
                else:
                    open_ends.append(source)
        return found


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def _may_vary(fx_node: fx.Node, number: int) -> bool:
    """True for parts whose number follows from a size: not what `chunk(2)` or `split([4, 4])` says
    itself.
    """
    name = getattr(fx_node.target, "__name__", fx_node.target)
    if name not in (
        "split",
        "unsafe_split",
        "split_with_sizes",
        "chunk",
        "unsafe_chunk",
        "unbind",
        "tensor_split",
        "tolist",
    ):
        return False
    asked = (
        fx_node.args[1]
        if len(fx_node.args) > 1
        else next((v for k, v in fx_node.kwargs.items() if k != "dim"), None)
    )
    return not (asked == number and "chunk" in name) and not (
        isinstance(asked, list | tuple) and len(asked) == number
    )


def _plain(argument: Any) -> Any:
    """Flags that know their module are numbers; torch's functions want `bool`."""
    return bool(argument) if isinstance(argument, int) and hasattr(argument, "path") else argument


def _unpacked(frame: types.FrameType) -> int | None:
    """How many names stand on the left where the caller unpacks (`a, b = x`)."""
    code, place = frame.f_code.co_code, frame.f_lasti
    return code[place + 1] if dis.opname[code[place]] == "UNPACK_SEQUENCE" else None


def is_others(frame: types.FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_OTHERS_FILES)


def place() -> str:
    """File, line and source of the backbone's code that asks."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(
        tuple(f"{folder}{os.sep}" for folder in _OTHERS_FILES)
    ):
        frame = frame.f_back
    if frame is None:
        return "an unknown place"
    file, line = Path(frame.f_code.co_filename), frame.f_lineno
    return f"{'/'.join(file.parts[-2:])}:{line} ({linecache.getline(str(file), line).strip()[:80]})"


def plain_function(frame: types.FrameType | None) -> types.FunctionType | None:
    """The outermost plain function that runs between the innermost module's own code and here,
    where it could be called as a whole.
    """
    chain: list[types.FrameType] = []
    while frame is not None and (is_others(frame) or not is_module_s(frame)):
        if not is_others(frame):
            chain.append(frame)
        frame = frame.f_back
    return _function_of(chain[-1]) if chain and frame is not None else None


def is_module_s(frame: types.FrameType) -> bool:
    return isinstance(frame.f_locals.get("self"), nn.Module)


def failed_function(error: BaseException) -> types.FunctionType | None:
    """The plain function that the innermost module's own code called when `error` came up in it."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if not is_others(frame)]
    last = max(
        (index for index, frame in enumerate(frames) if is_module_s(frame)), default=len(frames)
    )
    return _function_of(frames[last + 1]) if last + 1 < len(frames) else None


def _function_of(frame: types.FrameType) -> types.FunctionType | None:
    """The plain function that `frame` runs, if it can be found by its name and takes no module."""
    code = frame.f_code
    num_names = (
        code.co_argcount
        + code.co_kwonlyargcount
        + bool(code.co_flags & 4)
        + bool(code.co_flags & 8)
    )
    taken = [frame.f_locals.get(name) for name in code.co_varnames[:num_names]]
    if any(isinstance(leaf, nn.Module) for leaf in tree_leaves(taken)):
        return None
    caller = frame.f_back.f_globals if frame.f_back is not None else {}
    for scope in (frame.f_globals, caller):
        for value in (scope.get(code.co_name), *scope.values()):
            if (
                isinstance(value, types.FunctionType)
                and value.__code__ is code
                and not value.__closure__
            ):
                return value
    return None
