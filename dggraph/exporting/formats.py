"""Networks written as ONNX files or exported programs, and read again to run.

Both are made in memory: a file appears only once what it holds was run.
"""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from dggraph.errors import CheckError, ExportError, MissingExtraError
from dggraph.system.torch_private import tree_leaves

Format = Literal["onnx", "pt2"]
FORMATS: tuple[Format, ...] = ("onnx", "pt2")
LARGEST_ONNX = 2**31 - 1
"""Bytes of a protocol buffer; the exporter would write the weights beside a larger one."""

Run = Callable[[Tensor], list[Tensor]]
"""Takes images (B, C, H, W), and returns the output tensors of the network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A network in a format."""

    content: bytes
    run: Run
    """Runs what was read again from `content`."""
    num_conditions: int
    """`If` nodes of ONNX, or `cond` of an exported program."""
    opset: int | None
    """The version of ONNX's operators."""


def require_onnx() -> None:
    """Check that what writes and runs ONNX is installed.

    Raises:
        MissingExtraError: it is not.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(name)
        except ImportError as error:
            raise MissingExtraError(
                f"ONNX files are written with onnxscript and checked with onnxruntime, and {name}"
                " is not installed: pip install 'dggraph[export]'. format=\"pt2\" needs neither."
            ) from error


def write(module: nn.Module, example: Tensor, format: Format, *, batch: int | None) -> Written:
    """Return `module` in `format`.

    Args:
        module: In eval mode; takes images and returns the backbone's output.
        example: (B, C, H, W), of the size that the file is for; B is 2 or more for any batch.
        format: One of `FORMATS`.
        batch: The batch size that the file is for; None for any.

    Raises:
        ExportError: The exporter cannot write it.
        CheckError: What it wrote cannot be opened.
    """
    axis = {0: torch.export.Dim.DYNAMIC} if batch is None else None
    with torch.no_grad(), _quiet():
        try:
            program = torch.export.export(module, (example,), dynamic_shapes=(axis,))
            return _onnx(program) if format == "onnx" else _pt2(program)
        except (ExportError, CheckError):
            raise
        except Exception as error:
            raise ExportError(
                f"{'torch.onnx' if format == 'onnx' else 'torch.export'} cannot write this"
                f" network: {_first_line(error)} Try the other format or mode, or dggraph.static"
                " for one path."
            ) from error


def _pt2(program: ExportedProgram) -> Written:
    for module in program.graph_module.modules():
        for fx_node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            fx_node.meta.pop("stack_trace", None)  # which has paths of this machine
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    content = buffer.getvalue()
    again = torch.export.load(io.BytesIO(content)).module()

    def run(images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return tensors_of(again(images))

    conditions = [
        fx_node for fx_node in program.graph.nodes if fx_node.target is torch.ops.higher_order.cond
    ]
    return Written(content=content, run=run, num_conditions=len(conditions), opset=None)


def _onnx(program: ExportedProgram) -> Written:
    made = torch.onnx.export(program, dynamo=True, verbose=False)
    assert made is not None
    model = made.model_proto
    if model.ByteSize() > LARGEST_ONNX:
        raise ExportError(
            f"the network has {model.ByteSize():,} bytes, and an ONNX file holds"
            f' {LARGEST_ONNX:,}. Use format="pt2".'
        )
    conditions = _clean_(model.graph)
    for function in model.functions:
        conditions += _clean_(function)
    _move_weights_(model.graph)
    content = model.SerializeToString()
    opset = next(one.version for one in model.opset_import if not one.domain)
    return Written(
        content=content, run=onnx_runner(content), num_conditions=conditions, opset=opset
    )


def _move_weights_(graph: Any) -> None:
    """Give the branches of conditions the weights that only they read. In place.

    onnxruntime fuses and reorders only layers whose weights are constants of their own graph.
    Otherwise a convolution in a branch took up to three times as long.
    """
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in set(node.input):
            readers.setdefault(name, []).append(graph)
        for branch in _branches(node):
            for name in _names_in(branch):
                readers.setdefault(name, []).append(branch)
    for value in graph.output:
        readers.setdefault(value.name, []).append(graph)
    kept = []
    for weight in graph.initializer:
        (owner, *others) = readers.get(weight.name) or [graph]
        if others or owner is graph:
            kept.append(weight)
        else:
            owner.initializer.append(weight)
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _branches(node: Any) -> list[Any]:
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def _names_in(graph: Any) -> set[str]:
    """Return the names of all values that `graph` reads or gives, those within it included."""
    names = {name for node in graph.node for name in node.input}
    names |= {value.name for value in graph.output}
    return names.union(*(_names_in(one) for node in graph.node for one in _branches(node)))


def _clean_(graph: Any) -> int:
    """Remove what the exporter notes about sources, paths of this machine included. In place.

    Returns:
        The number of `If` nodes, also those within others.
    """
    conditions = 0
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        conditions += node.op_type == "If"
        conditions += sum(map(_clean_, _branches(node)))
    for values in (graph.value_info, getattr(graph, "input", ()), getattr(graph, "output", ())):
        for value in values:
            if hasattr(value, "metadata_props"):
                del value.metadata_props[:]
    del graph.metadata_props[:]
    return conditions


def onnx_runner(content: bytes) -> Run:
    """Return what runs an ONNX model on one thread.

    Raises:
        CheckError: onnxruntime cannot open it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # its warnings are about nodes that it removes
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckError(
            f"onnxruntime cannot open what the exporter wrote: {_first_line(error)} No file was"
            ' left. It may be a fault of the exporter; format="pt2" does not use it.'
        ) from error
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> list[Tensor]:
        found = session.run(None, {name: images.detach().cpu().contiguous().numpy()})
        return [torch.from_numpy(one) for one in found]

    return run


def tensors_of(output: Any) -> list[Tensor]:
    """Return the tensors of an output, in the order of exporters."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' remarks about their own insides off the terminal."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    ]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])
    text = f"{type(error).__name__}: {first}"[:300]
    return text if text.endswith((".", "!")) else f"{text}."
