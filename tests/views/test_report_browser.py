"""The report in a real browser: it filters and switches images, by mouse and by keyboard, complains
of nothing and asks nobody for anything.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from headless import headless_browser, needs_chromium, requests
from small import Net, X
from toy_atlas import build, hostile_atlas, paint

import dggraph
from dggraph.data.image_sets import open_image_set
from dggraph.evaluation.atlas import Collected, collect_atlas
from dggraph.graph.detection import Detected, Detection
from dggraph.views.captions import make_frame
from dggraph.views.html_table import html_table
from dggraph.views.picture import picture_graph
from dggraph.views.report import make_report

pytest.importorskip(
    "selenium.webdriver", reason="selenium is not here: pip install 'dggraph[test]'"
)
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Collected:
    photos = paint(tmp_path_factory.mktemp("set") / "photos", 8)
    return collect_atlas(build(), open_image_set(photos, build().labels), num_instances=9)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with headless_browser() as driver:
        yield driver


@pytest.fixture
def page(browser: Any, collected: Collected, tmp_path: Path) -> Any:
    """The report, opened from a file."""
    report = make_report(build().graph, collected.atlas, collected.thumbnails)
    return open_page(browser, tmp_path / "report.html", report.html)


def open_page(browser: Any, file: Path, html: str) -> Any:
    file.write_text(html, encoding="utf-8")
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(file.as_uri())
    return browser


def shown(page: Any) -> list[str]:
    """Which images can be seen."""
    found: list[str] = page.execute_script(
        "return [...document.querySelectorAll('.instance')].filter((one) =>"
        " one.checkVisibility()).map((one) => one.id)"
    )
    return found


def choose(page: Any, where: str, value: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(page.find_element("id", where)).select_by_value(value)


def test_images_are_switched_and_filtered(page: Any, collected: Collected) -> None:
    from selenium.webdriver.common.keys import Keys

    instances = collected.atlas.instances
    ids = [f"image-{one.index}" for one in instances]
    matches = page.find_element("id", "matches")
    assert shown(page) == ids[:1]
    assert matches.text == f"1 of {len(ids)}"
    page.find_element("id", "next").click()
    assert shown(page) == ids[1:2]
    page.find_element("id", "previous").click()
    page.find_element("id", "previous").click()
    assert shown(page) == ids[-1:], "before the first comes the last"
    page.find_element("id", "next").send_keys(Keys.ENTER)
    page.find_element("id", "pick").send_keys(Keys.ARROW_DOWN)
    assert shown(page) == ids[1:2], "by keyboard"

    page.find_element("id", "every").click()
    assert shown(page) == ids
    assert matches.text == f"{len(ids)} of {len(ids)} images"
    choose(page, "class", "bee")
    bees = [f"image-{one.index}" for one in instances if one.label == "bee"]
    assert shown(page) == bees
    assert 0 < len(bees) < len(ids)
    choose(page, "class", "")
    choose(page, "kind", "cheapest")
    assert shown(page) == sorted(
        (f"image-{index}" for index in collected.atlas.cheapest), key=ids.index
    )
    choose(page, "kind", "wrong")
    assert shown(page) == [f"image-{one.index}" for one in instances if one.label != one.prediction]
    choose(page, "kind", "")
    search = page.find_element("id", "search")
    search.send_keys("ELK/0")
    assert shown(page) == [f"image-{one.index}" for one in instances if one.label == "elk"]
    search.send_keys("zzz")
    assert shown(page) == []
    assert matches.text == f"0 of {len(ids)} images"
    search.clear()
    search.send_keys(Keys.SPACE)
    assert shown(page) == ids

    page.find_element("id", "every").click()
    link = page.find_element("css selector", ".extremes a")
    link.click()
    wanted = link.get_attribute("href").partition("#")[2]
    deadline = time.monotonic() + 5
    while shown(page) != [wanted] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert shown(page) == [wanted], "a small image leads to its path"

    assert page.get_log("browser") == []
    assert requests(page) == [page.current_url.partition("#")[0]]


def test_the_policy_lets_nothing_else_run_or_load(page: Any) -> None:
    """Even markup that got in would neither run nor ask for anything."""
    page.execute_script(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.got = 1\"><a"
        ' id=trap style="color:red" onclick="window.got = 2">x</a><iframe'
        " src=\"http://127.0.0.1:9/\"></iframe>');const one = document.createElement('script');"
        " one.textContent = 'window.got = 3';"
        " document.body.append(one);document.getElementById('trap').click();"
    )
    time.sleep(0.3)
    assert page.execute_script("return window.got") is None
    assert not [url for url in requests(page) if not url.startswith("file:")]


def test_hostile_names_do_nothing(browser: Any, collected: Collected, tmp_path: Path) -> None:
    report = make_report(build().graph, hostile_atlas(collected), collected.thumbnails)
    page = open_page(browser, tmp_path / "hostile.html", report.html)
    page.find_element("id", "every").click()
    assert len(shown(page)) == len(collected.atlas.instances)
    assert page.execute_script("return document.scripts.length") == 1
    assert page.get_log("browser") == []
    assert requests(page) == [page.current_url]
    for width in (390, 1200):
        page.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        assert page.execute_script("return document.documentElement.scrollWidth") <= width, (
            "nothing sticks out"
        )
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_outlined_objects_are_shown_on_their_images(
    browser: Any, collected: Collected, tmp_path: Path
) -> None:
    """Within the image, over it, and found by their class; at both widths nothing sticks out."""
    box = Detection(corners=(4, 4, 12, 12), label=3, name="<b>bird</b>\u202e", score=0.75)
    instances = tuple(
        replace(one, detected=Detected(size=(16, 16), objects=(box,) * (place % 2)))
        for place, one in enumerate(collected.atlas.instances)
    )
    report = make_report(
        build().graph, replace(collected.atlas, instances=instances), collected.thumbnails
    )
    page = open_page(browser, tmp_path / "objects.html", report.html)
    page.find_element("id", "every").click()
    page.find_element("id", "search").send_keys("<b>bird")
    assert shown(page) == [f"image-{one.index}" for one in instances[1::2]]
    for width in (390, 1200):
        page.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        image, outline = (
            page.execute_script(
                f"return document.querySelector('#image-{instances[1].index} .head"
                f" {what}').getBoundingClientRect()"
            )
            for what in ("image", ".objects rect:last-child")
        )
        assert outline["left"] - image["left"] == pytest.approx(image["width"] / 4, abs=2.5)
        assert outline["top"] - image["top"] == pytest.approx(image["height"] / 4, abs=2.5)
        assert page.execute_script("return document.documentElement.scrollWidth") <= width, (
            "nothing sticks out"
        )
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert page.get_log("browser") == []
    assert requests(page) == [page.current_url]


def test_without_scripts_everything_is_there(
    browser: Any, collected: Collected, tmp_path: Path
) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page = open_page(
            browser,
            tmp_path / "plain.html",
            make_report(build().graph, collected.atlas, collected.thumbnails).html,
        )
        seen = [one for one in page.find_elements("class name", "instance") if one.is_displayed()]
        assert len(seen) == len(collected.atlas.instances)
        assert not page.find_element("id", "tools").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("width", [390, 1000])
def test_notebooks_clip_no_picture_and_no_table(browser: Any, tmp_path: Path, width: int) -> None:
    """In a cell that hides what sticks out, everything can be seen or scrolled to."""
    net = dggraph.convert(Net(depth=12), X)
    shown = (
        net.graph._repr_html_(),
        dggraph.render(net.graph)._repr_mimebundle_()["text/html"],
        html_table(("stage", "a note of some length"), [("x" * 60, "y" * 60)]),
    )
    cells = "".join(f'<div class="cell">{html}</div>' for html in shown)
    style = f"<style>body {{ margin: 0 }} .cell {{ width: {width}px; overflow: hidden }}</style>"
    page = open_page(browser, tmp_path / "notebook.html", f"<!DOCTYPE html>{style}{cells}")
    widths = page.execute_script(
        "return [...document.querySelectorAll('.cell')].map((cell) => [cell.scrollWidth,"
        " cell.firstElementChild.scrollWidth])"
    )
    assert [cell for cell, _ in widths] == [width] * len(shown), "nothing sticks out"
    whole = min(700, make_frame(picture_graph(net.graph)).width)
    assert whole > 390
    assert all(inside >= whole for _, inside in widths[:2]), "nothing shrinks until unreadable"


def test_edges_and_blocks_filter_the_images(page: Any, collected: Collected) -> None:
    """A cell, a block and an edge of the list leave the images that use it."""
    from selenium.webdriver.common.keys import Keys

    graph, instances = build().graph, collected.atlas.instances
    page.find_element("id", "every").click()
    ids = shown(page)
    edges = graph.edges("blocks")
    users = {
        place: [f"image-{one.index}" for one in instances if one.path.weights["blocks"][place] != 0]
        for place in range(len(edges))
    }
    place = next(place for place in users if 0 < len(users[place]) < len(ids))
    cell = page.find_element("css selector", f".maps [data-edge='e0-{place}']")
    cell.click()
    assert shown(page) == users[place]
    assert f"{len(users[place])} of {len(ids)} images" in page.find_element("id", "picked").text
    page.find_element("id", "clear").click()
    assert shown(page) == ids
    cell.send_keys(Keys.SPACE)
    assert shown(page) == users[place], "by keyboard"
    cell.send_keys(Keys.SPACE)
    assert shown(page) == ids

    for button in page.find_elements("css selector", "#health [data-pick]"):
        button.click()
        number = int(button.get_attribute("data-pick").partition("-")[2])
        name = graph.nodes("blocks")[number].name
        assert shown(page) == [
            f"image-{one.index}" for one in instances if name in one.path.useful_nodes(graph)
        ]
        button.click()
    page.find_element("css selector", ".most summary").click()
    (first, *_) = page.find_elements("css selector", ".most [data-pick]")
    first.click()
    assert shown(page) == users[int(first.get_attribute("data-pick").partition("-")[2])]
    assert page.get_log("browser") == []
    assert requests(page) == [page.current_url.partition("#")[0]]
