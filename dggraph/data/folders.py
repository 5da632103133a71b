"""Image folders for training and evaluation: listed and checked before any work.

Bad images stop the run, or are left out on request.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dggraph.data.image_sets import Item, evenly_spaced, list_some, open_image_set
from dggraph.errors import InputError
from dggraph.models.image_files import ImageFacts, inspect_images
from dggraph.views.escaping import plural

OnBadImage = Literal["error", "skip"]
MAX_INSPECTED = 50_000
"""Files of one part that are checked before training, evenly spread: less than a minute.

Errors in other files are found when they are read.
"""
SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadFolder:
    """The images of one part of a data set."""

    items: tuple[Item, ...]
    classes: tuple[str, ...]
    """Names by label; empty if the images have no classes."""
    empty: tuple[str, ...]
    """Class folders without an image."""
    skipped: tuple[str, ...]
    """One sentence per bad image that was left out; empty unless requested."""
    notes: tuple[str, ...]
    """One sentence per other thing that was left out."""
    facts: dict[str, Any]
    """The same in numbers, as JSON."""


def read_folder(folder: Path, on_bad: OnBadImage) -> ReadFolder:
    """Read and check what `open_image_set` finds in `folder`.

    Args:
        folder: a folder with one sub-folder per class, or with images.
        on_bad: `error` checks the header and the end of up to 50,000 files, and raises if some
            cannot be read. `skip` decodes every file, which takes as long as loading one epoch, and
            leaves out bad ones.

    Raises:
        InputError: as for `open_image_set`; images cannot be read, with their names; or none is
            left.
    """
    found = open_image_set(folder)
    items = tuple(found.items())
    bad, num_inspected = _find_bad(items, on_bad)
    if len(bad) == len(items):
        raise InputError(
            f"none of the {plural(len(items), 'image')} in {str(folder)!r} can be read:"
            f" {next(iter(bad.values()))}"
        )
    if bad and on_bad == "error":
        refuse_bad(
            [str(error) for error in bad.values()],
            f"{plural(len(items), 'image')} in {str(folder)!r}",
        )
    kept = tuple(item for item in items if item.index not in bad)
    skipped = tuple(str(error) for error in bad.values())
    with_images = {item.label for item in kept}
    lost = [name for label, name in enumerate(found.classes) if label not in with_images]
    notes = list(found.notes)
    if bad:
        notes.append(f"{plural(len(bad), 'image')} that cannot be read left out")
    if num_inspected < len(items):
        notes.append(f"{num_inspected} of {len(items)} image files were checked before training")
    facts = {
        "folder": str(folder),
        "images": len(kept),
        "ignored": dict(found.ignored),
        "unreadable": len(bad),
    }
    return ReadFolder(
        items=kept,
        classes=found.classes,
        empty=(*found.empty, *lost),
        skipped=skipped,
        notes=tuple(f"{folder.name}: {note}" for note in notes),
        facts=facts | {"empty": [*found.empty, *lost], "inspected": num_inspected},
    )


def refuse_bad(errors: Sequence[str], of_what: str) -> None:
    """Raise an error for bad images, which says how to leave them out.

    Raises:
        InputError: always, with the first of `errors`.
    """
    shown, more = (
        " ".join(errors[:SHOWN]),
        f" And {len(errors) - SHOWN} more." if len(errors) > SHOWN else "",
    )
    raise InputError(
        f"{shown}{more} That is {len(errors)} of {of_what}. Fix or remove them, or leave them"
        " out with on_bad_image = 'skip' (--on-bad-image skip)."
    )


@contextmanager
def suggesting_skip() -> Iterator[None]:
    """Within this context, errors of an image mention how to leave bad images out.

    It is for images that were not checked before training.
    """
    try:
        yield
    except InputError as error:
        raise InputError(
            f"{error} To find such images before training and leave them out, set on_bad_image ="
            " 'skip' (--on-bad-image skip)."
        ) from error


def refuse_empty(folder: Path, found: ReadFolder) -> None:
    """Reject a folder that lacks images for a class.

    Raises:
        InputError: a class has no image.
    """
    if found.empty:
        ignored = f" ({'; '.join(found.notes)})" if found.facts["ignored"] else ""
        raise InputError(
            f"{folder}: there are no images for the classes {list_some(found.empty)}{ignored}. Put"
            " images there, or remove the folders."
        )


def _find_bad(items: Sequence[Item], on_bad: OnBadImage) -> tuple[dict[int, InputError], int]:
    """Return errors by place in the set, and the number of checked images.

    Images inside another file count as checked, since that file was.
    """
    files = [item for item in items if item.file is not None]
    is_taken = evenly_spaced(len(files), MAX_INSPECTED if on_bad == "error" else None)
    taken = [item for place, item in enumerate(files) if is_taken(place)]
    found: list[ImageFacts | InputError] = inspect_images(
        [item.file or "" for item in taken], "whole" if on_bad == "skip" else "ends"
    )
    bad = {
        item.index: one
        for item, one in zip(taken, found, strict=True)
        if isinstance(one, InputError)
    }
    return bad, len(taken) + len(items) - len(files)
