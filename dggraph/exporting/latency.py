"""How long exported networks take for one image, in onnxruntime on one thread."""

from pathlib import Path

import torch
from torch import Tensor

from dggraph.evaluation.timing import CLOCKS, Timing, compare
from dggraph.exporting.fixed_path import static
from dggraph.exporting.formats import Run, onnx_runner, write
from dggraph.exporting.network_files import ExportReport
from dggraph.network.network import DynamicNetwork
from dggraph.system.modes import evaluating


def time_files(
    net: DynamicNetwork, report: ExportReport, images: Tensor, *, rounds: int = 15
) -> list[Timing]:
    """Time the file of `report` beside the static backbone and, if it skips, the dense form.

    All run image by image in turns. The clock counts this process alone, so that other programs
    hardly matter.

    Args:
        net: What was exported.
        report: As `export` returned it, for `onnx`.
        images: (B, C, H, W), of the size that the file takes.
        rounds: Number of counted rounds, at least 3.

    Returns:
        The static backbone first, then the others; times are those of all images.

    Raises:
        ExportError: One of the others cannot be written.
    """
    one = images[:1]
    with evaluating(net):
        backbone = static(net, "backbone").eval()
        static_run = write(backbone, one, "onnx", batch=1).run
        runs = {report.mode: onnx_runner(Path(report.file).read_bytes())}
        if report.mode == "skip":
            runs["dense"] = write(net, images[[0, -1]], "onnx", batch=None).run

    def through(run: Run) -> None:
        for image in torch.split(images, 1):
            run(image)

    return compare(
        lambda: through(static_run),
        {name: lambda run=run: through(run) for name, run in runs.items()},  # type: ignore[misc]
        rounds=rounds,
        clock=CLOCKS["cpu"],
    )
