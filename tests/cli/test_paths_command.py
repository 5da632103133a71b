"""`dggraph paths` and `dggraph inspect --svg`: the right picture for every image, every format,
differences, collapsing, odd names.
"""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from command_line import run
from drawn import edge_marks, node_marks, places, texts
from PIL import Image

PHOTO_NAMES = ("a[b]<i>.png", "b\x1b[31m\u202e'\".png", "[b]:cat:.png")
ROUTED = ("small:Net", "--input-size", "16", "--random-routers", "3")


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    files = [tmp_path / name for name in PHOTO_NAMES]
    for number, file in enumerate(files):
        Image.effect_noise((40, 30), 30 + 90 * number).convert("RGB").save(file)
    return [str(file) for file in files]


def test_pictures_show_what_the_rows_say(capsys: Any, tmp_path: Path, photos: list[str]) -> None:
    code, out, _ = run(capsys, "paths", *ROUTED, *photos, "-o", str(tmp_path / "out"), "--json")
    rows = json.loads(out)["images"]
    assert code == 0
    assert len(rows) == 3
    drawn = [Path(row["picture"]).read_text() for row in rows]
    for row, svg in zip(rows, drawn, strict=True):
        assert sum(mark == "active" for mark in edge_marks(svg).values()) == row["active_edges"]
        shown = " | ".join(texts(svg))
        assert f"{row['kept']:.3f} of the static network's MACs" in shown
        assert f"class {row['index']}" in shown
        assert 'href="data:image/jpeg;base64,' in svg
    assert places(drawn[0]) == places(drawn[1]) == places(drawn[2])
    assert texts(drawn[1])[0] == "b\ufffd[31m\ufffd'\".png"


def test_the_terminal_shows_odd_names_and_obeys_none(
    capsys: Any, tmp_path: Path, photos: list[str]
) -> None:
    code, out, _ = run(
        capsys, "paths", *ROUTED, *photos, "-o", str(tmp_path / "out"), "--diff", *photos[1:]
    )
    assert code == 0
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "only b\ufffd[31m\ufffd'\".png:" in out
    assert "only [b]:cat:.png:" in out


def test_a_difference_is_that_of_the_two_pictures(
    capsys: Any, tmp_path: Path, photos: list[str]
) -> None:
    code, out, _ = run(
        capsys,
        "paths",
        *ROUTED,
        *photos[:2],
        "--diff",
        *photos[:2],
        "-o",
        str(tmp_path / "out"),
        "--json",
    )
    document = json.loads(out)
    assert code == 0
    first, second = (
        {
            edge
            for edge, mark in edge_marks(Path(row["picture"]).read_text()).items()
            if mark == "active"
        }
        for row in document["images"]
    )
    difference = document["difference"]
    joined = {
        key: {" ".join(ends) for ends in difference[key]["edges"]}
        for key in ("only_first", "only_second", "both")
    }
    assert joined == {
        "only_first": first - second,
        "only_second": second - first,
        "both": first & second,
    }
    marks = edge_marks(Path(difference["picture"]).read_text())
    assert {edge for edge, mark in marks.items() if mark == "first"} == first - second


@pytest.mark.parametrize(
    ("kind", "suffix"), [("dot", "dot"), ("mermaid", "mmd"), ("json", "json"), ("png", "png")]
)
def test_formats(capsys: Any, tmp_path: Path, photos: list[str], kind: str, suffix: str) -> None:
    code, out, _ = run(
        capsys, "paths", *ROUTED, photos[0], "-o", str(tmp_path / "out"), "--format", kind, "--json"
    )
    picture = Path(json.loads(out)["images"][0]["picture"])
    assert code == 0
    assert picture.suffix == f".{suffix}"
    assert picture.stat().st_size > 500


def test_nothing_to_draw(capsys: Any, tmp_path: Path) -> None:
    code, _, err = run(capsys, "paths", "small:Net", "-o", str(tmp_path / "out"))
    assert code == 2
    assert "IMAGES" in err
    assert not (tmp_path / "out").exists()


def test_inspect_draws_the_graph(capsys: Any, tmp_path: Path) -> None:
    file = tmp_path / "new" / "net.svg"
    code, out, _ = run(capsys, "inspect", "small:Net", "--input-size", "16", "--svg", str(file))
    svg = file.read_text()
    assert code == 0
    assert "Picture: " in out
    assert len(edge_marks(svg)) == 10
    assert len(node_marks(svg)) == 5
    assert texts(svg)[0] == "small:Net"
    assert "1 stage · 3 routed blocks" in texts(svg)[1]
    code, out, _ = run(
        capsys, "inspect", "small:Net", "--input-size", "16", "--svg", str(file), "--json"
    )
    assert json.loads(out)["name"] == "Net"


def test_a_format_is_checked_before_the_work_starts(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "dggraph.models.registry.load_model",
        lambda *_args, **_options: pytest.fail("work has started"),
    )
    code, _, err = run(capsys, "inspect", "small:Net", "--svg", str(tmp_path / "net.gif"))
    assert code == 4
    assert "'gif'" in err


@pytest.mark.parametrize(("level", "nodes"), [("stage", 1), ("block", 5), ("op", 5)])
def test_collapsing(capsys: Any, tmp_path: Path, level: str, nodes: int) -> None:
    file = tmp_path / "net.svg"
    assert (
        run(
            capsys,
            "inspect",
            "small:Net",
            "--input-size",
            "16",
            "--svg",
            str(file),
            "--collapse",
            level,
        )[0]
        == 0
    )
    svg = file.read_text()
    assert len(node_marks(svg)) == nodes
    lines = texts(svg)
    assert lines.count("Conv2d") == (6 if level == "op" else 0)
    assert lines.count("relu") == (3 if level == "op" else 0)
    assert ElementTree.fromstring(svg).get("width")


def test_a_picture_collapsed_unasked_says_so(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dggraph.views.collapse.MAX_CARDS", 4)
    code, out, _ = run(
        capsys, "inspect", "small:Net", "--input-size", "16", "--svg", str(tmp_path / "net.svg")
    )
    assert code == 0
    assert "Drawn by stage: 5 nodes are many. --collapse block draws every one." in out


def test_a_folder_stands_for_its_images(capsys: Any, tmp_path: Path) -> None:
    for name in ("in/b.png", "in/deep/a.gif", "in/._b.png", "in/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(tmp_path / name, format="PNG")
    code, out, _ = run(
        capsys,
        "paths",
        "small:Net",
        "--input-size",
        "16",
        str(tmp_path / "in"),
        "-o",
        str(tmp_path / "out"),
        "--json",
    )
    document = json.loads(out)
    assert code == 0
    assert [row["image"] for row in document["images"]] == [
        str(tmp_path / "in" / name) for name in ("b.png", "deep/a.gif")
    ]
    assert document["notes"] == [
        f"{tmp_path / 'in'}: 2 files ignored: 1 hidden, 1 without an image's suffix (.txt)"
    ]
    (tmp_path / "none").mkdir()
    code, _, err = run(
        capsys,
        "paths",
        "small:Net",
        "--input-size",
        "16",
        str(tmp_path / "none"),
        "-o",
        str(tmp_path / "out"),
    )
    assert code == 4
    assert "none' has no images" in err
