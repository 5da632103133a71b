"""The tables of a comparison as text cells, which its page and its Markdown share."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from dggraph.views.comparison_numbers import (
    CURVE,
    ComparisonSummary,
    Difference,
    Entry,
    Mark,
    Setting,
)
from dggraph.views.escaping import count

NONE = "–"
MARKS: dict[Mark, str] = {
    "better": "▲",
    "worse": "▼",
    "maybe better": "△",
    "maybe worse": "▽",
    "unclear": "",
}
COSTS = (
    "parameters", "MACs", "train loss", "training time", "inference, 1", "inference, 16",
    "training memory, MB", "process, MB", "CPU s/step",
)  # fmt: skip
PATHS = ("paths", "entropy, bits", "own adjacency, %", "mean adjacency, %", "another image's, %")


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the first table."""

    text: str
    mark: Mark


def columns(summary: ComparisonSummary) -> list[Setting]:
    """Return the settings of the first table: the mean over all of them, then each."""
    return [*([] if summary.overall is None else [summary.overall]), *summary.settings]


def glance(summary: ComparisonSummary) -> list[tuple[Entry, list[Cell]]]:
    """Return the entries, best average first, with their difference in each of `columns`."""
    names = dict.fromkeys(entry.name for one in summary.settings for entry in one.entries)
    rows = []
    for name in names:
        found = [setting.find(name) for setting in columns(summary)]
        known = [entry for entry in found if entry is not None]
        means = [
            entry.differences[summary.baseline].mean
            for entry in known
            if summary.baseline in entry.differences
        ]
        average = 0.0 if known[0].role == "baseline" else means[0] if means else -inf
        rows.append((average, known[0], [_cell(entry, summary.baseline) for entry in found]))
    rows.sort(key=lambda row: -row[0])
    return [(entry, cells) for _, entry, cells in rows]


def differences(summary: ComparisonSummary, setting: Setting) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows: accuracy, spread, and differences from baseline and controls."""
    others = [
        name for name in (summary.baseline, *summary.controls) if setting.find(name) is not None
    ]
    if any(CURVE in entry.differences for entry in setting.entries):
        others.append(CURVE)
    heads = [
        "method", "seeds", "accuracy, %", "SD", *(f"minus {name}" for name in others),
        "p, Holm", "seeds for 1 point",
    ]  # fmt: skip
    return heads, [list(_difference_cells(entry, others, summary)) for entry in setting.entries]


def costs(setting: Setting) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows: size, loss, times and memory; times over the static network."""
    rows = []
    for entry in setting.entries:
        facts = entry.facts
        macs, static = facts["macs"], facts["static_macs"]
        ratio = f" ({macs / static:.3f})" if macs is not None and static else ""
        rows.append(
            [
                entry.name,
                _number(facts["parameters"], ",.0f"),
                (count(round(macs)) if macs is not None else NONE) + ratio,
                _number(facts["train_loss"], ".4f"),
                _number(facts["training_time_ratio"], ".2f"),
                _number(facts["inference_time_ratio_1"], ".2f"),
                _number(facts["inference_time_ratio_16"], ".2f"),
                _number(facts["training_memory_bytes"], ".1f", 1e-6),
                _number(facts["peak_memory_bytes"], ",.0f", 1e-6),
                _number(facts["seconds_per_step"], ".4f"),
            ]
        )
    return ["method", *COSTS], rows


def paths(setting: Setting) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of the methods that have paths."""
    rows = []
    for entry in setting.entries:
        facts = entry.facts
        if facts["num_paths"] is None:
            continue
        shares = ("own_paths_accuracy", "mean_adjacency_accuracy", "other_image_accuracy")
        rows.append(
            [
                entry.name,
                _number(facts["num_paths"], ",.0f"),
                _number(facts["path_entropy_bits"], ".2f"),
                *(_number(facts[name], ".2f", 100) for name in shares),
            ]
        )
    return ["method", *PATHS], rows


def signed(difference: Difference | None) -> str:
    """Return for example `+0.42 ± 2.03`, with a true minus."""
    if difference is None:
        return NONE
    mean = f"{difference.mean:+.2f}".replace("-", "\N{MINUS SIGN}")
    return f"{mean} ± {difference.half_width:.2f}"


def _cell(entry: Entry | None, baseline: str) -> Cell:
    if entry is None:
        return Cell(NONE, "unclear")
    if entry.role == "baseline":
        return Cell(f"{entry.mean:.2f} %", "unclear")
    difference = entry.differences.get(baseline)
    mark: Mark = "unclear" if difference is None else difference.mark
    return Cell(f"{MARKS[mark]} {signed(difference)}".strip(), mark)


def _difference_cells(entry: Entry, others: list[str], summary: ComparisonSummary) -> Iterator[str]:
    own = entry.differences.get(summary.baseline)
    yield entry.name
    yield str(len(entry.seeds))
    yield f"{entry.mean:.2f}"
    yield NONE if entry.deviation is None else f"{entry.deviation:.2f}"
    for name in others:
        is_none = name == entry.name or (
            name == CURVE and (entry.role == "baseline" or entry.name in summary.curve)
        )
        yield "" if is_none else signed(entry.differences.get(name))
    adjusted = None if own is None else own.adjusted_p_value
    yield "" if adjusted is None else f"{adjusted:.3f}" if adjusted >= 0.001 else "< 0.001"
    if entry.role == "baseline":
        yield ""
    elif own is None:
        yield NONE
    else:
        yield "> 10,000" if entry.num_seeds_needed is None else f"{entry.num_seeds_needed}"


def _number(value: float | None, form: str, scale: float = 1) -> str:
    return NONE if value is None else format(scale * value, form)
