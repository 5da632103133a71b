"""What the routing of a trained network is worth, as numbers: what an analysis finds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

NEVER = 1e-6
"""A weight before the threshold that stays as close as this to its start has not moved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The accuracy with something changed, against the network's own on the same images."""

    accuracy: float
    gained: float
    """Share of the images that are right only with the change."""
    lost: float
    """Share of the images that are right only without it."""
    num_images: int

    @property
    def difference(self) -> float:
        """The change of accuracy."""
        return self.gained - self.lost

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval of `difference`, by images; other seeds are not in it."""
        variance = self.gained + self.lost - self.difference**2
        return 1.96 * math.sqrt(max(variance, 0.0) / self.num_images)


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeFacts:
    """One edge, over all images."""

    stage: str
    source: str
    target: str
    is_static: bool
    start: float
    """The weight that the gate gives at a logit of 0."""
    mean_weight: float
    """Mean of the weights that applied, 0 where closed; where it has several, of their mean."""
    deviation: float
    """Standard deviation of these over images."""
    spread: float
    """That of its weights within one image, as the mean over images for which it is open."""
    open_fraction: float
    mean_move: float
    """Mean distance of the weight before the threshold, the largest of several, from `start`."""
    largest_move: float
    closed: Change
    """What closing it does to the accuracy."""
    divergence: float
    """Mean KL(own outputs || outputs with this edge closed), in nats."""
    explained: Mapping[str, float | None]
    """Share of the variance of its weight between classes, domains, and values of attributes."""

    @property
    def has_moved(self) -> bool:
        """Whether its weight differs from its start for any image."""
        return self.largest_move > NEVER


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFacts:
    """How the adjacencies of one class relate to others."""

    name: str
    num_images: int
    within: float | None
    """Similarity of two of its images, see `Similarities`."""
    nearest: str | None
    """The other class that is most similar."""
    nearest_similarity: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageGain:
    """How a stage scales what passes through it, as the mean over images."""

    stage: str
    gain: float
    """The sum over paths of the product of their weights."""
    static_gain: float
    growth: float
    """Norm of the stage's output over that of its input."""
    static_growth: float
    """The same with the static adjacency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdFacts:
    """The network at another threshold."""

    threshold: float
    accuracy: float
    kept: float
    """Mean MACs ratio."""
    is_own: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """What the routing of a network is worth."""

    name: str
    router: str
    gate: str
    granularity: str
    num_images: int
    accuracy: float
    kept: float
    swapped: Mapping[str, Change]
    """By what replaces each image's adjacency: `mean`, `class mean`, that of an image of the `same
    class` or of any `other` one, and the `static` one.
    """
    within: float | None
    """Mean similarity of two images of one class."""
    between: float | None
    """Mean similarity of two images of different classes."""
    classes: tuple[ClassFacts, ...]
    edges: tuple[EdgeFacts, ...]
    rank_correlation: float | None
    """That of mean weight and divergence, over edges that are ever open."""
    thresholds: tuple[ThresholdFacts, ...]
    chance: Mapping[str, float]
    """For each grouping, the share of variance that it explains by chance."""
    gains: tuple[StageGain, ...]

    @property
    def never_moved(self) -> tuple[EdgeFacts, ...]:
        """Edges whose gate is where it started, for every image."""
        return tuple(edge for edge in self.edges if not edge.has_moved)

    @property
    def composite_gain(self) -> float:
        """The product over stages of their gain, relative to the static network's."""
        return math.prod(one.gain / one.static_gain for one in self.gains)
