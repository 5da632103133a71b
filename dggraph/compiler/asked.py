"""Values that stand in for tensors while a forward is traced, and answer Python's questions."""

import builtins
import dis
import operator
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn

from dggraph.compiler.frames import is_library_code
from dggraph.compiler.witnesses import HooksGradients, Unanswered

GRADIENT_HOOKS = ("register_hook", "retain_grad", "register_post_accumulate_grad_hook")
"""Methods of tensors that only affect the backward pass."""
_LAYERS = (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm)


class Asked(fx.Proxy):
    """A value that replaces a tensor in a traced forward and answers questions about it."""

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
        # For a message that is formatted before there is a value.
        return f"<{vars(self).get('attr') or self.node.name}>"

    def part(self, key: Any) -> Any:
        """Return `self[key]`."""
        return self.tracer.create_proxy("call_function", operator.getitem, (self, key), {})

    def peek(self) -> Any:
        """Return the value on the fake batch."""
        return self.tracer.witnesses[0].value(self.node)

    def __getattr__(self, name: str) -> Any:
        if name in ("_is_param", "_is_buffer"):
            return False
        if not hasattr(Tensor, name) and not self.has(name):
            raise AttributeError(f"a traced value has no attribute {name!r}")
        return AskedAttribute(self, name)

    def has(self, name: str) -> bool:
        """Whether the value has an attribute called `name`; True if this is not known."""
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
        """Return the keys of a mapping, or a call of the value's own `keys`."""
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
    if _is_output_of_a_layer(asked):
        return Tensor
    try:
        return type(asked.peek())
    except Unanswered:
        return type(asked)


def _is_output_of_a_layer(asked: Any) -> bool:
    """Whether a layer of torch returned the value, so that no witness need run up to there."""
    if type(asked) is not AskedProxy or asked.node.op != "call_module":
        return False
    layer = asked.tracer.root.get_submodule(asked.node.target)
    return type(layer) in _LAYERS and not layer._forward_hooks


def _visible_class(asked: Any) -> type:
    """Return what Python reads as `asked.__class__`, and what `case torch.Tensor():` matches.

    Calls get the true class: a C function that took a traced value for a tensor would crash the
    process.
    """
    frame = sys._getframe(1)
    is_read = dis.opname[frame.f_code.co_code[frame.f_lasti]] in ("LOAD_ATTR", "MATCH_CLASS")
    return _class_of(asked) if is_read else type(asked)


class AskedProxy(Asked):
    """The value of an fx node."""

    __class__ = property(_visible_class)


class AskedAttribute(Asked, fx.proxy.Attribute):
    """An attribute of a traced value.

    It becomes a node where an op reads it, not where Python asks for it.
    """

    __class__ = property(_visible_class)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the attribute as a method; the call becomes a node."""
        root: Any = self.root
        if self.attr in GRADIENT_HOOKS:
            raise HooksGradients(self.attr)
        if self.attr in ("values", "items") and isinstance(mapping := root.peek(), Mapping):
            parts = [(key, root.part(key)) for key in mapping]
            return parts if self.attr == "items" else [part for _, part in parts]
        return super().__call__(*args, **kwargs)

    def peek(self) -> Any:
        """Return the attribute's value on the fake batch."""
        value = self.root.peek()
        try:
            return getattr(value, self.attr)
        except AttributeError as error:
            raise Unanswered(str(error)) from error


@contextmanager
def answered_builtins() -> Iterator[None]:
    """Let `isinstance` see the classes of traced values, and trace `len` of a traced tensor."""
    ordinary, ordinary_len = builtins.isinstance, builtins.len

    def answered_len(value: Any, /) -> Any:
        if (
            type(value) in (AskedProxy, AskedAttribute)
            and issubclass(_class_of(value), Tensor)
            and not is_library_code(sys._getframe(1))
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


def _unpacked(frame: types.FrameType) -> int | None:
    """Return the number of names on the left if the caller unpacks (`a, b = x`), else None."""
    code, place = frame.f_code.co_code, frame.f_lasti
    return code[place + 1] if dis.opname[code[place]] == "UNPACK_SEQUENCE" else None
