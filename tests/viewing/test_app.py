"""The routes of the page: who may ask, what is answered, and what is left of what they did."""

import base64
import hashlib
import html
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from markup import HOSTILE, Page
from PIL import Image
from small import Net, X

pytest.importorskip("flask", reason="Flask is not here: pip install 'dggraph[view]'")
pytest.importorskip("waitress", reason="waitress is not here: pip install 'dggraph[view]'")

from toy_atlas import build, paint
from toy_page import HOST, TOKEN, Client, make_page

import dggraph
from dggraph.viewing.confinement import MAX_BYTES
from dggraph.viewing.runs import Runs


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("set") / "photos", 3)


@pytest.fixture(scope="module")
def made(photos: Path) -> tuple[Client, Runs]:
    app, runs = make_page(photos)
    return Client(app), runs


@pytest.fixture
def page(made: tuple[Client, Runs]) -> Client:
    return made[0]


def png(colour: tuple[int, int, int] = (9, 99, 200)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 16), colour).save(stream, "PNG")
    return stream.getvalue()


def test_only_who_knows_the_token_and_names_this_host_is_answered(page: Client) -> None:
    assert page.get("").status_code == 200
    for host in ("evil.example:8000", "127.0.0.1", "127.0.0.1:9", "", f"{HOST}.evil.example"):
        answer = page.get("images", Host=host)
        assert answer.status_code == 403, host
        assert "png" not in answer.text
    for path in ("/", f"/{TOKEN}x/", "/wrong/images", "/wrong/images/0/thumbnail", "/static/x"):
        assert page.inner.get(path, headers={"Host": HOST}).status_code == 404, path
    for origin in ("http://evil.example", "null", "https://127.0.0.1:8000"):
        assert page.post("images?name=x", png(), Origin=origin).status_code == 403, origin
    assert page.post("images?name=x", png(), Origin=f"http://{HOST}").status_code == 201


def test_the_page_runs_its_own_script_and_asks_its_own_server(page: Client) -> None:
    answer = page.get("")
    document = Page(answer.text)
    for tag, attrs in document.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            assert name != "style", (tag, name)
            if name in ("src", "href", "action"):
                assert value.startswith(("data:", "#")), (tag, name, value)
    (policy,) = (
        attrs["content"]
        for attrs in document.all("meta")
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; img-src data: 'self'; ")
    assert "connect-src 'self'; base-uri 'none'; form-action 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    for path in ("", "images", "images/0/card", "images/0/thumbnail", "images/99/path"):
        headers = page.get(path).headers
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in headers


def test_everything_has_a_label_and_a_place_to_be_heard(page: Client) -> None:
    document = Page(page.get("").text)
    ids = [attrs["id"] for _, attrs in document.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    labelled = {attrs["for"] for attrs in document.all("label") if "for" in attrs}
    assert "file" in labelled
    assert {attrs.get("role") for attrs in document.all("p")} >= {"status", "alert"}
    assert [attrs["lang"] for attrs in document.all("html")] == ["en"]
    for attrs in document.all("svg"):
        assert attrs.get("aria-label") or attrs.get("aria-hidden")


@pytest.mark.parametrize("step", [None, 0, 30, 50, 80, 99])
def test_a_path_is_the_network_s_own_at_that_threshold(
    made: tuple[Client, Runs], photos: Path, step: int | None
) -> None:
    page, runs = made
    net, entries = build(), json.loads(page.get("images").text)
    if step is not None:
        net.set_threshold(step / 100)
    for entry in entries[:4]:
        (path,) = dggraph.record(net, str(photos / entry["name"])).paths
        query = "" if step is None else f"?step={step}"
        facts = json.loads(page.get(f"images/{entry['number']}/path{query}").text)
        assert facts["ratio"] == path.macs / net.macs_table.static
        assert facts["edges"] == [
            f"e0-{place}" for place, weight in enumerate(path.weights["blocks"]) if weight != 0
        ]
        useful = path.useful_nodes(net.graph)
        assert facts["nodes"] == [
            f"n0-{place}"
            for place, node in enumerate(net.graph.nodes("blocks"))
            if node.kind == "block" and node.name in useful
        ]
    assert runs.own_thresholds == (0.5,)
    assert dggraph.record(runs.predictor.net, X[:1] * 0).paths is not None
    after = build()
    weights = [dggraph.record(one, X).paths for one in (runs.predictor.net, after)]
    assert weights[0] == weights[1], "the network is as it was"


def test_a_higher_threshold_drops_edges_and_saves_macs(page: Client) -> None:
    low, high = (json.loads(page.get(f"images/0/path?step={step}").text) for step in (20, 90))
    assert set(high["edges"]) < set(low["edges"])
    assert high["ratio"] < low["ratio"]


def test_a_card_says_prediction_and_path(page: Client, photos: Path) -> None:
    net, (entry, *_) = build(), json.loads(page.get("images").text)
    found = dggraph.explain(net, str(photos / entry["name"]))
    text = html.unescape(page.get("images/0/card").text)
    for one in found.predictions:
        assert one.label in text
        assert f"{one.probability:.2f}" in text
    assert f"{100 * found.macs_ratio:.1f}\u00a0%" in text
    drawn = re.findall(r'<use href="#e0-(\d+)">', text)
    active = [place for place, one in enumerate(found.path.weights["blocks"]) if one != 0]
    assert sorted(map(int, drawn)) == active


def test_a_difference_says_whose_edge_it_is(page: Client) -> None:
    first, second = (
        set(json.loads(page.get(f"images/{number}/path").text)["edges"]) for number in (0, 3)
    )
    text = page.get("difference/0/3").text
    groups = dict(re.findall(r'<g class="edges (\w+)">((?:<g .*?</g>)+)</g>', text))
    shown = {
        mark: {f"e0-{place}" for place in re.findall(r'"#e0-(\d+)"', inside)}
        for mark, inside in groups.items()
    }
    expected = {"first": first - second, "second": second - first, "both": first & second}
    assert expected["first"] or expected["second"]
    assert shown == {mark: edges for mark, edges in expected.items() if edges}


def test_a_dropped_photo_runs_like_a_file(page: Client, tmp_path: Path) -> None:
    content = png((250, 120, 3))
    (tmp_path / "one.png").write_bytes(content)
    answer = page.post("images?name=one.png", content)
    assert answer.status_code == 201
    number = json.loads(answer.text)["image"]["number"]
    facts = json.loads(page.get(f"images/{number}/path").text)
    (path,) = dggraph.record(build(), str(tmp_path / "one.png")).paths
    assert len(facts["edges"]) == sum(one != 0 for one in path.weights["blocks"])
    small = page.get(f"images/{number}/thumbnail")
    assert small.mimetype == "image/png"
    assert Image.open(io.BytesIO(small.data)).size == (20, 16)


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [(b"<svg>", 400, "SVG drawing"), (b"", 400, "empty"), (bytes(MAX_BYTES + 1), 413, "")],
)
def test_what_is_no_photo_is_refused_in_words(
    page: Client, content: bytes, code: int, says: str
) -> None:
    before = page.get("images").text
    answer = page.post("images?name=x", content)
    assert answer.status_code == code
    assert says in json.loads(answer.text)["error"]
    assert page.get("images").text == before


@pytest.mark.parametrize(
    "path",
    [
        "images/0/path?step=100", "images/0/path?step=-1", "images/0/path?step=1e1",
        "images/0/path?step=nan", "images/0/path?step=", "images/0/path?step=\u0663",
        "images/999/path", "images/999/card", "images/-1/card", "images/x/card",
        "difference/0/999", "images/../../etc/passwd", "images/0/thumbnail/..%2f..%2fetc",
    ],
)  # fmt: skip
def test_odd_requests_are_refused_in_words(page: Client, path: str) -> None:
    answer = page.get(path)
    assert answer.status_code in (400, 404), path
    assert json.loads(answer.text)["error"]


def test_hostile_names_are_text(tmp_path: Path) -> None:
    page = Client(make_page(None)[0])
    for place, name in enumerate(HOSTILE[:20]):
        answer = page.inner.post(
            f"/{TOKEN}/images", query_string={"name": name}, data=png(), headers={"Host": HOST}
        )
        assert answer.status_code == 201
        for path in (f"images/{place}/card", f"difference/{place}/{max(0, place - 1)}"):
            text = page.get(path).text
            tags = {tag for tag, _ in Page(text).tags}
            assert not tags & {"script", "b", "lambda", "map", "iframe"}, name
            assert "\u202e" not in text
            assert "\x1b" not in text


def test_a_fault_of_ours_is_told_without_its_inside(photos: Path, caplog: Any) -> None:
    app, runs = make_page(photos)

    def fail(*_: Any) -> Any:
        raise RuntimeError("a secret")

    object.__setattr__(runs, "at", fail)
    answer = Client(app).get("images/0/card")
    assert answer.status_code == 500
    assert "RuntimeError" in json.loads(answer.text)["error"]
    assert "secret" not in answer.text
    assert "a secret" in caplog.text, "the terminal says it"


def test_a_network_of_random_weights_says_so(photos: Path) -> None:
    net = dggraph.convert(Net(depth=3), X, router="node")
    net.preprocess = build().preprocess
    assert "Random weights" not in Client(make_page(photos, net=net)[0]).get("").text
    named = dggraph.convert("dggraph:resnet20_8")
    assert "Random weights" in Client(make_page(None, net=named)[0]).get("").text
