"""Archives changed at random: `python fuzzed_archives.py FOLDER SEED COUNT` makes and loads them in
a guarded process, and prints a line of JSON about each.

A plain change is made by somebody who does not know the format: the archive is refused, or loads
to exactly what was saved. A sealed one fits its digests: it is refused, or is another archive,
whose network runs.
"""

import json
import os
import random
import shutil
import struct
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from guarded import CANARY, Guard, measured

import dggraph
from dggraph.errors import DggraphError
from dggraph.network.manifest import Manifest, MethodManifest, seal

FILES = ("graph.json", "manifest.json", "model.safetensors")
X = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 3, 1 << 31, 1 << 63, -(1 << 70), 10**300, 0.0, -0.0, 0.5, 1e308,
    float("nan"), float("inf"), -float("inf"), "", " ", "0" * 64, "x" * 301, "\ud800", "\0", "é",
    f"{CANARY}:build", f"__import__('{CANARY}')", f"../{CANARY}", "/etc/passwd", "os:system",
    "timm:../x", "dggraph:resnet999999_1", "dggraph:resnet14_99999", "node(99999)", "float64",
    "window(-1)", "<script>", "[/b]", [], [[]], {}, {"a": 1}, [1, 2, 3], [1 << 16] * 3, ["a"],
)  # fmt: skip


def make_originals(folder: Path) -> dict[str, Path]:
    """One tiny archive of each kind."""
    torch.manual_seed(0)
    example = torch.zeros(1, 3, 16, 16)
    nets: dict[str, Any] = {
        "converted": dggraph.convert("dggraph:resnet14_4", example, router="stage"),
        "baseline": dggraph.baselines.squeeze_excitation("dggraph:resnet14_4", example),
    }
    labels = [f"class {number}" for number in range(10)]
    for kind, net in nets.items():
        preprocess = dggraph.Preprocess(input_size=(3, 16, 16))
        dggraph.save(net, folder / kind, preprocess=preprocess, labels=labels)
    return {kind: folder / kind for kind in nets}


def described(net: Any) -> dict[str, Any]:
    """What two equal networks have in common, to the bit."""
    with torch.no_grad():
        output = net.eval()(X)
    state = {key: value.numpy().tobytes().hex() for key, value in net.state_dict().items()}
    facts = {name: repr(getattr(net, name, None)) for name in
             ("graph", "report", "labels", "preprocess", "source", "source_options", "budgets",
              "weights_origin", "options", "method")}  # fmt: skip
    flags = {key: parameter.requires_grad for key, parameter in net.named_parameters()}
    return {"output": output.tolist(), "state": state, "facts": facts, "flags": flags}


# Changes of bytes


def truncated(draw: random.Random, content: bytes) -> bytes:
    return content[: draw.randrange(len(content))]


def flipped(draw: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 9, 99))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def overwritten(draw: random.Random, content: bytes) -> bytes:
    start, length = draw.randrange(len(content)), draw.choice((1, 2, 8, 64, 999))
    filler = draw.choice((bytes(length), b"\xff" * length, draw.randbytes(length), b"[" * length))
    return content[:start] + filler + content[start + length :]


def inserted(draw: random.Random, content: bytes) -> bytes:
    start = draw.randrange(len(content))
    piece = draw.choice((b"\0", b" ", b'"', b"}", b"\xff\xfe", b"\n" * 1000, content[-99:]))
    return content[:start] + piece + content[start:]


def cut_out(draw: random.Random, content: bytes) -> bytes:
    start, length = draw.randrange(len(content)), draw.choice((1, 2, 8, 64, 999))
    return content[:start] + content[start + length :]


def extended(draw: random.Random, content: bytes) -> bytes:
    tail = (b"\n", b" " * 999, bytes(999), b"}", draw.randbytes(99), content, b"[" * 200_000)
    return content + draw.choice(tail)


def prefixed(draw: random.Random, content: bytes) -> bytes:
    head = (b"\xef\xbb\xbf", b"\n", b"//", bytes(8), b"\xff" * 8, b"[" * 200_000, b"\x80\x04")
    return draw.choice(head) + content


BYTES = (truncated, flipped, overwritten, inserted, cut_out, extended, prefixed)


# Changes of files


def replaced_files(draw: random.Random, folder: Path, others: list[Path]) -> None:
    names = [name for name in FILES if (folder / name).exists()]
    one, two = folder / draw.choice(names), folder / draw.choice(names)
    what = draw.randrange(9)
    if what == 0:
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)
    elif what == 1:
        other = draw.choice(others) / draw.choice(FILES)
        one.write_bytes(other.read_bytes() if other.exists() else b"{}")
    elif what == 2:
        one.write_bytes(draw.choice((b"", b"{}", b"null", b"[]", b"NaN", b'"x"', b"1e999", b"\0")))
    elif what == 3:
        one.unlink()
    elif what == 4:
        one.unlink()
        draw.choice((one.mkdir, lambda: os.mkfifo(one), lambda: one.symlink_to(one),
                     lambda: one.symlink_to("/dev/zero"), lambda: one.symlink_to("/etc/passwd"),
                     lambda: one.symlink_to(two.parent)))()  # fmt: skip
    elif what == 5:  # nothing but its name says what a file is for
        extra = ("evil.py", "sitecustomize.py", "model.pt", ".hidden", "graph.json.bak")
        (folder / draw.choice(extra)).write_text(f"import {CANARY}")
    elif what == 6:
        new = folder / ".new"
        new.mkdir()
        (new / one.name).write_bytes(draw.choice(BYTES)(draw, one.read_bytes()))
    elif what == 7:  # as a save leaves them that was killed while it moved the parts
        new = folder / ".new"
        new.mkdir()
        one.rename(new / one.name)
    else:
        hidden = one.with_name(f"real-{one.name}")
        one.rename(hidden)
        one.symlink_to(hidden.name)


# Changes of JSON


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items: Any = ()
    if isinstance(document, dict):
        items = document.items()
    elif isinstance(document, list):
        items = enumerate(document)
    return [path] * bool(path) + [
        place for key, value in items for place in places(value, (*path, key))
    ]


def changed_document(draw: random.Random, document: Any) -> Any:
    """One value, key or item of a document changed."""
    *path, last = draw.choice(places(document))
    owner = document
    for key in path:
        owner = owner[key]
    what = draw.randrange(8)
    if what == 0:
        del owner[last]
    elif what == 1 and isinstance(owner, dict):
        owner[draw.choice(("extra", "method", "__class__", CANARY, ""))] = owner[last]
    elif what == 1:
        owner.append(owner[last])
    elif what == 2 and isinstance(owner, list):
        draw.shuffle(owner)
    elif what == 3 and isinstance(owner[last], int | float):
        owner[last] = owner[last] * draw.choice((-1, 2, 1000, 1 << 40)) + draw.choice((0, 1, 0.5))
    elif what == 4 and isinstance(owner[last], str):
        owner[last] = draw.choice((owner[last][::-1], owner[last] * 2, owner[last].upper()))
    else:
        owner[last] = draw.choice(VALUES)
    return document


def respelled(draw: random.Random, text: str) -> str:
    """The text of a document that means the same, or has a key twice."""
    document = json.loads(text)
    what = draw.randrange(5)
    if what == 0:
        return json.dumps(document, indent=draw.choice((None, 0, 7, "\t")))
    if what == 1:
        items = list(document.items())
        draw.shuffle(items)
        return json.dumps(dict(items))
    if what == 2:
        return "".join(f"\\u{ord(c):04x}" if c == "c" else c for c in json.dumps(document))
    key = draw.choice(list(document))
    twin = json.dumps({key: draw.choice(VALUES)})[1:-1]
    body = json.dumps(document)[1:-1]
    return f"{{{twin}, {body}}}" if what == 3 else f"{{{body}, {twin}}}"


# Changes of tensors


def changed_tensors(draw: random.Random, content: bytes) -> bytes:
    """A file of other tensors, or with a header that does not fit them."""
    what = draw.randrange(6)
    if what < 3:
        state = safetensors.torch.load(content)
        key = draw.choice(list(state))
        if what == 0:
            state[draw.choice((f"{key}x", "", "dg_", f"{CANARY}.x", "a" * 999))] = state.pop(key)
        elif what == 1:
            kinds = (torch.float64, torch.float16, torch.int64, torch.bool, torch.uint8,
                     torch.complex64, torch.float8_e4m3fn)  # fmt: skip
            state[key] = state[key].to(draw.choice(kinds))
        else:
            shape = draw.choice(((0,), (1,), (2, 3, 4, 5), (1,) * 60, (3, 0, 7)))
            state[key] = torch.full(shape, draw.choice((float("nan"), 0.0, 1e30)))
        return safetensors.torch.save(state)
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    if what == 3:
        wrong = draw.choice((0, 1, length - 1, length + 1, 1 << 40, (1 << 64) - 1))
        return struct.pack("<Q", wrong) + content[8:]
    text = json.dumps(changed_document(draw, header)).encode()
    return struct.pack("<Q", len(text)) + text + data


def resealed(draw: random.Random, folder: Path) -> None:
    """Change something as somebody would who knows the format."""
    document = json.loads((folder / "manifest.json").read_text())
    kind = MethodManifest if "method" in document else Manifest
    part = draw.choice(("manifest.json", "graph.json", "model.safetensors"))
    file = folder / part
    if part == "graph.json" and file.exists():
        graph = changed_document(draw, json.loads(file.read_text()))
        text = json.dumps(graph) if draw.random() < 0.8 else respelled(draw, json.dumps(graph))
        file.write_bytes(text.encode(errors="surrogatepass"))
    elif part == "model.safetensors":
        change = draw.choice((changed_tensors, changed_tensors, *BYTES))
        file.write_bytes(change(draw, file.read_bytes()))
    else:
        document = changed_document(draw, document)
    digests = document.get("sha256")
    if isinstance(digests, dict) and part != "manifest.json" and file.exists():
        digests[part] = sha256(file.read_bytes()).hexdigest()
    try:
        packed = seal(kind.model_validate_json(json.dumps(document)))
        document = json.loads(packed.model_dump_json(exclude_unset=True))
    except (ValueError, AttributeError):
        pass  # what no manifest may be is refused before its seal is looked at
    (folder / "manifest.json").write_text(json.dumps(document))


def mutate(draw: random.Random, folder: Path, others: list[Path]) -> str:
    """Change an archive and say how."""
    what = draw.random()
    if what < 0.30:
        resealed(draw, folder)
        return "sealed"
    if what < 0.45:
        replaced_files(draw, folder, others)
        return "files"
    if what < 0.65:
        file = folder / "manifest.json"
        text = file.read_text()
        if draw.random() < 0.6:
            file.write_text(json.dumps(changed_document(draw, json.loads(text))))
            return "value"
        file.write_text(respelled(draw, text))
        return "spelling"
    file = folder / draw.choice([name for name in FILES if (folder / name).exists()])
    change: Callable[[random.Random, bytes], bytes] = draw.choice(BYTES)
    file.write_bytes(change(draw, file.read_bytes()))
    return change.__name__


def load_and_describe(folder: Path) -> dict[str, Any]:
    """What the archive loads to; of a network that does not run, why it does not."""
    torch.manual_seed(0)  # a baseline's report compares with a backbone of random weights
    net = dggraph.load(folder)
    try:
        return described(net)
    except (DggraphError, RuntimeError) as error:  # of torch: sealed types that do not go together
        return {"refuses to run": str(error)}


def main(folder: Path, seed: int, count: int) -> None:
    originals = make_originals(folder / "originals")
    expected = {kind: load_and_describe(place) for kind, place in originals.items()}
    place = folder / "archive"
    os.chdir(folder)  # from here even a relative name would be found
    (folder / f"{CANARY}.py").write_text("open('ran', 'w')\ndef build(): pass\n")
    sys.path.insert(0, str(folder))
    guard = Guard(folder / "nothing is written")
    for number in range(seed, seed + count):
        draw = random.Random(number)
        kind = draw.choice(list(originals))
        shutil.copytree(originals[kind], place)
        change = mutate(draw, place, list(originals.values()))
        found = measured(guard, lambda: load_and_describe(place))
        value = found.pop("value")
        is_equal = None if value is None else value == expected[kind]
        line = {"seed": number, "kind": kind, "change": change, "is_equal": is_equal, **found}
        print(json.dumps(line), flush=True)
        shutil.rmtree(place)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3]))
