"""Which images `dggraph paths` draws, and which files their pictures become."""

from collections.abc import Sequence
from pathlib import Path

import click

from dggraph.cli.options import make_folder
from dggraph.errors import InputError

SUFFIXES = {
    "svg": "svg",
    "png": "png",
    "pdf": "pdf",
    "dot": "dot",
    "mermaid": "mmd",
    "json": "json",
    "model-explorer": "json",
}

PICTURES = {f".{suffix}" for suffix in SUFFIXES.values()} | {
    ".mermaid", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".eps", ".html",
}  # fmt: skip
"""Suffixes of what is meant to be a file, be it one that can be drawn or not."""


def place_pictures(
    images: Sequence[Path], diff: tuple[Path, Path] | None, output: Path, kind: str | None
) -> tuple[list[Path], Path]:
    """Return where the picture of each image goes, and that of a difference.

    `output` is a folder, or, for a single picture, the file itself.

    Raises:
        click.UsageError: a file for several pictures, or of another format than `kind`.
        InputError: nothing can be drawn in that format, or it may not be written there.
    """
    is_file = output.suffix.lower() in PICTURES and not output.is_dir()
    number = len(images) + (diff is not None)
    if not is_file:
        make_folder(output)
        suffix = SUFFIXES[kind or "svg"]
        names = [f"{place:03d}-{_safe(file.stem)}.{suffix}" for place, file in enumerate(images)]
        both = "diff" if diff is None else f"diff-{_safe(diff[0].stem)}-{_safe(diff[1].stem)}"
        return [output / name for name in names], output / f"{both}.{suffix}"
    from dggraph.views.drawing import format_of

    drawn = format_of(output)
    if number > 1:
        raise click.UsageError(
            f"-o {output} is one file, and there are {number} pictures to draw. Give a folder."
        )
    if kind is not None and SUFFIXES[kind] != drawn:
        raise click.UsageError(
            f"--format {kind} does not fit -o {output}. Leave --format out: the suffix says it."
        )
    make_folder(output.parent)
    return [output] * len(images), output


def list_files(images: Sequence[Path]) -> tuple[tuple[Path, ...], list[str]]:
    """Return the files of `images`, and a sentence for each kind of file that was left out.

    Folders stand for the images in them.

    Raises:
        InputError: a folder has no images.
    """
    from dggraph.data.listing import describe_ignored, list_images

    files, notes = list[Path](), list[str]()
    for place in images:
        if not place.is_dir():
            files.append(place)
            continue
        names, ignored = list_images(place)
        if not names:
            raise InputError(f"{str(place)!r} has no images. {describe_ignored(ignored)}".rstrip())
        files += [place / name for name in names]
        notes += [f"{place}: {describe_ignored(ignored)}"] if ignored else []
    return tuple(files), notes


def _safe(stem: str) -> str:
    return "".join(
        char if char.isascii() and (char.isalnum() or char in "-_") else "_" for char in stem
    )[:60]
