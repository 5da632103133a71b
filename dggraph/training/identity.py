"""The identity of a run's data, which must not change when the run resumes.

Checkpoints hold the classes, the numbers of images and a digest of their names. RUN/names.json.gz
holds the names, so that an error can say which one has changed.
"""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from dggraph.data.class_names import as_text
from dggraph.detection.readers import BoxImage
from dggraph.system.files import write_whole

NAMES = "names.json.gz"
SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The identity of the data of one run."""

    classes: tuple[str, ...]
    """Names by label."""
    sizes: dict[str, int]
    """Number of images in the training part and in the validation part."""
    names: dict[str, tuple[str, ...] | None]
    """For each part, the name of each image; None for sets that have no names.

    If the annotations are known, a tab and their digest follow the name.
    """

    def document(self) -> dict[str, Any]:
        """Return the form stored in checkpoints, as JSON."""
        digests = {
            part: None if names is None else _digest(names) for part, names in self.names.items()
        }
        return {"classes": list(self.classes), "sizes": self.sizes, "names": digests}


def names_of(dataset: object) -> tuple[str, ...] | None:
    """Return the names of a set's image files within its folder; None if it has no names."""
    dataset = getattr(dataset, "images", dataset)  # a set with replaced labels wraps another
    if hasattr(dataset, "samples") and hasattr(dataset, "root"):
        return as_text(
            Path(file).relative_to(dataset.root).as_posix() for file, *_ in dataset.samples
        )
    items = getattr(dataset, "items", None)
    if isinstance(items, Sequence) and all(hasattr(item, "name") for item in items):
        return as_text(item.name for item in items)
    return None


def names_of_boxes(images: Sequence[BoxImage]) -> tuple[str, ...]:
    """Return the names of images, each with a digest of its size and boxes."""
    marks = (repr((image.width, image.height, image.boxes)).encode() for image in images)
    named = zip(as_text(image.name for image in images), marks, strict=True)
    return tuple(f"{name}\t{blake2b(mark, digest_size=8).hexdigest()}" for name, mark in named)


def write_names(identity: Identity, folder: Path) -> None:
    """Write the names to the run folder, if there are any."""
    if any(identity.names.values()):
        write_whole(folder / NAMES, gzip.compress(json.dumps(identity.names).encode(), mtime=0))


def describe_differences(before: Mapping[str, Any], now: Identity, folder: Path) -> list[str]:
    """Return one phrase per difference between the data of a run and those now.

    Args:
        before: the document of the run's `Identity`.
        now: the identity of the present data.
        folder: the run folder, which has the names.
    """
    told, document, known = [], now.document(), _read_names(folder)
    if before["classes"] != document["classes"]:
        gone = [name for name in before["classes"] if name not in now.classes]
        new = [name for name in now.classes if name not in before["classes"]]
        facts = [
            f"{what} {', '.join(map(repr, some[:SHOWN]))}"
            for what, some in (("removed", gone), ("new", new))
            if some
        ]
        told.append(f"other classes ({'; '.join(facts) or 'the same ones in another order'})")
    for part, names in now.names.items():
        if before["sizes"][part] != now.sizes[part]:
            told.append(f"{before['sizes'][part]} images of {part} before, {now.sizes[part]} now")
        if before["names"][part] != document["names"][part]:
            then = known.get(part)
            is_known = then is not None and _digest(then) == before["names"][part]
            told.append(
                _describe_first(part, then or (), names or ())
                if is_known
                else f"other names of images of {part}"
            )
    return told


def _describe_first(part: str, then: Sequence[str], now: Sequence[str]) -> str:
    place = next(
        (at for at, (one, other) in enumerate(zip(then, now, strict=False)) if one != other),
        min(len(then), len(now)),
    )
    one, other = (
        names[place].partition("\t")[0] if place < len(names) else None for names in (then, now)
    )
    if one == other:
        return f"the annotations of {one!r} in {part} have changed"
    was, is_now = ("nothing" if name is None else repr(name) for name in (one, other))
    return f"image {place} of {part} was {was} and now is {is_now}"


def _digest(names: Iterable[str]) -> str:
    digest = blake2b(digest_size=16)
    for name in names:
        digest.update(f"{name}\n".encode())
    return digest.hexdigest()


def _read_names(folder: Path) -> dict[str, Sequence[str]]:
    try:
        content = json.loads(gzip.decompress((folder / NAMES).read_bytes()))
    except (OSError, EOFError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
