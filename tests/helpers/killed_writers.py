"""Writers that die in the middle, in copies of this process, and a line of JSON about each copy:
`python killed_writers.py FOLDER SEED COUNT KIND ...`.

A copy kills itself with SIGKILL before one of its changes of the file system, or with half of a
file written: COUNT such moments of each kind, drawn by SEED, or all of them. Another copy is not
killed and goes on from what is there.
"""

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from toy_atlas import paint
from toy_comparison import write_comparison

import dggraph
from dggraph.cli.main import main as dggraph_command
from dggraph.comparing.plan import read_plan
from dggraph.comparing.report import write_report
from dggraph.evaluation import atlas
from dggraph.exporting import network_files
from dggraph.system import files
from dggraph.views.drawing import draw
from dggraph.views.picture import picture_graph

MODEL = "dggraph:resnet14_4"
X = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
CHANGES = ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink")
"""Functions of `os` that change a file system."""


@functools.cache
def net(which: str) -> Any:
    torch.manual_seed(("old", "new").index(which))
    made = dggraph.convert(MODEL, torch.zeros_like(X), router="stage")
    made.preprocess = dggraph.Preprocess(input_size=(3, 16, 16))
    return made


@functools.cache
def baseline(which: str) -> Any:
    torch.manual_seed(("old", "new").index(which))
    return dggraph.baselines.squeeze_excitation(MODEL, torch.zeros_like(X))


# What writes each kind


def archive(folder: Path, which: str) -> None:
    dggraph.save(net(which), folder / "archive")


def archive_of_a_baseline(folder: Path, which: str) -> None:
    dggraph.save(baseline(which), folder / "archive")


def shared(folder: Path, which: str) -> None:
    net(which).save_pretrained(folder / "archive", license=which)


def exported(folder: Path, which: str) -> None:
    dggraph.export(net(which), folder / "net.pt2", format="pt2")


def picture(folder: Path, which: str) -> None:
    draw(picture_graph(net(which).graph, title=which), folder / "net.svg")


def comparison(folder: Path, which: str) -> None:
    file = write_comparison(folder.parent, "[methods.static]\nrouter = 'none'\n")
    text = file.read_text().replace(str(file.parent / "output"), str(folder))
    file.write_text(text)
    write_report(read_plan(file), which)


def atlas_report(folder: Path, which: str) -> None:
    """The state of its run, too, written after each image."""
    images = str(folder.parents[1] / "images")
    model = str(folder.parents[1] / f"{which}-net")
    with contextlib.suppress(SystemExit):  # which a copy would take for an end that it chose
        dggraph_command(["atlas", model, images, "-o", str(folder / "report.html"), "--json"])
    assert (folder / "report.html").exists()


WRITERS: dict[str, Callable[[Path, str], None]] = {
    "archive": archive,
    "archive of a baseline": archive_of_a_baseline,
    "shared": shared,
    "exported": exported,
    "picture": picture,
    "comparison": comparison,
    "atlas": atlas_report,
}


def read(folder: Path) -> dict[str, str]:
    """What readers find: of an archive its network's answer and all notes, else each file."""
    found = {}
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue  # what a killed process was about to write
        if entry.is_dir():
            kept = dggraph.load(entry)
            with torch.no_grad():
                answer = kept.eval()(X).numpy().tobytes().hex()
            names = {part.name for part in entry.iterdir() if part.is_file()}
            notes = [files.part_of(entry, name).read_bytes() for name in sorted(names)]
            found[entry.name] = f"{answer} {notes!r}"
        else:
            found[entry.name] = entry.read_bytes().hex()
    return found


# Copies of this process


def killing_itself(at: int) -> Callable[[], int]:
    """Make this process die at its `at`-th change, and return what counts them."""
    count, write = [0], files.write_synced

    def counted(half: Callable[[], object] | None = None) -> None:
        count[0] += 1
        if count[0] == at:
            if half is not None:
                half()
            os.kill(os.getpid(), signal.SIGKILL)

    def before(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counted()
            return real(*args, **kwargs)

        return call

    def writing(file: Path, content: bytes) -> None:
        counted(lambda: file.write_bytes(content[: len(content) // 2]))
        write(file, content)

    files.write_synced = writing
    for name in CHANGES:
        setattr(os, name, before(getattr(os, name)))
    return lambda: count[0]


def in_a_copy(write: Callable[[], None], at: int = 0) -> int:
    """Write in a copy that dies at its `at`-th change; return how many it had, -1 if it died."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what commands print is not for our reader
        num_changes = killing_itself(at)
        write()
        os.write(sending, str(num_changes()).encode())
        os._exit(0)
    os.close(sending)
    with open(receiving) as stream:
        said = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (0 if said else -signal.SIGKILL), status
    return int(said or -1)


def begin_again(place: Path, old: Path | None) -> None:
    shutil.rmtree(place)
    if old is None:
        place.mkdir()
    else:
        shutil.copytree(old, place)


def kills(kind: str, folder: Path, draw_from: random.Random, count: int) -> Iterator[Any]:
    """Replace the old by the new in copies that die, and say what readers find after each."""
    write, expected = WRITERS[kind], {}
    place = folder / "place"
    place.mkdir()
    for which in ("old", "new"):
        in_a_copy(lambda which=which: write(place, which))
        expected[which] = read(place)
        shutil.move(place, folder / which)
        place.mkdir()
    for begins, old in (("old", folder / "old"), ("nothing", None)):
        begin_again(place, old)
        num_changes = in_a_copy(lambda: write(place, "new"))  # to replace takes more than to write
        assert num_changes >= 4
        moments = range(1, num_changes + 1)
        for at in sorted(draw_from.sample(moments, min(count, num_changes))):
            begin_again(place, old)
            first = expected["old"] if begins == "old" else {}
            has_died = in_a_copy(lambda: write(place, "new"), at) == -1
            found = {
                name: value
                for name, value in read(place).items()
                if not name.endswith(".state")  # of a run that goes on
            }
            is_whole = all(
                value in (first.get(name), expected["new"].get(name))
                for name, value in found.items()
            )
            in_a_copy(lambda: write(place, "new"))
            goes_on = read(place) == expected["new"]
            yield {
                "kind": kind,
                "begins": begins,
                "moment": at,
                "has_died": has_died,
                "keeps": set(first) <= set(found),
                "is_whole": is_whole,
                "is_new": found == expected["new"],
                "goes_on": goes_on,
            }


def cached_program() -> None:
    """Export each network once: only what follows is about files."""
    made: dict[int, Any] = {}
    real = network_files.write

    def write(exported_net: Any, *args: Any, **kwargs: Any) -> Any:
        if id(exported_net) not in made:
            made[id(exported_net)] = real(exported_net, *args, **kwargs)
        return made[id(exported_net)]

    network_files.write = write


def main(folder: Path, seed: int, count: int, kinds: Sequence[str]) -> None:
    warnings.simplefilter("ignore")  # of forking after threads: the copies only write files
    torch.set_num_threads(1)
    atlas.SAVE_SECONDS = 0.0
    cached_program()
    paint(folder / "images", 1)
    for which in ("old", "new"):
        dggraph.save(net(which), folder / f"{which}-net")
        baseline(which)
        if "exported" in kinds:
            exported(folder, which)
    for kind in kinds:
        work = folder / kind.replace(" ", "-")
        work.mkdir()
        for line in kills(kind, work, random.Random(f"{seed} {kind}"), count):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
