"""What a comparison says, in a few plain sentences: which is best here, and is it sure?"""

from collections.abc import Iterator, Sequence

from dggraph.views.comparison_numbers import Difference, Entry, Setting

Found = tuple[Setting, Entry, Difference]
MAX_NAMED = 4


def judge(
    overall: Setting | None, settings: Sequence[Setting], baseline: str, controls: Sequence[str]
) -> tuple[str, ...]:
    """Return the sentences; the first one answers the question.

    Args:
        overall: the mean over all settings, if there are several.
        settings: every setting.
        baseline: the method that the others are compared with.
        controls: other methods to compare with.
    """
    several = list(settings) if overall is None else [overall, *settings]
    found = list(_differences(several, baseline))
    methods = [one for one in found if one[1].role == "method"]
    if not methods:
        return (
            f"Nothing can be said yet: no method shares two seeds with the {_named(baseline)}.",
        )
    better = [one for one in methods if one[2].mark == "better"]
    worse = [one for one in methods if one[2].mark == "worse"]
    return (
        *_answer(methods, better, worse, baseline),
        *_against_controls(better, controls),
        *_of_controls(found, baseline),
        *_best(several[0], baseline),
        *_seeds([one for one in methods if one[0] is not overall]),
    )


def _answer(
    methods: Sequence[Found], better: Sequence[Found], worse: Sequence[Found], baseline: str
) -> Iterator[str]:
    if better:
        yield f"Better than the {_named(baseline)}, and sure: {_list(better)}."
    else:
        yield f"No method beats the {_named(baseline)} beyond what chance explains."
    maybe = [one for one in methods if one[2].mark == "maybe better"]
    if maybe:
        yield (
            f"Above it by more than the own interval, but among {len(methods)} differences not"
            f" sure: {_list(maybe)}."
        )
    if worse:
        yield f"Worse, and sure: {_list(worse)}."


def _against_controls(better: Sequence[Found], controls: Sequence[str]) -> Iterator[str]:
    """Say which controls a better method beats."""
    for setting, entry, _ in better:
        known = [name for name in controls if name in entry.differences]
        equal = [
            name
            for name in known
            if entry.differences[name].mean - entry.differences[name].half_width <= 0
        ]
        if equal:
            yield (
                f"{entry.name} on {setting.name} does not beat {' or '.join(equal)} beyond its"
                " interval, so the gain need not come from the method."
            )
        elif known:
            yield f"{entry.name} on {setting.name} also beats {' and '.join(known)}."


def _of_controls(found: Sequence[Found], baseline: str) -> Iterator[str]:
    better = [one for one in found if one[1].role == "control" and one[2].mark == "better"]
    if better:
        yield f"Controls that are better than the {_named(baseline)}, and sure: {_list(better)}."


def _best(setting: Setting, baseline: str) -> Iterator[str]:
    """Name the best average among methods, controls and the baseline."""
    found = [one for one in _differences([setting], baseline) if one[1].role != "size"]
    if not found:
        return
    _, entry, difference = max(found, key=lambda one: one[2].mean)
    if difference.mean <= 0:
        yield f"The best average on {setting.name} is that of the {_named(baseline)} itself."
        return
    kind = "a control, " if entry.role == "control" else ""
    sure = {"better": "and this is sure", "maybe better": "outside its own interval, but not sure"}
    yield (
        f"The best average on {setting.name} is that of {entry.name}: {kind}{difference.mean:+.2f}"
        f" ± {difference.half_width:.2f} points from the {_named(baseline)},"
        f" {sure.get(difference.mark, 'which chance explains')}."
    )


def _seeds(methods: Sequence[Found]) -> Iterator[str]:
    needed = [entry.num_seeds_needed for _, entry, _ in methods]
    known = [number for number in needed if number is not None]
    if not known:
        return
    pairs = sorted({difference.num_pairs for _, _, difference in methods})
    have = f"{pairs[0]}" if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]}"
    low, high = min(known), max(known)
    span = f"{low}" if low == high else f"{low} to {high}"
    widths = [difference.half_width for _, _, difference in methods]
    yield (
        f"Intervals are {min(widths):.1f} to {max(widths):.1f} points to each side with {have}"
        f" seeds. To see one point, {span} seeds would be needed, depending on method and setting."
    )


def _differences(settings: Sequence[Setting], baseline: str) -> Iterator[Found]:
    for setting in settings:
        for entry in setting.entries:
            if baseline in entry.differences:
                yield setting, entry, entry.differences[baseline]


def _list(found: Sequence[Found]) -> str:
    """Return for example `node on D4 (+1.20 ± 0.40 points)`; a few in full."""
    shown = [
        f"{entry.name} on {setting.name} ({one.mean:+.2f} ± {one.half_width:.2f} points)"
        for setting, entry, one in sorted(found, key=lambda one: -abs(one[2].mean))[:MAX_NAMED]
    ]
    more = len(found) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _named(baseline: str) -> str:
    return "static network" if baseline == "static" else f"baseline {baseline}"
