"""Convert every torchvision classifier, one small model of each timm file, or encoders of other
libraries, and write what holds as a table.

    python docs/sweep.py torchvision    writes docs/tables/torchvision.md
    python docs/sweep.py timm           writes docs/tables/timm.md

and so on for the libraries of encoders.py: transformers, smp, open_clip, pytorchcv, monai,
ultralytics, vit_pytorch.

Weights and norm statistics are randomised first. For each model: bitwise identical under `auto` and
`keep` (fresh routers, a batch size that was not traced), `lift` within 1e-5 max |y|, seeded random
routers against the original modules run through hooks (both in float64 where deep random weights
magnify float32's rounding), and whether opening each non-static edge (40 a model, spread evenly;
fewer where a pass takes seconds) changes the output. Results are appended to a .jsonl as they come;
run again to continue.
"""

import argparse
import copy
import gc
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/helpers"))
from encoders import ENCODERS
from reference import hooked, randomise, randomise_routers

import dggraph
from dggraph.errors import DggraphError, LoweringError, NothingToRouteError
from dggraph.models.registry import build_trusted, model_names
from dggraph.network.gate_contexts import pinned_gates
from dggraph.network.gates import static_weights
from dggraph.network.outputs import tensors_in
from dggraph.network.static_checks import are_equal

TABLES = Path(__file__).resolve().parent / "tables"
MAX_OPENED, MIN_OPENED, OPENING_SECONDS = 40, 6, 40
REFERENCE_TOLERANCE = 5e-5


def torchvision_models() -> Iterator[tuple[str, str]]:
    """(label, MODEL name) of every torchvision classifier."""
    for name in model_names():
        if not name.startswith("timm:"):
            yield name, name


def timm_models() -> Iterator[tuple[str, str]]:
    """(file, MODEL name) of the smallest model that each timm file registers, by parameters on the
    meta device.
    """
    import timm

    for file in timm.list_modules():
        sizes: dict[str, int] = {}
        for name in timm.list_models(module=file):
            try:
                with torch.device("meta"):
                    model = timm.create_model(name)
                size = (model.default_cfg.get("input_size") or (3, 224, 224))[-1]
                sizes[name] = sum(p.numel() for p in model.parameters()) * (1 if size <= 256 else 4)
            except Exception:
                continue
            if min(sizes.values()) < 8e6 and len(sizes) >= 6:
                break
        if sizes:
            yield file, f"timm:{min(sizes, key=sizes.__getitem__)}"


def examine(name: str) -> dict[str, Any]:
    """Every fact of a row: of a torchvision or timm model at the size that it was made for."""
    model = build_trusted(name)
    config = getattr(model, "default_cfg", None) or {}
    side = (
        config["input_size"][-1]
        if config
        else 299
        if name == "inception_v3"
        else int(getattr(model, "image_size", 224))
    )
    return examine_model(model, side)


def examine_model(model: nn.Module, side: int) -> dict[str, Any]:
    """Every fact of one model's row, at `side` pixels."""
    model = randomise(model).eval()
    example = torch.zeros(1, 3, side, side)
    start = time.perf_counter()
    net = dggraph.convert(model, example)
    row: dict[str, Any] = {
        "seconds": round(time.perf_counter() - start, 2),
        "covered": round(net.report.covered_fraction, 4),
    }
    row |= {
        "depths": [stage.depth for stage in net.report.stages],
        "blocks": [stage.num_blocks for stage in net.report.stages],
    }
    row |= {
        "edges": net.report.num_edges,
        "residuals": sorted({stage.residual for stage in net.report.stages}),
    }
    row |= {
        "routed": round(net.report.routed_fraction, 4),
        "opaque": [str(part) for part in net.report.opaque],
    }
    row |= {"static": [f"{p.module_path}: {p.reason}" for p in net.report.static[:2]]}
    x = torch.randn(3, 3, side, side)
    with torch.no_grad():
        expected = tensors_in(model(x))
        row["auto"] = are_equal(tensors_in(net(x)), expected)
        row["keep"] = are_equal(
            tensors_in(dggraph.convert(model, example, residual="keep").eval()(x)), expected
        )
        row["lift"] = _lifted(model, example, x)
        small = _small(model, x)
        row["opens"] = _opens(net, small[:1])
        randomise_routers(net)
        try:
            row["reference"], row["margin"] = _against_hooks(net, model, small[:2])
            if row["reference"] > REFERENCE_TOLERANCE:
                # With random weights a deep stage may magnify float32's rounding until a path
                # flips; in float64 none does.
                row["reference"], row["margin"] = _against_hooks(
                    net.double(), model.double(), small[:2].double()
                )
        except Exception as error:
            row["no_reference"] = f"{type(error).__name__}: {error}".splitlines()[0][:100]
    return row


def _lifted(model: nn.Module, example: torch.Tensor, x: torch.Tensor) -> float:
    """Largest difference under `lift`, as a fraction of max |y|; in float64 where rounding grows
    beyond what `convert` accepts.
    """
    try:
        lifted, expected = dggraph.convert(model, example, residual="lift").eval()(x), model(x)
    except LoweringError:
        wide = copy.deepcopy(model).double()
        lifted, expected = (
            dggraph.convert(wide, example.double(), residual="lift").eval()(x.double()),
            wide(x.double()),
        )
    return _distance(lifted, expected)


def _distance(ours: Any, theirs: Any) -> float:
    """Largest difference of any tensor, as a fraction of its max |y|."""
    pairs = zip(tensors_in(ours), tensors_in(theirs), strict=True)
    return max(
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs if b.numel()
    )


def _against_hooks(net: nn.Module, model: nn.Module, x: torch.Tensor) -> tuple[float, float]:
    """Largest difference from the hooked original, as a fraction of max |y|, and the smallest
    margin.
    """
    recording = dggraph.record(net, x)
    outputs, _ = hooked(net, model, x)
    images = list(zip(*(tensor.split(1) for tensor in tensors_in(recording.output)), strict=True))
    return max(map(_distance, images, outputs)), min(path.margin for path in recording.paths)


def _small(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Images of 64 pixels where the backbone takes them: the checks that need many passes do not
    depend on the size.
    """
    small = torch.randn(3, 3, 64, 64)
    try:
        model(small)
    except Exception:
        return x
    return small


def _opens(net: nn.Module, x: torch.Tensor) -> str:
    """How many of the non-static edges tried change the output when opened (in a net all of whose
    edges are static: closed).
    """
    edges = [
        (stage, i, edge)
        for stage in net.graph.stages
        for i, edge in enumerate(net.graph.edges(stage))
    ]
    others = [one for one in edges if not one[2].is_static] or edges
    start = time.perf_counter()
    base, changed = tensors_in(net(x)), 0
    affordable = int(OPENING_SECONDS / (time.perf_counter() - start))
    tried = others[:: max(1, len(others) // max(MIN_OPENED, min(MAX_OPENED, affordable)))]
    for stage, place, edge in tried:
        weights = static_weights(net.graph)[stage]
        weights[place] = 0.0 if edge.is_static else 1.0
        with pinned_gates(net, {stage: weights}):
            changed += not are_equal(tensors_in(net(x)), base)
    return f"{changed}/{len(tried)}"


def table(rows: list[dict[str, Any]], kind: str) -> str:
    """The rows as markdown, with what they add up to."""
    good = [row for row in rows if "error" not in row]
    mean = sum(row["covered"] for row in good) / max(len(good), 1)
    exact = sum(row["auto"] and row["keep"] for row in good)
    count = [row for row in good if _counts(row)]
    lines = [
        f"# {kind}",
        "",
        (
            f"Made by `python docs/sweep.py {kind}` with torch {torch.__version__.split('+')[0]}:"
            f" {len(good)} of {len(rows)} converted, {exact} bitwise identical under `auto` and"
            " `keep`, largest `lift` difference"
            f" {max((row['lift'] for row in good), default=0):.1e} of max |y|, mean share of MACs"
            f" inside stages {mean:.3f}{_routed(good)}. {len(count)} count as converted, because"
            f" every check of their row holds; {sum(row['covered'] >= 0.5 for row in count)} of"
            " these have at least half of their MACs in stages."
        ),
        "",
        (
            "| model | depths (entry block counted) | routed | edges | residual | MACs in stages |"
            " bitwise identical | lift | hooked reference | edges that matter |"
            " what stays static, what is missing |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(
                f"| {row['name']} | | | | | | | | | | {row['error'].replace('|', '/')[:160]} |"
            )
            continue
        reasons = [
            *([] if row["covered"] >= 0.5 else row["static"]),
            *([row["no_reference"]] if "no_reference" in row else []),
        ]
        reasons += [f"one call: {part}" for part in row.get("opaque", ())]
        why = "; ".join(reasons)
        cells = [
            row["name"],
            _numbers(row["depths"]),
            _numbers(row["blocks"]),
            row["edges"],
            " ".join(row["residuals"]),
            f"{row['covered']:.2f}",
        ]
        cells += [
            "yes" if row["auto"] and row["keep"] else "no",
            f"{row['lift']:.0e}",
            f"{row['reference']:.0e}" if "reference" in row else "-",
            row["opens"],
            why,
        ]
        lines.append("| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _routed(rows: list[dict[str, Any]]) -> str:
    """The mean share of MACs in routed blocks, entry blocks not counted; rows written before it was
    noted have none.
    """
    shares = [row["routed"] for row in rows if "routed" in row]
    return (
        f", in routed blocks alone {sum(shares) / len(shares):.3f}"
        if shares and len(shares) == len(rows)
        else ""
    )


def _counts(row: dict[str, Any]) -> bool:
    """A model counts as converted if it is exact, routed as the reference routes, and every edge
    tried matters.
    """
    opened, tried = map(int, row["opens"].split("/"))
    is_routed = row.get("reference", float("inf")) <= REFERENCE_TOLERANCE and opened == tried > 0
    return bool(row["auto"] and row["keep"] and row["lift"] <= 1e-5 and is_routed)


def _numbers(values: list[int]) -> str:
    return " ".join(map(str, values[:12])) + (" ..." if len(values) > 12 else "")


def rows_to_make(kind: str) -> Iterator[tuple[str, str, Callable[[], dict[str, Any]]]]:
    """(label, name, what examines it) of each row of a table."""
    if kind in ENCODERS:
        for label, (build, side) in ENCODERS[kind]().items():
            yield label, label, lambda build=build, side=side: examine_model(build(), side)
        return
    for label, name in torchvision_models() if kind == "torchvision" else timm_models():
        yield label, name, lambda name=name: examine(name)


def main(kind: str) -> None:
    """Examine what is not in the .jsonl yet, then write the table."""
    warnings.simplefilter("ignore")
    TABLES.mkdir(exist_ok=True)
    log = TABLES / f"{kind}.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {row["label"] for row in rows}
    for label, name, make in rows_to_make(kind):
        if label in done:
            continue
        try:
            row = make()
        except NothingToRouteError as error:
            row = {"error": f"nothing to route: {error}"}
        except DggraphError as error:
            row = {"error": f"{type(error).__name__}: {error}"}
        except Exception as error:
            row = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        row = json.loads(
            re.sub(r"[^\s\"]*/site-packages/", "", json.dumps(row))
        )  # no path of the machine that made it
        rows.append({"label": label, "name": name, **row})
        with log.open("a") as stream:
            stream.write(json.dumps(rows[-1]) + "\n")
        gc.collect()
        (TABLES / f"{kind}.md").write_text(table(sorted(rows, key=lambda row: row["label"]), kind))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library", choices=["torchvision", "timm", *ENCODERS])
    main(parser.parse_args().library)
