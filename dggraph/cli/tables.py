"""What `dggraph eval` prints for people: a few lines, then tables. Names are escaped."""

from collections.abc import Mapping, Sequence
from typing import Any

MAX_CLASSES = 30


def show(document: Mapping[str, Any]) -> None:
    """Print what the JSON document says."""
    from rich.console import Console

    from dggraph.views.escaping import visible

    console = Console(highlight=False)
    for note in document.get("notes", ()):
        console.print(f"note: {visible(note)}", markup=False)
    if document.get("skipped"):
        console.print(f"{len(document['skipped'])} bad entries left out")
    if "accuracy" in document:
        console.print(_summary(document))
        classes = document["classes"]
        worst = sorted(
            classes, key=lambda row: 1.0 if row["accuracy"] is None else row["accuracy"]
        )[:MAX_CLASSES]
        title = (
            f"The {MAX_CLASSES} worst of {len(classes)} classes; --json has all"
            if len(classes) > MAX_CLASSES
            else "Classes"
        )
        shown = worst if len(classes) > MAX_CLASSES else classes
        rows = [
            (row["class"], row["num_images"], row["top1"], _percent(row["accuracy"]))
            for row in shown
        ]
        console.print(_table(title, ("class", "images", "right", "top-1"), rows))
    if "AP" in document:
        _show_boxes(console, document)
    if "budgets" in document:
        _show_budgets(console, document["budgets"])
    if "sensitivity" in document:
        _show_sensitivity(console, document["sensitivity"])
    if "analysis" in document:
        _show_analysis(console, document["analysis"])


def _show_analysis(console: Any, found: Mapping[str, Any]) -> None:
    from dggraph.views.escaping import visible

    rows = [
        (
            name,
            _percent(change["accuracy"]),
            f"{100 * change['difference']:+.1f} ± {100 * change['half_width']:.1f}",
        )
        for name, change in found["swapped"].items()
    ]
    console.print(_table("With another adjacency", ("adjacency", "top-1", "points"), rows))
    if found["never_moved"]:
        edges = f"{len(found['never_moved'])} of {len(found['edges'])}"
        console.print(f"gates that never moved from their start: {edges}")
    console.print(f"analysis: {visible(found['file'])}", markup=False)


def _show_boxes(console: Any, document: Mapping[str, Any]) -> None:
    names = ("AP", "AP50", "AP75", "small", "medium", "large")
    console.print(
        _table(
            f"Boxes on {document['num_images']} images, in percent",
            names,
            [[_points(document[name]) for name in names]],
        )
    )
    rows = [(name, _points(precision)) for name, precision in document["per_class"].items()]
    worst = sorted(rows, key=lambda row: float(row[1] or 101))[:MAX_CLASSES]
    title = (
        f"The {MAX_CLASSES} worst of {len(rows)} classes; --json has all"
        if len(rows) > MAX_CLASSES
        else "Classes"
    )
    console.print(_table(title, ("class", "AP"), worst if len(rows) > MAX_CLASSES else rows))
    if "kept" in document:
        console.print(
            f"MACs of the backbone kept {document['kept']:.4f} on average, at the traced size"
        )
    if document["labels"] == "category ids":
        console.print(
            "Labels were read as the categories' ids, as torchvision's trained detectors have them."
        )
    console.print(_speed(document))


def _points(precision: float | None) -> str:
    return "" if precision is None else f"{100 * precision:.2f}"


def _speed(document: Mapping[str, Any]) -> str:
    processes = (
        f"{document['num_processes']}"
        f" {'process' if document['num_processes'] == 1 else 'processes'}"
    )
    return (
        f"{document['images_per_second']:.3g} images/s, reading them included, batch"
        f" {document['batch_size']}, {processes}"
    )


def _summary(document: Mapping[str, Any]) -> str:
    spread = document["kept_percentiles"]
    num_images = document["num_images"]
    return (
        f"top-1 {_percent(document['accuracy'])} ({document['top1']} of {num_images}), top-5"
        f" {_percent(document['top5_accuracy'])} ({document['top5']} of {num_images})\nMACs ratio"
        f" {document['kept']:.4f} on average, {spread[5]:.3f} to {spread[95]:.3f} for 90 % of the"
        f" images\n{document['num_paths']} distinct"
        f" {'path' if document['num_paths'] == 1 else 'paths'}, entropy"
        f" {document['path_entropy_bits']:.2f} bits\n{_speed(document)}"
    )


def _show_budgets(console: Any, budgets: Mapping[str, Any]) -> None:
    before = budgets["before"]
    rows = [
        (
            "as it is",
            "",
            "",
            f"{before['kept']:.4f}",
            "",
            _percent(before["accuracy"]),
            before["num_paths"],
        )
    ]
    rows += [
        (
            f"{row['target']:g}",
            f"{row['threshold']:.4f}",
            f"{row['calibrated_kept']:.4f}",
            f"{row['kept']:.4f}",
            "yes" if row["budget_met"] else "no",
            _percent(row["accuracy"]),
            row["num_paths"],
        )
        for row in budgets["targets"]
    ]
    headings = ("budget", "threshold", "first half", "MACs ratio", "met", "top-1", "paths")
    console.print(_table(f"Budgets, {budgets['halves']}", headings, rows))
    console.print(
        f"First half: MACs ratio on the {budgets['calibration']['num_images']} images of"
        f" calibration. All else is of the {before['num_images']} others. Met: at most 0.02 above"
        " the budget."
    )


def _show_sensitivity(console: Any, costs: Mapping[str, Any]) -> None:
    num_images = costs["num_images"]
    rows = [
        (
            row["block"],
            f"{row['macs_saved']:.4f}",
            _percent(row["agreement_fraction"]),
            "" if row["top1_change"] is None else f"{100 * row['top1_change'] / num_images:+.2f}",
            "not finite" if row["kl_divergence"] is None else f"{row['kl_divergence']:.4f}",
            "" if row["branch_energy"] is None else f"{row['branch_energy']:.3g}",
        )
        for row in costs["blocks"]
    ]
    headings = ("without", "MACs saved", "same answer", "top-1 points", "KL, nats", "|F|²/|z|²")
    console.print(
        _table(f"Leaving out one block, the others static, {num_images} images", headings, rows)
    )
    if costs["static_top1"] is not None:
        console.print(f"The static network: top-1 {_percent(costs['static_top1'] / num_images)}.")
    if costs["warning"] is not None:
        console.print(f"! {costs['warning']}", markup=False)
    if costs["unskippable"]:
        from dggraph.views.escaping import visible

        names = ", ".join(costs["unskippable"])
        console.print(visible(f"No edge leads past {names} under this wiring."), markup=False)


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    from dggraph.views.escaping import visible

    table = Table(title=title, title_justify="left")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left")
    for row in rows:
        table.add_row(*(Text(visible(str(cell))) for cell in row))
    return table


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.2f} %"
