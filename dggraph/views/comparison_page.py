"""A comparison as one HTML page and as Markdown: the answer first, then what it rests on."""

from collections.abc import Iterator, Sequence

from dggraph.views.comparison_numbers import ComparisonSummary, Setting
from dggraph.views.comparison_tables import columns, costs, differences, glance, paths
from dggraph.views.escaping import plural
from dggraph.views.html_page import write_page
from dggraph.views.scatter import Point, draw_scatter, letters

ROLES = {
    "baseline": "the baseline",
    "control": "control",
    "size": "another size",
    "method": "",
}
EXPLAINED = (
    "Accuracies are top-1 on the validation part after the last step, in percent. Differences are"
    " in points, paired by seed, ± half of the 95 % interval by Student's t.",
    "▲ and ▼ are sure: below 5 % after Holm's correction over all {tests} of methods and controls"
    " from the baseline on this page. △ and ▽ lie outside their own interval, but with so many"
    " differences some do by chance.",
    "Intervals say how seeds differ, which change initial weights, order and augmentation. The"
    " validation images are the same for all, so other images may give other differences.",
    "Seeds for 1 point: with the spread of these pairs, a paired t test at 5 % would see a"
    " difference of one point in 80 % of all cases. The spread itself is an estimate.",
    "MACs are those of the mean image, and in brackets over the static network of the family. Times"
    " are over that network, measured in turns in one process; 1 and 16 are batch sizes. Training"
    " memory is the most that tensors take in one step, process memory includes data and torch.",
    "The curve is the dashed line through static networks of several sizes, at the MACs of the"
    " method and with its seed: what these MACs give without the method.",
    "Dependence is not benefit: a network that loses accuracy with another image's adjacency uses"
    " its own, and may still be no better than one adjacency for all images.",
)


def write_comparison(summary: ComparisonSummary) -> str:
    """Return a complete HTML document without scripts or external resources."""
    return write_page(
        "comparison.html",
        f"Comparison: {summary.name}",
        name=summary.name,
        command=summary.command,
        verdict=summary.verdict,
        incomplete=_incomplete(summary),
        tiles=list(_tiles(summary)),
        heads=[setting.name for setting in columns(summary)],
        glance=[
            (entry.name, ROLES[entry.role], [(cell.text, cell.mark) for cell in cells])
            for entry, cells in glance(summary)
        ],
        settings=[_section(summary, setting) for setting in summary.settings],
        explained=_explained(summary),
        commands=_commands(summary),
        failures=summary.failures,
        unmeasured=_unmeasured(summary),
        machines=summary.machines,
    )


def write_markdown(summary: ComparisonSummary) -> str:
    """Return the same numbers as Markdown."""
    return "\n".join(_markdown(summary))


def _markdown(summary: ComparisonSummary) -> Iterator[str]:
    yield f"# Comparison: {summary.name}\n"
    first, *others = summary.verdict
    yield f"**{first}**\n"
    yield from (f"{sentence}\n" for sentence in others)
    incomplete = _incomplete(summary)
    if incomplete:
        yield f"{incomplete}\n"
    yield f"`{summary.command}`\n"
    yield "## Differences from the baseline, in points\n"
    yield from _table(
        ["method", *(setting.name for setting in columns(summary))],
        [
            [f"{entry.name}{f' ({ROLES[entry.role]})' if ROLES[entry.role] else ''}"]
            + [cell.text for cell in cells]
            for entry, cells in glance(summary)
        ],
    )
    for setting in summary.settings:
        yield f"## {setting.name}\n"
        for heads, rows in (differences(summary, setting), costs(setting), paths(setting)):
            if rows:
                yield from _table(heads, rows)
    yield "## How to read this\n"
    yield from (f"- {sentence}" for sentence in _explained(summary))
    yield "\n## Commands\n"
    for name, command in _commands(summary):
        yield f"- {_plain(name)}: `{command}`"
    for name, message in summary.failures:
        yield f"- failed: {_plain(name)}: {_plain(message)}"
    for name, reason in _unmeasured(summary):
        yield f"- not measured: {_plain(name)}: {_plain(reason)}"
    yield from (f"- on {_plain(machine)}" for machine in summary.machines)
    yield ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(map(_plain, heads)) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield "| " + " | ".join(map(_plain, row)) + " |"
    yield ""


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _explained(summary: ComparisonSummary) -> list[str]:
    tests = plural(summary.num_tests, "difference")
    return [sentence.replace("{tests}", tests) for sentence in EXPLAINED]


def _incomplete(summary: ComparisonSummary) -> str:
    missing = summary.num_planned - summary.num_done - len(summary.failures)
    parts = [f"{missing} of {plural(summary.num_planned, 'run')} not finished"] if missing else []
    parts += [f"{len(summary.failures)} failed"] if summary.failures else []
    told = f"Not complete: {', '.join(parts)}." if parts else ""
    if len(summary.machines) > 1:
        told += " Runs differ in machine or code, see the end of this page."
    return told.strip()


def _tiles(summary: ComparisonSummary) -> Iterator[tuple[str, str, str]]:
    yield "runs", f"{summary.num_done:,}", f"of {summary.num_planned:,} planned"
    seeds = {seed for one in summary.settings for entry in one.entries for seed in entry.seeds}
    yield "seeds", f"{len(seeds)}", "paired: the same ones for every method"
    floor = [
        entry.deviation
        for one in summary.settings
        for entry in one.entries
        if entry.role == "baseline" and entry.deviation is not None
    ]
    if floor:
        low, high = f"{min(floor):.2f}", f"{max(floor):.2f}"
        span = low if low == high else f"{low} to {high}"
        yield "noise floor, points", span, "standard deviation of the baseline over its seeds"
    needed = [
        entry.num_seeds_needed
        for one in summary.settings
        for entry in one.entries
        if entry.role == "method" and entry.num_seeds_needed is not None
    ]
    if needed:
        low, high = f"{min(needed):,}", f"{max(needed):,}"
        span = low if low == high else f"{low} to {high}"
        yield "seeds to see one point", span, "in 80 % of all cases, by method and setting"


def _section(summary: ComparisonSummary, setting: Setting) -> dict[str, object]:
    shown = letters(len(setting.entries))
    on_curve = set(summary.curve)
    points = [
        Point(
            letter=letter,
            name=entry.name,
            x=macs / 1e6,
            y=entry.mean,
            spread=entry.deviation or 0.0,
            is_on_curve=entry.name in on_curve,
        )
        for letter, entry in zip(shown, setting.entries, strict=True)
        if (macs := entry.facts["macs"]) is not None
    ]
    first, second, third = differences(summary, setting), costs(setting), paths(setting)
    names = {entry.name: letter for letter, entry in zip(shown, setting.entries, strict=True)}
    return {
        "name": setting.name,
        "picture": draw_scatter(points, across="M MACs of the mean image", up="accuracy, %"),
        "has_curve": sum(point.is_on_curve for point in points) > 1,
        "tables": [table for table in (first, second, third) if table[1]],
        "letters": names,
    }


def _unmeasured(summary: ComparisonSummary) -> list[tuple[str, str]]:
    return [
        (f"{entry.name}, {setting.name}", reason)
        for setting in summary.settings
        for entry in setting.entries
        for reason in entry.unmeasured
    ]


def _commands(summary: ComparisonSummary) -> list[tuple[str, str]]:
    """Return the command of the first seed of each entry; others differ in --seed."""
    return [
        (
            f"{entry.name}, {setting.name}, seeds {', '.join(map(str, entry.seeds))}",
            entry.command,
        )
        for setting in summary.settings
        for entry in setting.entries
    ]
