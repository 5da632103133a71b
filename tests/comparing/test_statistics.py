"""Statistics: tables of Student's t, worked examples, and scipy where it is here."""

from math import sqrt

import pytest

from dggraph.comparing.statistics import (
    adjust,
    central_share,
    compare_pairs,
    num_seeds_needed,
    power,
    t_bound,
)


@pytest.mark.parametrize(
    ("freedom", "bound"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (10, 2.228), (30, 2.042)],
)
def test_bounds_are_those_of_the_tables(freedom: int, bound: float) -> None:
    assert t_bound(0.95, freedom) == pytest.approx(bound, abs=5e-4)
    assert central_share(t_bound(0.95, freedom), freedom) == pytest.approx(0.95, abs=1e-12)


def test_a_worked_example() -> None:
    """Differences 1, 2, 3, 4: mean 2.5, deviation sqrt(5/3), error .6455, t 3.873, bound 3.182."""
    found = compare_pairs([1, 2, 3, 4])
    assert found is not None
    assert found.mean == 2.5
    assert found.deviation == pytest.approx(sqrt(5 / 3))
    assert found.half_width == pytest.approx(3.18245 * sqrt(5 / 12), rel=1e-5)
    assert found.p_value == pytest.approx(0.030466, abs=1e-6)
    assert found.num_pairs == 4


def test_edge_cases() -> None:
    assert compare_pairs([]) is None
    assert compare_pairs([1.0]) is None
    same = compare_pairs([0.5, 0.5, 0.5])
    assert same is not None
    assert (same.half_width, same.p_value) == (0.0, 0.0)
    none = compare_pairs([0.0, 0.0])
    assert none is not None
    assert (none.mean, none.p_value) == (0.0, 1.0)
    assert num_seeds_needed(0.0) == 2
    assert num_seeds_needed(1e6) is None


def test_holm_by_hand() -> None:
    """Four values: .01 x 4, .03 x 3, .04 x 2 (raised to .09), .5 x 1."""
    assert adjust([0.04, 0.01, 0.5, 0.03]) == pytest.approx([0.09, 0.04, 0.5, 0.09])
    assert adjust([0.6, 0.7]) == [1.0, 1.0]
    assert adjust([]) == []


def test_the_number_of_seeds_is_the_first_that_does() -> None:
    for deviation in (0.3, 0.7, 1.0, 1.6, 3.0):
        number = num_seeds_needed(deviation)
        assert number is not None
        assert power(number, deviation, 1.0) >= 0.8
        assert number == 2 or power(number - 1, deviation, 1.0) < 0.8
    assert num_seeds_needed(1.0) == 10  # as in tables of power: effect 1 deviation, 5 %, .8
    assert num_seeds_needed(2.0) == 34
    assert num_seeds_needed(2.0, effect=2.0) == num_seeds_needed(1.0)


def test_scipy_agrees() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not here")
    for freedom in (1, 2, 3, 4, 5, 12, 29, 100):
        for t in (0.0, 0.3, 1.0, 2.5, 7.0):
            expected = 1 - 2 * stats.t.sf(t, freedom)
            assert central_share(t, freedom) == pytest.approx(expected, abs=1e-12)
    values = [0.31, -0.2, 0.9, 0.44, 0.1]
    found, expected = compare_pairs(values), stats.ttest_1samp(values, 0)
    assert found is not None
    assert found.p_value == pytest.approx(expected.pvalue, abs=1e-12)
    low, high = expected.confidence_interval()
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(
        (low, high)
    )
    for pairs in (2, 3, 5, 10, 40, 300):
        for deviation in (0.5, 1.0, 2.0):
            freedom, shift = pairs - 1, sqrt(pairs) / deviation
            bound = stats.t.isf(0.025, freedom)
            expected_power = stats.nct.sf(bound, freedom, shift) + stats.nct.cdf(
                -bound, freedom, shift
            )
            if expected_power == expected_power:  # scipy's tails may be NaN
                assert power(pairs, deviation, 1.0) == pytest.approx(expected_power, abs=2e-5)
