"""Reads hostile inputs in a guarded process: `python hostile_inputs.py FOLDER KIND` makes each case
of a kind (`some`: a few of each) in a folder of its own, gives it to the command that reads it, and
prints a line of JSON.
"""

import contextlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hostile_archives
import hostile_files
import torch
from guarded import CANARY, Guard, measured
from PIL import Image
from toy_runs import keys

import dggraph
from dggraph.cli.main import main as dggraph_command
from dggraph.detection import read_coco, read_voc
from dggraph.training.loop import train


def archive_cases(
    net: str, cases: Mapping[str, hostile_archives.Case], code: int = 4
) -> dict[str, Any]:
    """The cases of archives as those of a command that loads one."""

    def made(change: Callable[[Path], None]) -> Callable[[], list[str]]:
        def make() -> list[str]:
            change(Path(net))
            return ["eval", net, "--dataset", "imagefolder", "--data-dir", "images"]

        return make

    return {name: (made(change), code, words) for name, (change, words) in cases.items()}


KINDS: dict[str, Mapping[str, hostile_files.Case]] = {
    "archives": archive_cases("net", hostile_archives.CONVERTED)
    | archive_cases("method", hostile_archives.METHOD)
    | archive_cases("net", hostile_archives.HARMLESS, 0),
    "configurations": hostile_files.CONFIGURATIONS,
    "checkpoints": hostile_files.CHECKPOINTS,
    "runs": hostile_files.RUNS,
    "images": hostile_files.IMAGES,
    "annotations": hostile_files.ANNOTATIONS,
}
SOME = {
    f"{kind}: {name}": case
    for kind, cases in KINDS.items()
    for name, case in list(cases.items())[::12]
}
"""A few of each kind."""


def make_good_things(folder: Path) -> None:
    """Archives, a run, images: all that a case may change."""
    torch.manual_seed(0)
    example = torch.zeros(1, 3, 16, 16)
    preprocess = dggraph.Preprocess(input_size=(3, 16, 16))
    labels = list("abcdefghij")
    net = dggraph.convert(hostile_files.MODEL, example, router="stage")
    dggraph.save(net, folder / "net", preprocess=preprocess, labels=labels)
    mixed = dggraph.baselines.cond_conv(hostile_files.MODEL, example, experts=2)
    dggraph.save(mixed, folder / "method", preprocess=preprocess, labels=labels)
    train(keys(folder, num_classes=None, model_ema=False, mixup=0.0, budget=None))
    shutil.rmtree(folder / "run/archive")  # an interrupted run has its checkpoints alone
    for label in ("a", "b"):
        (folder / "images" / label).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(folder / "images" / label / "1.png")
    Image.new("RGB", (64, 48)).save(folder / "ok.png")
    for name in (CANARY, "evil"):
        (folder / f"{name}.py").write_text("open('ran', 'w')\ndef build(): pass\n")


def call(arguments: list[str]) -> dict[str, Any]:
    """What a command says, or a reader of annotations."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if arguments[0] == "coco":
                read_coco(Path(arguments[1]), Path())
            elif arguments[0] == "voc":
                read_voc(Path(arguments[1]), Path())
            else:
                dggraph_command(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        except dggraph.errors.DggraphError as error:  # what the command would say of it
            code = 4
            print(f"dggraph: {error}", file=err)
    return {"code": code, "out": out.getvalue()[-2000:], "err": err.getvalue()[-2000:]}


def outside(folder: Path) -> list[str]:
    """What lies in a folder beside those of the cases."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


def main(folder: Path, kind: str) -> None:
    good, place = folder / "good", folder / "cases" / "case"
    make_good_things(good)
    before = outside(good)
    call(
        ["eval", str(good / "net"), "--dataset", "imagefolder", "--data-dir", str(good / "images")]
    )
    with contextlib.suppress(ImportError):
        import timm  # noqa: F401 - hints on names look for it; its import starts programs
    sys.path.insert(0, "")
    guard = Guard(place)
    for name, (make, code, words) in (SOME if kind == "some" else KINDS[kind]).items():
        shutil.copytree(good, place)
        os.chdir(place)
        arguments = make()
        found = measured(guard, lambda arguments=arguments: call(arguments))
        said = found.pop("value") or {}
        has_run = (place / "ran").exists() or (place / CANARY).exists()
        line = {"name": name, "expected": [code, words], "has_run": has_run, **said, **found}
        print(json.dumps(line), flush=True)
        os.chdir(folder)
        shutil.rmtree(place)
    assert outside(good) == before


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
