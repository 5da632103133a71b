"""`dggraph eval`: accuracy, MACs, budgets on held-out images, and what each block is worth."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dggraph.cli.eval_boxes import BOX_SETS, evaluate_boxes
from dggraph.cli.eval_numbers import (
    analysis_numbers,
    budget_numbers,
    class_numbers,
    numbers,
    sensitivity_numbers,
)
from dggraph.cli.flags import config_flags_for
from dggraph.cli.networks import open_classifier, open_network, warn_of_random
from dggraph.cli.options import (
    accelerator_option,
    as_json,
    make_folder,
    model_options,
    refuse_answered,
    working,
)
from dggraph.cli.parameters import LocatedPath, Number, WholeNumber
from dggraph.cli.progress import counting
from dggraph.cli.sections import SectionedCommand
from dggraph.cli.tables import show
from dggraph.errors import InputError
from dggraph.system.allocator import keep_freed_memory
from dggraph.training.config import configured, read_config

if TYPE_CHECKING:
    import torch

    from dggraph.baselines.network import BaselineNetwork
    from dggraph.data.validation import ValidationData
    from dggraph.network.network import DynamicNetwork

DATA_KEYS = (
    "dataset",
    "data_dir",
    "domains",
    "mean",
    "std",
    "interpolation",
    "crop_pct",
    "on_bad_image",
    "validation_batch_size",
    "workers",
)
BOX_KEYS = ("on_bad_box", "max_size")


@click.command(cls=SectionedCommand)
@model_options
@config_flags_for(*DATA_KEYS, *BOX_KEYS)
@click.option(
    "--limit",
    type=WholeNumber(min=1),
    metavar="N",
    help="At most N images, evenly spread over the set.",
)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    type=Number(min=0, min_open=True),
    help=(
        "Mean MACs to keep, as a fraction: calibrate on half of the images, measure on the other"
        " half. As many as you like."
    ),
)
@click.option(
    "--save",
    type=LocatedPath(),
    metavar="FOLDER",
    help="Archive with the curve of --budget; may be MODEL.",
)
@click.option(
    "--sensitivity", is_flag=True, help="What leaving out each block would cost; needs no labels."
)
@click.option(
    "--analysis",
    type=LocatedPath(dir_okay=False),
    metavar="FILE",
    help="Page (HTML) on what routing is worth: other adjacencies, each edge, thresholds.",
)
@click.option(
    "--predictions",
    type=LocatedPath(dir_okay=False),
    metavar="FILE",
    help="Boxes as COCO's JSON, of a detector.",
)
@accelerator_option
@as_json
def command(
    model: str,
    limit: int | None,
    budgets: tuple[float, ...],
    save: Path | None,
    sensitivity: bool,
    analysis: Path | None,
    predictions: Path | None,
    device: "torch.device | None",
    as_json: bool,
    **options: Any,
) -> None:
    """Evaluate MODEL on the validation part of a data set.

    MODEL may also be the folder of a run, finished or not, which then says what data it is judged
    on; or with --dataset coco or voc the name of a detector.

    On several processes: torchrun --nproc-per-node N -m dggraph eval MODEL; the counts are those of
    one.
    """
    if save is not None and not budgets:
        raise click.UsageError(
            "--save keeps the curve that --budget measures; give at least one --budget."
        )
    keep_freed_memory()
    given = {key: options.pop(key) for key in (*DATA_KEYS, *BOX_KEYS)}
    if _is_detection(model, given["dataset"]):
        _refuse_for_boxes(
            {"budget": budgets, "save": save, "sensitivity": sensitivity, "analysis": analysis}
            | given,
            options,
        )
        built = {
            key: options[key] for key in ("checkpoint", "pretrained", "num_classes", "input_size")
        }
        evaluate_boxes(
            model,
            given | built,
            options["backbone"],
            limit=limit,
            predictions=predictions,
            device=device,
            as_json=as_json,
        )
        return
    if predictions is not None or any(given[key] is not None for key in BOX_KEYS):
        raise click.UsageError(
            "--predictions, --on-bad-box and --max-size are for detectors: the folder of a run, or"
            f" --dataset {' or '.join(BOX_SETS)}."
        )
    keys = read_config(
        None,
        {"model": model}
        | _data_of(model, given)
        | {key: given[key] for key in DATA_KEYS if given[key] is not None},
    )
    if save is not None:
        _refuse_other(save, model)
    if analysis is not None:
        make_folder(analysis.parent)

    from dggraph.data.validation import open_validation
    from dggraph.evaluation.accuracy import evaluate
    from dggraph.evaluation.held_out_budgets import HALVES, evaluate_budgets
    from dggraph.evaluation.sensitivity import measure_sensitivity
    from dggraph.network.archive import save as save_archive
    from dggraph.system import processes
    from dggraph.system.loaders import num_samples

    with processes.computing_on(device), processes.process_group():
        has_paths = budgets or sensitivity or analysis is not None
        dynamic = open_network(model, **options) if has_paths else None
        net = open_classifier(model, **options) if dynamic is None else dynamic
        net.to(processes.device())
        data = open_validation(
            net,
            keys.source,
            preprocess=net.preprocess and configured(net.preprocess, keys),
            limit=limit,
        )
        if not data.classes and (budgets or analysis or not sensitivity):
            raise InputError(
                f"the images in {keys.data_dir} have no classes, so no answer is right or wrong;"
                " they serve --sensitivity only."
            )
        processes.assert_same_on_all_ranks(
            {"network": _digest(net), "images": num_samples(data.images), "classes": data.classes}
        )
        how: Any = {"batch_size": keys.evaluation_batch_size, "workers": keys.workers}
        document = {
            "model": model,
            "dataset": keys.dataset,
            "num_images": num_samples(data.images),
            **how,
        }
        document |= {
            "weights_origin": net.weights_origin,
            "device": str(processes.device()),
            "num_processes": processes.world_size(),
            "notes": list(data.notes),
            "skipped": list(data.skipped),
        }
        if processes.rank() == 0 and not as_json:
            click.echo(_begin(net, document, len(data.classes)))
        if data.classes:
            with counting("Evaluating") as progress:
                start = time.perf_counter()
                found = evaluate(net, data.images, progress=progress, **how)
                document |= numbers(found) | {
                    "images_per_second": found.num_images / (time.perf_counter() - start)
                }
            document["classes"] = class_numbers(found, data.classes)
        if budgets and dynamic is not None:
            with working("Calibrating, then measuring"):
                document["budgets"] = budget_numbers(
                    evaluate_budgets(dynamic, data.images, budgets, **how), HALVES
                )
        if sensitivity and dynamic is not None:
            with working("Leaving out one block after another"):
                costs = measure_sensitivity(
                    dynamic, data.images, has_labels=bool(data.classes), **how
                )
            document["sensitivity"] = sensitivity_numbers(costs, document.get("top1"))
        if analysis is not None and dynamic is not None:
            document["analysis"] = _analyse(dynamic, data, analysis, keys.dataset, **how)
        if processes.rank() == 0:
            if save is not None and dynamic is not None:
                save_archive(dynamic.cpu(), save)
            if as_json:
                click.echo(json.dumps(document))
            else:
                show(document)
                warn_of_random(document["weights_origin"], model)


def _analyse(
    net: "DynamicNetwork", data: "ValidationData", file: Path, dataset: str, **how: Any
) -> dict[str, Any]:
    """Write the page of an analysis, and return its numbers."""
    from dggraph.data.validation import attributes_of
    from dggraph.evaluation.analysis import analyse
    from dggraph.system.files import write_whole
    from dggraph.views.analysis_page import write_analysis

    with counting("Analysing") as progress:
        attributes = attributes_of(data.images)
        found = analyse(
            net, data.images, data.classes, attributes=attributes, progress=progress, **how
        )
    write_whole(file, write_analysis(found, dataset).encode())
    return {"file": str(file)} | analysis_numbers(found)


def _digest(net: "DynamicNetwork | BaselineNetwork") -> str:
    from dggraph.network.digests import digest_of, digest_state
    from dggraph.network.network import DynamicNetwork

    if isinstance(net, DynamicNetwork):
        return digest_of(net)
    return digest_state(f"{net.method} {net.options}", net)


def _class_of(net: "DynamicNetwork | BaselineNetwork") -> str:
    from dggraph.network.network import DynamicNetwork

    if isinstance(net, DynamicNetwork):
        return net.graph.name
    return f"{net.name}, method {net.method}"


def _begin(
    net: "DynamicNetwork | BaselineNetwork", document: Mapping[str, Any], num_classes: int
) -> str:
    """What is about to be evaluated, in a line."""
    from dggraph.views.escaping import visible

    parameters = sum(parameter.numel() for parameter in net.parameters())
    classes = f" of {num_classes} classes" if num_classes else ""
    return visible(
        f"{_class_of(net)}, {parameters:,} parameters, weights: {document['weights_origin']};"
        f" {document['num_images']:,} images{classes}, {document['batch_size']} at a time, on"
        f" {document['device']}"
    )


def _data_of(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a classifier's run, where `model` is one and they are not given."""
    from dggraph.training.classifier_runs import is_classifier_run, run_config

    if (
        given["dataset"] is not None
        or given["data_dir"] is not None
        or not is_classifier_run(model)
    ):
        return {}
    config = run_config(model)
    if ":" in config.dataset:
        raise InputError(
            f"the data set of {model} is code, {config.dataset!r}, which is run only where you name"
            f" it: --dataset {config.dataset}."
        )
    return {key: getattr(config, key) for key in ("dataset", "data_dir", "domains")}


def _is_detection(model: str, dataset: str | None) -> bool:
    from dggraph.detection.registry import detector_names
    from dggraph.training.detector_runs import is_detector_run

    return dataset in BOX_SETS or model in detector_names() or is_detector_run(model)


def _refuse_for_boxes(given: dict[str, Any], options: dict[str, Any]) -> None:
    """Refuse flags that mean nothing for detectors.

    Detectors normalise by themselves, and their routers come with their run.
    """
    found = next(
        (
            name
            for name in (
                "budget",
                "save",
                "sensitivity",
                "analysis",
                "mean",
                "std",
                "interpolation",
                "crop_pct",
                "domains",
            )
            if given[name]
        ),
        None,
    )
    if found:
        raise click.UsageError(
            f"--{found.replace('_', '-')} is for classifiers; it means nothing for a detector."
            " Leave it out."
        )
    converting = ("wiring", "residual", "router", "gate", "granularity", "aggregation", "threshold")
    refuse_answered(
        "a detector: its backbone is dynamic as it was trained, or static.",
        **{name: options[name] for name in converting},
    )


def _refuse_other(save: Path, model: str) -> None:
    """Find out before the work that the archive may not be written."""
    from dggraph.network.manifest import MANIFEST

    if save.exists() and save.resolve() != Path(model).resolve():
        raise InputError(
            f"{save} exists and is not {model}, so it is not replaced. Choose another folder, or"
            " MODEL's own."
        )
    if save.exists() and not (save / MANIFEST).is_file():
        raise InputError(f"{save} is not an archive, so it is not replaced. Choose another folder.")
    make_folder(save.parent)
