"""Collect an atlas: run a network or a detector over an image set and count its paths.

Memory does not grow with the set. It takes numbers for each edge, class and bin, a bounded number
of images, and a few bytes for each distinct path, up to a limit. Counts are integers, so that an
interrupted collection that continues ends with an identical atlas. Several processes share the
images and exchange their observations. Each counts all of them, in the order of the set, and so
obtains the same bytes as a single process.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from PIL import Image

from dggraph.data.folders import OnBadImage
from dggraph.data.image_sets import ImageSet, Item, evenly_spaced
from dggraph.errors import DggraphError, GateError, InputError
from dggraph.evaluation.atlas_counts import AtlasCounts
from dggraph.evaluation.atlas_state import read_state, write_state
from dggraph.evaluation.recording import Prediction, Predictor, as_predictor
from dggraph.graph.atlas import Atlas, Instance
from dggraph.models.origins import RANDOM, WARNING
from dggraph.network.gates import Gates
from dggraph.network.network import DynamicNetwork
from dggraph.system import processes

SAVE_SECONDS = 10.0
THUMBNAIL_PIXELS, DETECTED_PIXELS = 96, 480
"""Largest side of a thumbnail, and of one on which objects are outlined."""
ROUND = 16
"""Images that each of several processes runs before they exchange observations."""

Observation = tuple[Instance, Gates] | str | DggraphError
"""The result for one image: its path and its gates on the CPU, why it was skipped, or an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """An atlas, and thumbnails of the images that it names."""

    atlas: Atlas
    thumbnails: dict[int, Image.Image]
    """By place in the set."""


def collect_atlas(
    watched: DynamicNetwork | Predictor,
    images: ImageSet,
    *,
    limit: int | None = None,
    num_instances: int = 40,
    on_bad_image: OnBadImage = "error",
    state: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Collected:
    """Run a model over `images` and count its paths.

    Args:
        watched: a converted network with preprocessing, or a detector from
            `make_detector_predictor`; modes are restored.
        images: the set, from `open_image_set`.
        limit: the largest number of images to take, evenly spaced over the set.
        num_instances: the number of images to keep with their paths, in addition to those with the
            fewest and the most MACs.
        on_bad_image: `error` stops at an image that cannot be read; `skip` counts it and goes on.
        state: a file in which counts are saved from time to time, and from which a collection
            continues. It is not deleted at the end. Of several processes the first reads and writes
            it, and their number may change.
        progress: called with the number of images done and the total.

    Raises:
        InputError: an image cannot be read; there is no image; the network does not say how images
            become its input, or has no stages; or `state` belongs to another network, set or
            settings.
        GateError: an edge weight is NaN; names the image.
        TrainingError: the processes have different networks, sets or settings.

    Example:
        >>> import dggraph
        >>> from PIL import Image
        >>> Image.new("RGB", (40, 40)).save("grey.png")
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> images = dggraph.evaluation.open_image_set(".")
        >>> dggraph.evaluation.collect_atlas(net, images).atlas.num_paths
        1
    """
    predictor = as_predictor(watched)
    net = predictor.net
    total = images.num_images if limit is None else min(limit, images.num_images)
    is_taken, is_shown = (
        evenly_spaced(images.num_images, limit),
        evenly_spaced(total, num_instances),
    )
    identity = _identify(predictor, images, limit, num_instances)
    counts = AtlasCounts(
        net.graph,
        net.macs_table.static,
        images.classes,
        is_comparable=_is_comparable(predictor, images),
    )
    processes.assert_same_on_all_ranks(identity | {"images": images.num_images})
    state = state if processes.rank() == 0 else None
    document, *_ = processes.all_gather_objects(
        None if state is None else read_state(state, identity)
    )
    if isinstance(document, dict):
        counts.restore(document)
    start, saved = counts.next_index, monotonic()
    taken = (item for item in images.items() if item.index >= start and is_taken(item.index))
    try:
        for item, observation in _observe_all(predictor, taken, images.classes, on_bad_image):
            counts.is_wanted = counts.is_wanted or is_shown(counts.num_passed)
            count_item(item, observation, counts)
            counts.next_index = item.index + 1
            progress(counts.num_passed, total)
            if state is not None and monotonic() - saved >= SAVE_SECONDS:
                write_state(state, identity, counts.document())
                saved = monotonic()
    except DggraphError:
        # The image with this error was not counted; after any other error the saved state is kept.
        if state is not None and counts.next_index > start:
            write_state(state, identity, counts.document())
        raise
    if state is not None and counts.next_index > start:
        write_state(state, identity, counts.document())
    atlas = counts.atlas(network=predictor.name, images=images.name, num_ignored=images.num_ignored)
    atlas = _with_weights(atlas, net.weights_origin)
    return Collected(atlas=atlas, thumbnails=_thumbnails(images, atlas))


def _with_weights(atlas: Atlas, origin: str) -> Atlas:
    """`atlas`, saying where the weights come from, and first of all that they are random."""
    warnings = ((WARNING,) if origin == RANDOM else ()) + atlas.gates.warnings
    return replace(atlas, weights_origin=origin, gates=replace(atlas.gates, warnings=warnings))


def _observe_all(
    predictor: Predictor, items: Iterator[Item], classes: tuple[str, ...], on_bad_image: OnBadImage
) -> Iterator[tuple[Item, Observation]]:
    """Yield every item in order, with its observation by one of the processes."""
    number = processes.world_size()
    while batch := list(islice(items, number * ROUND if number > 1 else 1)):
        mine = [
            observe(predictor, item, classes, on_bad_image)
            for item in batch[processes.rank() :: number]
        ]
        parts: list[Any] = processes.all_gather_objects(mine)
        for place, item in enumerate(batch):
            yield item, parts[place % number][place // number]


def observe(
    predictor: Predictor, item: Item, classes: tuple[str, ...], on_bad_image: OnBadImage
) -> Observation:
    """Run one image, and return its path, or the reason why there is none."""
    try:
        prediction = predictor.predict(item.open())
    except InputError as error:
        return (
            str(error)
            if on_bad_image == "skip"
            else InputError(
                f"{error} With --on-bad-image skip, bad images are counted and left out."
            )
        )
    except GateError as error:
        return GateError(f"{item.name!r}: {error}")
    return _instance(item, prediction, classes), prediction.gates


def count_item(item: Item, observation: Observation, counts: AtlasCounts) -> None:
    """Count an image.

    Raises:
        DggraphError: the observation is an error, which stops the collection.
    """
    if isinstance(observation, DggraphError):
        raise observation
    if isinstance(observation, str):
        counts.skip(item.name, observation)
    else:
        instance, gates = observation
        counts.add(instance, item.label, gates)


def _instance(item: Item, prediction: Prediction, classes: tuple[str, ...]) -> Instance:
    top_class = next(iter(prediction.classes), None)
    return Instance(
        index=item.index,
        name=item.name,
        label=None if item.label is None else classes[item.label],
        prediction=None if top_class is None else top_class.label,
        probability=None if top_class is None else top_class.probability,
        path=prediction.path,
        detected=prediction.detected,
    )


def _is_comparable(predictor: Predictor, images: ImageSet) -> bool:
    """Whether the set's classes are the network's, so that predictions can be right or wrong."""
    if predictor.is_detector:
        return False
    labels = predictor.net.labels
    known = (
        labels
        if labels is not None
        else tuple(f"class {index}" for index in range(len(images.classes)))
    )
    return bool(images.classes) and set(images.classes) <= set(known)


def _identify(
    predictor: Predictor, images: ImageSet, limit: int | None, num_instances: int
) -> dict[str, str]:
    """Return the facts that a saved state must match.

    `on_bad_image` is not among them: it has no effect until the first bad image.
    """
    return {
        **predictor.identify(),
        "images": images.fingerprint,
        "limit": str(limit),
        "instances": str(num_instances),
        "version": f"dggraph {version('dggraph')}, torch {torch.__version__}",
    }


def _thumbnails(images: ImageSet, atlas: Atlas) -> dict[int, Image.Image]:
    wanted = {instance.index for instance in atlas.instances} | {
        index for path in atlas.most_common for index in path.examples
    }
    side = DETECTED_PIXELS if atlas.is_of_detector else THUMBNAIL_PIXELS
    last, found = max(wanted), {}
    for item in images.items():
        if item.index in wanted:
            small = item.open()
            small.thumbnail((side, side))
            found[item.index] = small.convert("RGB")
        if item.index >= last:
            break
    return found
