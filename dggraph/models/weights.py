"""State dicts in other projects' checkpoints: read without running code, found, and fitted.

torchvision's reference scripts save {"model", "model_ema", "optimizer", "args", ...}, timm saves
{"state_dict", "state_dict_ema", ...}, and Lightning {"state_dict", "hyper_parameters", ...} with
the name of the attribute before each key. DataParallel, torch.compile and averages add `module.` or
`_orig_mod.` there.
"""

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import re
import types
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dggraph.errors import InputError

AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "params_ema", "ema")
PLAIN = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "network",
    "net",
    "module",
    "weights",
    "params",
)
"""Names of state dicts in checkpoints, the most likely first."""
HARMLESS: tuple[Any, ...] = (
    argparse.Namespace, types.SimpleNamespace, collections.defaultdict, collections.deque,
    frozenset, range, slice,
    datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone,
    pathlib.PurePosixPath, pathlib.PureWindowsPath, (pathlib.PurePosixPath, "pathlib.PosixPath"),
    (pathlib.PureWindowsPath, "pathlib.WindowsPath"),
    np.ndarray, np.dtype, *(type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFD"),
    type(np.dtype("O")), type(np.dtype("U1")),
    *((function, f"{module}.multiarray.{name}") for module in ("numpy.core", "numpy._core")
      for name, function in (("scalar", np.float64(0).__reduce__()[0]), ("_reconstruct",
      np.zeros(0).__reduce__()[0]))),
)  # fmt: skip
"""Containers and values that scripts save with weights, and that run no code when read."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A state dict found in a checkpoint."""

    file: str
    tensors: dict[str, Tensor]
    remarks: tuple[str, ...]
    """At most one sentence: which of several state dicts was taken."""


def read_checkpoint(checkpoint: str | os.PathLike[str]) -> Weights:
    """Read the state dict in a file: `.safetensors`, or torch's format.

    torch's format is read with `weights_only=True` and the containers in `HARMLESS`. If the file
    has both weights and their average, the average is taken.

    Raises:
        InputError: the file cannot be read, or holds no state dict, several, or a class that is
            code; names the class.
    """
    file = os.fspath(checkpoint)
    loaded = _read(file)
    found = {path: state for path, state in _state_dicts(loaded, ()).items() if state}
    if not found:
        raise InputError(f"{file!r} has no state dict of tensors. Save model.state_dict().")
    known = [
        path
        for names in (AVERAGES, PLAIN)
        for name in names
        for path in found
        if path[-1:] == (name,)
    ]
    path = (
        () if () in found else known[0] if known else next(iter(found)) if len(found) == 1 else None
    )
    if path is None:
        names = ", ".join(repr(".".join(path)) for path in list(found)[:4])
        raise InputError(
            f"{file!r} has {len(found)} state dicts, {names}, and it is unclear which one to load."
            " Save that one alone."
        )
    others = [other for other in known if other != path and other[-1] in PLAIN]
    is_average = path[-1:] != () and path[-1] in AVERAGES
    remarks = (
        (f"{file} has weights and their average; the average, {'.'.join(path)!r}, was loaded",)
        if is_average and others
        else ()
    )
    return Weights(file, {str(key): value for key, value in found[path].items()}, remarks)


def fitted(weights: Weights, expected: Collection[str]) -> Weights:
    """Return `weights` under the names in `expected`, without a wrapper's prefix and tensors.

    Raises:
        InputError: the weights hold two networks of these names.
    """
    votes: Counter[str] = Counter()
    for key in weights.tensors:
        starts = (0, *(match.end() for match in re.finditer(r"\.", key)))
        votes.update(key[:start] for start in starts if key[start:] in expected)
    most = max(votes.values(), default=0)
    best = [prefix for prefix, number in votes.items() if number == most]
    if most == votes[""]:
        return weights
    if len(best) > 1:
        raise InputError(
            f"{weights.file!r} has {len(best)} networks with the names of this model, under"
            f" {', '.join(map(repr, sorted(best)[:4]))}, and it is unclear which one to load. Save"
            " the state dict of that one alone."
        )
    (prefix,) = best
    left = [key for key in weights.tensors if not key.startswith(prefix) and key != "n_averaged"]
    remarks = [
        f"{weights.file} has {len(left)} tensors outside the network under {prefix!r}, for example"
        f" {one!r}; they were left out"
        for one in left[:1]
    ]
    tensors = {
        key.removeprefix(prefix): value
        for key, value in weights.tensors.items()
        if key.startswith(prefix)
    }
    return Weights(weights.file, tensors, (*weights.remarks, *remarks))


def load_checkpoint_(
    model: nn.Module, weights: Weights, *, replaceable: Collection[str] = ()
) -> tuple[str, ...]:
    """Load the result of `read_checkpoint` into `model`, in place.

    Args:
        model: the network that receives the weights.
        weights: the tensors to load.
        replaceable: names of tensors that keep their values in `model` if they are missing or have
            another shape in `weights`.

    Returns:
        Sentences about what was chosen and what was left out.

    Raises:
        InputError: the weights do not fit the model.
    """
    expected = model.state_dict()
    weights = fitted(weights, expected.keys())
    state = dict(weights.tensors)
    left = [
        key
        for key in expected
        if key in replaceable and (key not in state or state[key].shape != expected[key].shape)
    ]
    remarks = [*weights.remarks, *([_describe_left(weights, expected, left)] if left else [])]
    state |= {key: expected[key] for key in left}
    missing, unexpected = (
        sorted(expected.keys() - state.keys()),
        sorted(state.keys() - expected.keys()),
    )
    misfits = [
        f"{k} {tuple(state[k].shape)} for {tuple(v.shape)}"
        for k, v in expected.items()
        if k in state and state[k].shape != v.shape
    ]
    if missing or unexpected or misfits:
        raise InputError(
            f"{weights.file!r} does not fit {type(model).__name__}: missing {missing[:3]},"
            f" unexpected {unexpected[:3]}, other shapes {misfits[:3]}. Check the name of the model"
            " and --num-classes."
        )
    model.load_state_dict(state)
    return tuple(remarks)


def _describe_left(weights: Weights, expected: Mapping[str, Tensor], left: list[str]) -> str:
    names = ", ".join(left[:4]) + (f" and {len(left) - 4} more" if len(left) > 4 else "")
    first = left[0]
    was = (
        f"{tuple(weights.tensors[first].shape)} there" if first in weights.tensors else "not there"
    )
    return (
        f"{weights.file} has another number of classes, so the head starts from new weights:"
        f" {names} ({was}, {tuple(expected[first].shape)} here); all other tensors are the"
        " checkpoint's"
    )


def _read(file: str) -> Any:
    try:
        if os.path.exists(file) and not (os.path.isfile(file) or os.path.isdir(file)):
            raise InputError(  # reading a pipe would block
                f"the checkpoint {file!r} is not a file. Give the file of weights."
            )
        with open(file, "rb") as stream:
            start = stream.read(9)
        if file.endswith(".safetensors") or (
            len(start) == 9 and start[8:] == b"{" and not start.startswith(b"\x80")
        ):
            return safetensors.torch.load_file(file)
        with torch.serialization.safe_globals(list(HARMLESS)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what cannot be read is an error
            return torch.load(file, "cpu", weights_only=True)
    except InputError:
        raise
    except OSError as error:
        why = (
            "there is no such file"
            if isinstance(error, FileNotFoundError)
            else error.strerror or error
        )
        raise InputError(f"cannot read the checkpoint {file!r}: {why}.") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class|function)\s+([A-Za-z_][\w.]*\.\w+)", str(error))
        if found is None:
            raise InputError(
                f"{file!r} is not a state dict in torch's format: it is damaged, or holds objects"
                " that only code can restore. Save model.state_dict(), or use safetensors."
            ) from error
        raise InputError(
            f"{file!r} holds a {found.group(1)}, and reading one may run code, so it is not read."
            " If you trust the file, save its weights alone: state = torch.load(FILE,"
            " weights_only=False), then torch.save(state['model'], NEW), or state.state_dict() if"
            " the file is a complete model."
        ) from error
    except Exception as error:
        if "TorchScript" in str(error):
            raise InputError(
                f"{file!r} is a TorchScript program. Save torch.jit.load(FILE).state_dict()."
            ) from error
        text = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        raise InputError(
            f"{file!r} is not a checkpoint: {type(error).__name__}: {text}."
        ) from error


def _state_dicts(value: Any, path: tuple[str, ...]) -> dict[tuple[str, ...], Mapping[str, Tensor]]:
    """Return every mapping of names to tensors in `value`, under the path of keys to it."""
    if not isinstance(value, Mapping) or len(path) > 2:
        return {}
    if all(isinstance(key, str) and isinstance(one, Tensor) for key, one in value.items()):
        return {path: value}
    return {
        found: state
        for key, one in value.items()
        if isinstance(key, str)
        for found, state in _state_dicts(one, (*path, key)).items()
    }
