"""The numbers of a comparison, as its pages show them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Role = Literal["baseline", "control", "size", "method"]
"""What a method is to the comparison; `size` is a static network of another size."""
Mark = Literal["better", "worse", "maybe better", "maybe worse", "unclear"]

CURVE = "the curve"
"""In `Entry.differences`, the line through static networks of several sizes, at equal MACs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A difference of accuracies in points, paired by seed."""

    mean: float
    half_width: float
    """Half of the 95 % interval of the mean."""
    p_value: float
    adjusted_p_value: float | None
    """After Holm's correction; None for differences that are not part of it."""
    num_pairs: int

    @property
    def mark(self) -> Mark:
        """Whether the difference is sure, outside of its own interval only, or neither.

        A difference without correction is never sure.
        """
        side = "better" if self.mean > 0 else "worse"
        if self.adjusted_p_value is not None and self.adjusted_p_value < 0.05:
            return side  # type: ignore[return-value]
        return f"maybe {side}" if abs(self.mean) > self.half_width else "unclear"  # type: ignore[return-value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One method in one setting, over its seeds."""

    name: str
    """The method, and its budget if it has one."""
    role: Role
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    """In percent, by seed."""
    mean: float
    deviation: float | None
    """Standard deviation over seeds in points; None with one seed."""
    differences: Mapping[str, Difference]
    """By the method that it is compared with, or `CURVE`."""
    num_seeds_needed: int | None
    """Seeds with which a difference of one point from the baseline is seen in 80 % of all cases."""
    facts: Mapping[str, float | None]
    """Means over seeds of the numbers of a row."""
    unmeasured: tuple[str, ...]
    """What could not be measured, and why."""
    command: str
    """What trains its first seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One family of networks on one data set."""

    name: str
    entries: tuple[Entry, ...]
    """In the order of the configuration, without methods that have no row yet."""

    def find(self, name: str) -> Entry | None:
        """Return the entry called `name`, if there is one."""
        return next((entry for entry in self.entries if entry.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonSummary:
    """A whole comparison."""

    name: str
    command: str
    """What runs it."""
    baseline: str
    controls: tuple[str, ...]
    curve: tuple[str, ...]
    overall: Setting | None
    """The mean over the settings, paired by seed; None with one setting."""
    settings: tuple[Setting, ...]
    num_tests: int
    """Differences that Holm's correction is over."""
    num_done: int
    num_planned: int
    failures: tuple[tuple[str, str], ...]
    """Name and error of each failed run."""
    machines: tuple[str, ...]
    """What the runs ran on."""
    verdict: tuple[str, ...]
    """What it says, in sentences; the first one is the answer."""
