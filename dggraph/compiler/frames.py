"""Inspect Python's stack while a forward is traced: which code, function and line asks."""

import linecache
import os
import sys
import traceback
import types
from pathlib import Path

import torch
from torch import nn

from dggraph.system.torch_private import tree_leaves

COMPILER = str(Path(__file__).parent)
_OTHERS_FILES = (str(Path(torch.__file__).parent), COMPILER)


def is_library_code(frame: types.FrameType) -> bool:
    """Whether a frame runs code of torch or of this compiler."""
    return frame.f_code.co_filename.startswith(_OTHERS_FILES)


def is_module_code(frame: types.FrameType) -> bool:
    """Whether a frame runs a method of a module."""
    return isinstance(frame.f_locals.get("self"), nn.Module)


def asking_frame() -> types.FrameType | None:
    """Return the innermost frame of the backbone's code, or None if the stack has none."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(
        tuple(f"{folder}{os.sep}" for folder in _OTHERS_FILES)
    ):
        frame = frame.f_back
    return frame


def asking_place() -> str:
    """Return the file, line and source of the backbone's code that asks."""
    frame = asking_frame()
    if frame is None:
        return "an unknown place"
    file, line = Path(frame.f_code.co_filename), frame.f_lineno
    return f"{'/'.join(file.parts[-2:])}:{line} ({linecache.getline(str(file), line).strip()[:80]})"


def plain_function(frame: types.FrameType | None) -> types.FunctionType | None:
    """Return the outermost plain function between the innermost module's code and `frame`.

    Returns None if it could not be called as a single op.
    """
    chain: list[types.FrameType] = []
    while frame is not None and (is_library_code(frame) or not is_module_code(frame)):
        if not is_library_code(frame):
            chain.append(frame)
        frame = frame.f_back
    return _function_of(chain[-1]) if chain and frame is not None else None


def failed_function(error: BaseException) -> types.FunctionType | None:
    """Return the plain function, called by the innermost module's code, that `error` came from."""
    frames = [
        frame for frame, _ in traceback.walk_tb(error.__traceback__) if not is_library_code(frame)
    ]
    last = max(
        (index for index, frame in enumerate(frames) if is_module_code(frame)), default=len(frames)
    )
    return _function_of(frames[last + 1]) if last + 1 < len(frames) else None


def _function_of(frame: types.FrameType) -> types.FunctionType | None:
    """Return the plain function that `frame` runs.

    Returns None if its name does not lead to it, or if it takes a module.
    """
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
