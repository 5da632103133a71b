"""The report: one file that holds everything, escapes every name, and says the atlas's numbers."""

import base64
import hashlib
import html
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from idx_files import write_idx
from markup import HOSTILE, Page
from pages import read_blocks
from PIL import Image
from toy_atlas import build, hostile_atlas, paint

import dggraph
from dggraph.data.image_sets import open_image_set
from dggraph.evaluation.atlas import Collected, collect_atlas
from dggraph.graph.atlas import BINS_PER_STATIC, Atlas
from dggraph.graph.ir import DynamicGraph
from dggraph.network.network import DynamicNetwork
from dggraph.views.histogram import MAX_BARS, group_bins
from dggraph.views.report import Report, make_report


def write(net: DynamicNetwork, collected: Collected) -> Report:
    return make_report(net.graph, collected.atlas, collected.thumbnails)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[DynamicGraph, Collected, Report]:
    net = build()
    photos = paint(tmp_path_factory.mktemp("set") / "photos", 8)
    collected = collect_atlas(net, open_image_set(photos, net.labels), num_instances=6)
    return net.graph, collected, write(net, collected)


def test_the_file_needs_nothing_else(made: tuple[DynamicGraph, Collected, Report]) -> None:
    """No address but data URIs and places in the page; the policy allows exactly the style sheet
    and the script inside.
    """
    report = made[2]
    page = Page(report.html)
    for tag, attrs in page.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            assert name != "style", (tag, name)
            if name in ("src", "href", "srcset", "action", "data"):
                assert value.startswith(("data:", "#")), (tag, name, value)
    (policy,) = (
        attrs["content"]
        for attrs in page.all("meta")
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", report.html, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
        assert "url(" not in inside
        assert "import" not in inside
    assert "http" not in re.sub("http-equiv", "", report.html)


def test_it_can_be_read_without_scripts_and_by_ear(
    made: tuple[DynamicGraph, Collected, Report],
) -> None:
    _, collected, report = made
    page = Page(report.html)
    assert len(page.all("article", "instance")) == len(collected.atlas.instances)
    hidden = [tag for tag, attrs in page.tags if "hidden" in attrs]
    assert hidden == ["div"], "only the tools, which do nothing without the script"
    assert all(attrs.get("alt") for attrs in page.all("img"))
    assert all(
        (attrs.get("role") == "img" and attrs.get("aria-label")) or attrs.get("aria-hidden")
        for attrs in page.all("svg")
    )
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for attrs in [*page.all("a"), *page.all("use")]:
        assert attrs["href"][1:] in ids


def test_the_page_says_the_atlas_s_numbers(made: tuple[DynamicGraph, Collected, Report]) -> None:
    graph, collected, report = made
    atlas, text = collected.atlas, html.unescape(report.html)
    told = re.findall(
        r"<title>(\w+) to (\w+): open for ([\d.]+)% of the images(, static edge)?</title>", text
    )
    shares = {
        (source, target): (float(share), bool(static)) for source, target, share, static in told
    }
    assert shares == {
        (edge.source, edge.target): (
            round(100 * atlas.frequencies[stage][place], 1),
            edge.is_static,
        )
        for stage in graph.stages
        for place, edge in enumerate(graph.edges(stage))
    }
    bars = re.findall(r"<title>([\d.]+) to ([\d.]+) %: ([\d,]+) images?</title>", text)
    assert sum(int(number) for *_, number in bars) == atlas.num_images == 24
    differences = re.findall(r"<title>(\w+) to (\w+): (\d+)%, ([+-][\d.]+) points</title>", text)
    assert len(differences) == 3 * 10
    source, target, _, points = differences[13]
    edge = next(
        edge for edge in graph.edges("blocks") if (edge.source, edge.target) == (source, target)
    )
    place = graph.edges("blocks").index(edge)
    expected = atlas.classes[1].frequencies["blocks"][place] - atlas.frequencies["blocks"][place]
    assert float(points) == round(100 * expected, 1)
    assert f"{100 * atlas.mean_macs / atlas.static_macs:.1f}\u00a0%" in text
    assert f"{atlas.path_entropy_bits:.2f} bits" in text
    for warning in atlas.gates.warnings:
        assert re.sub("`", "", warning)[:60] in re.sub("</?code>", "", text)


def test_what_stands_between_backticks_is_code(
    made: tuple[DynamicGraph, Collected, Report],
) -> None:
    graph, collected, _ = made
    gates = replace(collected.atlas.gates, warnings=("leave `a<b>` or `stages=` out",))
    report = make_report(graph, replace(collected.atlas, gates=gates), {})
    assert "leave <code>a&lt;b&gt;</code> or <code>stages=</code> out" in report.html


def test_diagrams_draw_the_open_edges(made: tuple[DynamicGraph, Collected, Report]) -> None:
    graph, collected, report = made
    order = [(edge.source, edge.target) for edge in graph.edges("blocks")]
    cards = re.findall(
        r'<article class="instance" id="image-(\d+)".*?</article>', report.html, flags=re.DOTALL
    )
    assert [int(index) for index in cards] == [one.index for one in collected.atlas.instances]
    for one in collected.atlas.instances:
        (card,) = re.findall(
            rf'<article class="instance" id="image-{one.index}".*?</article>',
            report.html,
            flags=re.DOTALL,
        )
        drawn = re.findall(
            r'<use href="#e0-(\d+)"><title>(\w+) to (\w+): (-?[\d.]+)</title></use>', card
        )
        weights = one.path.weights["blocks"]
        assert sorted((int(place), float(weight)) for place, _, _, weight in drawn) == [
            (place, pytest.approx(weight, abs=6e-4))
            for place, weight in enumerate(weights)
            if weight != 0
        ]
        assert all((source, target) == order[int(place)] for place, source, target, _ in drawn)
        groups = re.findall(r'<g stroke-width="([\d.]+)">((?:<use .*?</use>)+)</g>', card)
        widths = {
            int(place): float(width)
            for width, edges in groups
            for place in re.findall("#e0-([0-9]+)", edges)
        }
        assert widths == {
            place: pytest.approx(min(0.6 + 1.4 * abs(weight), 6), abs=0.01)
            for place, weight in enumerate(weights)
            if weight != 0
        }
        dead = {node.name for node in graph.nodes("blocks")} - one.path.live_nodes(graph)
        assert card.count('class="node dead"') == len(dead)


def test_thumbnails_are_the_images(made: tuple[DynamicGraph, Collected, Report]) -> None:
    _, collected, report = made
    for one in collected.atlas.instances:
        (uri,) = re.findall(
            rf'id="image-{one.index}".*?<img[^>]* src="data:image/png;base64,([^"]+)"',
            report.html,
            flags=re.DOTALL,
        )[:1]
        with Image.open(io.BytesIO(base64.b64decode(uri))) as image:
            assert image.convert("RGB").tobytes() == collected.thumbnails[one.index].tobytes()


def test_hostile_names_are_text(made: tuple[DynamicGraph, Collected, Report]) -> None:
    """The same tags with the same attributes as with harmless names, and the names legible among
    the texts.
    """
    graph, collected, _ = made
    hostile = hostile_atlas(collected)
    harmless = replace(
        hostile,
        network="n",
        images="i",
        skipped=tuple(("a", "b") for _ in HOSTILE),
        instances=tuple(
            replace(one, name="x", label=f"l{len(one.name)}{ord(one.name[0])}", prediction="z")
            for one in hostile.instances
        ),
        classes=tuple(replace(one, name="c") for one in hostile.classes),
        most_common=tuple(
            replace(path, classes=tuple(("c", 1) for _ in HOSTILE)) for path in hostile.most_common
        ),
    )
    mark_wrong = tuple(replace(one, prediction=one.label) for one in harmless.instances)
    bad = Page(make_report(graph, hostile, collected.thumbnails).html)
    good = Page(
        make_report(graph, replace(harmless, instances=mark_wrong), collected.thumbnails).html
    )

    def skeleton(page: Page) -> list[tuple[str, list[str]]]:
        return [(tag, list(attrs)) for tag, attrs in page.tags]

    assert skeleton(bad) == skeleton(good)
    texts = "".join(bad.texts)
    for name in (*HOSTILE[:4], HOSTILE[6], HOSTILE[7], HOSTILE[8]):
        assert name in texts
    assert "bell\ufffdesc\ufffd[31mred" in texts
    assert "\ufffdgnp.exe\ufffd" in texts
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", "".join(texts))


def test_hostile_module_names_are_text() -> None:
    """Module paths come from the backbone's attributes, which may be any text."""
    net = build()
    path = "evil<script>alert(1)</script>\u202e\"'"
    graph = DynamicGraph(
        net.graph.name,
        stages=net.graph.stages.values(),
        nodes=[
            replace(node, module_path=path)
            for stage in net.graph.stages
            for node in net.graph.nodes(stage)
        ],
        edges=[edge for stage in net.graph.stages for edge in net.graph.edges(stage)],
    )
    atlas = collect_one(net)
    page = Page(make_report(graph, atlas, {}).html)
    assert len(page.all("script")) == 1
    assert "evil<script>alert(1)</script>\ufffd\"'" in "".join(page.texts)


def collect_one(net: DynamicNetwork, number: int = 3) -> Atlas:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_idx(Path(folder), "t10k", None, number)
        return collect_atlas(net, open_image_set(folder), num_instances=number).atlas


def test_json_says_the_same(made: tuple[DynamicGraph, Collected, Report]) -> None:
    graph, collected, report = made
    atlas, document = collected.atlas, json.loads(report.json)
    assert report.json.isascii()
    assert document["num_images"] == 24
    assert document["paths"]["num"] == atlas.num_paths
    assert document["macs"]["mean"] == atlas.mean_macs
    assert document["paths"]["entropy_bits"] == atlas.path_entropy_bits
    assert sum(one["images"] for one in document["macs"]["histogram"]) == 24
    (stage,) = document["stages"]
    assert [edge["frequency"] for edge in stage["edges"]] == list(atlas.frequencies["blocks"])
    assert [(edge["source"], edge["target"]) for edge in stage["edges"]] == [
        (e.source, e.target) for e in graph.edges("blocks")
    ]
    assert [one["frequencies"]["blocks"] for one in document["classes"]] == [
        list(one.frequencies["blocks"]) for one in atlas.classes
    ]
    assert [one["weights"]["blocks"] for one in document["instances"]] == [
        list(one.path.weights["blocks"]) for one in atlas.instances
    ]


def test_bins_are_joined_without_loss() -> None:
    for histogram in (
        [(100, 5)],
        [(3, 1), (420, 2)],
        [(place, place) for place in range(50, 211)],
        [(0, 1), (10**6, 1)],
    ):
        size, bars = group_bins(histogram)
        assert sum(bars.values()) == sum(number for _, number in histogram)
        assert len(bars) <= MAX_BARS + 1
        for place, number in histogram:
            assert bars[place // size] >= number
    assert group_bins([(100, 5)]) == (1, {100: 5})
    assert BINS_PER_STATIC == 200


def test_one_image_without_class_or_thumbnail() -> None:
    net = build()
    atlas = collect_one(net, 1)
    assert atlas.path_entropy_bits == 0
    assert atlas.num_paths == 1
    assert atlas.classes == ()
    report = make_report(net.graph, atlas, {})
    page = Page(report.html)
    assert 'id="classes"' not in report.html
    assert "no image" in "".join(page.texts)
    assert "1 image" in report.summary
    assert math.isfinite(json.loads(report.json)["macs"]["kept"])


def test_a_hundred_images_stay_small(tmp_path: Path) -> None:
    """Photos through a network of 12 blocks and 91 edges: thumbnails, diagrams and numbers within 5
    MB.
    """
    import skimage.data
    from small import Block, Net

    net = dggraph.convert(Net(Block, depth=12), torch.zeros(1, 3, 32, 32))
    from dggraph.models.preprocessing import Preprocess

    net.preprocess = Preprocess(input_size=(3, 32, 32))
    photo = Image.fromarray(skimage.data.chelsea())
    for index in range(100):
        photo.crop((index, index, index + 300, index + 200)).save(tmp_path / f"{index}.jpg")
    collected = collect_atlas(net, open_image_set(tmp_path), num_instances=100)
    report = write(net, collected)
    assert len(collected.atlas.instances) == 100
    assert 300_000 < len(report.html.encode()) < 5_000_000


def test_notebooks_show_it_in_a_frame_of_its_own(
    made: tuple[DynamicGraph, Collected, Report],
) -> None:
    report = made[2]
    shown = Page(report._repr_html_())
    ((tag, attrs),) = shown.tags
    assert tag == "iframe"
    assert attrs["sandbox"] == "allow-scripts"
    assert attrs["srcdoc"] == report.html
    broken = Report(summary="s", html=None, json="")  # type: ignore[arg-type]
    assert "cannot be shown" in broken._repr_html_()
    assert report.summary in repr(report)
    assert str(report) == report.summary


def test_the_command(capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "helpers"))
    paint(tmp_path / "set", 3)
    (tmp_path / "set" / "bee" / "00.png").write_bytes(b"")
    (tmp_path / "my_small.py").write_text(
        "import torch\nfrom small import Net\n\ndef build():\n    torch.manual_seed(0)\n    return"
        " Net()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ("atlas", "my_small:build", "set", "--input-size", "16", "-o", "out/report.html")
    code, out, err = run(capsys, *arguments)
    assert code == 4
    assert "bee/00.png" in err
    assert "--on-bad-image skip" in err
    assert out == ""
    assert err.count("\n") == 1
    assert (tmp_path / "out" / "report.state").is_file()
    code, out, _ = run(capsys, *arguments, "--on-bad-image", "skip", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["num_images"] == 8
    assert facts["num_skipped"] == 1
    assert facts["kept"] > 1
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "report.html",
        "report.json",
    ]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["num_images"] == 8
    Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    code, out, _ = run(capsys, *arguments, "--on-bad-image", "skip", "--limit", "4")
    assert code == 0
    assert "4 images" in out
    assert "one path" in out.replace("\n", " ")
    (tmp_path / "out" / "other.json").write_text('{"mine": 1}')
    (tmp_path / "out" / "folder.html").mkdir()
    for name, message in (("other.html", "no atlas of ours"), ("folder.html", "is a folder")):
        code, _, err = run(capsys, *arguments, "-o", f"out/{name}")
        assert code == 4
        assert message in err
        assert err.count("\n") == 1
    assert (tmp_path / "out" / "other.json").read_text() == '{"mine": 1}'
    for more, message in (
        (["-o", "report.txt"], ".html"),
        (["--limit", "0"], "--limit"),
        (["--instances", "999"], "--instances"),
    ):
        code, _, err = run(capsys, *arguments, *more)
        assert code in (2, 4)
        assert message in err


def test_the_documented_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "flowers", 1)
    (code,) = [one.code for one in read_blocks("docs/atlas.md") if one.language == "python"]
    exec(compile(code, "docs/atlas.md", "exec"), {"__name__": "documentation"})
    assert (tmp_path / "report.html").stat().st_size > 20_000
