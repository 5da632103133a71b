"""Everything about speed on one NVIDIA GPU, in under eight minutes, into one JSON file.

    python benchmarks/gpu.py [--output docs/benchmarks/gpu.json]
    python benchmarks/gpu.py --page                 # docs/benchmarks/gpu.md from that file
    python benchmarks/gpu.py --smoke --output FILE  # all of it on the CPU, in tiny sizes

1. The tests of the kernels, of copies and of waiting.
2. Aggregation over the bandwidth that a plain copy reaches.
3. A training step with every edge open, over the static backbone's: eager and compiled.
4. Inference of four families at batch 1, 16, 64 and 256, over the static backbone: as converted,
   and on random paths that keep about .5, .75 and 1 of the MACs (16 paths, repeated over the
   batch); `masked` computes everything, `sparse` skips. Squeeze and excitation beside it.

Times are medians of paired, interleaved rounds in rotating order, between CUDA events. Every part
has its share of the time; cases for which none was left are named in `left out`. Both sides are
channels last; float32 lets convolutions use TF32, as torch does by default.
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from gpu_page import write_page
from torch import Tensor, nn

import dggraph
from dggraph.errors import InputError
from dggraph.evaluation.timing import sample_paths
from dggraph.models.small_resnet import SmallResNet
from dggraph.network.gate_contexts import pinned_gates
from dggraph.network.network import DynamicNetwork
from dggraph.ops import device_kernels
from dggraph.ops.weighted_sum import inner_products, masked_sum, weighted_sum

ROOT = Path(__file__).resolve().parent.parent
TESTS = [
    "tests/ops/test_triton_values.py",
    "tests/ops/test_triton_ops.py",
    "tests/ops/test_device_copies.py",
    "tests/network/test_synchronisations.py",
]
Build = Callable[[], nn.Module]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is."""

    device: torch.device
    families: Mapping[str, tuple[Build, Build | None]]
    """By name: the backbone, and its like with squeeze and excitation."""
    side: int
    batches: tuple[int, ...]
    rounds: int
    shape: tuple[int, ...]
    """The shape of the features that aggregation sums."""
    copied: int
    """Bytes that the plain copy copies."""
    backend: str
    """The backend of torch.compile."""
    tests: tuple[str, ...]
    """Options of pytest."""
    seconds: Mapping[str, float] = field(
        default_factory=lambda: {
            "tests": 70.0,
            "aggregation": 30.0,
            "training": 130.0,
            "inference": 150.0,
        }
    )
    """The share of each part; the last case of each may end after it."""


FULL = Scale(
    device=torch.device("cuda"),
    families={
        "MobileNetV2": (torchvision.models.mobilenet_v2, None),
        "ResNet-50": (
            lambda: timm.create_model("resnet50"),
            lambda: timm.create_model("seresnet50"),
        ),
        "ResNeXt-50": (
            lambda: timm.create_model("resnext50_32x4d"),
            lambda: timm.create_model("seresnext50_32x4d"),
        ),
        "RegNet-Y-400MF": (torchvision.models.regnet_y_400mf, None),
    },
    side=224,
    batches=(64, 1, 16, 256),
    rounds=15,
    shape=(64, 1024, 14, 14),
    copied=1 << 30,
    backend="inductor",
    tests=("--device", "cuda"),
)
SMOKE = Scale(
    device=torch.device("cpu"),
    families={"tiny": (lambda: SmallResNet(26, 4), lambda: SmallResNet(26, 4))},
    side=16,
    batches=(1, 2),
    rounds=3,
    shape=(2, 8, 5, 5),
    copied=1 << 16,
    backend="eager",
    tests=("-k", "join", "--device", "cpu"),
)


class Clock:
    """Runs the parts within their shares, and notes what was left out."""

    def __init__(self, scale: Scale) -> None:
        self.scale, self.left_out = scale, list[str]()
        self.end = 0.0

    def start(self, part: str) -> None:
        self.end = time.monotonic() + self.scale.seconds[part]

    def has_time(self, case: str) -> bool:
        if time.monotonic() < self.end:
            return True
        self.left_out.append(case)
        return False


def compare(contestants: Mapping[str, Callable[[], object]], scale: Scale) -> dict[str, Row]:
    """Time all contestants; ratios over the first."""
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-2, scale.rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            taken = run_once(contestants[name], scale.device)
            if number >= 0:
                seconds[name].append(taken)
    found = {}
    for name in names:
        ratios = [a / b for a, b in zip(seconds[name], seconds[names[0]], strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        milliseconds = 1000 * statistics.median(seconds[name])
        found[name] = {"ms": milliseconds, "ratio": ratio, "low": low, "high": high}
    return found


def run_once(function: Callable[[], object], device: torch.device) -> float:
    """Seconds between CUDA events around one call; on the CPU, its processor time."""
    if device.type != "cuda":
        begin = time.process_time()
        function()
        return max(time.process_time() - begin, 1e-9)
    torch.cuda.synchronize(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def run_tests(scale: Scale) -> Row:
    """The outcome of the tests that need a GPU, as pytest tells it."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", *TESTS, *scale.tests]
    try:
        limit = scale.seconds["tests"]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"result": f"not finished after {limit:.0f} s", "exit code": None}
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    summary = re.sub(r" in [\d.]+s.*", "", lines[-1].strip("= "))
    return {"result": summary, "exit code": done.returncode, "failed": failed}


def aggregation(scale: Scale, clock: Clock) -> list[Row]:
    """Time of sums and inner products over that of copying as many bytes."""
    rows = []
    source = torch.empty(scale.copied, dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    for dtype in (torch.float32, torch.bfloat16):
        for num_sources in (4, 16):
            name = f"{num_sources} sources, {str(dtype).removeprefix('torch.')}"
            if not clock.has_time(f"aggregation, {name}"):
                continue
            features = [
                torch.randn(scale.shape, device=scale.device, dtype=dtype)
                for _ in range(num_sources)
            ]
            weights = torch.rand(scale.shape[0], num_sources, device=scale.device) + 0.1
            half = weights.clone()
            half[:, ::2] = 0
            transposed = weights.T.contiguous().T
            found = compare(
                {
                    "copy": lambda: target.copy_(source),
                    "sum": lambda f=features, w=weights: weighted_sum(f, w),
                    "sum, half open": lambda f=features, w=half: weighted_sum(f, w),
                    "pull": lambda f=features, w=transposed: weighted_sum(f, w),
                    "inner products": lambda f=features: inner_products(f, f[0]),
                    "sum, plain torch": lambda f=features, w=weights: masked_sum(f, w),
                },
                scale,
            )
            bandwidth = 2 * scale.copied / (found["copy"]["ms"] / 1000)
            nbytes = features[0].nbytes
            moved = {
                "sum": (num_sources + 1) * nbytes,
                "sum, half open": (num_sources // 2 + 1) * nbytes,
                "pull": (num_sources + 1) * nbytes,
                "inner products": num_sources * nbytes,
                "sum, plain torch": (num_sources + 1) * nbytes,
            }
            row: Row = {"case": name, "copy GB/s": bandwidth / 1e9}
            for what, count in moved.items():
                row[what] = count / (found[what]["ms"] / 1000) / bandwidth
            rows.append(row)
    return rows


def converted(build: Build, scale: Scale, router: str = "stage") -> tuple[nn.Module, Any]:
    """The static backbone and the network made of it, channels last, on the device."""
    torch.manual_seed(0)
    static = build()
    net = dggraph.convert(static, torch.zeros(1, 3, scale.side, scale.side), router=router)
    placed = [
        one.to(scale.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for one in (static, net)
    ]
    return placed[0], placed[1]


def images(scale: Scale, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, scale.side, scale.side, generator=generator)
    return x.to(scale.device, memory_format=torch.channels_last)


def all_open(net: DynamicNetwork) -> AbstractContextManager[None]:
    """Every edge open at 1 / (edges into its node), so that sums stay tame."""
    net.set_threshold(0)
    weights = {}
    for name, stage in net.macs_table.stages.items():
        targets = stage.topology.targets
        shares = [1 / targets.count(target) for target in targets]
        weights[name] = torch.tensor(shares, device=next(net.parameters()).device)
    return pinned_gates(net, weights)


def step(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """Forward in bfloat16 autocast, backward, SGD with momentum."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=1e-4, momentum=0.9)
    labels = (torch.arange(len(x)) % 10).to(x.device)

    def once() -> None:
        with torch.autocast(x.device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return once


def training(scale: Scale, clock: Clock) -> list[Row]:
    rows = []
    x = images(scale, max(batch for batch in scale.batches if batch <= 64))
    for is_compiled in (False, True):
        for name, (build, build_se) in scale.families.items():
            how = "compiled" if is_compiled else "eager"
            if not clock.has_time(f"training, {name}, {how}"):
                continue
            static, net = converted(build, scale, "node")
            models = {"static": static, "dggraph": net}
            if build_se is not None and not is_compiled:
                se = build_se().to(scale.device)
                models["SE"] = se.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            with all_open(net):
                steps = {}
                for label, model in models.items():
                    ready = model.train()
                    if is_compiled:
                        ready = torch.compile(ready, backend=scale.backend)  # type: ignore[assignment]
                    steps[label] = step(ready, x)
                found = compare(steps, scale)
            rows.append({"network": name, "batch": len(x), "how": how, "dtype": "amp", **found})
            torch.compiler.reset()
    return rows


def inference(scale: Scale, clock: Clock) -> list[Row]:
    rows = []
    for name, (build, build_se) in scale.families.items():
        if not clock.has_time(f"inference, {name}"):
            continue
        static, net = converted(build, scale)
        paths = {}
        for kept in (0.5, 0.75, 1.0):
            try:
                paths[kept] = sample_paths(net, kept, 16)
            except InputError as error:
                clock.left_out.append(f"inference, {name} at {kept}: {error}")
        models = {"static": static.eval()}
        if build_se is not None:
            se = build_se().eval().to(scale.device)
            models["SE"] = se.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for dtype in (torch.float32, torch.bfloat16):
            for batch in scale.batches:
                kind = str(dtype).removeprefix("torch.")
                if not clock.has_time(f"inference, {name}, {kind}, batch {batch}"):
                    continue
                x = images(scale, batch)
                rows.append({"network": name, "batch": batch, "dtype": kind})
                rows[-1] |= one_inference(models, net.eval(), x, dtype, paths, scale)
    return rows


def one_inference(
    models: Mapping[str, nn.Module],
    net: DynamicNetwork,
    x: Tensor,
    dtype: torch.dtype,
    paths: Mapping[float, tuple[dict[str, Tensor], float]],
    scale: Scale,
) -> Row:
    """Ratios over the static network, by MACs ratio for random paths."""

    @contextmanager
    def around(kept: float | None) -> Iterator[None]:
        is_wide = dtype == torch.float32
        cast = nullcontext() if is_wide else torch.autocast(x.device.type, dtype)
        with cast, torch.inference_mode():
            if kept is None:
                yield
                return
            repeated = {
                stage: weights.repeat(-(-len(x) // 16), 1)[: len(x)].to(x.device)
                for stage, weights in paths[kept][0].items()
            }
            with pinned_gates(net, repeated):
                yield

    def call(model: nn.Module) -> Callable[[], object]:
        return lambda: model(x)

    def executed(executor: Any) -> Callable[[], object]:
        def once() -> object:
            net.executor = executor
            return net(x)

        return once

    static = {label: call(model) for label, model in models.items()}
    with around(None):
        row: Row = compare({**static, "fresh": executed("auto")}, scale)
    for kept, (_, realised) in paths.items():
        with around(kept):
            found = compare(
                {
                    "static": call(models["static"]),
                    "masked": executed("dense"),
                    "sparse": executed("auto"),
                },
                scale,
            )
            executed("auto")()
        row[str(kept)] = {"MACs ratio": realised, "ran": net.last_run} | {
            n: found[n] for n in ("masked", "sparse")
        }
    return row


def machine(scale: Scale) -> Row:
    """The card, its driver and all versions."""
    found = {name: version(name) for name in ("torch", "torchvision", "timm")}
    found |= {"python": platform.python_version(), "processor": platform.processor()}
    if scale.device.type != "cuda":
        return found | {"card": "none: a smoke run on the CPU"}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        driver = f"unknown: {error}"
    capability = torch.cuda.get_device_capability(scale.device)
    kernels = device_kernels.why_not(scale.device)
    return found | {
        "card": torch.cuda.get_device_name(scale.device),
        "capability": ".".join(map(str, capability)),
        "driver": driver.splitlines()[0],
        "cuda": str(torch.version.cuda),
        "triton": version("triton") if not kernels else "not used",
        "kernels": kernels or "used",
    }


def main(scale: Scale, output: Path) -> None:
    begin = time.monotonic()
    clock = Clock(scale)
    found: Row = {"machine": machine(scale), "is_smoke": scale is SMOKE}
    parts: dict[str, Callable[[], object]] = {
        "tests": lambda: run_tests(scale),
        "aggregation": lambda: aggregation(scale, clock),
        "training": lambda: training(scale, clock),
        "inference": lambda: inference(scale, clock),
    }
    for name, run in parts.items():
        clock.start(name)
        found[name] = run()
        found |= {"left out": clock.left_out, "seconds": time.monotonic() - begin}
        output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: done after {found['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs/benchmarks/gpu.json")
    parser.add_argument("--smoke", action="store_true", help="run on the CPU, in tiny sizes")
    parser.add_argument("--page", action="store_true", help="only write the page from the JSON")
    arguments = parser.parse_args()
    if arguments.page:
        write_page(arguments.output, ROOT / "docs/benchmarks/gpu.md")
    elif arguments.smoke or torch.cuda.is_available():
        main(SMOKE if arguments.smoke else FULL, arguments.output)
    else:
        parser.error("no GPU is available here; --smoke runs everything on the CPU, tiny")
