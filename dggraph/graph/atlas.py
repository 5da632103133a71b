"""The atlas of a set: what the paths of its images have in common and where they part, in numbers.
`evaluation.atlas` collects one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dggraph.graph.detection import Detected
from dggraph.graph.ir import ActivatedPath, CandidateEdge

Frequencies = Mapping[str, tuple[float, ...]]
"""Per stage, one share of images per candidate edge, in the order of `DynamicGraph.edges`."""

BINS_PER_STATIC = 200
"""Histogram bins are a two-hundredth of the static network's MACs wide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One image and its path."""

    index: int
    """Its place in the set."""
    name: str
    label: str | None
    """Its class, where the set has classes."""
    prediction: str | None
    """The network's most probable class, where it is a classifier."""
    probability: float | None
    path: ActivatedPath
    detected: Detected | None = None
    """What the network's detector found, where it is the backbone of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPaths:
    """The images of one class."""

    name: str
    num_images: int
    num_correct: int | None
    """Predicted as their class; None where the set's classes are not the network's."""
    mean_macs: float
    frequencies: Frequencies


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonPath:
    """A path that several images share: the same open edges, at weights of their own."""

    count: int
    path: ActivatedPath
    """Every open edge at weight 1, since weights differ between images."""
    classes: tuple[tuple[str, int], ...]
    """How many images of which class, the most frequent first."""
    examples: tuple[int, ...]
    """Places in the set of the first images that took it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateFacts:
    """What a `HealthReport` says of edges and blocks."""

    always_open: tuple[CandidateEdge, ...]
    always_closed: tuple[CandidateEdge, ...]
    tie_fractions: Mapping[CandidateEdge, float]
    """Share of images for which the edge was closer than 1e-4 to the threshold; edges with none are
    left out.
    """
    live_fractions: Mapping[str, float]
    """Per block, the share of images that reach it."""
    never_live: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Atlas:
    """Everything a report shows, but for the images themselves.

    Example:
        >>> import dggraph
        >>> from PIL import Image
        >>> Image.new("RGB", (40, 40)).save("grey.png")
        >>> collected = dggraph.evaluation.collect_atlas(dggraph.convert("dggraph:resnet20_8"), dggraph.evaluation.open_image_set("."))
        >>> collected.atlas.num_images
        1
    """

    network: str
    images: str
    """Name of the set."""
    num_images: int
    """Images that were run."""
    num_skipped: int
    """Images that could not be read."""
    skipped: tuple[tuple[str, str], ...]
    """Name and reason of the first of them."""
    num_ignored: int
    """Files without an image's suffix."""
    static_macs: int
    mean_macs: float
    std_macs: float
    histogram: tuple[tuple[int, int], ...]
    """(bin, images) in rising order: images with `bin <= BINS_PER_STATIC * macs / static_macs < bin
    + 1`; empty bins are left out.
    """
    accuracy: float | None
    """Share of images predicted as their class; None where the set's classes are not the
    network's.
    """
    frequencies: Frequencies
    classes: tuple[ClassPaths, ...]
    num_paths: int
    """Different paths."""
    path_entropy_bits: float
    """0 if all images take one path, log2(num_images) if each takes its own."""
    most_common: tuple[CommonPath, ...]
    instances: tuple[Instance, ...]
    """Images spread evenly over the set, with the cheapest and the dearest, by place in the set."""
    cheapest: tuple[int, ...]
    """Places in the set of the images with the fewest MACs, the fewest first."""
    dearest: tuple[int, ...]
    """Places in the set of the images with the most MACs, the most first."""
    gates: GateFacts

    @property
    def is_of_detector(self) -> bool:
        """Whether the network is the backbone of a detector, so that images have objects."""
        return any(one.detected is not None for one in self.instances)
