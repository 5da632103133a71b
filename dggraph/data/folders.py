"""Folders of images as training and evaluation read them: listed, looked at before any work, bad
images left out where that is asked for.
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
"""Files of one part whose ends are looked at before training, evenly spread: less than a minute.
Others are found bad when their turn comes.
"""
SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadFolder:
    """The images of one part."""

    items: tuple[Item, ...]
    classes: tuple[str, ...]
    """Names, by label; empty where images have none."""
    empty: tuple[str, ...]
    """Class folders without an image."""
    skipped: tuple[str, ...]
    """What was left out as bad, a sentence each; empty unless that was asked for."""
    notes: tuple[str, ...]
    """What else was left out, a sentence each."""
    facts: dict[str, Any]
    """The same in numbers, as JSON."""


def read_folder(folder: Path, on_bad: OnBadImage) -> ReadFolder:
    """Read what `open_image_set` finds in `folder`.

    Args:
        folder: with a sub-folder for each class, or with images.
        on_bad: `error` looks at the header and the end of up to 50,000 files, and raises for those
            that cannot be read; `skip` reads every file whole, which takes as long as an epoch
            without training, and leaves bad ones out.

    Raises:
        InputError: as for `open_image_set`; images that cannot be read, by name; or none is left.
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
        notes.append(
            f"{num_inspected} of {len(items)} image files were looked at before their turn"
        )
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
    """
    Raises:
        InputError: always; with the first of `errors`, and the way out.
    """
    shown, more = (
        " ".join(errors[:SHOWN]),
        f" And {len(errors) - SHOWN} more." if len(errors) > SHOWN else "",
    )
    raise InputError(
        f"{shown}{more} That is {len(errors)} of {of_what}. Mend or remove them, or leave them out"
        " with on_bad_image = 'skip' (--on-bad-image skip)."
    )


@contextmanager
def telling_way_out() -> Iterator[None]:
    """Within this context an image is read in its turn, which may be damaged where nobody looked
    before.
    """
    try:
        yield
    except InputError as error:
        raise InputError(
            f"{error} on_bad_image = 'skip' (--on-bad-image skip) finds such before training, and"
            " leaves them out."
        ) from error


def refuse_empty(folder: Path, found: ReadFolder) -> None:
    """
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
    """Errors by place, and how many files were looked at; images inside another file were checked
    with it.
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
