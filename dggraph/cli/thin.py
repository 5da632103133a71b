"""`dggraph thin`: a smaller static network, measured on held-out images, and fine-tuned."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dggraph.cli.flags import config_flags_for
from dggraph.cli.networks import backbone_facts, open_network, rebuild_backbone, warn_of_random
from dggraph.cli.options import INTERRUPTED, as_json, make_folder, model_options, working
from dggraph.cli.parameters import LocatedPath, Number, WholeNumber
from dggraph.cli.progress import showing
from dggraph.cli.sections import SectionedCommand
from dggraph.errors import CheckError, InputError
from dggraph.system.allocator import keep_freed_memory
from dggraph.training.config import TrainConfig, configured, read_config

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dggraph.exporting.thinning import Thinned
    from dggraph.network.network import DynamicNetwork
    from dggraph.training.loop import TrainResult

DATA_KEYS = ("dataset", "data_dir", "domains", "on_bad_image", "workers")
TUNING_KEYS = ("epochs", "lr", "batch_size", "seed")
TUNING = {"lr": 0.01, "warmup_epochs": 0.0}
"""What fine-tuning does differently from training, unless it is told."""
WEIGHTS, FACTS, TUNED = "weights.safetensors", "thin.json", "fine-tuned"
TOLERANCE = 1e-4


@click.command(cls=SectionedCommand)
@model_options
@config_flags_for(*DATA_KEYS, *TUNING_KEYS)
@click.option("-o", "--output", required=True, type=LocatedPath(), help="Folder to write.")
@click.option(
    "--budget",
    required=True,
    type=Number(0, 1, min_open=True, max_open=True),
    help="MACs to keep, as a fraction of the backbone's.",
)
@click.option(
    "--limit",
    type=WholeNumber(min=2),
    metavar="N",
    help="At most N validation images, evenly spread: half to choose on, half to measure on.",
)
@click.option(
    "--recipe",
    type=LocatedPath(dir_okay=False),
    metavar="CONFIG",
    help="With --epochs: a configuration of training (TOML) for all its other keys.",
)
@as_json
def command(
    model: str,
    output: Path,
    budget: float,
    limit: int | None,
    recipe: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Take blocks out of the backbone of MODEL until it keeps --budget of its MACs.

    Blocks are chosen on half of the validation images, and accuracy is measured on the other half.
    OUTPUT gets weights.safetensors and thin.json. With --epochs the smaller network is then
    fine-tuned on the training part, in OUTPUT/fine-tuned.
    """
    tuning = {key: options.pop(key) for key in TUNING_KEYS}
    data_keys = {key: options.pop(key) for key in DATA_KEYS}
    is_tuned = tuning["epochs"] is not None
    if not is_tuned and (recipe is not None or any(one is not None for one in tuning.values())):
        raise click.UsageError("--recipe, --lr, --batch-size and --seed go with --epochs.")
    keep_freed_memory()
    make_folder(output)
    keys = read_config(None, {"model": model} | data_keys)
    net = open_network(model, **options)
    name, earlier = backbone_facts(net, model, options["backbone"])
    from torch.utils.data import Subset

    from dggraph.data.validation import open_validation
    from dggraph.evaluation.accuracy import evaluate
    from dggraph.evaluation.static_twin import with_weights_of
    from dggraph.exporting.fixed_path import static
    from dggraph.exporting.thinning import thin
    from dggraph.system.loaders import num_samples

    preprocess = net.preprocess and configured(net.preprocess, keys)
    data = open_validation(net, keys.source, preprocess=preprocess, limit=limit)
    if not data.classes:
        raise InputError(
            f"the images in {keys.data_dir} have no classes, so no accuracy can be measured. In"
            " Python, dggraph.thin needs no labels."
        )
    count = num_samples(data.images)
    if count < 2:
        raise InputError(f"choosing and measuring need at least two images, and there is {count}.")
    chosen_on, judged = (Subset(data.images, range(start, count, 2)) for start in (0, 1))
    with working("Taking out blocks"):
        thinned = thin(net, chosen_on, budget=budget)
        whole = with_weights_of(net, rebuild_backbone(net, model, options["backbone"]))
        plain = _plain(whole, net.graph.name, thinned, judged[0][0][None])
        before = evaluate(static(net, "backbone").eval(), judged)
        after = evaluate(plain, judged)
    removed = [*earlier, *(block.module_path for block in thinned.removed)]
    _refuse_other(output, removed)
    document: dict[str, Any] = {
        "model": name,
        "options": dict(net.source_options),
        "weights_origin": net.weights_origin,
        "budget": budget,
        "kept": thinned.kept,
        "is_met": thinned.is_met,
        "removed": removed,
        "fixed": dict(thinned.fixed),
        "num_images": {"chosen on": thinned.num_images, "measured on": before.num_images},
        "agreement": thinned.agreement,
        "divergence": thinned.divergence,
        "accuracy": {"backbone": before.accuracy, "thinned": after.accuracy},
        "notes": [*data.notes, *data.skipped],
    }
    _write(output, plain, document)
    if not as_json:
        _show(thinned, document, output)
    if is_tuned and thinned.removed:
        config = _tuning(net, name, output, removed, recipe, data_keys | tuning)
        result = _tune(config, is_silent=as_json)
        if not result.is_finished:
            return INTERRUPTED
        assert result.model is not None
        document["accuracy"]["fine-tuned"] = evaluate(result.model, judged).accuracy
        document["fine_tuned"] = str(result.folder)
        _write(output, plain, document)
    if as_json:
        click.echo(json.dumps(document))
        return 0
    if "fine_tuned" in document:
        click.echo(f"accuracy fine-tuned: {document['accuracy']['fine-tuned']:.4f}")
        click.echo(f"finished: {result.folder}. Use it as MODEL: dggraph eval {result.folder}")
    warn_of_random(net.weights_origin, model)
    return 0


def _plain(whole: "nn.Module", name: str, thinned: "Thinned", image: "Tensor") -> "nn.Module":
    """The backbone with `nn.Identity` in the place of blocks, compared with what was measured.

    Raises:
        CheckError: it gives other answers, so it may not be written.
    """
    import torch

    from dggraph.models.fewer_blocks import without_blocks

    plain = without_blocks(whole, [block.module_path for block in thinned.removed])
    with torch.no_grad():
        expected, got = thinned.module(image), plain(image)
    difference = float((expected - got).abs().max())
    if not difference <= TOLERANCE * float(expected.abs().max()):
        raise CheckError(
            f"{name} with nn.Identity in place of its blocks gives other answers than the"
            f" path around them: they differ by {difference:.3g}. Nothing was written. In Python,"
            " dggraph.thin returns the path itself as a module."
        )
    return plain


def _refuse_other(output: Path, removed: list[str]) -> None:
    """Raise InputError if `output` has a fine-tuned network without other blocks."""
    if not (output / TUNED).exists():
        return
    try:
        others = json.loads((output / FACTS).read_bytes())["removed"]
    except (OSError, ValueError, KeyError, TypeError):
        others = None
    if others != removed:
        raise InputError(
            f"{output} has a network that was fine-tuned without other blocks, which this one would"
            " replace in part. Choose another folder with -o."
        )


def _write(output: Path, plain: "nn.Module", document: Mapping[str, Any]) -> None:
    import safetensors.torch

    from dggraph.system.files import write_whole

    # clones, since safetensors rejects tied tensors
    state = {key: tensor.contiguous().clone() for key, tensor in plain.state_dict().items()}
    write_whole(output / WEIGHTS, safetensors.torch.save(state))
    write_whole(output / FACTS, json.dumps(document, indent=1).encode())


def _tuning(
    net: "DynamicNetwork",
    name: str,
    output: Path,
    removed: list[str],
    recipe: Path | None,
    given: Mapping[str, Any],
) -> TrainConfig:
    """The configuration of the fine-tuning."""
    own: dict[str, Any] = {
        "model": name,
        "router": "none",
        "without": "+".join(removed),
        "checkpoint": output / WEIGHTS,
        "output": output,
        "experiment": TUNED,
        "input_size": net.blueprint.input_shape[-1],
    }
    if net.preprocess is not None:
        own |= {
            "mean": net.preprocess.mean,
            "std": net.preprocess.std,
            "interpolation": net.preprocess.interpolation,
            "crop_pct": net.preprocess.crop_fraction,
        }
    usual = TUNING if recipe is None else {}
    return read_config(recipe, usual | {k: v for k, v in given.items() if v is not None} | own)


def _tune(config: TrainConfig, *, is_silent: bool) -> "TrainResult":
    from dggraph.training.loop import train

    with showing(is_silent=is_silent) as (begin, show):
        return train(config, show, begin=lambda start: begin(start, config))


def _show(thinned: "Thinned", document: Mapping[str, Any], output: Path) -> None:
    from dggraph.views.escaping import visible

    for line in str(thinned).splitlines():
        click.echo(visible(line))
    found = document["accuracy"]
    click.echo(
        f"accuracy on {document['num_images']['measured on']} other images: backbone"
        f" {found['backbone']:.4f}, thinned {found['thinned']:.4f}"
    )
    click.echo(visible(f"written: {output / WEIGHTS}, {output / FACTS}"))
