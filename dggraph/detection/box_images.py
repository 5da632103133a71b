"""Check the image files of annotations: readable, of the annotated size, and the right way up.

Cameras store many photos rotated, and record in EXIF how to turn them. Some tools draw boxes on the
image as it is stored, others on the upright image. The size in the annotations shows which, unless
the turn keeps it.
"""

from dataclasses import replace

from PIL import Image

from dggraph.data.folders import MAX_INSPECTED, refuse_bad
from dggraph.data.image_sets import evenly_spaced
from dggraph.detection.box_entries import OnBadBox
from dggraph.detection.box_sets import BoxImage, BoxSet
from dggraph.errors import InputError
from dggraph.models.image_files import Depth, ImageFacts, inspect_images
from dggraph.models.preprocessing import open_image

UPRIGHT = "images turned upright by EXIF, as their boxes were drawn"
UNDECIDED = (
    "images whose EXIF turn keeps their size, so that it is unclear whether boxes were drawn before"
    " or after it; "
)
AS_OTHERS, AS_STORED = "read upright, as the others of the set", "read as stored"


def compare_images(found: BoxSet, *, on_bad: OnBadBox, depth: Depth) -> BoxSet:
    """Inspect the image files of a set before any other work.

    Args:
        found: a set with the sizes in its annotations.
        on_bad: `skip` leaves out images that cannot be read or have another size, and lists them in
            `BoxSet.skipped`.
        depth: as for `inspect_image`; with `ends` at most 50,000 evenly spaced files are inspected.

    Returns:
        `found` without bad images, and with `BoxImage.is_upright` set if boxes were drawn on the
            upright image.

    Raises:
        InputError: with `on_bad="error"`, images that cannot be read or have another size; the
            message names the first of them.
    """
    is_taken = evenly_spaced(len(found.images), MAX_INSPECTED if depth == "ends" else None)
    taken = [image for place, image in enumerate(found.images) if is_taken(place)]
    facts = dict(
        zip(
            (image.image_id for image in taken),
            inspect_images([image.file for image in taken], depth),
            strict=True,
        )
    )
    problems: dict[int, str] = {}
    upright, stored, undecided = set[int](), set[int](), set[int]()
    for image in taken:
        fact, size = facts[image.image_id], (image.width, image.height)
        if isinstance(fact, InputError):
            problems[image.image_id] = str(fact)
        elif size not in (fact.size, fact.upright_size):
            problems[image.image_id] = _other_size(image, fact)
        elif fact.orientation > 1:
            (
                undecided
                if fact.size == fact.upright_size
                else stored
                if size == fact.size
                else upright
            ).add(image.image_id)
    if problems and on_bad == "error":
        refuse_bad(list(problems.values()), f"{len(taken)} images of {found.name}")
    as_others = bool(upright) and not stored
    counts = {
        UPRIGHT: len(upright),
        UNDECIDED + (AS_OTHERS if as_others else AS_STORED): len(undecided),
    }
    counts["images inspected in advance"] = len(taken) if len(taken) < len(found.images) else 0
    turned = upright | (undecided if as_others else set())
    return replace(
        found,
        images=tuple(
            replace(image, is_upright=True) if image.image_id in turned else image
            for image in found.images
            if image.image_id not in problems
        ),
        skipped=(*found.skipped, *problems.values()),
        counts=dict(found.counts) | {what: count for what, count in counts.items() if count},
    )


def open_drawn_on(entry: BoxImage) -> Image.Image:
    """Return the image that the boxes of `entry` were drawn on, as stored or upright.

    Raises:
        InputError: it cannot be read, or has another size both ways.
    """
    size = entry.width, entry.height
    for is_turned in (entry.is_upright, not entry.is_upright):
        image = open_image(entry.file, is_turned=is_turned)
        if image.size == size:
            return image
    stored = open_image(entry.file, is_turned=False)
    raise InputError(_other_size(entry, ImageFacts(stored.width, stored.height, 1)))


def _other_size(entry: BoxImage, fact: ImageFacts) -> str:
    upright = (
        ""
        if fact.orientation == 1
        else f" (turned by EXIF {fact.upright_size[0]} x {fact.upright_size[1]})"
    )
    hint = "use the images that they were drawn on."
    if (entry.height, entry.width) == fact.size:
        hint = (
            "perhaps a camera's rotation (EXIF) was applied to one of them and then lost. Rotate"
            " the image, or use the right one."
        )
    return (
        f"{str(entry.file)!r} is {fact.width} x {fact.height} pixels{upright}, but its annotations"
        f" were drawn on {entry.width} x {entry.height}. Boxes would be in the wrong places: {hint}"
    )
