"""Student's t for paired differences, Holm's correction, and the number of seeds that would do.

Everything is in the standard library: the distribution of t has a finite sum for whole degrees of
freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4), and power is one integral over the standard
deviation's distribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan, cos, erf, exp, inf, lgamma, log, pi, sin, sqrt
from statistics import fmean, stdev

LEVEL = 0.05
"""Chance of a false alarm of each test, two-sided."""
POWER = 0.8
"""Chance to see an effect that is there, for `num_seeds_needed`."""
MAX_SEEDS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """The mean of paired differences, and what the pairs say about it."""

    mean: float
    deviation: float
    """Standard deviation of the differences."""
    half_width: float
    """Half of the 95 % interval of the mean."""
    p_value: float
    """Two-sided, of a mean of 0."""
    num_pairs: int


def compare_pairs(differences: Sequence[float]) -> PairedDifference | None:
    """Return the mean of `differences` with its interval; None for fewer than two."""
    count = len(differences)
    if count < 2:
        return None
    mean, deviation = fmean(differences), stdev(differences)
    error = deviation / sqrt(count)
    if error > 0:
        p_value = 1 - central_share(abs(mean) / error, count - 1)
    else:
        p_value = 1.0 if mean == 0 else 0.0
    return PairedDifference(
        mean=mean,
        deviation=deviation,
        half_width=t_bound(1 - LEVEL, count - 1) * error,
        p_value=max(0.0, p_value),
        num_pairs=count,
    )


def central_share(t: float, freedom: int) -> float:
    """Return the probability that Student's t lies between -t and t.

    Args:
        t: at least 0.
        freedom: degrees of freedom, at least 1.
    """
    angle = atan(t / sqrt(freedom))
    square = cos(angle) ** 2
    if freedom % 2:
        term = total = cos(angle) if freedom > 1 else 0.0
        for place in range(3, freedom - 1, 2):
            term *= square * (place - 1) / place
            total += term
        return 2 / pi * (angle + sin(angle) * total)
    term = total = 1.0
    for place in range(2, freedom - 1, 2):
        term *= square * (place - 1) / place
        total += term
    return sin(angle) * total


def t_bound(share: float, freedom: int) -> float:
    """Return the t for which `central_share` is `share`."""
    low, high = 0.0, 1.0
    while central_share(high, freedom) < share:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if central_share(middle, freedom) < share:
            low = middle
        else:
            high = middle
    return high


def adjust(p_values: Sequence[float]) -> list[float]:
    """Return p-values by Holm's step-down method, in the same order.

    Calling those below 0.05 sure is wrong anywhere with a probability of at most 5 %, however the
    tests depend on each other.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def num_seeds_needed(deviation: float, effect: float = 1.0) -> int | None:
    """Return the number of seeds with which a paired t test sees `effect` in 80 % of all cases.

    Args:
        deviation: standard deviation of the paired differences, in the unit of `effect`.
        effect: the mean difference that is to be seen.

    Returns:
        At least 2; None if 10,000 seeds would not do.
    """
    low, high = 1, 2
    while power(high, deviation, effect) < POWER:
        low, high = high, 2 * high
        if low >= MAX_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power(middle, deviation, effect) < POWER else (low, middle)
    return high if high <= MAX_SEEDS else None


def power(num_pairs: int, deviation: float, effect: float) -> float:
    """Return the probability that a paired t test at 5 % rejects a mean of 0.

    Given the ratio s of estimated to true deviation, t is normal around `shift`, so the probability
    is an integral over s, whose square times the degrees of freedom is chi-squared.
    """
    freedom = num_pairs - 1
    shift = effect * sqrt(num_pairs) / deviation if deviation > 0 else inf
    if shift == inf:
        return 1.0
    bound = t_bound(1 - LEVEL, freedom)
    width = 9 / sqrt(2 * freedom)
    low, high = max(0.0, 1 - width), 1 + width
    num_steps = 600 + 4000 // freedom  # with few degrees of freedom t changes fast near 0
    step, total = (high - low) / num_steps, 0.0
    constant = log(2) + freedom / 2 * log(freedom / 2) - lgamma(freedom / 2)
    for place in range(num_steps):
        ratio = low + (place + 0.5) * step
        density = exp(constant + (freedom - 1) * log(ratio) - freedom * ratio**2 / 2)
        seen = _above(bound * ratio - shift) + _above(bound * ratio + shift)
        total += density * seen * step
    return total


def _above(z: float) -> float:
    """The probability that a standard normal number is larger than z."""
    return (1 - erf(z / sqrt(2))) / 2
