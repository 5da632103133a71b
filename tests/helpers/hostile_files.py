"""Files as an attacker makes them: configurations, checkpoints, run folders, images, annotations.

Each case makes its files in the current folder, and gives the arguments of a command, the exit code
and words of what it must say.
"""

import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from guarded import CANARY
from PIL import Image

Case = tuple[Callable[[], list[str]], int, str]
MODEL = "dggraph:resnet14_4"


# Configurations

KEYS = f'model = "{MODEL}"\nnum_classes = 4\ninput_size = 16\ndataset = "imagefolder"\n'


def config(content: str | bytes) -> Callable[[], list[str]]:
    def make() -> list[str]:
        data = content.encode() if isinstance(content, str) else content
        Path("c.toml").write_bytes(data)
        return ["train", "c.toml", "--data-dir", "images"]

    return make


def comparison(content: str | bytes) -> Callable[[], list[str]]:
    def make() -> list[str]:
        data = content.encode() if isinstance(content, str) else content
        Path("c.toml").write_bytes(data)
        return ["compare", "c.toml"]

    return make


def linked(*command: str) -> Callable[[], list[str]]:
    """A device without an end in the place of the file that a command reads."""

    def make() -> list[str]:
        Path("endless.toml").symlink_to("/dev/zero")
        return [*command, "endless.toml"]

    return make


CONFIGURATIONS: dict[str, Case] = {
    "nan": (config(KEYS + "lr = nan"), 4, "lr = nan"),
    "infinity": (config(KEYS + "lr = inf"), 4, "lr = inf"),
    "a number beyond all": (config(KEYS + "lr = 1e400"), 4, "lr = inf"),
    "digits without end": (config(KEYS + "epochs = " + "9" * 9999), 4, "not TOML"),
    "a key twice": (config(KEYS + "lr = 1\nlr = 2"), 4, "not TOML"),
    "deep brackets": (config(KEYS + "scale = " + "[" * 100_000), 4, "not TOML"),
    "deep tables": (config(KEYS + "[" + "a." * 20_000 + "a]\nb = 1"), 4, "not TOML|unknown key"),
    "many keys": (config("".join(f"k{n} = 1\n" for n in range(20_000))), 4, "unknown key"),
    "bytes": (config(bytes(range(256)) * 9), 4, "UTF-8|not TOML"),
    "a terminal's codes": (config(KEYS + '"\\u001b[2J" = 1'), 4, "unknown key"),
    "another type": (config(KEYS + "model_ema = [[1]]"), 4, "model_ema"),
    "a surrogate": (config(KEYS + 'opt = "\\ud800"'), 4, "not TOML"),
    "endless": (linked("train"), 4, "endless.toml"),
    "a folder": (lambda: ["train", "images"], 2, "images"),
    "to compare: endless": (linked("compare"), 4, "endless.toml"),
    "to compare: deep brackets": (comparison("seeds = " + "[" * 100_000), 4, "not TOML"),
    "to compare: no methods": (comparison("[recipe]\n" + KEYS), 4, "methods"),
    "to compare: nan": (
        comparison("[recipe]\n" + KEYS + "lr = nan\n[methods.static]\n"), 4, "lr = nan"
    ),
    "to compare: very many runs": (
        comparison(f"seeds = {list(range(200_000))}\n[recipe]\n" + KEYS + "[methods.static]\n"),
        4,
        "runs|seeds",
    ),
    "to compare: a path as a name": (
        comparison('baseline = "../../x"\n[recipe]\n' + KEYS + '[methods."../../x"]\nlr = nan\n'),
        4,
        "lr = nan",
    ),
}  # fmt: skip


# Checkpoints


class Runs:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, (f"open({CANARY!r}, 'w')",)


def weights(make: Callable[[Path], None], name: str = "w.pth") -> Callable[[], list[str]]:
    def made() -> list[str]:
        make(Path(name))
        return ["inspect", MODEL, "--input-size", "16", "--checkpoint", name]

    return made


def _deep(file: Path) -> None:
    value: Any = {}
    for _ in range(400):
        value = {"a": value}
    torch.save(value, file)


def _endless_view(file: Path) -> None:
    """One number, seen as a tensor of 10^18."""
    torch.save({"stem.0.weight": torch.zeros(1).expand(10**9, 10**9)}, file)


def _long_header(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 1 << 62) + b"{" + bytes(99))


CHECKPOINTS: dict[str, Case] = {
    "a pickle that runs code": (weights(lambda f: f.write_bytes(pickle.dumps(Runs())) and None), 4,
                                "is not read|not a state dict|not a checkpoint"),
    "torch's file that runs code": (weights(lambda f: torch.save({"a": Runs()}, f)), 4,
                                    "only code can restore|exec"),
    "an older pickle": (weights(lambda f: f.write_bytes(b"cos\nsystem\n(S'x'\ntR.") and None), 4,
                        "w.pth"),
    "a long string": (weights(lambda f: f.write_bytes(b"\x80\x02X\xff\xff\xff\x7fabc.") and None),
                      4, "w.pth"),
    "a long memo": (weights(lambda f: f.write_bytes(b"\x80\x02)r\xff\xff\xff\x7f.") and None), 4,
                    "w.pth"),
    "deep mappings": (weights(_deep), 4, "w.pth"),
    "a view without an end": (weights(_endless_view), 4, "does not fit|shape|w.pth"),
    "a long header": (weights(_long_header, "w.safetensors"), 4, "w.safetensors"),
    "an endless file": (weights(lambda f: f.symlink_to("/dev/zero")), 4, "w.pth"),
    "an endless safetensors file": (weights(lambda f: f.symlink_to("/dev/zero"), "w.safetensors"),
                                    4, "w.safetensors"),
    "a pipe": (weights(os.mkfifo), 4, "w.pth"),
    "no numbers": (weights(lambda f: torch.save({"a": "b"}, f)), 4, "no state dict"),
    "nothing": (weights(lambda f: f.write_bytes(b"") and None), 4, "w.pth"),
}  # fmt: skip


# Run folders: the current folder has a good one, `run`, that is not finished


def state_file() -> Path:
    return max(Path("run/checkpoints").glob("*/state.json"))


def keys(**changes: Any) -> Callable[[], list[str]]:
    def make() -> list[str]:
        file = Path("run/config.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return ["eval", "run", "--dataset", "imagefolder", "--data-dir", "images"]

    return make


def written(file: str, content: bytes) -> Callable[[], list[str]]:
    def make() -> list[str]:
        Path(file).write_bytes(content)
        return ["eval", "run", "--dataset", "imagefolder", "--data-dir", "images"]

    return make


def state(change: Callable[[dict[str, Any]], Any]) -> Callable[[], list[str]]:
    """A checkpoint's state changed, with a digest that fits."""

    def make() -> list[str]:
        file = state_file()
        document = json.loads(file.read_text().partition("\n")[2])
        document = change(document) or document
        text = json.dumps(document, sort_keys=True)
        file.write_text(f"{sha256(text.encode()).hexdigest()}\n{text}\n")
        return ["eval", "run", "--dataset", "imagefolder", "--data-dir", "images"]

    return make


def state_text(content: bytes) -> Callable[[], list[str]]:
    return lambda: written(str(state_file()), content)()


def _other_weights(document: dict[str, Any]) -> None:
    for name in document["sha256"]:
        content = safetensors.torch.save({CANARY: torch.zeros(2)})
        (state_file().parent / name).write_bytes(content)
        document["sha256"][name] = sha256(content).hexdigest()


def _no_weights(document: dict[str, Any]) -> None:
    for name in document["sha256"]:
        (state_file().parent / name).write_bytes(b"no safetensors")
        document["sha256"][name] = sha256(b"no safetensors").hexdigest()


def _endless(document: dict[str, Any]) -> None:
    for name in document["sha256"]:
        (state_file().parent / name).unlink()
        (state_file().parent / name).symlink_to("/dev/zero")


NEVER_RUN = "--backbone|never|imported"
RUNS: dict[str, Case] = {
    "code as the model": (keys(model=f"{CANARY}:build"), 4, NEVER_RUN),
    "a huge model": (keys(model="vit_h_14"), 4, "vit_h_14|run"),
    "an unknown model": (keys(model="../../x"), 4, "no model"),
    "code as the router": (keys(router=f"__import__('{CANARY}')"), 4, CANARY),
    "code as the wiring": (keys(wiring=f"__import__('{CANARY}')"), 4, CANARY),
    "an unknown key": (keys(evil=1), 4, "evil"),
    "no number": (keys(lr=float("nan")), 4, "lr"),
    "a list of keys": (written("run/config.json", b"[]"), 4, "config.json"),
    "deep keys": (written("run/config.json", b"[" * 1_000_000), 4, "config.json"),
    "keys of bytes": (written("run/config.json", b"\xff\xfe\x00"), 4, "config.json"),
    "a state without a format": (state(lambda found: found.pop("format") and None), 4, "0000018"),
    "a state of a list": (state(lambda _found: [1]), 4, "0000018"),
    "a state of other parts": (state(lambda found: found.update(sha256=["x"])), 4, "0000018"),
    "a part elsewhere": (
        state(lambda found: found.update(sha256={"../../../../../../etc/passwd": "0" * 64})),
        4,
        "0000018",
    ),
    "a state without a model": (
        state(lambda found: found.update(sha256={})),
        4,
        "0000018|model|do not fit",
    ),
    "weights of others": (state(_other_weights), 4, CANARY + "|missing|fit|Missing"),
    "no weights": (state(_no_weights), 4, "0000018"),
    "endless weights": (state(_endless), 4, "0000018"),
    "a deep state": (state_text(b"[" * 1_000_000), 4, "0000018"),
    "a state of bytes": (state_text(b"\xff" * 99), 4, "0000018"),
    "classes of another kind": (state(lambda found: found["state"].update(data=[1])), 4, "classes"),
}


# Images


def image(content: bytes, name: str = "x.png") -> Callable[[], list[str]]:
    def make() -> list[str]:
        Path(name).write_bytes(content)
        return ["paths", "net", name, "-o", "out"]

    return make


def saved(name: str, **options: Any) -> bytes:
    Image.effect_noise((40, 30), 90).convert("RGB").save(name, **options)
    content = Path(name).read_bytes()
    Path(name).unlink()
    return content


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int, *others: bytes, rows: int = 1) -> bytes:
    """A grey PNG that says it has this size, with zeros for a number of its rows."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    packer = zlib.compressobj(9)
    row = bytes(width + 1)
    data = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(others)
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def tiff(*entries: tuple[int, int, int, int], after: int = 0) -> bytes:
    """A TIFF of nothing but a directory: tag, type, count and value, and where the next one is."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + struct.pack("<I", after)


TEXT_BOMB = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 28), 9))
ICC_BOMB = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 28), 9))
LOOPED = tiff((256, 4, 1, 40), (257, 4, 1, 30), (0x8769, 4, 1, 8), after=8)
BAD_EXIF = b"Exif\0\0" + tiff((0x112, 3, 1 << 31, 6), (0x8769, 4, 1, 8), after=8)
WEB = b"<html><script>1</script>"
IMAGES: dict[str, Case] = {
    "a bomb": (image(png(20_000, 20_000, rows=20_000)), 4, "x.png.*limit"),
    "a bomb without pixels": (image(png(60_000, 60_000)), 4, "x.png.*limit"),
    "the largest header": (image(png((1 << 31) - 1, (1 << 31) - 1)), 4, "x.png"),
    "a text bomb": (image(png(40, 30, TEXT_BOMB, rows=30)), 4, "x.png"),
    "a profile bomb": (image(png(40, 30, ICC_BOMB, rows=30)), 4, "x.png"),
    "too few rows": (image(png(40, 30, rows=3)), 0, "x"),
    "a text as pixels": (image(b"P3 99999 99999 255\n1 1 1", "x.ppm"), 4, "x.ppm"),
    "a negative size": (
        image(b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, -9, -(1 << 31), 1, 24, 0, 0, 0,
                                  0, 0, 0), "x.bmp"), 4, "x.bmp"),
    "a GIF of the largest canvas": (
        image(b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x00;", "x.gif"), 4,
        "x.gif"),
    "a TIFF in a ring": (image(LOOPED, "x.tif"), 4, "x.tif"),
    "a TIFF of many strips": (
        image(tiff((256, 4, 1, 9), (257, 4, 1, 9), (273, 4, 1 << 30, 8)), "x.tif"), 4, "x.tif"),
    "PostScript": (image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "x.eps"), 4, "eps"),
    "PostScript called PNG": (image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), 4, "x"),
    "an SVG drawing": (image(b"<svg onload='x()'/>"), 4, "SVG"),
    "a PDF": (image(b"%PDF-1.7"), 4, "PDF"),
    "a web page": (image(WEB), 4, "web page"),
    "a pipe": (lambda: os.mkfifo("x.png") or ["paths", "net", "x.png", "-o", "out"], 4, "x.png"),
    "an endless file": (
        lambda: os.symlink("/dev/zero", "x.png") or ["paths", "net", "x.png", "-o", "out"], 4,
        "x.png"),
    "a link to itself": (
        lambda: os.symlink("x.png", "x.png") or ["paths", "net", "x.png", "-o", "out"], 4, "x.png"),
    "a name of markup": (image(b"", "[b]<script>&.png"), 4, "script"),
    "a name of the terminal's": (image(b"", "\x1b[2J\n.png"), 4, "png"),
    "cut off": (lambda: image(saved("a.jpg")[:700], "x.jpg")(), 4, "x.jpg"),
    "EXIF in a ring": (lambda: image(saved("a.jpg", exif=BAD_EXIF), "x.jpg")(), 0, "x"),
    "a JPEG that is a web page": (lambda: image(saved("a.jpg", comment=WEB), "x.jpg")(), 0, "x"),
    "a PNG that is a program": (
        lambda: image(saved("a.png") + f"\nimport {CANARY}\n".encode())(), 0, "x"),
}  # fmt: skip


# Annotations: the current folder has ok.png, 64 x 48


def coco(document: Any) -> Callable[[], list[str]]:
    def make() -> list[str]:
        text = document if isinstance(document, bytes) else json.dumps(document).encode()
        Path("instances.json").write_bytes(text)
        return ["coco", "instances.json"]

    return make


def one(box: Any = (1, 2, 9, 9), **image_keys: Any) -> dict[str, Any]:
    entry = {"id": 1, "file_name": "ok.png", "width": 64, "height": 48} | image_keys
    return {
        "images": [entry],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 81}],
        "categories": [{"id": 1, "name": "cat"}],
    }


def voc(text: str | bytes) -> Callable[[], list[str]]:
    def make() -> list[str]:
        Path("ok.xml").write_bytes(text.encode() if isinstance(text, str) else text)
        return ["voc", "."]

    return make


LAUGHS = (
    '<!DOCTYPE a [<!ENTITY l0 "ha">'
    + "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(12))
    + "]><annotation>&l12;</annotation>"
)
OUTSIDE = '<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/passwd">]><annotation>&f;</annotation>'
HOSTILE = [float("nan"), float("inf"), 1e308, 10**400, "", None, [], {}, True, "1e9", -1]
ANNOTATIONS: dict[str, Case] = {
    "deep JSON": (coco(b"[" * 1_000_000), 4, "not JSON"),
    "a number without an end": (coco(b"[" + b"9" * 99_999 + b"]"), 4, "instances.json"),
    "no numbers as a box": (coco(one([float("nan")] * 4)), 4, "annotation 1"),
    "an endless box": (coco(one([0, 0, float("inf"), 9])), 4, "annotation 1"),
    "huge numbers as a box": (coco(one([0, 0, 10**300, 9])), 4, "annotation 1"),
    "words as a box": (coco(one(["__import__('os')"] * 4)), 4, "annotation 1"),
    "a file elsewhere": (coco(one(file_name="../../../../../etc/passwd")), 4, "passwd"),
    "an absolute file": (coco(one(file_name="/etc/passwd")), 4, "passwd"),
    "a file's name of zeros": (coco(one(file_name="ok.png\0.png")), 4, "image 1"),
    "a long file's name": (coco(one(file_name="a" * 100_000)), 4, "image 1"),
    "a huge id": (coco(one(id=1 << 80)), 4, "image"),
    "a huge size": (coco(one(width=1 << 62)), 0, ""),
    "entries of other kinds": (coco({"images": HOSTILE, "annotations": HOSTILE,
                                     "categories": [{"id": 1, "name": "a"}]}), 4, "instances.json"),
    "categories of other kinds": (coco(one() | {"categories": HOSTILE}), 4, "category"),
    "a thousand million laughs": (voc(LAUGHS), 4, "ok"),
    "a file as an entity": (voc(OUTSIDE), 4, "ok"),
    "deep XML": (voc("<annotation>" + "<a>" * 200_000), 4, "ok"),
    "bytes as XML": (voc(bytes(range(256))), 4, "ok"),
    "another encoding of XML": (voc("<?xml version='1.0' encoding='evil'?><annotation/>"), 4, "ok"),
}  # fmt: skip
