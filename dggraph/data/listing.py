"""Which files of a folder are images, for training, evaluation, the atlas and paths alike.

Files and folders that are left out are counted by reason.
"""

import os
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from pathlib import Path

from dggraph.errors import InputError

SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".dib",
        ".gif",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
    }
    | {".avif", ".jp2", ".j2k"}
)
"""Suffixes of the formats in `preprocessing.FORMATS`, in any case."""
SYSTEM_NAMES = frozenset(
    {
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "__macosx",
        "@eadir",
        "@recycle",
        "@__thumb",
        "#recycle",
        "#snapshot",
    }
    | {"$recycle.bin", "system volume information", "lost+found"}
)
"""Names, in lower case, that operating systems and drives create; they count as hidden."""
HIDDEN, HIDDEN_FOLDERS = "hidden", "hidden folders"
REPEATED = "links to folders that are read already"
NO_FILE, NO_SUFFIX = "neither file nor folder", "no suffix"
MAX_SUFFIX = 6


def list_images(folder: Path, above: Iterable[Path] = ()) -> tuple[list[str], Counter[str]]:
    """List the images in `folder` at any depth, in torchvision's order: by folder, then by name.

    Links to folders are followed, but each folder is read once, so that a link to a folder above it
    or next to it ends there. A link to a file that does not exist, or to itself, counts as an image
    that cannot be read.

    Args:
        folder: the folder to list.
        above: folders that others read, for example the one with all classes.

    Returns:
        Names within `folder`, and how many entries were left out, by reason: `HIDDEN` and so on, or
        the suffix.

    Raises:
        InputError: a folder cannot be read; names it.
    """
    seen = {_identity(one) for one in above}
    found: dict[str, list[str]] = {}
    ignored: Counter[str] = Counter()
    folders, links = deque([""]), deque[str]()
    while folders or links:
        # links last, so that a folder is read under its own name rather than under a link's
        within = (folders or links).popleft()
        identity = _identity(folder / within)
        if identity in seen:
            ignored[REPEATED] += 1
            continue
        seen.add(identity)
        files, inner, left_out = scan(folder / within)
        found[within] = [os.path.join(within, name) for name in files]
        ignored += left_out
        for place in (os.path.join(within, name) for name in inner):
            (links if (folder / place).is_symlink() else folders).append(place)
    return [name for within in sorted(found) for name in found[within]], ignored


def scan(folder: Path) -> tuple[list[str], list[str], Counter[str]]:
    """Return the images and folders in `folder` itself, sorted, and counts of other entries.

    Raises:
        InputError: the folder cannot be read.
    """
    files, folders, ignored = list[str](), list[str](), Counter[str]()
    try:
        for entry in os.scandir(folder):
            if is_hidden(entry.name):
                ignored[HIDDEN_FOLDERS if _is_folder(entry) else HIDDEN] += 1
            elif _is_folder(entry):
                folders.append(entry.name)
            elif not (entry.is_symlink() or entry.is_file()):
                ignored[NO_FILE] += 1
            elif (suffix := os.path.splitext(entry.name)[1].lower()) in SUFFIXES:
                files.append(entry.name)
            else:
                ignored[
                    suffix if suffix[1:].isalpha() and len(suffix) <= MAX_SUFFIX else NO_SUFFIX
                ] += 1
    except OSError as error:
        raise InputError(
            f"cannot read the folder {str(folder)!r}: {error.strerror or error}."
        ) from error
    return sorted(files), sorted(folders), ignored


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder, or a link to one; a link that cannot be followed is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_hidden(name: str) -> bool:
    """Whether users do not see an entry of this name, or did not create it."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def num_files(ignored: Mapping[str, int]) -> int:
    """Return how many of the ignored entries are files."""
    return sum(
        number for reason, number in ignored.items() if reason not in (HIDDEN_FOLDERS, REPEATED)
    )


def describe_ignored(ignored: Mapping[str, int]) -> str:
    """Describe the ignored entries, or return an empty string if there are none.

    For example `3 files ignored: 1 hidden, 2 without an image's suffix (.txt)`.
    """
    suffixes = sorted(reason for reason in ignored if reason.startswith(".") or reason == NO_SUFFIX)
    files = [f"{ignored[reason]} {reason}" for reason in (HIDDEN, NO_FILE) if ignored.get(reason)]
    if suffixes:
        files.append(
            f"{sum(ignored[one] for one in suffixes)} without an image's suffix"
            f" ({', '.join(suffixes)})"
        )
    others = [
        f"{ignored[reason]} {reason}"
        for reason in (HIDDEN_FOLDERS, REPEATED)
        if ignored.get(reason)
    ]
    number = num_files(ignored)
    sentences = (
        [f"{number} {'file' if number == 1 else 'files'} ignored: {', '.join(files)}"]
        if files
        else []
    )
    return "; ".join(sentences + ([f"ignored: {', '.join(others)}"] if others else []))


def _identity(folder: Path) -> tuple[int, int]:
    """Return device and inode, which identify a folder under any name (on Windows too)."""
    try:
        facts = folder.stat()
    except OSError as error:
        raise InputError(
            f"cannot read the folder {str(folder)!r}: {error.strerror or error}."
        ) from error
    return facts.st_dev, facts.st_ino
