"""Networks exported with one condition a block: answers, and time as blocks close.

    python benchmarks/export.py mobilenet_v2 --checkpoint CHECKPOINT [--runtime openvino]
    python benchmarks/export.py resnet50 [--runtime openvino]

CHECKPOINT is torchvision's `mobilenet_v2-b0353104.pth`; without one the weights are random. The
routers have random weights, so that images take different paths, and `dggraph.calibrate` chooses
the threshold for a MACs ratio of .8 on crops of photographs. The time of an image depends on which
blocks run, not on whether they are the right ones. All files run in one runtime on one thread, in
turns; the time is CPU time.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import skimage.data
import torch
from PIL import Image

import dggraph
from dggraph.evaluation.timing import CLOCKS, interleaved
from dggraph.exporting.fixed_path import static
from dggraph.exporting.formats import Run, onnx_runner, write
from dggraph.models.registry import load_model
from dggraph.system.devices import first_weight

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry", "retina")
CROPS, BUDGET, ROUNDS = 4, 0.8, 9


def photos(net: dggraph.DynamicNetwork) -> torch.Tensor:
    """Crops of every photograph, as the network takes them, (B, C, H, W)."""
    assert net.preprocess is not None
    crops = []
    for name in PHOTOS:
        whole = Image.fromarray(getattr(skimage.data, name)()[..., :3])
        side = min(whole.size) * 2 // 3
        for number in range(CROPS):
            left = (whole.width - side) * number // (CROPS - 1)
            top = (whole.height - side) * ((2 * number) % CROPS) // (CROPS - 1)
            crops.append(net.preprocess(whole.crop((left, top, left + side, top + side))))
    return torch.cat(crops).to(first_weight(net))


def openvino_runner(content: bytes) -> Run:
    """Return a function that runs a file in OpenVINO, in float32 on one thread."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    model = core.compile_model(core.read_model(content), "CPU", settings)
    return lambda x: [torch.from_numpy(one) for one in model([x.numpy()]).values()]


RUNTIMES = {"onnxruntime": onnx_runner, "openvino": openvino_runner}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--runtime", choices=RUNTIMES, default="onnxruntime")
    arguments = parser.parse_args()
    open_file = RUNTIMES[arguments.runtime]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    loaded = load_model(arguments.model, checkpoint=arguments.checkpoint)
    net = dggraph.convert(loaded, router="stage").eval()
    x = photos(net)
    for stage in net.graph.stages:
        router = net.get_submodule(f"dg_{stage}.router_0")
        torch.nn.init.normal_(router.weight, std=2 / router.weight.shape[1] ** 0.5)
        torch.nn.init.normal_(router.bias, std=0.5)
    dggraph.calibrate(net, x.split(12), targets=(BUDGET,))
    net.set_budget(BUDGET)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "skip.onnx"
        report = dggraph.export(net, file, mode="skip", images=x)
        print(report, file=sys.stderr)
        skip = open_file(file.read_bytes())
        report_dense = dggraph.export(net, file, images=x[:2])
        dense = open_file(file.read_bytes())
    with torch.no_grad():
        backbone = open_file(write(static(net, "backbone").eval(), x[:1], "onnx", batch=1).content)
        differences = [float((skip(one)[0] - net(one)).abs().max()) for one in x.split(1)]
    recording = dggraph.record(net, x)
    blocks = {block.node for stage in net.plan for block in stage.blocks}
    static_macs = net.macs_table.static
    groups: dict[int, list[int]] = {}
    for index, path in enumerate(recording.paths):
        runs = path.live_nodes(net.graph) & path.useful_nodes(net.graph)
        groups.setdefault(len(runs & blocks), []).append(index)
    rows = []
    for count, members in sorted(groups.items(), reverse=True):
        some = members[:3]
        runs = {
            name: lambda run=run, some=some: [run(x[one : one + 1]) for one in some]
            for name, run in {"static": backbone, "dense": dense, "skip": skip}.items()
        }
        seconds = interleaved(runs, rounds=ROUNDS, clock=CLOCKS["cpu"])
        per_round = list(zip(*seconds.values(), strict=True))
        rows.append(
            {
                "blocks": f"{count} of {len(blocks)}",
                "images": len(members),
                "macs_ratio": float(recording.macs[some].double().mean()) / static_macs,
                "static_ms": 1e3 * statistics.median(seconds["static"]) / len(some),
                "dense": statistics.median(one[1] / one[0] for one in per_round),
                "skip": statistics.median(one[2] / one[0] for one in per_round),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    facts = {
        "conditions": report.num_conditions,
        "opset": report.opset,
        "skip_bytes": report.num_bytes,
        "dense_bytes": report_dense.num_bytes,
        "runtime": arguments.runtime,
        "largest_difference": max(differences),
        "largest_output": report.outputs[0].largest,
        "paths": report.num_paths,
        "images": report.num_images,
        "at_threshold": report.num_at_threshold,
        "mean_macs_ratio": float(recording.macs.double().mean()) / static_macs,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
