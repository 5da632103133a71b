"""`dggraph paths` and `dggraph atlas` on the run folder of a detector: outlines where the objects
are, paths as the gates say, odd names.
"""

import html
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import safetensors.torch
import torch
from command_line import run
from drawn import HOSTILE, SVG, edge_marks, path_of, stages, texts
from markup import Page
from PIL import Image
from reference import randomise, randomise_routers

from dggraph.data.image_sets import open_image_set
from dggraph.detection.recording import make_detector_predictor
from dggraph.errors import InputError
from dggraph.evaluation import atlas as collecting
from dggraph.evaluation.atlas import collect_atlas
from dggraph.evaluation.recording import Predictor
from dggraph.graph.detection import Detected, Detection
from dggraph.models.preprocessing import open_image
from dggraph.network.gate_contexts import collecting_gates
from dggraph.training.config import read_config
from dggraph.training.detector_runs import Detector, build_detector, open_detector
from dggraph.views.box_overlay import COLOURS, place_outlines, tell_objects
from dggraph.views.drawing import dot_command, draw
from dggraph.views.escaping import visible
from dggraph.views.picture import picture_difference, picture_path
from dggraph.views.report import make_report
from dggraph.views.svg_picture import write_svg

CLASSES = ("bird", "<script>alert(1)</script>", "a\u202e\"'&\x1b[31m", "tree" * 40)
KEYS = {
    "task": "detection",
    "model": "regnet_y_400mf",
    "input_size": 96,
    "max_size": 128,
    "router": "stage",
}
GRAPH = stages(2)
PATH = path_of(GRAPH, {"a_0 a_1": 1.0, "a_1 a_out": 0.7})


def write_run(folder: Path, **keys: Any) -> Path:
    """The folder of a finished run, whose routers send images on paths of their own."""
    torch.manual_seed(0)
    config = KEYS | {"num_classes": len(CLASSES)} | keys
    detector = build_detector(read_config(None, config), CLASSES)
    if detector.net is not None:
        randomise_routers(randomise(detector.net), 3, 0.6)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    notes = {"classes": json.dumps(CLASSES)}
    state = {key: value.contiguous() for key, value in detector.model.state_dict().items()}
    safetensors.torch.save_file(state, folder / "detector.safetensors", notes)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "detector")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("photos")
    for number, size in enumerate([(120, 90), (90, 120), (64, 64), (150, 80), (96, 96)]):
        tint = Image.new(
            "RGB",
            size,
            ((255, 0, 0), (0, 0, 0), (0, 255, 60), (255, 255, 255), (0, 40, 255))[number],
        )
        Image.blend(Image.effect_noise(size, 20 + 50 * number).convert("RGB"), tint, 0.8).save(
            place / f"{number}.png"
        )
    return place


def answer(detector: Detector, file: Path) -> tuple[dict[str, list[Any]], dict[str, list[float]]]:
    """What the model returns for an image, and its path's weights."""
    assert detector.net is not None
    pixels = torch.frombuffer(bytearray(open_image(file).tobytes()), dtype=torch.uint8).reshape(
        *open_image(file).size[::-1], 3
    )
    with torch.no_grad(), collecting_gates(detector.net) as gates:
        (output,) = detector.model([pixels.permute(2, 0, 1).float() / 255])
    told = {key: output[key].double().tolist() for key in ("boxes", "labels", "scores")}
    return told, {stage: weights[0].tolist() for stage, weights in gates[0].weights.items()}


def outlines(svg: str) -> list[tuple[float, ...]]:
    """Places of the outlines of an SVG, rims left out."""
    (group,) = (
        group
        for group in ElementTree.fromstring(svg).iter(f"{SVG}g")
        if group.get("class") == "objects"
    )
    rectangles = [one for one in group if one.find(f"{SVG}title") is not None]
    return [
        tuple(float(one.get(name, "")) for name in ("x", "y", "width", "height"))
        for one in rectangles
    ]


def found(
    *corners: tuple[float, float, float, float],
    names: Sequence[str] = (),
    size: tuple[int, int] = (200, 100),
) -> Detected:
    """Objects of falling score."""
    return Detected(
        size=size,
        objects=tuple(
            Detection(
                corners=one,
                label=place,
                name=(names or ("cat",) * len(corners))[place],
                score=0.9 - place / 10,
            )
            for place, one in enumerate(corners)
        ),
    )


def test_outlines_are_where_the_objects_are() -> None:
    """An image of 200 x 100 is drawn 320 wide at (12, 12): 1.6 times as large; the best object is
    drawn last.
    """
    detected = found((10, 20, 60, 80), (0, 0, 200, 100))
    svg = write_svg(
        picture_path(GRAPH, PATH, thumbnail=Image.new("RGB", (200, 100)), detected=detected)
    )
    assert outlines(svg) == [(12, 12, 320, 160), (28, 44, 80, 96)]
    (image,) = ElementTree.fromstring(svg).iter(f"{SVG}image")
    assert [float(image.get(name, "")) for name in ("x", "y", "width", "height")] == [
        12,
        12,
        320,
        160,
    ]
    assert edge_marks(svg)["a_0 a_1"] == "active"
    assert "2 objects: cat 0.90, cat 0.80" in texts(svg)


def test_objects_told_where_there_are_none_or_many() -> None:
    none, many = found(), found(*[(0, 0, 9, 9)] * 7)
    assert tell_objects(none) == "no objects"
    assert tell_objects(many).endswith("cat 0.50 and 2 more")
    assert tell_objects(many.scoring(0.75)) == "2 objects: cat 0.90, cat 0.80"
    svg = write_svg(
        picture_path(GRAPH, PATH, thumbnail=Image.new("RGB", (200, 100)), detected=none)
    )
    assert outlines(svg) == []
    assert "no objects" in texts(svg)


def test_tags_stay_inside_and_clear_of_each_other() -> None:
    """At every edge and corner; four objects at one place have four tags side by side."""
    image = (5.0, 7.0, 300.0, 150.0)
    corners = [
        (0, 0, 9, 9),
        (191, 0, 200, 9),
        (0, 91, 9, 100),
        (191, 91, 200, 100),
        *[(80, 40, 140, 70)] * 4,
    ]
    tags = [one.tag for one in place_outlines(found(*corners), image)]
    for x, y, width, height in tags:
        assert x >= 5
        assert x + width <= 305.001
        assert y >= 7
        assert y + height <= 157.001
    for place, (x, y, width, height) in enumerate(tags):
        for other in tags[place + 1 :]:
            apart = (
                x + width <= other[0]
                or other[0] + other[2] <= x
                or y + height <= other[1]
                or other[1] + other[3] <= y
            )
            assert apart, (tags[place], other)
    (long,) = place_outlines(found((0, 0, 9, 9), names=["x" * 500]), (0.0, 0.0, 60.0, 30.0))
    assert long.tag[2] <= 60
    assert long.text.endswith(" 0.90")
    assert "…" in long.text


def test_tags_can_be_read() -> None:
    """Contrast of at least 3.8 between text and tag, and the same between an outline and its
    rim.
    """

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour, contrast in COLOURS:
        dark, light = sorted((luminance(colour), luminance(contrast)))
        assert (light + 0.05) / (dark + 0.05) >= 3.8, colour


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_class_names_in_svg(name: str) -> None:
    def draw(class_name: str) -> str:
        detected = found((10, 20, 60, 80), names=[class_name])
        thumbnail = Image.new("RGB", (200, 100))
        return write_svg(picture_path(GRAPH, PATH, thumbnail=thumbnail, detected=detected))

    def styles(svg: str) -> list[str | None]:
        elements = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}style")
        return [element.text for element in elements]

    svg = draw(name)
    assert styles(svg) == styles(draw("cat"))
    known = {"svg", "style", "g", "title", "text", "path", "rect", "image"}
    assert {element.tag.split("}")[-1] for element in ElementTree.fromstring(svg).iter()} <= known
    assert not any(
        attribute.startswith("on")
        for element in ElementTree.fromstring(svg).iter()
        for attribute in element.attrib
    )
    shown = [text for text in texts(svg) if text.endswith(" 0.90")]
    assert len(shown) == 2
    assert all(visible(name)[:8] in text for text in shown)


@pytest.mark.parametrize("program", ["dot", "graphviz-pure"])
def test_the_png_has_the_outlines_of_the_svg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """Colours of the outline at its sides and of the photo within it, at two pixels each of the
    SVG's.
    """
    if dot_command() is None or (program == "dot" and shutil.which("dot") is None):
        pytest.skip(f"{program} is not here")
    if program != "dot":
        which = shutil.which
        monkeypatch.setattr(
            "dggraph.views.drawing.shutil.which",
            lambda name, **options: None if name == "dot" else which(name, **options),
        )
    detected = found((50, 20, 150, 80), names=['a\\N"<b>'])
    draw(
        picture_path(
            GRAPH, PATH, thumbnail=Image.new("RGB", (200, 100), (255, 0, 0)), detected=detected
        ),
        tmp_path / "x.png",
    )
    (left, top, width, height), colour = (
        (12 + 80, 12 + 32, 160, 96),
        tuple(int(COLOURS[0][0][place : place + 2], 16) for place in (1, 3, 5)),
    )
    with Image.open(tmp_path / "x.png") as page:
        for x, y in (
            (left, top + height / 2),
            (left + width, top + height / 2),
            (left + width / 2, top + height),
        ):
            assert any(
                page.getpixel((int(2 * x) + shift, int(2 * y) + shift)) == colour
                for shift in (-1, 0, 1)
            ), (x, y)
        assert (
            page.getpixel((2 * (left + 80), 2 * (top + 48)))
            == (255, 0, 0)
            == page.getpixel((2 * 20, 2 * 160))
        )
        assert page.getpixel((2 * 340, 2 * 160)) == (255, 255, 255)


def test_the_pdf_has_outlines_too(tmp_path: Path) -> None:
    command = dot_command()
    if command is None or Path(command).stem != "dot":
        pytest.skip("pdf needs the system's graphviz")
    for number in (0, 3):
        detected = found(*[(0, 0, 9, 9)] * number)
        draw(
            picture_path(GRAPH, PATH, thumbnail=Image.new("RGB", (200, 100)), detected=detected),
            tmp_path / f"{number}.pdf",
        )
    assert (tmp_path / "3.pdf").stat().st_size > (tmp_path / "0.pdf").stat().st_size + 100


def test_a_difference_outlines_both_images() -> None:
    two = found((0, 0, 50, 50)), found((0, 0, 100, 50), (0, 0, 9, 9))
    images = [Image.new("RGB", (200, 100))] * 2
    svg = write_svg(
        picture_difference(GRAPH, PATH, PATH, names=("one", "two"), thumbnails=images, detected=two)
    )
    assert "one: 1 object: cat 0.90" in texts(svg)
    assert "two: 2 objects: cat 0.90, cat 0.80" in texts(svg)
    groups = [
        group
        for group in ElementTree.fromstring(svg).iter(f"{SVG}g")
        if group.get("class") == "objects"
    ]
    assert [len(group) for group in groups] == [2, 4]


def test_pictures_and_json_say_what_the_model_returns(
    capsys: Any, tmp_path: Path, folder: Path, photos: Path
) -> None:
    files, detector = sorted(photos.glob("*.png"))[:3], open_detector(folder)
    answers = [answer(detector, file) for file in files]
    score = sorted(score for told, _ in answers for score in told["scores"])[-6]
    code, out, _ = run(
        capsys,
        "paths",
        str(folder),
        *map(str, files),
        "-o",
        str(tmp_path),
        "--json",
        "--score",
        str(score),
    )
    document = json.loads(out)
    assert code == 0
    assert document["score"] == score
    assert len(document["images"]) == 3
    drawn = 0
    for row, file, (told, weights) in zip(document["images"], files, answers, strict=True):
        assert row["size"] == list(open_image(file).size)
        assert "label" not in row
        assert [one["corners"] for one in row["objects"]] == told["boxes"]
        assert [one["score"] for one in row["objects"]] == told["scores"]
        assert [one["class"] for one in row["objects"]] == [
            CLASSES[int(label) - 1] for label in told["labels"]
        ]
        svg = Path(row["picture"]).read_text()
        shown = [
            box for box, one in zip(told["boxes"], told["scores"], strict=True) if one >= score
        ]
        scale = min(320 / row["size"][0], 216 / row["size"][1])
        expected = [
            (12 + scale * x0, 12 + scale * y0, scale * (x1 - x0), scale * (y1 - y0))
            for x0, y0, x1, y1 in shown
        ]
        # not sorted: boxes that nearly share a side change places when they are rounded
        found, wanted = outlines(svg), [pytest.approx(one, abs=0.06) for one in expected]
        assert len(found) == len(wanted)
        assert all(one in found for one in wanted)
        assert all(one in wanted for one in found)
        drawn += len(shown)
        assert detector.net is not None
        order = [
            edge
            for stage in weights
            for edge in zip(detector.net.graph.edges(stage), weights[stage], strict=True)
        ]
        assert edge_marks(svg) == {
            f"{edge.source} {edge.target}": "active" if weight else "dropped"
            for edge, weight in order
        }
        assert row["active_edges"] == sum(weight != 0 for _, weight in order)
        assert f"{row['kept']:.3f} of the static backbone's MACs, at the traced size" in " ".join(
            texts(svg)
        )
    assert drawn == 6
    assert len({row["active_edges"] for row in document["images"]}) > 1, (
        "paths must differ, or this test says little"
    )


def test_the_terminal_shows_objects_and_obeys_no_name(
    capsys: Any, tmp_path: Path, folder: Path, photos: Path
) -> None:
    files = [str(file) for file in sorted(photos.glob("*.png"))[:2]]
    code, out, _ = run(
        capsys,
        "paths",
        str(folder),
        *files,
        "--diff",
        *files,
        "-o",
        str(tmp_path),
        "--score",
        "0.1",
    )
    assert code == 0
    assert "objects" in out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "Objects with a score of at least 0.1." in out
    assert "only 0.png:" in out
    code, out, _ = run(capsys, "paths", str(folder), files[0], "-o", str(tmp_path), "--score", "1")
    assert code == 0
    assert "none" in out


@pytest.mark.parametrize(("kind", "suffix"), [("dot", "dot"), ("mermaid", "mmd"), ("json", "json")])
def test_formats_without_images_tell_the_objects(
    capsys: Any, tmp_path: Path, folder: Path, photos: Path, kind: str, suffix: str
) -> None:
    options = ("--format", kind, "--score", "1", "--json")
    code, out, _ = run(
        capsys, "paths", str(folder), str(photos / "0.png"), "-o", str(tmp_path), *options
    )
    picture = Path(json.loads(out)["images"][0]["picture"])
    assert code == 0
    assert picture.suffix == f".{suffix}"
    assert "no objects" in picture.read_text()


def test_what_does_not_go_with_a_run(
    capsys: Any, tmp_path: Path, folder: Path, photos: Path
) -> None:
    image, output = str(photos / "0.png"), str(tmp_path / "out")
    for options in (
        ["--router", "node(4)"],
        ["--input-size", "64"],
        ["--checkpoint", "x.pth"],
        ["--num-classes", "3"],
    ):
        code, _, err = run(capsys, "paths", str(folder), image, "-o", output, *options)
        assert code == 2
        assert f"{options[0]} does not go with a run folder" in err
    code, _, err = run(capsys, "paths", "small:Net", image, "-o", output, "--score", "0.3")
    assert code == 2
    assert "--score goes with the run folder of a detector" in err
    static = write_run(tmp_path / "static", router="none")
    for arguments in (
        ("paths", str(static), image, "-o", output),
        ("atlas", str(static), str(photos), "-o", str(tmp_path / "r.html")),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 4
        assert "static backbone, so there are no paths" in err


def watch(folder: Path) -> Predictor:
    detector = open_detector(folder)
    assert detector.net is not None
    return make_detector_predictor(detector.model, detector.net, classes=detector.classes, name="d")


def test_a_detector_that_asks_its_backbone_twice(folder: Path) -> None:
    class Twice(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: list[torch.Tensor]) -> Any:
            self.model(images)
            return self.model(images)

    detector = open_detector(folder)
    assert detector.net is not None
    watched = make_detector_predictor(
        Twice(detector.model), detector.net, classes=CLASSES, name="d"
    )
    with pytest.raises(InputError, match="runs its backbone 2 times per image"):
        watched.predict(Image.new("RGB", (96, 96)))


def test_the_atlas_is_that_of_single_pictures(
    capsys: Any, tmp_path: Path, folder: Path, photos: Path
) -> None:
    files, detector, report = (
        sorted(photos.glob("*.png")),
        open_detector(folder),
        tmp_path / "report.html",
    )
    answers = [answer(detector, file) for file in files]
    code, out, _ = run(
        capsys, "atlas", str(folder), str(photos), "-o", str(report), "--score", "0.2", "--json"
    )
    facts, numbers = json.loads(out), json.loads(report.with_suffix(".json").read_text())
    assert code == 0
    assert facts["num_images"] == 5
    assert facts["accuracy"] is None
    assert numbers["network"] == "detector"
    assert numbers["score"] == 0.2
    assert facts["num_paths"] > 1
    page = report.read_text(encoding="utf-8")
    for one, file, (told, weights) in zip(numbers["instances"], files, answers, strict=True):
        assert one["name"] == file.name
        assert one["weights"] == weights
        assert one["size"] == list(open_image(file).size)
        assert [(item["corners"], item["score"]) for item in one["objects"]] == list(
            zip(told["boxes"], told["scores"], strict=True)
        )
        (card,) = re.findall(
            rf'<article class="instance" id="image-{one["index"]}".*?</article>',
            page,
            flags=re.DOTALL,
        )
        assert card.count('<g class="objects"') == 1
        assert '<image width="' in card
        assert card.count('stroke-width="2"><title>') == sum(
            score >= 0.2 for score in told["scores"]
        )
    (stage, *_) = numbers["stages"]
    assert [edge["frequency"] for edge in stage["edges"]] == [
        sum(weights[stage["name"]][place] != 0 for _, weights in answers) / 5
        for place in range(len(stage["edges"]))
    ]
    assert "static backbone's" in page
    assert "Outlined: objects of score 0.2 or more." in page


def test_an_interrupted_atlas_of_a_detector_ends_with_the_same_bytes(
    tmp_path: Path, folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, state = open_image_set(photos), tmp_path / "x.state"

    def stop(done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    whole = collect_atlas(watch(folder), images)
    monkeypatch.setattr(collecting, "SAVE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        collect_atlas(watch(folder), images, state=state, progress=stop)
    done: list[int] = []
    again = collect_atlas(
        watch(folder), images, state=state, progress=lambda number, _: done.append(number)
    )
    assert done[0] == 3
    assert again.atlas == whole.atlas
    graph = watch(folder).net.graph
    assert make_report(graph, again.atlas, again.thumbnails) == make_report(
        graph, whole.atlas, whole.thumbnails
    )
    other = open_detector(folder)
    assert other.net is not None
    with torch.no_grad():
        next(other.model.roi_heads.parameters()).add_(1)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="other detector"):
        collect_atlas(
            make_detector_predictor(other.model, other.net, classes=CLASSES, name="d"),
            images,
            state=state,
        )


def test_hostile_class_names_in_a_report(folder: Path, photos: Path) -> None:
    """The same tags as with harmless names."""
    detector = open_detector(folder)
    assert detector.net is not None
    pages = []
    for names in ([CLASSES[1]] * 2 + [CLASSES[2]] * 2, ["a"] * 4):
        watched = make_detector_predictor(detector.model, detector.net, classes=names, name="d")
        collected = collect_atlas(watched, open_image_set(photos), num_instances=2, limit=2)
        pages.append(
            make_report(watched.net.graph, collected.atlas, collected.thumbnails, score=0.0)
        )
    bad, good = (Page(page.html) for page in pages)
    assert [(tag, list(attrs)) for tag, attrs in bad.tags] == [
        (tag, list(attrs)) for tag, attrs in good.tags
    ]
    shown = "".join(bad.texts)
    assert "<script>alert(1)</script> 0." in shown
    assert not re.search("[\x1b\u202e]", shown + html.unescape(pages[0].html))
