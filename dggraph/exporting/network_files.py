"""`dggraph.export`: a network as a file, run again and compared before it is kept.

Shape suffixes: B images.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dggraph.baselines.network import BaselineNetwork
from dggraph.compiler.surroundings import ordinary_surroundings
from dggraph.errors import ExportError, InputError
from dggraph.evaluation.recording import record
from dggraph.exporting.comparison import Output, compare, comparison_images
from dggraph.exporting.conditional import conditional
from dggraph.exporting.formats import (
    FORMATS,
    Format,
    require_onnx,
    write,
)
from dggraph.graph.ir import ActivatedPath
from dggraph.network.network import DynamicNetwork
from dggraph.system.devices import first_weight
from dggraph.system.files import write_whole
from dggraph.system.modes import evaluating
from dggraph.system.paths import locate

Mode = Literal["dense", "skip"]
MODES: tuple[Mode, ...] = ("dense", "skip")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What was written, and how it compares with the network.

    Example:
        >>> import dggraph
        >>> net = dggraph.convert("dggraph:resnet8_8")
        >>> report = dggraph.export(net, "net.pt2")
        >>> report.num_conditions, report.num_images
        (0, 6)
    """

    file: str
    format: Format
    mode: Mode
    outputs: tuple[Output, ...]
    num_images: int
    """Images that were run through the file and through the network."""
    num_paths: int
    """Different paths among them; 0 for a network without paths."""
    num_at_threshold: int
    """Images with another answer, since a weight of theirs lies at its threshold."""
    opset: int | None
    """The version of ONNX's operators."""
    num_bytes: int
    num_conditions: int
    """`If` nodes of ONNX, `cond` of an exported program: one for each block that may be skipped."""
    num_skipped: int
    """Blocks that at least one compared image skips."""
    always: tuple[tuple[str, str], ...]
    """With `skip`: (stage, reason) of stages whose blocks run always."""

    def __str__(self) -> str:
        """Return one line per fact."""
        operators = "" if self.opset is None else f", opset {self.opset}"
        lines = [
            f"{self.file}: {self.format}, {self.mode}{operators},"
            f" {self.num_bytes / 1e6:,.2f} MB, {self.num_conditions} conditions"
        ]
        lines += [
            f"output {number}: {'x'.join(map(str, one.shape))} {one.dtype}, largest difference"
            f" {one.difference:.2g} of {one.largest:.3g}"
            for number, one in enumerate(self.outputs)
        ]
        paths = f" on {self.num_paths} different paths" if self.num_paths else ""
        lines.append(f"compared with the network: {self.num_images} images{paths}")
        if self.mode == "skip":
            lines.append(
                f"blocks that an image skipped: {self.num_skipped} of {self.num_conditions}"
            )
        else:
            lines.append("dense: every block runs for every image, so this saves no time")
        if self.num_at_threshold:
            lines.append(f"at a threshold, with another answer: {self.num_at_threshold} images")
        return "\n".join([*lines, *(f"{stage} runs always: {why}" for stage, why in self.always)])


def export(
    net: DynamicNetwork | BaselineNetwork,
    file: str | os.PathLike[str],
    *,
    format: Format | None = None,
    mode: Mode = "dense",
    images: Tensor | None = None,
) -> ExportReport:
    """Write `net` as a file for other runtimes, after running it again and comparing.

    The file takes images of the size that `net` was converted with, and gives the backbone's
    output.

    Args:
        net: A converted network, optimised for inference or not, or that of a baseline. It is not
            changed.
        file: Where to write. An existing file is replaced, and only by one that agrees.
        format: `onnx`, opened again with onnxruntime, or `pt2`, a program of torch.export. By
            default what the suffix of `file` names, or else `onnx`.
        mode: `dense` takes any batch and runs every block, so it saves no time. `skip` takes one
            image and has one condition (`If`) for each block: skipped blocks are not computed.
        images: (B, C, H, W), to compare on; by default six of noise.

    Raises:
        InputError: An argument is none of those above, or the file cannot be written.
        MissingExtraError: A package that ONNX needs is not installed.
        ExportError: The network cannot be written in this form; the message says why.
        CheckError: The file gives another answer than the network. Nothing is left of it.

    Example:
        >>> import dggraph
        >>> net = dggraph.convert("dggraph:resnet8_8")
        >>> report = dggraph.export(net, "skip.pt2", mode="skip")
        >>> report.num_conditions, report.outputs[0].shape
        (4, (1, 10))
    """
    target = locate(file)
    if format is None:
        format = _named_by(target) or "onnx"
    _refuse(net, target, format, mode)
    if format == "onnx":
        require_onnx()
    with ordinary_surroundings(first_weight(net).device), evaluating(net):
        compared = comparison_images(net, images)
        if mode == "skip":
            assert isinstance(net, DynamicNetwork)
            graph = conditional(net, compared[:1])
            if not graph.blocks:
                raise ExportError(f"no block of this network can be skipped: {_list(graph.always)}")
            always, chunks = graph.always, torch.split(compared, 1)
            written = write(graph.module, compared[:1], format, batch=1)
        else:
            always, chunks = (), (compared[:1], compared[1:])
            written = write(net, compared[[0, -1]], format, batch=None)
        paths = _paths(net, compared)
        outputs, num_at_threshold = compare(net, written.run, chunks, [one.margin for one in paths])
    write_whole(target, written.content)
    return ExportReport(
        file=str(target),
        format=format,
        mode=mode,
        outputs=outputs,
        num_images=len(compared),
        num_paths=len({_open_edges(path) for path in paths}),
        num_at_threshold=num_at_threshold,
        opset=written.opset,
        num_bytes=len(written.content),
        num_conditions=written.num_conditions,
        num_skipped=_num_skipped(net, paths) if mode == "skip" else 0,
        always=always,
    )


def _refuse(net: Any, target: Path, format: str, mode: str) -> None:
    if not isinstance(net, DynamicNetwork | BaselineNetwork):
        raise InputError(
            f"export takes a converted network, not {type(net).__name__}. Call dggraph.convert"
            " first; a static module goes to torch.onnx.export or torch.export itself."
        )
    for name, value, known in (("format", format, FORMATS), ("mode", mode, MODES)):
        if value not in known:
            raise InputError(f"{name}={value!r} is not one of {', '.join(known)}.")
    named = _named_by(target)
    if named not in (None, format):
        raise InputError(
            f"{target.name!r} is named like a file of another format than format={format!r}. Give"
            f" format={named!r}, or another name."
        )
    if mode == "skip" and not (isinstance(net, DynamicNetwork) and net.graph.stages):
        raise InputError(
            'this network has no blocks that an image may skip. Use mode="dense", which exports it'
            " as it is."
        )
    dtype = first_weight(net).dtype
    if format == "onnx" and dtype != torch.float32:
        raise InputError(
            f"the weights are {dtype}, and onnxruntime, which checks the file, computes"
            ' convolutions in float32 alone. Export net.float(), or use format="pt2".'
        )
    if target.is_dir() or not target.parent.is_dir():
        reason = "is a folder" if target.is_dir() else "lies in a folder that does not exist"
        raise InputError(f"{str(target)!r} {reason}. Give the path of a file in a folder.")


def _named_by(target: Path) -> Format | None:
    """Return the format whose suffix the file has."""
    return next((known for known in FORMATS if target.suffix.lower() == f".{known}"), None)


def _paths(net: DynamicNetwork | BaselineNetwork, images: Tensor) -> Sequence[ActivatedPath]:
    """Return the path of each image, or nothing for a network without paths."""
    is_dynamic = isinstance(net, DynamicNetwork) and net.graph.stages
    return record(net, images).paths if is_dynamic else ()  # type: ignore[arg-type]


def _open_edges(path: ActivatedPath) -> tuple[bool, ...]:
    return tuple(weight != 0 for weights in path.weights.values() for weight in weights)


def _num_skipped(net: Any, paths: Sequence[ActivatedPath]) -> int:
    """Return the number of blocks that at least one of the images skips."""
    skipped: set[str] = set()
    for stage in net.plan:
        if stage.dense_only:
            continue
        blocks = {block.node for block in stage.blocks}
        for path in paths:
            runs = path.live_nodes(net.graph)
            skipped |= blocks - (
                runs & path.useful_nodes(net.graph) if stage.scope == "stage" else runs
            )
    return len(skipped)


def _list(reasons: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"{stage}: {why}" for stage, why in reasons)
