"""The counts of an atlas, image by image, and their JSON form for interrupted collections."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dggraph.errors import InputError
from dggraph.evaluation.gate_diagnostics import GateHealth, StageCounts
from dggraph.graph.atlas import (
    BINS_PER_STATIC,
    Atlas,
    ClassPaths,
    CommonPath,
    Frequencies,
    GateFacts,
    Instance,
)
from dggraph.graph.detection import Detected, Detection
from dggraph.graph.ir import ActivatedPath, DynamicGraph
from dggraph.network.cost import path_keys
from dggraph.network.gates import Gates

NUM_COMMON, NUM_EXAMPLES, NUM_EXTREMES, NUM_SKIPPED = 12, 8, 5, 20
MAX_DETAILED = 1 << 16
"""Number of distinct paths that are stored with edges, classes and examples.

Others are only counted.
"""


@dataclass(slots=True)
class _ClassCounts:
    open_E: npt.NDArray[np.int64]
    """Counts for the edges of all stages, concatenated."""
    num_images: int = 0
    num_correct: int = 0
    macs: int = 0


@dataclass(slots=True)
class _SeenPath:
    open_edges: str
    """One digit per edge, of all stages, concatenated."""
    macs: int
    classes: Counter[int] = field(default_factory=Counter)
    examples: list[int] = field(default_factory=list)


class AtlasCounts:
    """The counts over the images so far, which `atlas` turns into shares.

    Args:
        graph: the network's graph.
        static_macs: MACs of the static network.
        classes: class names of the set.
        is_comparable: whether these are the network's classes, so that predictions can be right or
            wrong.
    """

    def __init__(
        self,
        graph: DynamicGraph,
        static_macs: int,
        classes: tuple[str, ...],
        *,
        is_comparable: bool,
    ) -> None:
        """Start with empty counts."""
        self.graph, self.static_macs, self.classes, self.is_comparable = (
            graph,
            static_macs,
            classes,
            is_comparable,
        )
        self.health = GateHealth(graph)
        self.per_class: dict[int, _ClassCounts] = {}
        self.seen: dict[bytes, _SeenPath] = {}
        self.histogram: Counter[int] = Counter()
        self.macs = self.squares = self.num_skipped = self.next_index = 0
        self.skipped: list[tuple[str, str]] = []
        self.is_wanted = False
        """Whether to keep the next image that can be read."""
        self.shown: list[Instance] = []
        self.cheapest: list[Instance] = []
        self.dearest: list[Instance] = []

    @property
    def num_passed(self) -> int:
        """The number of images that were run or skipped."""
        return self.health.num_instances + self.num_skipped

    def skip(self, name: str, reason: str) -> None:
        """Count an image that could not be read."""
        self.num_skipped += 1
        if len(self.skipped) < NUM_SKIPPED:
            self.skipped.append((name, reason))

    def add(self, instance: Instance, label: int | None, gates: Gates) -> None:
        """Count an image; `gates` are those of its forward pass, at batch size 1."""
        path, (key,) = instance.path, path_keys(gates)
        open_E = np.array([weight != 0 for weights in path.weights.values() for weight in weights])
        self.health.update(gates)
        self.macs += path.macs
        self.squares += path.macs**2
        self.histogram[BINS_PER_STATIC * path.macs // self.static_macs] += 1
        if label is not None:
            counts = self.per_class.setdefault(
                label, _ClassCounts(np.zeros(len(open_E), dtype=np.int64))
            )
            counts.open_E += open_E
            counts.num_images += 1
            counts.num_correct += instance.prediction == instance.label
            counts.macs += path.macs
        if key not in self.seen and len(self.seen) < MAX_DETAILED:
            self.seen[key] = _SeenPath(
                "".join("1" if is_open else "0" for is_open in open_E), path.macs
            )
        if (seen := self.seen.get(key)) is not None:
            if label is not None:
                seen.classes[label] += 1
            if len(seen.examples) < NUM_EXAMPLES:
                seen.examples.append(instance.index)
        if self.is_wanted:
            self.shown.append(instance)
            self.is_wanted = False
        self.cheapest = sorted(
            [*self.cheapest, instance], key=lambda one: (one.path.macs, one.index)
        )[:NUM_EXTREMES]
        self.dearest = sorted(
            [*self.dearest, instance], key=lambda one: (-one.path.macs, one.index)
        )[:NUM_EXTREMES]

    def atlas(self, *, network: str, images: str, num_ignored: int) -> Atlas:
        """Return the counts as shares.

        Raises:
            InputError: no image was counted.
        """
        number = self.health.num_instances
        if not number:
            raise InputError(
                f"no image of {images!r} could be read, so there is nothing to report"
                f" ({self.num_skipped} were skipped). Give a set with readable images."
            )
        health = self.health.report()
        opens = [self.health.stages[stage].open_E.numpy() for stage in self.graph.stages]
        mean = self.macs / number
        kept = {
            instance.index: instance for instance in (*self.shown, *self.cheapest, *self.dearest)
        }
        common = sorted(self.seen, key=lambda key: -self.health.paths[key])[:NUM_COMMON]
        correct = [counts.num_correct for counts in self.per_class.values()]
        return Atlas(
            network=network,
            images=images,
            num_images=number,
            num_skipped=self.num_skipped,
            skipped=tuple(self.skipped),
            num_ignored=num_ignored,
            static_macs=self.static_macs,
            mean_macs=mean,
            std_macs=math.sqrt(max(0, self.squares * number - self.macs**2)) / number,
            histogram=tuple(sorted(self.histogram.items())),
            accuracy=sum(correct) / number if self.is_comparable else None,
            frequencies=self._split(np.concatenate(opens) / number),
            classes=tuple(self._class_paths(label) for label in sorted(self.per_class)),
            num_paths=health.num_paths,
            path_entropy_bits=health.path_entropy_bits,
            most_common=tuple(self._common_path(key) for key in common),
            instances=tuple(kept[index] for index in sorted(kept)),
            cheapest=tuple(instance.index for instance in self.cheapest),
            dearest=tuple(instance.index for instance in self.dearest),
            gates=GateFacts(
                always_open=health.always_open,
                always_closed=health.always_closed,
                tie_fractions=health.tie_fractions,
                live_fractions=health.live_fractions,
                never_live=health.never_live,
                warnings=health.warnings,
            ),
        )

    def document(self) -> dict[str, Any]:
        """Return all counts so far as a JSON document."""
        return {
            "next_index": self.next_index,
            "is_wanted": self.is_wanted,
            "macs": self.macs,
            "squares": self.squares,
            "num_skipped": self.num_skipped,
            "skipped": self.skipped,
            "histogram": list(self.histogram.items()),
            "num_instances": self.health.num_instances,
            "paths": [(key.hex(), count) for key, count in self.health.paths.items()],
            "stages": {
                stage: {part.name: getattr(counts, part.name).tolist() for part in fields(counts)}
                for stage, counts in self.health.stages.items()
            },
            "seen": [
                (key.hex(), one.open_edges, one.macs, list(one.classes.items()), one.examples)
                for key, one in self.seen.items()
            ],
            "classes": [
                (label, counts.open_E.tolist(), counts.num_images, counts.num_correct, counts.macs)
                for label, counts in self.per_class.items()
            ],
            "shown": [asdict(instance) for instance in self.shown],
            "cheapest": [asdict(instance) for instance in self.cheapest],
            "dearest": [asdict(instance) for instance in self.dearest],
        }

    def restore(self, document: dict[str, Any]) -> None:
        """Continue from the result of `document`."""
        self.next_index, self.is_wanted = document["next_index"], document["is_wanted"]
        self.macs, self.squares = document["macs"], document["squares"]
        self.num_skipped, self.skipped = (
            document["num_skipped"],
            [(name, reason) for name, reason in document["skipped"]],
        )
        self.histogram = Counter(dict(document["histogram"]))
        self.health.num_instances = document["num_instances"]
        self.health.paths = Counter({bytes.fromhex(key): count for key, count in document["paths"]})
        self.health.stages = {
            stage: StageCounts(
                **{
                    name: torch.tensor(
                        values,
                        dtype=torch.float64 if name in ("lowest_E", "highest_E") else torch.int64,
                    )
                    for name, values in parts.items()
                }
            )
            for stage, parts in document["stages"].items()
        }
        self.seen = {
            bytes.fromhex(key): _SeenPath(edges, macs, Counter(dict(classes)), examples)
            for key, edges, macs, classes, examples in document["seen"]
        }
        self.per_class = {
            label: _ClassCounts(np.array(opens), *numbers)
            for label, opens, *numbers in document["classes"]
        }
        self.shown, self.cheapest, self.dearest = (
            [_unpack(packed) for packed in document[name]]
            for name in ("shown", "cheapest", "dearest")
        )

    def _split(self, values_E: Sequence[float] | npt.NDArray[np.float64]) -> Frequencies:
        """Split values of all edges by stage."""
        rest = iter(values_E)
        return {
            stage: tuple(float(next(rest)) for _ in self.graph.edges(stage))
            for stage in self.graph.stages
        }

    def _class_paths(self, label: int) -> ClassPaths:
        counts = self.per_class[label]
        return ClassPaths(
            name=self.classes[label],
            num_images=counts.num_images,
            num_correct=counts.num_correct if self.is_comparable else None,
            mean_macs=counts.macs / counts.num_images,
            frequencies=self._split(counts.open_E / counts.num_images),
        )

    def _common_path(self, key: bytes) -> CommonPath:
        seen = self.seen[key]
        return CommonPath(
            count=self.health.paths[key],
            path=ActivatedPath(
                weights=self._split([float(digit) for digit in seen.open_edges]),
                macs=seen.macs,
                margin=math.inf,
            ),
            classes=tuple(
                (self.classes[label], count) for label, count in seen.classes.most_common()
            ),
            examples=tuple(seen.examples),
        )


def _unpack(packed: dict[str, Any]) -> Instance:
    path, detected = packed["path"], packed["detected"]
    weights = {stage: tuple(values) for stage, values in path["weights"].items()}
    whole: dict[str, Any] = {"path": ActivatedPath(**(path | {"weights": weights}))}
    if detected is not None:
        objects = tuple(
            Detection(**(one | {"corners": tuple(one["corners"])})) for one in detected["objects"]
        )
        whole["detected"] = Detected(size=tuple(detected["size"]), objects=objects)
    return Instance(**(packed | whole))
