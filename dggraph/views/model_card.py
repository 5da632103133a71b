"""A model card: README.md of a shared network, in Markdown, with YAML in front.

Names, labels and commands come from others. In Markdown every sign that could be markup is written
as itself, in YAML every text is a JSON string, and a command stands in a fence that it cannot
close.
"""

import json
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from dggraph.views.escaping import visible

MARK = "<!-- Written by dggraph. Remove this line to keep your changes when saving again. -->"
MAX_LABELS, MAX_TEXT = 20, 300
PICTURE = "graph.svg"
MARKUP = frozenset(string.punctuation) - set(",'\"%?")
"""Signs that may mean something somewhere in Markdown, or in what the hub makes of it."""
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
"""Even renderers that pass HTML through print these as themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResults:
    """What finished runs by one recipe measured, as `read_results` returns it.

    Example:
        >>> from dggraph.training import TrainingResults
        >>> found = TrainingResults(
        ...     command="dggraph train", dataset="flowers", num_training=80, num_validation=20,
        ...     seeds=(0, 1), measure="accuracy", scores=(0.9, 0.8), kept=(0.7, 0.75),
        ...     versions={"torch": "2.14"}, remarks=(),
        ... )
        >>> len(found.scores)
        2
    """

    command: str
    """The command that trains the first of them again."""
    dataset: str
    num_training: int | None
    num_validation: int | None
    seeds: tuple[int, ...]
    """One per run, as all fields below."""
    measure: str
    """Name of the score: accuracy, agreement or AP."""
    scores: tuple[float, ...]
    """On the validation images, after the last epoch, from 0 to 1."""
    kept: tuple[float, ...]
    """Mean MACs ratios; empty for static networks."""
    versions: dict[str, str]
    """Versions that the first run was trained with."""
    remarks: tuple[str, ...]
    """Sentences, for example of a budget that was missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What a card says of a network."""

    name: str
    """Its class."""
    form: str
    """What became of it, after its name in the heading: "as a dynamic graph"."""
    source: str | None
    """The MODEL name, or None for a bare module."""
    about: str
    """A sentence or two on what it does; the author's own words are escaped."""
    has_picture: bool
    """Whether the folder has a picture of the graph."""
    properties: tuple[tuple[str, str], ...]
    """(what, value) rows of its kind, in Markdown."""
    num_parameters: int
    input_size: tuple[int, ...]
    use: str
    """A line of Python that shows what `net` says of the photo `photo.jpg`."""
    limits: tuple[str, ...]
    """Sentences on its kind."""
    labels: tuple[str, ...] | None
    weights_origin: str
    license: str | None
    """An identifier, as the hub knows it."""
    results: TrainingResults | None


def write_card(facts: CardFacts) -> str:
    """Return the card. A network without results says that nothing is known of its quality."""
    return "\n".join([*_front(facts), "", MARK, "", *_body(facts)]) + "\n"


def for_markdown(text: str) -> str:
    """Return visible text on one line that Markdown prints literally, in tables too."""
    shown = visible(text)
    shown = shown if len(shown) <= MAX_TEXT else f"{shown[:MAX_TEXT]}…"
    return "".join(_ENTITIES.get(sign) or _escaped(sign) for sign in shown)


def _escaped(sign: str) -> str:
    return f"\\{sign}" if sign in MARKUP else sign


def _front(facts: CardFacts) -> Iterator[str]:
    yield "---"
    yield "library_name: dggraph"
    yield (
        "pipeline_tag: image-classification"
        if facts.labels
        else "pipeline_tag: image-feature-extraction"
    )
    yield "tags:"
    yield from ("- dggraph", "- dynamic-graph", "- conditional-computation")
    if facts.license is not None:
        yield f"license: {_yaml(facts.license)}"
    results = facts.results
    if results is not None and results.scores:
        yield "model-index:"
        yield f"- name: {_yaml(facts.name)}"
        yield "  results:"
        yield "  - task:"
        yield "      type: image-classification"
        yield "    dataset:"
        yield f"      name: {_yaml(results.dataset)}"
        yield f"      type: {_yaml(results.dataset)}"
        yield "    metrics:"
        yield f"    - type: {_yaml(results.measure)}"
        yield f"      value: {results.scores[0]:.4f}"
        if results.kept:
            yield "    - type: macs_ratio"
            yield f"      value: {results.kept[0]:.4f}"
    yield "---"


def _body(facts: CardFacts) -> Iterator[str]:
    source = "a module of the author's own" if facts.source is None else for_markdown(facts.source)
    yield f"# {for_markdown(facts.name)} {for_markdown(facts.form)}"
    yield ""
    yield f"This network was made by dggraph from {source}. {facts.about}"
    yield ""
    if facts.has_picture:
        yield f"![Its stages, blocks and candidate edges]({PICTURE})"
        yield ""
    yield from _table(
        ("What", "Value"),
        [
            *facts.properties,
            ("parameters", f"{facts.num_parameters:,}"),
            ("input", " × ".join(map(str, facts.input_size))),
            ("weights", for_markdown(facts.weights_origin)),
        ],
    )
    yield ""
    yield "## Use"
    yield ""
    yield "```python"
    yield "import dggraph"
    yield ""
    place = '"FOLDER or OWNER/NAME"'
    if facts.source is None:
        yield "# backbone: the module that it was made from; its code is not in here"
        place += ", model=backbone"
    yield f"net = dggraph.from_pretrained({place})"
    yield facts.use
    yield "```"
    yield ""
    if facts.labels:
        shown = ", ".join(for_markdown(label) for label in facts.labels[:MAX_LABELS])
        rest = len(facts.labels) - MAX_LABELS
        yield f"Classes: {shown}{f', and {rest} more' if rest > 0 else ''}."
        yield ""
    yield "## Results"
    yield ""
    yield from _results(facts.results)
    yield ""
    yield "## Limits"
    yield ""
    if facts.weights_origin == "random":
        yield "- The weights are random: answers and paths mean nothing."
    yield from (f"- {sentence}" for sentence in facts.limits)
    yield "- Nothing is known about images of other kinds than those it was trained on."
    yield ""
    yield "## Licence"
    yield ""
    if facts.license is None:
        yield "Not stated. Ask the author before you use the weights."
    else:
        yield f"{for_markdown(facts.license)}, as stated by the author."


def _results(results: TrainingResults | None) -> Iterator[str]:
    if results is None or not results.scores:
        yield "Not measured: this card was written without the run that trained the network."
        return
    images = "" if results.num_validation is None else f" of {results.num_validation:,} images"
    yield (
        f"On the validation part{images} of {for_markdown(results.dataset)}, after the last epoch:"
    )
    yield ""
    heads = ["seed", results.measure, *(["MACs ratio"] if results.kept else [])]
    rows = [
        [str(seed), _percent(score), *([_percent(results.kept[at])] if results.kept else [])]
        for at, (seed, score) in enumerate(zip(results.seeds, results.scores, strict=True))
    ]
    yield from _table(heads, rows)
    yield ""
    yield _noise(results)
    yield ""
    if results.num_training is not None:
        yield f"Trained on a set of {results.num_training:,} images:"
        yield ""
    fence = "`" * (max(map(len, re.findall("`+", results.command)), default=0) + 3)
    yield f"{fence}bash"
    yield visible(results.command)
    yield fence
    yield ""
    yield (
        "With "
        + ", ".join(
            f"{for_markdown(name)} {for_markdown(value)}"
            for name, value in results.versions.items()
        )
        + "."
    )
    for remark in results.remarks:
        yield ""
        yield f"**{for_markdown(remark)}**"


def _noise(results: TrainingResults) -> str:
    """How far scores are to be trusted, in a sentence."""
    if len(results.scores) > 1:
        return (
            f"Mean and standard deviation over {len(results.scores)} seeds: {results.measure}"
            f" {_percent(fmean(results.scores))} ± {100 * stdev(results.scores):.2f}. The weights"
            " here are those of the first."
        )
    number, score = results.num_validation, results.scores[0]
    told = "One seed: how results of other seeds differ was not measured."
    if number and results.measure != "AP":
        half = 100 * 1.96 * sqrt(max(score * (1 - score), 0) / number)
        told += f" The images alone leave ± {half:.2f} points (95 %)."
    return told


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _yaml(text: str) -> str:
    return json.dumps(visible(text)[:MAX_TEXT])
