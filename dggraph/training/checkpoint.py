"""Checkpoints: one folder per step, complete or absent, without pickle.

A folder `checkpoints/00001200/` has model.safetensors, optimiser.safetensors and so on, and
state.json, written last, with a SHA-256 of each. `system.files` writes them, and old ones are
removed only afterwards. A process killed at any moment leaves the last complete checkpoint intact.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dggraph.errors import CheckpointError
from dggraph.system.files import part_of, read_at_most, write_folder
from dggraph.system.sharding import full_tensor, shard_like

STATE = "state.json"
FORMAT = 1
GROUP = "group"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The contents of a checkpoint."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    """For each part, for example `model`, its tensors by name."""
    state: dict[str, Any]
    """Everything else, as JSON."""


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Write `folder/<step>` atomically, and return its path.

    Args:
        folder: the folder of all checkpoints of a run.
        step: number of optimiser steps done.
        tensors: tensors by part and name.
        state: a JSON document.

    Raises:
        CheckpointError: the checkpoint cannot be written; older ones are unchanged.
    """
    target = folder / f"{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_folder(target, _parts(step, tensors, state), scratch_prefix=".saving-")
    except OSError as error:
        raise CheckpointError(
            f"cannot write the checkpoint {target}: {error.strerror or error}. Older checkpoints"
            " are unchanged; free some space, or choose another folder, and continue from the last"
            " one."
        ) from error
    return target


def _parts(
    step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a checkpoint, one in memory at a time, `STATE` last."""
    digests = {}
    for name, named in tensors.items():
        content = safetensors.torch.save(
            {key: tensor.detach().cpu().contiguous() for key, tensor in named.items()}
        )
        digests[f"{name}.safetensors"] = hashlib.sha256(content).hexdigest()
        yield f"{name}.safetensors", content
    document = json.dumps(
        {"format": FORMAT, "step": step, "state": dict(state), "sha256": digests}, sort_keys=True
    )
    seal = hashlib.sha256(document.encode()).hexdigest()
    yield STATE, f"{seal}\n{document}\n".encode()


def load_checkpoint(target: Path) -> Checkpoint:
    """Read a checkpoint folder and verify its digests.

    Raises:
        CheckpointError: a file is missing, or differs from what was written.
    """
    try:
        text = read_at_most(part_of(target, STATE)).decode()
        seal, _, document = text.partition("\n")
        if hashlib.sha256(document.rstrip("\n").encode()).hexdigest() != seal:
            raise CheckpointError(
                f"the checkpoint {target} is damaged: {STATE} differs from its digest. Delete it to"
                " continue from the one before."
            )
        found = json.loads(document)
        if found["format"] != FORMAT:
            raise CheckpointError(
                f"the checkpoint {target} has format {found['format']}, but this version reads"
                f" format {FORMAT}. Use the version of dggraph that wrote it."
            )
        tensors: dict[str, dict[str, Tensor]] = {}
        for name, digest in found["sha256"].items():
            if Path(name).name != name:
                raise ValueError(f"{name!r} is not the name of a part")
            file = part_of(target, name)
            if not file.is_file():  # a link may lead to a pipe, or to a device without an end
                raise FileNotFoundError(f"{name} is missing")
            content = file.read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                raise CheckpointError(
                    f"the checkpoint {target} is damaged: {name} differs from its digest. Delete it"
                    " to continue from the one before."
                )
            tensors[name.removesuffix(".safetensors")] = safetensors.torch.load(content)
        return Checkpoint(found["step"], tensors, dict(found["state"]))
    except CheckpointError:
        raise
    except Exception as error:  # a state whose digest fits may still hold anything
        raise CheckpointError(
            f"the checkpoint {target} cannot be read: {type(error).__name__}: {error}. Delete it to"
            " continue from the one before."
        ) from error


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.name.isdigit() and part_of(entry, STATE).is_file()
    )


def delete_old_checkpoints(folder: Path, keep: int, also: Collection[int] = ()) -> None:
    """Delete all but the newest `keep` checkpoints and the steps in `also`.

    Partial folders that killed processes left behind are deleted too.
    """
    for old in list_checkpoints(folder)[:-keep]:
        if int(old.name) not in also:
            doomed = old.with_name(f".removing-{old.name}")
            os.rename(old, doomed)  # a process killed during removal leaves no partial checkpoint
    for rest in (*folder.glob(".removing-*"), *folder.glob(".saving-*")):
        shutil.rmtree(rest, ignore_errors=True)


def flatten_optimiser(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimiser's state as full tensors by name, and the rest as JSON.

    Names are `<parameter>.<name>`, and `group<number>.<name>` for tensors of a parameter group.
    Dtypes are left out, since they are options that the next optimiser is built with. If the state
    is sharded, every process must call this.
    """
    found = optimiser.state_dict()
    tensors: dict[str, Tensor] = {}
    rest: dict[str, dict[str, Any]] = {}
    for parameter, values in found["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}.{name}"] = full_tensor(value)
            else:
                rest.setdefault(str(parameter), {})[name] = value
    groups: list[dict[str, Any]] = [{} for _ in found["param_groups"]]
    for number, group in enumerate(found["param_groups"]):
        for name, value in group.items():
            if isinstance(value, Tensor):
                tensors[f"{GROUP}{number}.{name}"] = value
            elif not isinstance(value, torch.dtype):
                groups[number][name] = value
    return tensors, {"state": rest, "groups": groups}


def restore_optimiser(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]
) -> None:
    """Load the result of `flatten_optimiser` into `optimiser`."""
    state: dict[int, dict[str, Any]] = {
        int(parameter): dict(values) for parameter, values in rest["state"].items()
    }
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    groups = [
        own
        | {
            key: tuple(value) if isinstance(value, list) and key == "betas" else value
            for key, value in group.items()
        }
        for own, group in zip(optimiser.param_groups, rest["groups"], strict=True)
    ]
    for key, tensor in tensors.items():
        owner, _, name = key.partition(".")
        if owner.startswith(GROUP):
            groups[int(owner.removeprefix(GROUP))][name] = tensor.to(parameters[0].device)
        else:
            state.setdefault(int(owner), {})[name] = shard_like(tensor, parameters[int(owner)])
    optimiser.load_state_dict({"state": state, "param_groups": groups})
