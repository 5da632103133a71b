"""Answer the questions that Python asks of a batch while a forward is traced.

A traced value has no data. Its rank, sizes, dtype, device and number of parts are known from a fake
batch, a `Witness`, which runs through the graph up to the op in question. Questions like
`isinstance(x, torch.Tensor)`, `if x.dtype != w.dtype` and `for part in x.chunk(2, 1)` therefore get
the answers that real images would give. `x.shape[0]` stays a node, so other batch sizes and image
sizes still run. An answer that may differ on another batch is checked on each batch (`ops/guards`).
A question whose answer depends on the batch size alone is refused.
"""

import operator
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from dggraph.compiler.asked import GRADIENT_HOOKS, Asked, AskedAttribute, AskedProxy
from dggraph.compiler.frames import asking_frame, asking_place, plain_function
from dggraph.compiler.witnesses import HooksGradients, Unanswered, Witness
from dggraph.ops.guards import hold
from dggraph.system.torch_private import tree_leaves

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


@dataclass(frozen=True, slots=True)
class Assumption:
    """An answer that the traced graph relies on."""

    place: str
    """File, line and source of the question."""
    answer: str
    is_checked: bool
    """Whether the question is asked again on each batch.

    False for gradients, strides and numbers that forward counts.
    """


class KeepWhole(BaseException):
    """Raised where a plain function asks its input.

    Calling the function as a single op lets its own Python code answer, which is better than fixing
    one branch.
    """

    def __init__(self, function: types.FunctionType, reason: str) -> None:
        super().__init__(reason)
        self.function, self.reason = function, reason


class AnsweringTracer(fx.Tracer):
    """An fx tracer whose values answer questions where it has witnesses."""

    witnesses: tuple[Witness, ...] = ()
    """Two fake batches of different sizes, or none."""
    cannot_keep: frozenset[types.FunctionType] = frozenset()
    """Functions that are already called as a single op."""

    def begin(self, module: nn.Module, attempt: nn.Module, example: Tensor) -> None:
        """Let traced values answer from now on, as those of `example` would."""
        self.witnesses = tuple(Witness(module, attempt, example, number) for number in (2, 1))
        self.assumptions: dict[Assumption, None] = {}
        self.asked: list[fx.Node] = []

    @property
    def is_looking(self) -> bool:
        """Whether a witness runs; nothing is traced then."""
        return any(witness.is_running for witness in self.witnesses)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return a proxy for `node` that answers if there are witnesses."""
        return AskedProxy(node, self) if self.witnesses else super().proxy(node)

    def create_arg(self, a: Any) -> Any:
        """Return `a` as an argument of an fx node; numpy's numbers become Python's."""
        if isinstance(a, fx.Proxy):
            return a.node
        return super().create_arg(a.item() if isinstance(a, np.generic) else a)

    def answer(self, asked: Asked, read: Any) -> Any:
        """Return `asked` as a Python bool, int or float.

        Raises:
            Unanswered: the answer depends on the values or the number of the images.
            KeepWhole: a plain function asks for a value that may change.
        """
        value = asked.peek()
        if isinstance(value, Tensor):
            raise Unanswered("its next step depends on the values of the images")
        answer = read(value)
        reads = self._reads(asked)
        if isinstance(value, tuple | list | Mapping) or value is None or reads <= _RANK:
            self._forget_later(asked)
            return answer
        if "requires_grad" in reads:
            _refuse_hooks_on_gradients()
        if reads <= _RANK | _GRADIENTS | _STRIDES:
            self.assumptions[Assumption(asking_place(), repr(answer), is_checked=False)] = None
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
        """Return the number of parts of `asked`.

        Raises:
            Unanswered: the number equals the number of images, or `asked` has no parts.
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
            raise Unanswered("its next step depends on the number of images in the batch")
        return number

    def forget(self) -> None:
        """Remove questions that nothing else reads from the graph."""
        for fx_node in reversed(self.asked):
            self._erase(fx_node)

    def _erase(self, fx_node: fx.Node) -> None:
        if (
            fx_node.users
            or fx_node.op not in ("call_function", "call_method")
            or holds_tensors(self.witnesses[0].value(fx_node))
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
        """Ask again on every batch.

        Dtypes change under autocast, where the check of a conversion has shown that it does not
        matter.
        """
        where = asking_place()
        function = plain_function(sys._getframe(1))
        if function is not None and function not in self.cannot_keep:
            raise KeepWhole(function, f"it asks its input at {where}")
        if self._other(asked, read, answer) != answer:
            raise Unanswered("its next step depends on the number of images in the batch")
        question = (
            asked.node if is_plain else self.create_node("call_function", read, (asked.node,), {})
        )
        self.create_node(
            "call_function", hold, (question, answer, where), {"is_type": True} if is_type else {}
        )
        self.assumptions[Assumption(where, repr(answer), is_checked=True)] = None

    def _other(self, asked: Asked, read: Any, answer: Any) -> Any:
        """Return the answer at another batch size, or `answer` if that batch size cannot run."""
        try:
            return read(self.witnesses[1].value(asked.node))
        except Unanswered:
            return answer

    def _reads(self, asked: Asked) -> set[str]:
        """Return the tensor properties that `asked` was computed from: `size`, `dtype`, `dim`."""
        if isinstance(asked, AskedAttribute):
            if holds_tensors(asked.root.peek()):
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
                if holds_tensors(self.witnesses[0].value(source)):
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


def _refuse_hooks_on_gradients() -> None:
    """Raise `HooksGradients` if the asking code would hook gradients.

    A trace has no gradients, so its answer would lose the hook.
    """
    frame = asking_frame()
    names = frame.f_code.co_names if frame is not None else ()
    method = next((name for name in GRADIENT_HOOKS if name in names), None)
    if method is not None:
        raise HooksGradients(method)


def holds_tensors(value: Any) -> bool:
    """Whether `value`, which may be nested, has a tensor in it."""
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def _may_vary(fx_node: fx.Node, number: int) -> bool:
    """Whether the number of parts follows from a size.

    False where the arguments state the number themselves, as in `chunk(2)` or `split([4, 4])`.
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
