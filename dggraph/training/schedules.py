"""What changes in the gates as training goes on, as functions of the share of the run that is
done.
"""


def threshold_at(done: float, final: float, warmup: float) -> float:
    """The threshold after `done` of the run: rises linearly from 0 to `final` over the first
    `warmup` of it, then stays.
    """
    return final if done >= warmup else final * done / warmup


def temperature_at(done: float, final: float) -> float:
    """The temperature after `done` of the run: falls from 1 to `final` by the same factor a
    step.
    """
    return float(final**done)
