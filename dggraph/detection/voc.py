"""Read VOC's folders: one XML file per image, with its name, and lists of these names."""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unicodedata import normalize
from xml.etree import ElementTree

from dggraph.data.listing import is_hidden, scan
from dggraph.detection.box_entries import (
    Findings,
    OnBadBox,
    as_flag,
    as_whole,
    corners_of,
    file_of,
    other_place,
)
from dggraph.detection.box_sets import Box, BoxImage, BoxSet
from dggraph.errors import InputError

OTHER_SUFFIX = "images found with another suffix or case than their <filename>"
HIDDEN_XML = "hidden XML files ignored"
FLAGGED = "listed names with a flag after them (1, 0, -1), which does not affect boxes"
FLAG = re.compile(r"^(.*\S)\s+(-1|0|1)$")


def read_voc(
    annotations: Path,
    images: Path,
    *,
    classes: Iterable[str] | None = None,
    stems: Sequence[str] | None = None,
    on_bad: OnBadBox = "error",
) -> BoxSet:
    """Read a folder of VOC XML files.

    Objects marked `difficult` count as crowds: neither learned nor missed. An image is the file
    that `<filename>` names. If that does not exist, it is the file with the same stem and the
    suffix of any image format, which is counted in `BoxSet.counts`. Without a `<filename>` it is
    the file with the stem of the XML file.

    Args:
        annotations: the folder `Annotations`.
        images: the folder `JPEGImages`.
        classes: names of the classes in order; by default those in the entire folder, sorted.
        stems: names of the XML files to read, without suffix; by default all. Images come in this
            order.
        on_bad: as for `read_coco`.

    Raises:
        InputError: there is no XML file; or as for `read_coco`; or a name leads to several images,
            or to none.

    Example:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from dggraph.detection import read_voc
        >>> Image.new("RGB", (40, 30)).save("1.png")
        >>> sides = "<xmin>2</xmin><ymin>3</ymin><xmax>11</xmax><ymax>22</ymax>"
        >>> box = f"<object><name>cat</name><bndbox>{sides}</bndbox></object>"
        >>> size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
        >>> entry = f"<annotation><filename>1.png</filename>{size}{box}</annotation>"
        >>> written = Path("1.xml").write_text(entry)
        >>> read_voc(Path("."), Path(".")).classes
        ('cat',)
    """
    findings = Findings(on_bad)
    files = _xml_files(annotations, findings)
    return _read(files, files if stems is None else stems, images, classes, findings)


def read_voc_part(folder: Path, part: str, on_bad: OnBadBox = "error") -> BoxSet:
    """Read the images that `ImageSets/Main/<part>.txt` lists in a VOC folder.

    Args:
        folder: has `Annotations`, `JPEGImages` and `ImageSets`.
        part: name of the list, for example `train`.
        on_bad: as for `read_coco`; a listed name without annotations is also bad.

    Raises:
        InputError: as for `read_voc`; or the list cannot be read.
    """
    file, findings = folder / "ImageSets" / "Main" / f"{part}.txt", Findings(on_bad)
    files = _xml_files(folder / "Annotations", findings)
    listed = _read_list(file, files)
    strangers = [
        f"{file.name} lists {name!r}, which has no annotations" for name in listed.strangers
    ]
    if strangers and on_bad == "error":
        raise InputError(
            f"{strangers[0]} ({len(strangers)} in total). Fix the list {file}, or leave these names"
            " out with 'skip'."
        )
    whole = _read(files, listed.stems, folder / "JPEGImages", None, findings)
    return replace(
        whole,
        name=file.name,
        skipped=(*whole.skipped, *strangers),
        counts={**whole.counts, **listed.counts},
    )


def _read(
    files: Mapping[str, Path],
    stems: Iterable[str],
    images: Path,
    classes: Iterable[str] | None,
    findings: Findings,
) -> BoxSet:
    """Return the set that the XML files `stems` describe, with the classes of all `files`."""
    annotations, taken = next(iter(files.values())).parent, tuple(stems)
    roots: dict[str, ElementTree.Element] = {}
    for stem, file in files.items():
        try:
            roots[stem] = ElementTree.parse(file).getroot()
        except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
            if stem in taken:
                findings.note(f"{file.name} is not XML: {error}")
    given = tuple(classes) if classes is not None else _classes(roots.values())
    places, numbers = _by_stem(images), {stem: number for number, stem in enumerate(roots, start=1)}
    found: dict[Path, BoxImage] = {}
    for stem in taken:
        if stem not in files:
            findings.note(f"{stem!r} is listed, but has no annotations {stem}.xml in {annotations}")
        if stem not in roots:
            continue
        name = files[stem].name
        picture = _image_of(stem, _text(roots[stem], "filename"), name, images, places, findings)
        if picture is None:
            continue
        if picture in found:
            findings.note(
                f"{name} belongs to {picture.name!r}, as another XML file does, or is listed twice"
            )
            continue
        boxes = _boxes(roots[stem], name, picture.name, given, findings)
        if boxes is not None:
            (width, height), kept = boxes
            shown = os.path.relpath(picture, images)
            found[picture] = BoxImage(
                name=shown,
                file=picture,
                image_id=numbers[stem],
                width=width,
                height=height,
                boxes=kept,
            )
    findings.settle(str(annotations))
    return BoxSet(
        name=annotations.name,
        classes=given,
        category_ids=tuple(range(1, len(given) + 1)),
        images=tuple(found.values()),
        skipped=tuple(findings.problems),
        num_clipped=findings.num_clipped,
        counts={what: count for what, count in findings.counts.items() if count},
    )


@dataclass(frozen=True, slots=True)
class _Listed:
    """The contents of a list of names."""

    stems: tuple[str, ...]
    """Stems of XML files, in order."""
    strangers: tuple[str, ...]
    """Names without an XML file."""
    counts: Mapping[str, int]
    """For each unusual spelling, in words, how often it was read."""


def _read_list(file: Path, known_stems: Iterable[str]) -> _Listed:
    """Read a list like `ImageSets/Main/train.txt`, with one name per line.

    A name may contain spaces. It may have a flag after it, as in lists of one class, a folder
    before it and a suffix after it.

    Args:
        file: the list, in UTF-8, or UTF-16 with a byte-order mark.
        known_stems: stems of the existing XML files.

    Raises:
        InputError: the list cannot be read; the message names it.
    """
    try:
        content = file.read_bytes()
        is_wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        lines = content.decode("utf-16" if is_wide else "utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the list {file}: {error}. It needs one name per line, in UTF-8."
        ) from error
    known = {normalize("NFC", stem): stem for stem in known_stems}
    stems, strangers, num_flagged = list[str](), list[str](), 0
    for line in filter(None, (normalize("NFC", line.strip()) for line in lines)):
        flagged = FLAG.match(line)
        last = line.replace("\\", "/").rpartition("/")[2]
        candidates = [line, *([flagged[1]] if flagged else []), last, last.rpartition(".")[0]]
        found = next((one for one in candidates if one in known), None)
        if found is None:
            strangers.append(line)
        else:
            stems.append(known[found])
            num_flagged += flagged is not None and found == flagged[1]
    return _Listed(tuple(stems), tuple(strangers), {FLAGGED: num_flagged} if num_flagged else {})


def _xml_files(annotations: Path, findings: Findings) -> dict[str, Path]:
    """Return the XML files by stem, sorted by name."""
    try:
        names = sorted(name for name in os.listdir(annotations) if name.lower().endswith(".xml"))
    except OSError:
        names = []
    findings.counts[HIDDEN_XML] += sum(is_hidden(name) for name in names)
    files = {name[:-4]: annotations / name for name in names if not is_hidden(name)}
    if not files:
        raise InputError(
            f"there is no XML file in {annotations}. VOC's annotations are one file per image, in"
            " the folder Annotations."
        )
    return files


def _classes(roots: Collection[ElementTree.Element]) -> tuple[str, ...]:
    return tuple(
        sorted(
            {name for root in roots for one in root.iter("object") if (name := _text(one, "name"))}
        )
    )


def _by_stem(images: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for name in scan(images)[0] if images.is_dir() else ():
        found.setdefault(_plain(os.path.splitext(name)[0]), []).append(images / name)
    return found


def _plain(name: str) -> str:
    """Return a name as file systems compare it that ignore case and Unicode composition."""
    return normalize("NFC", name).casefold()


def _image_of(
    stem: str, named: str, xml: str, images: Path, places: dict[str, list[Path]], findings: Findings
) -> Path | None:
    """Return the image of an XML file, or None and a note if it is unclear or missing."""
    exact = file_of(images, named) if named else None
    by_xml = places.get(_plain(stem), [])
    by_name = [exact] if exact is not None else []
    if exact is None and named:
        last = named.replace("\\", "/").rpartition("/")[2]
        stems = (last, os.path.splitext(last)[0])
        by_name = next((places[_plain(one)] for one in stems if _plain(one) in places), [])
    choices = by_name if named else by_xml
    if not choices:
        what = named or f"{stem}.jpg"
        hint = (
            f", but there is {by_xml[0].name!r}: fix <filename>"
            if by_xml
            else other_place(images, what)
        )
        findings.note(f"{xml}: there is no image {what!r} in {images}{hint}")
        return None
    if len(choices) > 1 or (by_xml and choices[0] not in by_xml):
        others = sorted({file.name for file in (*choices, *by_xml)})
        findings.note(
            f"{xml}: it is unclear which image belongs to its name and its <filename> {named!r}:"
            f" {', '.join(others)}"
        )
        return None
    findings.counts[OTHER_SUFFIX] += bool(named) and exact is None
    return choices[0]


def _boxes(
    root: ElementTree.Element, xml: str, image: str, classes: Sequence[str], findings: Findings
) -> tuple[tuple[int, int], tuple[Box, ...]] | None:
    """Return the size of the image and its boxes, or None and a note if it has no size."""
    sides = [
        as_whole(_text(root, f"size/{side}"), Findings("error")) for side in ("width", "height")
    ]
    if not all(sides) or min(side or 0 for side in sides) < 1:
        findings.note(f"{xml}: the size of {image!r} is not two positive whole numbers")
        return None
    size = (sides[0] or 0, sides[1] or 0)
    boxes = []
    for number, one in enumerate(root.iter("object")):
        what, label = f"{xml}: object {number}", _text(one, "name")
        is_difficult = as_flag(_text(one, "difficult"), Findings("error"))
        if label not in classes:
            findings.note(f"{what} is {label!r}, which is not one of the classes")
        elif is_difficult is None:
            findings.note(
                f"{what} has <difficult> {_text(one, 'difficult')!r}, which is neither 0 nor 1"
            )
        else:
            edges = [
                _float(_text(one, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
            ]
            corners = corners_of(edges, "xyxy", size, what, findings)
            if corners is not None:
                area = (corners[2] - corners[0]) * (corners[3] - corners[1])
                boxes.append(
                    Box(
                        corners=corners,
                        label=classes.index(label),
                        area=area,
                        is_crowd=is_difficult,
                    )
                )
    return size, tuple(boxes)


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
