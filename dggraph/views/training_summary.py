"""The page of a training run, made from the files of its folder: results, curves, configuration."""

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from dggraph.views.escaping import plural
from dggraph.views.html_page import percent, write_page
from dggraph.views.line_chart import NUM_COLUMNS, Series, draw_curves, is_number, number

Row = Mapping[str, Any]
NONE = "–"
OF_DETECTION = ("AP50", "AP75", "small", "medium", "large")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The contents of the files of a run folder."""

    name: str
    """Name of the folder."""
    config: Row
    """All keys of the configuration."""
    defaults: Row
    """Default values of the keys that have one."""
    environment: Row
    """Versions and machine."""
    metrics: Sequence[Row]
    """One row per logged step, and one per evaluated epoch.

    Rows of steps have `step`, `loss`, `lr`, and `kept` for a dynamic network. Rows of epochs have
    `step`, `epoch` from 1, `accuracy`, counts of images, and `kept` and path statistics for a
    dynamic network. For detection, `AP`, `AP50` and others replace `accuracy`.
    """
    timing: Sequence[Row]
    """One row per epoch, or per part of it after a resume: `epoch` from 0, `images_per_second`."""
    num_unreadable: int
    """Number of lines of metrics and timing that are not valid rows."""
    budget_message: str = ""
    """What became of the budget of a finished run, in words."""
    is_budget_missed: bool = False

    @property
    def is_detection(self) -> bool:
        """Whether the run trains a detector."""
        return self.config.get("task") == "detection"

    @property
    def has_paths(self) -> bool:
        """Whether the network is a dynamic graph, and not static or that of a baseline."""
        method = self.config.get("method", "dynamic_graph")  # older runs have no other
        return bool(self.config["router"] != "none" and method == "dynamic_graph")

    @property
    def measure(self) -> str:
        """Name of the score: `AP` (COCO's mean average precision), `accuracy` or `agreement`.

        Agreement is that with the static network in distillation.
        """
        if self.is_detection:
            return "AP"
        return "agreement" if self.config.get("objective") == "distill" else "accuracy"

    @property
    def score(self) -> str:
        """Key of the score in rows of epochs; higher is better."""
        return "AP" if self.is_detection else "accuracy"

    @property
    def steps(self) -> list[Row]:
        """The rows of logged steps."""
        return [row for row in self.metrics if is_number(row.get("step")) and "epoch" not in row]

    @property
    def epochs(self) -> list[Row]:
        """The rows of evaluated epochs."""
        return [
            row
            for row in self.metrics
            if is_number(row.get("step")) and is_number(row.get("epoch"))
        ]

    @property
    def last_step(self) -> int:
        """The last step of any row; 0 before the first."""
        return max((row["step"] for row in (*self.steps, *self.epochs)), default=0)

    @property
    def losses(self) -> list[list[float]]:
        """The losses logged in each evaluated epoch, in the order of `epochs`."""
        ends = [row["step"] for row in self.epochs]
        found: list[list[float]] = [[] for _ in range(len(ends) + 1)]
        for row in self.steps:
            if is_number(row.get("loss")):
                found[bisect_left(ends, row["step"])].append(row["loss"])
        return found[:-1]

    @property
    def rates(self) -> dict[float, float]:
        """{epoch from 1: images per second}; for an epoch that was repeated, the last value."""
        known = (
            row
            for row in self.timing
            if is_number(row.get("epoch")) and is_number(row.get("images_per_second"))
        )
        return {row["epoch"] + 1: row["images_per_second"] for row in known}


def write_summary(record: Record) -> str:
    """Return a complete HTML document without scripts or external resources.

    Every name in it is escaped, and every missing number is a dash or a gap.
    """
    config, num_epochs = record.config, len(record.epochs)
    heads = _heads(record)
    given = {
        key: value
        for key, value in config.items()
        if key not in record.defaults or record.defaults[key] != value
    }
    return write_page(
        "run.html",
        f"Run: {record.name}",
        name=record.name,
        config=config,
        is_finished=num_epochs == config["epochs"],
        budget_message=record.budget_message,
        is_budget_missed=record.is_budget_missed,
        done=f"{num_epochs} of {plural(config['epochs'], 'epoch')}, step {record.last_step:,}",
        num_unreadable=record.num_unreadable,
        tiles=list(_tiles(record)),
        charts=_charts(record),
        has_bands=len(record.steps) > NUM_COLUMNS,
        heads=heads,
        epochs=_epochs(record, heads),
        given=_facts(given),
        others=_facts({key: value for key, value in config.items() if key not in given}),
        environment=_facts(record.environment),
    )


def _tiles(record: Record) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and note of each current number; missing numbers have no tile."""
    last = record.epochs[-1] if record.epochs else {}
    images = (
        f"{last['num_images']:,} images" if is_number(last.get("num_images")) else "unknown images"
    )
    best = _best(record)
    if best is not None and is_number(last.get(record.score)):
        which = (
            "the best epoch"
            if best is last
            else f"best {percent(best[record.score])}, epoch {best['epoch']}"
        )
        of_what = {"accuracy": "top 1", "AP": "mean over overlaps from 0.50 to 0.95"}.get(
            record.measure, "with the static network's best class"
        )
        yield record.measure, percent(last[record.score]), f"{of_what}, of {images}; {which}"
    if is_number(last.get("AP50")):
        yield "AP50", percent(last["AP50"]), f"at an overlap of 0.50, of {images}"
    if is_number(last.get("kept")):
        budget = record.config["budget"]
        asked = "no budget" if budget is None else f"budget {percent(budget)}"
        asked += ", missed" if record.is_budget_missed else ""
        whose = (
            "the static backbone's, at the traced size"
            if record.is_detection
            else "the static network's"
        )
        yield "MACs ratio", percent(last["kept"]), f"of {whose}; {asked}"
    if is_number(last.get("num_paths")):
        yield "different paths", f"{last['num_paths']:,}", f"of {images}"
    if is_number(last.get("path_entropy_bits")):
        yield (
            "path entropy",
            f"{last['path_entropy_bits']:.2f} bits",
            "of the distribution of images over paths",
        )
    losses = record.losses[-1] if last else []
    if losses:
        yield (
            "training loss",
            number(fmean(losses)),
            f"mean of the {len(losses)} logged in epoch {last['epoch']}",
        )
    if record.rates:
        yield (
            "images a second",
            number(median(record.rates.values())),
            f"in training, median of {plural(len(record.rates), 'epoch')}",
        )


def _best(record: Record) -> Row | None:
    """Return the first epoch with the highest score, whose checkpoint is kept."""
    key = record.score
    return max(
        (row for row in record.epochs if is_number(row.get(key))),
        key=lambda row: row[key],
        default=None,
    )


def _charts(record: Record) -> list[tuple[str, str]]:
    """Return titles and pictures."""
    steps, epochs, last = record.steps, record.epochs, max(1, record.last_step)
    budget, unit = record.config["budget"], "\N{NO-BREAK SPACE}%"

    def over(rows: Iterable[Row], key: str, scale: float = 1) -> list[tuple[object, object]]:
        return [
            (row["step"], scale * row[key] if is_number(row.get(key)) else None) for row in rows
        ]

    def chart(
        title: str, *series: Series, unit: str = "", target: tuple[str, float] | None = None
    ) -> tuple[str, str]:
        drawn = draw_curves(title, series, across="step", last=last, unit=unit, target=target)
        return title, drawn

    def by_epoch(title: str, key: str) -> tuple[str, str]:
        return chart(title, Series(name=title, points=over(epochs, key), is_sparse=True))

    judged = {"AP": "AP", "AP50": "AP50"} if record.is_detection else {"accuracy": "top 1"}
    charts = [
        chart("Training loss", Series(name="loss", points=over(steps, "loss"))),
        chart(
            f"Validation {record.measure}",
            *(
                Series(name=name, points=over(epochs, key, 100), is_sparse=True)
                for key, name in judged.items()
            ),
            unit=unit,
        ),
        chart("Learning rate", Series(name="rate", points=over(steps, "lr"))),
    ]
    if record.has_paths:
        training = Series(name="training", points=over(steps, "kept", 100))
        validation = Series(name="validation", points=over(epochs, "kept", 100), is_sparse=True)
        target = None if budget is None else (f"budget {percent(budget, digits=0)}", 100 * budget)
        charts += [
            chart("MACs ratio", training, validation, unit=unit, target=target),
        ]
    if record.has_paths and not record.is_detection:
        charts += [
            by_epoch("Different paths in validation", "num_paths"),
            by_epoch("Path entropy in validation, bits", "path_entropy_bits"),
        ]
    return charts


def _heads(record: Record) -> list[str]:
    """Return the column names of the table of epochs, without the first."""
    scores = OF_DETECTION if record.is_detection else ("top 5",)
    heads = ["step", record.measure, *scores]
    if record.has_paths:
        heads += ["MACs ratio"] if record.is_detection else ["MACs ratio", "paths", "entropy, bits"]
    return [*heads, "training loss", "images/s"]


def _epochs(record: Record, heads: Sequence[str]) -> list[tuple[Any, bool, list[str]]]:
    """Return the number of each epoch, whether it is the best, and its cells."""
    rows, best = [], _best(record)
    for row, losses in zip(record.epochs, record.losses, strict=True):
        images, top5 = row.get("num_images"), row.get("top5")
        cells = {
            "step": f"{row['step']:,}",
            record.measure: _percent(row.get(record.score)),
            **{key: _percent(row.get(key)) for key in OF_DETECTION},
            "top 5": (
                _percent(top5 / images)
                if is_number(top5) and is_number(images) and images
                else NONE
            ),
            "MACs ratio": _percent(row.get("kept")),
            "paths": _number(row.get("num_paths"), ",.0f"),
            "entropy, bits": _number(row.get("path_entropy_bits"), ".2f"),
            "training loss": _number(fmean(losses) if losses else None, ".4f"),
            "images/s": _number(record.rates.get(row["epoch"]), ",.0f"),
        }
        rows.append((row["epoch"], row is best, [cells[head] for head in heads]))
    return rows


def _percent(share: object) -> str:
    return percent(share, digits=2) if is_number(share) else NONE


def _number(value: object, form: str) -> str:
    return format(value, form) if is_number(value) else NONE


def _facts(facts: Row) -> list[tuple[str, list[str]]]:
    """Return names and values as text; a list has several values."""
    return [(key, list(_texts(value))) for key, value in facts.items()]


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, list):
        for one in value:
            yield from _texts(one)
    else:
        yield value if isinstance(value, str) else "none" if value is None else json.dumps(value)
