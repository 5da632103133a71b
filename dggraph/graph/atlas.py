"""The atlas of an image set: statistics of the paths of its images.

`evaluation.atlas` collects one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dggraph.graph.detection import Detected
from dggraph.graph.ir import ActivatedPath, CandidateEdge

Frequencies = Mapping[str, tuple[float, ...]]
"""For each stage, one share of images per candidate edge, in the order of `DynamicGraph.edges`."""

BINS_PER_STATIC = 200
"""Number of histogram bins per MACs of the static network: each bin is 0.5 % of them wide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One image and its path."""

    index: int
    """Its place in the set."""
    name: str
    label: str | None
    """Its class, or None where the set has no classes."""
    prediction: str | None
    """The network's most probable class, or None where the network is not a classifier."""
    probability: float | None
    path: ActivatedPath
    detected: Detected | None = None
    """The objects found by the detector whose backbone this network is, else None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPaths:
    """The images of one class."""

    name: str
    num_images: int
    num_correct: int | None
    """How many images were predicted as their class.

    None if the set's classes are not the network's.
    """
    mean_macs: float
    frequencies: Frequencies


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonPath:
    """A path that several images share: the same open edges, with different weights."""

    count: int
    path: ActivatedPath
    """Every open edge at weight 1, since the weights differ between images."""
    classes: tuple[tuple[str, int], ...]
    """The number of images of each class, the most frequent class first."""
    examples: tuple[int, ...]
    """Places in the set of the first images that took this path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateFacts:
    """The part of a `HealthReport` that concerns edges and blocks."""

    always_open: tuple[CandidateEdge, ...]
    always_closed: tuple[CandidateEdge, ...]
    tie_fractions: Mapping[CandidateEdge, float]
    """Share of images for which an edge was closer than 1e-4 to the threshold, if not 0."""
    live_fractions: Mapping[str, float]
    """For each block, the share of images that reach it."""
    never_live: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Atlas:
    """All contents of an atlas report except the images themselves.

    Example:
        >>> import dggraph
        >>> from PIL import Image
        >>> Image.new("RGB", (40, 40)).save("grey.png")
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> images = dggraph.evaluation.open_image_set(".")
        >>> dggraph.evaluation.collect_atlas(net, images).atlas.num_images
        1
    """

    network: str
    images: str
    """The name of the set."""
    num_images: int
    """The number of images that were run."""
    num_skipped: int
    """The number of images that could not be read."""
    skipped: tuple[tuple[str, str], ...]
    """Name and reason for the first skipped images."""
    num_ignored: int
    """The number of files without an image suffix."""
    static_macs: int
    mean_macs: float
    std_macs: float
    histogram: tuple[tuple[int, int], ...]
    """(bin, images) in ascending order, without empty bins.

    An image is in a bin if `bin <= BINS_PER_STATIC * macs / static_macs < bin + 1`.
    """
    accuracy: float | None
    """Share of images predicted as their class; None if the set's classes are not the network's."""
    frequencies: Frequencies
    classes: tuple[ClassPaths, ...]
    num_paths: int
    """The number of distinct paths."""
    path_entropy_bits: float
    """0 if all images take one path, log2(num_images) if each image takes another one."""
    most_common: tuple[CommonPath, ...]
    instances: tuple[Instance, ...]
    """Images spread evenly over the set, and those with extreme MACs, by place in the set."""
    cheapest: tuple[int, ...]
    """Places in the set of the images with the fewest MACs, in ascending order of MACs."""
    dearest: tuple[int, ...]
    """Places in the set of the images with the most MACs, in descending order of MACs."""
    gates: GateFacts
    weights_origin: str = "unknown"
    """Where the network's weights come from; of `random` ones the first warning says so."""

    @property
    def is_of_detector(self) -> bool:
        """Whether the network is the backbone of a detector, so that images have objects."""
        return any(one.detected is not None for one in self.instances)
