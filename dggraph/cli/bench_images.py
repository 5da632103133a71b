"""`dggraph bench --images`: a network on real images, plain and prepared, and whether it pays."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dggraph.cli.options import working
from dggraph.cli.progress import counting
from dggraph.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor, nn

    from dggraph.data.image_sets import ImageSet
    from dggraph.evaluation.throughput import Comparison
    from dggraph.network.network import DynamicNetwork

UNRELIABLE = (
    "? = unreliable: quartiles more than 10 % apart; something else is running, or use more"
    " --rounds."
)
LEGEND = (
    "over static: time over that of the static network run module by module, below 1 is faster;"
    " median of paired rounds (quartiles). inlined: over the static network run by the executor of"
    " the dynamic one. optimised: both sides prepared by optimize_for_inference."
)
TITLES = {"static": "static", "inlined": "static, inlined", "dynamic": "dynamic"}
NOTHING_SKIPPED = 0.99
"""MACs ratio of the shortest path above which no image skips anything worth naming."""


def measure_on_images(
    net: "DynamicNetwork",
    backbone: "nn.Module",
    folder: Path,
    *,
    limit: int,
    is_skipping: bool,
    batch_sizes: Sequence[int],
    rounds: int,
    clock: str,
) -> dict[str, Any]:
    """Time `net` beside its static `backbone` on the images in `folder`.

    Args:
        net: a converted network with preprocessing.
        backbone: what it was converted from, with any weights.
        folder: an image set, see `open_image_set`.
        limit: the largest number of images, evenly spaced over the set.
        is_skipping: whether images that cannot be read are left out.
        batch_sizes: a size with more images than there are is left out, with a note.
        rounds: counted rounds.
        clock: a name in `timing.CLOCKS`.

    Returns:
        What `show_on_images` prints, for JSON.

    Raises:
        InputError: an image cannot be read, or there are fewer images than the smallest batch size;
            or as for `open_image_set` and `Contestants`.
    """
    import torch

    from dggraph.data.image_sets import open_image_set
    from dggraph.evaluation.throughput import Contestants, path_facts
    from dggraph.evaluation.timing import CLOCKS
    from dggraph.ops.stage_costs import WAYS
    from dggraph.views.escaping import plural

    images = open_image_set(folder, net.labels)
    with working("Reading images"):
        inputs, skipped = read_inputs(net, images, limit, is_skipping)
    usable = sorted({size for size in batch_sizes if size <= len(inputs)})
    notes = [*images.notes, *(f"left out, because it cannot be read: {one}" for one in skipped)]
    notes += [
        f"batch {size} is left out, because the set gives {plural(len(inputs), 'image')}"
        for size in sorted(set(batch_sizes) - set(usable))
    ]
    if not usable:
        raise InputError(
            f"{str(folder)!r} gives {plural(len(inputs), 'image')}, fewer than the smallest batch,"
            f" {min(batch_sizes)}. Give more images, a larger --limit or a smaller --batch-size."
        )
    facts = path_facts(net, [one[None] for one in inputs])
    with working("Preparing the static network"):
        contestants = Contestants(net, backbone)
    is_chosen = (  # one router a stage, and images that differ
        inputs[0].device.type == "cpu"
        and net.macs_table.is_useful_only
        and min(facts.shared.values()) < 1
    )
    rows = []
    for size in usable:
        batches = [
            torch.stack(inputs[start : start + size])
            for start in range(0, len(inputs) - size + 1, size)
        ]
        with counting(f"batch {size}") as progress:
            rows += contestants.compare(
                batches,
                ways=WAYS if is_chosen and size > 1 else (),
                rounds=rounds,
                clock=CLOCKS[clock],
                progress=progress,
            )
    document: dict[str, Any] = {
        "images": {"name": images.name, "num_images": images.num_images, "num_timed": len(inputs)},
        "notes": notes,
        "kept": sum(facts.kept) / len(facts.kept),
        "paths": asdict(facts),
        "rows": [_row(row) for row in rows],
    }
    return document | {"verdict": verdict(document["rows"])}


def _row(row: "Comparison") -> dict[str, Any]:
    speeds = {
        speed.name: asdict(speed) | {"is_reliable": speed.is_reliable} for speed in row.speeds
    }
    return asdict(row) | {"speeds": speeds, "regret": row.regret}


def read_inputs(
    net: "DynamicNetwork", images: "ImageSet", limit: int, is_skipping: bool
) -> tuple[list["Tensor"], list[str]]:
    """Return inputs (C, H, W) in an order that mixes classes, and why others are missing."""
    import torch

    from dggraph.data.image_sets import evenly_spaced
    from dggraph.models.preprocessing import require_preprocess
    from dggraph.system.devices import first_weight

    preprocess, like = require_preprocess(net.preprocess), first_weight(net)
    is_taken, inputs, skipped = evenly_spaced(images.num_images, limit), [], list[str]()
    for item in images.items():
        if not is_taken(item.index):
            continue
        try:
            inputs.append(preprocess(item.open())[0].to(like))
        except InputError as error:
            if not is_skipping:
                raise InputError(f"{error} With --on-bad-image skip, it is left out.") from error
            skipped.append(str(error).rstrip("."))
    generator = torch.Generator().manual_seed(0)
    return [inputs[place] for place in torch.randperm(len(inputs), generator=generator)], skipped


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in plain words whether the dynamic network is faster, for each batch size."""
    sentences = []
    for size in dict.fromkeys(row["batch_size"] for row in rows):
        subject = "a single image" if size == 1 else f"a batch of {size}"
        plain, prepared = (row["speeds"]["dynamic"] for row in rows if row["batch_size"] == size)
        same = _pays(plain) == _pays(prepared)
        sentences.append(
            f"It {_pays(plain)} for {subject}: {plain['ratio']:.2f} of the static time"
            + (
                f", and {prepared['ratio']:.2f} with both prepared for inference."
                if same
                else f". With both prepared for inference it {_pays(prepared)}:"
                f" {prepared['ratio']:.2f}."
            )
        )
    return " ".join(sentences)


def _pays(speed: Mapping[str, Any]) -> str:
    if speed["high"] < 1:
        return "pays"
    return "does not pay" if speed["low"] > 1 else "makes no clear difference"


def show_on_images(console: "Console", document: Mapping[str, Any]) -> None:
    """Print what `measure_on_images` found, losses as plainly as gains."""
    from rich import box
    from rich.table import Table

    from dggraph.views.escaping import for_terminal, plural

    images, paths, rows = document["images"], document["paths"], document["rows"]

    def say(text: str) -> None:
        console.print(for_terminal(text), soft_wrap=True)

    for note in document["notes"]:
        say(f"note: {note}.")
    kept = paths["kept"]
    say(
        f"{plural(images['num_timed'], 'image')} of {images['num_images']} in {images['name']};"
        f" MACs ratio {document['kept']:.2f} on average, {min(kept):.2f} to {max(kept):.2f};"
        f" {plural(paths['num_paths'], 'distinct path')}"
    )
    shared = ", ".join(f"{stage} {share:.0%}" for stage, share in paths["shared"].items())
    say(f"images with the most common open edges of a stage: {shared}")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in ("images/s", "p50 ms", "p90", "p99", "over static", "inlined"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(f"batch {row['batch_size']}, {row['form']}")
        for name, speed in row["speeds"].items():
            mark = "" if speed["is_reliable"] else "?"
            ratio = f"{speed['ratio']:.2f}{mark} ({speed['low']:.2f}-{speed['high']:.2f})"
            table.add_row(
                f"  {TITLES[name]}",
                _short(speed["images_per_second"]),
                *(_short(1e3 * speed[part]) for part in ("p50", "p90", "p99")),
                "1" if name == "static" else ratio,
                f"{row['over_inlined']:.2f}" if name == "dynamic" else "",
            )
    console.print(table)
    console.print()
    say(LEGEND)
    for row in rows:
        if row["ways"]:
            chosen = ", ".join(
                f"{way} {row['chosen'].get(way, 0)} times (always {way}: {ratio:.2f} of the time)"
                for way, ratio in row["ways"].items()
            )
            say(
                f"batch {row['batch_size']}, {row['form']}: for stages in which images differ, the"
                f" cost model chose {chosen}; regret {row['regret']:.0%}"
            )
    for row in {row["form"]: row for row in rows if row["plans"]}.values():
        plans = row["plans"].values()
        patterns = plural(sum(one["num_patterns"] for one in plans), "pattern")
        say(
            f"plans kept, {row['form']}: {patterns} in {plural(len(plans), 'stage')},"
            f" {sum(one['num_bytes'] for one in plans) / 1e3:.3g} KB"
        )
    executors = dict.fromkeys(row["executor"] for row in rows)
    say(f"executor of the dynamic network: {'; '.join(executors)}")
    if not all(speed["is_reliable"] for row in rows for speed in row["speeds"].values()):
        say(UNRELIABLE)
    console.print()
    if min(kept) > NOTHING_SKIPPED:
        say(
            "No image skips work, so there is little to gain: train the routers with a budget, or"
            " choose one (dggraph eval --budget)."
        )
    say(document["verdict"])


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
