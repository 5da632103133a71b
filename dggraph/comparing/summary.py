"""The numbers of a comparison, computed from its rows."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

from dggraph.comparing.plan import Comparison, Plan, PlannedRun
from dggraph.comparing.rows import Row, State
from dggraph.comparing.statistics import (
    PairedDifference,
    adjust,
    compare_pairs,
    num_seeds_needed,
)
from dggraph.comparing.verdict import judge
from dggraph.views.comparison_numbers import (
    CURVE,
    ComparisonSummary,
    Difference,
    Entry,
    Role,
    Setting,
)
from dggraph.views.escaping import plural

FACTS = (
    "parameters", "static_macs", "macs", "train_loss", "training_time_ratio",
    "inference_time_ratio_1", "inference_time_ratio_16", "seconds_per_step",
    "training_memory_bytes", "peak_memory_bytes", "num_paths", "path_entropy_bits",
    "own_paths_accuracy", "mean_adjacency_accuracy", "other_image_accuracy", "steps", "num_images",
)  # fmt: skip


def summarise(plan: Plan, state: State, command: str) -> ComparisonSummary:
    """Return what the rows of a plan say.

    Args:
        plan: the comparison.
        state: its rows.
        command: the command that runs it.
    """
    comparison = plan.comparison
    places: dict[tuple[str, str], dict[str, dict[int, Row]]] = {}
    roles: dict[str, Role] = {}
    for run in plan.runs:
        row = state.done.get(run)
        named = places.setdefault((run.data, run.family), {})
        roles[entry_name(run)] = _role(run.method, comparison)
        if row is not None:
            named.setdefault(entry_name(run), {})[run.seed] = row
    settings = [
        Setting(
            name=" · ".join(part for part in place if part) or plan.name,
            entries=tuple(
                _entry(name, rows, roles[name], named, comparison) for name, rows in named.items()
            ),
        )
        for place, named in places.items()
    ]
    overall = _overall(places, _unfinished(plan, state), roles, comparison)
    several = [] if overall is None else [overall]
    corrected, num_tests = _corrected([*several, *settings], comparison.baseline)
    overall, settings = (corrected[0] if several else None), corrected[len(several) :]
    return ComparisonSummary(
        name=plan.name,
        command=command,
        baseline=comparison.baseline,
        controls=comparison.controls,
        curve=comparison.curve,
        overall=overall,
        settings=tuple(settings),
        num_tests=num_tests,
        num_done=len(state.done),
        num_planned=len(plan.runs),
        failures=tuple(
            (describe(run), str(row["error"].get("message", "")))
            for run, row in state.failed.items()
        ),
        machines=tuple(
            f"{machine}: {plural(number, 'run')}"
            for machine, number in Counter(map(_machine, state.done.values())).items()
        ),
        verdict=judge(overall, settings, comparison.baseline, comparison.controls),
    )


def _overall(
    places: Mapping[tuple[str, str], Mapping[str, Mapping[int, Row]]],
    unfinished: set[tuple[str, str]],
    roles: Mapping[str, Role],
    comparison: Comparison,
) -> Setting | None:
    """Return the mean accuracy over the settings, for the seeds that each of them has.

    Where two or more settings have come to their end, those in progress are left out.
    """
    ended = [named for place, named in places.items() if place not in unfinished]
    averaged = ended if len(ended) >= 2 else list(places.values())
    if len(averaged) < 2:
        return None
    means: dict[str, dict[int, Row]] = {}
    for name in roles:
        several = [named.get(name, {}) for named in averaged]
        seeds = [seed for seed in several[0] if all(seed in rows for rows in several)]
        if seeds:
            means[name] = {
                seed: {"accuracy": fmean(rows[seed]["accuracy"] for rows in several)}
                for seed in seeds
            }
    count = len(averaged)
    return Setting(
        name=f"all {count} settings" if count == len(places) else f"the {count} finished settings",
        entries=tuple(
            _entry(name, rows, roles[name], means, comparison) for name, rows in means.items()
        ),
    )


def _unfinished(plan: Plan, state: State) -> set[tuple[str, str]]:
    """Return data and family of each setting with a run that has not ended."""
    return {
        (run.data, run.family)
        for run in plan.runs
        if run not in state.done and run not in state.failed
    }


def entry_name(run: PlannedRun) -> str:
    """Return the name of a run's method with its budget."""
    return run.method if run.budget is None else f"{run.method}, budget {run.budget:g}"


def describe(run: PlannedRun) -> str:
    """Return the name of a run for people."""
    parts = (entry_name(run), run.family, run.data, f"seed {run.seed}")
    return ", ".join(part for part in parts if part)


def _role(method: str, comparison: Comparison) -> Role:
    if method == comparison.baseline:
        return "baseline"
    if method in comparison.controls:
        return "control"
    return "size" if method in comparison.curve else "method"


def _entry(
    name: str,
    rows: Mapping[int, Row],
    role: Role,
    named: Mapping[str, Mapping[int, Row]],
    comparison: Comparison,
) -> Entry:
    accuracies = {seed: 100 * row["accuracy"] for seed, row in rows.items()}
    differences, needed = {}, None
    for other in (comparison.baseline, *comparison.controls):
        if other == name or other not in named:
            continue
        pairs = [
            accuracy - 100 * named[other][seed]["accuracy"]
            for seed, accuracy in accuracies.items()
            if seed in named[other]
        ]
        found = compare_pairs(pairs)
        if found is None:
            continue
        differences[other] = _difference(found)
        if other == comparison.baseline:
            needed = num_seeds_needed(found.deviation)
    if role in ("method", "control") and name not in comparison.curve:
        above = compare_pairs(list(_above_curve(rows, named, comparison.curve)))
        if above is not None:
            differences[CURVE] = _difference(above)
    values = list(accuracies.values())
    return Entry(
        name=name,
        role=role,
        seeds=tuple(accuracies),
        accuracies=tuple(values),
        mean=fmean(values),
        deviation=stdev(values) if len(values) > 1 else None,
        differences=differences,
        num_seeds_needed=needed,
        facts={fact: _mean(row.get(fact) for row in rows.values()) for fact in FACTS},
        unmeasured=tuple(
            dict.fromkeys(
                f"{part}: {message}"
                for row in rows.values()
                for part, message in row.get("unmeasured", {}).items()
            )
        ),
        command=str(next(iter(rows.values())).get("command", "")),
    )


def _difference(found: PairedDifference) -> Difference:
    return Difference(
        mean=found.mean,
        half_width=found.half_width,
        p_value=found.p_value,
        adjusted_p_value=None,
        num_pairs=found.num_pairs,
    )


def _above_curve(
    rows: Mapping[int, Row], named: Mapping[str, Mapping[int, Row]], curve: Sequence[str]
) -> Iterator[float]:
    """Yield for each seed the points above the line through the static networks at equal MACs.

    The line is straight between neighbours and goes no further, so a network that is smaller or
    larger than all of them gives nothing.
    """
    for seed, row in rows.items():
        points = sorted(
            (other["macs"], 100 * other["accuracy"])
            for name in curve
            if (other := named.get(name, {}).get(seed)) is not None and "macs" in other
        )
        for (low, first), (high, second) in pairwise(points):
            if "macs" in row and low <= row["macs"] <= high:
                share = (row["macs"] - low) / (high - low) if high > low else 0.0
                yield 100 * row["accuracy"] - first - share * (second - first)
                break


def _mean(values: Any) -> float | None:
    known = [float(value) for value in values if value is not None]
    return fmean(known) if known else None


def _corrected(settings: Sequence[Setting], baseline: str) -> tuple[list[Setting], int]:
    """Adjust the p-values of methods and controls against the baseline, over all settings."""
    tested = [
        entry.differences[baseline]
        for setting in settings
        for entry in setting.entries
        if entry.role in ("method", "control") and baseline in entry.differences
    ]
    adjusted = dict(zip(map(id, tested), adjust([one.p_value for one in tested]), strict=True))

    def corrected(entry: Entry) -> Entry:
        found = entry.differences.get(baseline)
        if found is None or id(found) not in adjusted:
            return entry
        sure = replace(found, adjusted_p_value=adjusted[id(found)])
        return replace(entry, differences={**entry.differences, baseline: sure})

    return [
        replace(setting, entries=tuple(map(corrected, setting.entries))) for setting in settings
    ], len(tested)


def _machine(row: Row) -> str:
    machine, versions = row.get("machine", {}), row.get("versions", {})
    return (
        f"{machine.get('device', '?')} ({machine.get('name', '?')}), {machine.get('threads', '?')}"
        f" threads, torch {versions.get('torch', '?')}, dggraph {versions.get('dggraph', '?')}"
        f" with code {versions.get('source', '?')}"
    )
