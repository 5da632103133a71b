"""Dark SVGs: every colour has a dark one that can be read, and photos keep their outlines."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from command_line import run
from drawn import path_of, stages
from PIL import Image

from dggraph.graph.detection import Detected, Detection
from dggraph.views.annotations import DEAD_INK, EDGE_LOOKS, GREY, INK, NODE_LOOKS
from dggraph.views.colour_scheme import DARK, SCHEMED, SCHEMES, Scheme, write_style
from dggraph.views.picture import Picture, picture_difference, picture_graph, picture_path
from dggraph.views.svg_picture import write_svg

GRAPH = stages(3, 20)
FIRST = path_of(GRAPH, {"a_0 a_1": 1.0, "a_0 a_out": 0.7, "b_0 b_out": 1.0}, margin=1e-6)
SECOND = path_of(GRAPH, {"a_0 a_2": 1.0, "a_2 a_out": 0.7, "b_0 b_out": 1.0})


def pictures() -> list[Picture]:
    large = stages(80, 80)
    return [
        picture_graph(GRAPH),
        picture_path(GRAPH, FIRST),
        picture_difference(GRAPH, FIRST, SECOND),
        picture_graph(large),
        picture_path(large, path_of(large, {"a_0 a_out": 1.0})),
    ]


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_every_colour_has_a_dark_one() -> None:
    for picture in pictures():
        assert set(re.findall(r'(?:fill|stroke)="(#\w+)"', write_svg(picture))) <= set(DARK)


def test_text_can_be_read_in_light_and_in_dark() -> None:
    """A contrast of 4.5, as the guidelines for the web ask of small text, but 4 on dead blocks."""
    for background in ("#ffffff", "#fbfcfd"):
        for ink in (INK, GREY):
            assert contrast(ink, background) >= 4.5
            assert contrast(DARK[ink], DARK[background]) >= 4.5
    for mark, look in NODE_LOOKS.items():
        ink, least = (DEAD_INK, 4.0) if mark == "dead" else (look.stroke, 3.0)
        assert contrast(ink, look.fill) >= least, mark
        assert contrast(DARK[ink], DARK[look.fill]) >= least, mark
    for mark, edge in EDGE_LOOKS.items():
        if mark not in ("dropped", "candidate"):
            assert contrast(DARK[edge.stroke], DARK["#fbfcfd"]) >= 3, mark


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_follows_the_page_or_is_fixed(scheme: Scheme) -> None:
    assert get_args(Scheme) == SCHEMES
    style = write_style(scheme)
    assert ("prefers-color-scheme" in style) == (scheme == "auto")
    assert (f'.{SCHEMED} [fill="#ffffff"]{{fill:#12171c}}' in style) == (scheme != "light")
    assert all(f".{SCHEMED} " in rule for rule in re.findall(r"[^{}]*\[[^{}]*(?={)", style))


def test_photos_keep_what_is_drawn_on_them() -> None:
    found = Detected(
        objects=(Detection(name="cat", label=0, score=0.9, corners=(1, 1, 20, 20)),), size=(40, 40)
    )
    picture = picture_path(GRAPH, FIRST, thumbnail=Image.new("RGB", (40, 40)), detected=found)
    svg = write_svg(picture)
    schemed = svg.split(f'<g class="{SCHEMED}">')
    assert len(schemed) == 3
    before, photos = schemed[1].split("</g>", 1)
    assert "<image" not in before
    assert all(part in photos for part in ("<image", 'class="objects"', 'class="tags"'))
    assert "<image" not in schemed[2]


def test_the_commands_fix_the_scheme_and_the_width(capsys: Any, tmp_path: Path) -> None:
    file = tmp_path / "net.svg"
    net = ("inspect", "small:Net", "--input-size", "16")
    for scheme, style in (("dark", "<style>."), ("auto", "<style>@media"), ("light", None)):
        code, _, _ = run(capsys, *net, "--svg", str(file), "--scheme", scheme, "--width", "390")
        assert code == 0
        svg = file.read_text()
        assert style in svg if style else "<style>" not in svg
        assert float(re.findall(r'width="([\d.]+)"', svg)[0]) <= 390
    code, _, err = run(capsys, *net, "--svg", str(tmp_path / "net.json"), "--scheme", "dark")
    assert code == 2
    assert "--scheme dark is for SVG, and net.json is not" in err
