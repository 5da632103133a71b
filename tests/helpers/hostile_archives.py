"""Archives as an attacker makes them who knows the format: their digests fit.

Each case changes a good archive in place. Its words are what the refusal must say.
"""

import json
import os
import struct
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from guarded import CANARY

from dggraph.network.manifest import Manifest, MethodManifest, seal

Case = tuple[Callable[[Path], None], str]
"""What is done to an archive, and words of the refusal."""


def write_sealed(folder: Path, document: dict[str, Any]) -> None:
    """Write a manifest whose digests fit its files and itself, where it is one at all."""
    digests = document.get("sha256")
    for name in ("graph.json", "model.safetensors"):
        if isinstance(digests, dict) and name in digests and (folder / name).is_file():
            digests[name] = sha256((folder / name).read_bytes()).hexdigest()
    kind = MethodManifest if "method" in document else Manifest
    try:
        sealed = seal(kind.model_validate_json(json.dumps(document)))
        document = json.loads(sealed.model_dump_json(exclude_unset=True))
    except ValueError:
        pass
    (folder / "manifest.json").write_text(json.dumps(document))


def manifest(**changes: Any) -> Callable[[Path], None]:
    """Keys of the manifest replaced."""

    def change(folder: Path) -> None:
        write_sealed(folder, json.loads((folder / "manifest.json").read_text()) | changes)

    return change


def within(path: str, value: Any) -> Callable[[Path], None]:
    """The value at a path of the manifest, such as `found.0.path`, replaced."""

    def change(folder: Path) -> None:
        document = owner = json.loads((folder / "manifest.json").read_text())
        *parts, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in parts:
            owner = owner[part]
        owner[last] = value
        write_sealed(folder, document)

    return change


def part(name: str, make: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Another content of `graph.json` or of the weights."""

    def change(folder: Path) -> None:
        (folder / name).write_bytes(make((folder / name).read_bytes()))
        write_sealed(folder, json.loads((folder / "manifest.json").read_text()))

    return change


def placed(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Something else than a file at its place."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def _many_nodes(content: bytes) -> bytes:
    graph = json.loads(content)
    graph["nodes"] += [graph["nodes"][1] | {"name": f"n{number}"} for number in range(30_000)]
    return json.dumps(graph).encode()


def _renamed_node(content: bytes) -> bytes:
    name = json.loads(content)["nodes"][1]["name"]
    code = f"x: __import__({CANARY!r}) #"
    return content.replace(f'"{name}"'.encode(), json.dumps(code).encode())


def _many_tensors(content: bytes) -> bytes:
    extra = {f"t{number}": torch.zeros(1) for number in range(20_000)}
    return safetensors.torch.save(safetensors.torch.load(content) | extra)


def _overlapping(content: bytes) -> bytes:
    header = {f"t{number}": {"dtype": "F32", "shape": [1 << 20], "data_offsets": [0, 1 << 22]}
              for number in range(500)}  # fmt: skip
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(1 << 22)


def _wide(content: bytes) -> bytes:
    text = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 0]}})
    return struct.pack("<Q", len(text)) + text.encode()


NO_FILE = "missing or differs"
CONVERTED: dict[str, Case] = {
    "code as the backbone": (manifest(source=f"{CANARY}:build"), "code that an archive names"),
    "a module beside it": (manifest(source="evil:build"), "code that an archive names"),
    "a path as the backbone": (manifest(source="../../etc/passwd"), "no model"),
    "a hub as the backbone": (manifest(source="timm:hf-hub:evil/net"), "no model"),
    "a huge backbone": (manifest(source="vit_h_14"), "cannot be rebuilt"),
    "a huge backbone of timm": (manifest(source="timm:vit_giant_patch14_dinov2"), "be rebuilt"),
    "a deep backbone of ours": (manifest(source="dggraph:resnet110_64"), "cannot be rebuilt"),
    "many classes": (manifest(num_classes=1 << 16), "does not fit|cannot be rebuilt"),
    "code as the router": (manifest(router=f"{CANARY}(__import__('os'))"), "needs the router"),
    "a wide router": (manifest(router="stage(999999999)"), "do not describe one|needs the router"),
    "code as the gate": (manifest(gate=f"__import__('{CANARY}')"), "needs the gate"),
    "code as a leaf": (manifest(leaves=["subprocess.Popen"]), "it has no subprocess.Popen"),
    "another trace": (manifest(fingerprint="0" * 64), "another structure"),
    "a huge input": (manifest(input_shape=[3, 1 << 16, 1 << 16]), "more than"),
    "a wide input": (manifest(input_shape=[3, 4730, 4730]), "more than"),
    "an input of other channels": (manifest(input_shape=[9, 16, 16]), "cannot run on an input"),
    "a later version": (manifest(schema_version=1 << 40), "upgrade dggraph"),
    "no digests": (manifest(sha256={}), "SHA-256 differs|missing or differs"),
    "digests of other files": (manifest(sha256={"/etc/passwd": "0" * 64}), NO_FILE),
    "an fx node's code": (within("found.0.blocks.0.output", f"x); import {CANARY}"), "not have"),
    "no number as MACs": (within("static.0.macs", 1e400), "static.0.macs"),
    "a great crop": (within("preprocess.crop_fraction", 1e-9), "crop_fraction"),
    "no crop": (within("preprocess.crop_fraction", 0.0), "crop_fraction"),
    "a crop of NaN": (within("preprocess.crop_fraction", float("nan")), "crop_fraction"),
    "other means": (within("preprocess.mean", [0.5] * 9), "mean"),
    "no deviation": (within("preprocess.std", [0.0] * 3), "std"),
    "another interpolation": (within("preprocess.interpolation", CANARY), "interpolation"),
    "a huge picture": (within("preprocess.input_size", [3, 1 << 16, 1 << 16]), "input_size"),
    "labels for others": (manifest(labels=["a"]), "labels"),
    "a million labels": (manifest(labels=["a" * 20] * 1_000_000), "labels"),
    "a node's code": (part("graph.json", _renamed_node), "graph.json"),
    "many nodes": (part("graph.json", _many_nodes), "graph"),
    "deep JSON": (part("graph.json", lambda _content: b"[" * 5_000_000), "graph.json"),
    "a graph in no encoding": (part("graph.json", lambda content: content + b"\xff"), "graph.json"),
    "many tensors": (part("model.safetensors", _many_tensors), "does not fit"),
    "overlapping tensors": (part("model.safetensors", _overlapping), "safetensors"),
    "a tensor without an end": (part("model.safetensors", _wide), "safetensors"),
    "a pickle as weights": (part("model.safetensors", lambda _: b"\x80\x04cos\nx\n."), "safet"),
    "a pipe as the manifest": (placed("manifest.json", os.mkfifo), "neither manifest.json"),
    "a pipe as the weights": (placed("model.safetensors", os.mkfifo), NO_FILE),
    "a device as the graph": (placed("graph.json", lambda file: file.symlink_to("/dev/zero")),
                              NO_FILE),
    "a great manifest": (lambda folder: os.truncate(folder / "manifest.json", 1 << 31), "larger"),
    "deep JSON as the manifest": (
        lambda folder: (folder / "manifest.json").write_bytes(b'{"a":' * 1_000_000) and None,
        "not JSON",
    ),
}  # fmt: skip
HARMLESS: dict[str, Case] = {
    "a stage's path that is code": (within("found.0.path", f"x; import {CANARY}"), "top-1"),
    "ties of tensors that are not there": (manifest(tied={"a": "b", "b": "a"}), "top-1"),
    "a label that is code": (within("labels.5", f"<script>[/b]\x1b[2J{CANARY}"), "top-1"),
}
"""What has no effect, and is read."""
METHOD: dict[str, Case] = {
    "an unknown method": (manifest(method=f"{CANARY}.evil"), "needs the method"),
    "a method's code": (manifest(options={"init": f"__import__('{CANARY}')"}), "rebuilt"),
    "other options": (manifest(options={"self": 1, "model": "x"}), "rebuilt"),
    "very many experts": (manifest(options={"experts": 1 << 30}), "rebuilt"),
    "many experts": (manifest(options={"experts": 5000}), "rebuilt"),
}
