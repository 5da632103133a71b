"""Schedules of the gates, as functions of the completed share of the run."""


def threshold_at(done: float, final: float, warmup: float) -> float:
    """Return the threshold after the share `done` of the run.

    It rises linearly from 0 to `final` over the share `warmup`, then stays.
    """
    return final if done >= warmup else final * done / warmup


def temperature_at(done: float, start: float, final: float) -> float:
    """Return the temperature after the share `done` of the run.

    It changes geometrically from `start` to `final`.
    """
    return float(start * (final / start) ** done)


def target_at(done: float, budget: float, warmup: float) -> float:
    """Return the target of the MACs ratio after the share `done` of the run.

    It changes linearly from 1 to `budget` over the share `warmup`, as the threshold rises.
    """
    return 1 + threshold_at(done, budget - 1, warmup)
