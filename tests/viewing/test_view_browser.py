"""The page in a real browser: photos are dropped, the threshold moves, two are compared, an edge is
chosen; by mouse and by keyboard, without a complaint and without a request to anybody else.
"""

import base64
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from headless import headless_browser, needs_chromium, requests

pytest.importorskip(
    "selenium.webdriver", reason="selenium is not here: pip install 'dggraph[test]'"
)
pytest.importorskip("flask", reason="Flask is not here: pip install 'dggraph[view]'")
pytest.importorskip("waitress", reason="waitress is not here: pip install 'dggraph[view]'")
from toy_atlas import build, paint
from toy_page import served

import dggraph

pytestmark = needs_chromium

DROP = """
const moved = new DataTransfer();
for (const [name, content] of arguments[0]) {
  const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
  moved.items.add(new File([bytes], name));
}
document.body.dispatchEvent(
  new DragEvent("drop", {dataTransfer: moved, bubbles: true, cancelable: true}));
"""
"""A drag of files onto the page, which begins outside of the browser."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("set") / "photos", 3)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with headless_browser() as driver:
        yield driver


@pytest.fixture(scope="module")
def address(photos: Path) -> Iterator[str]:
    with served(photos) as (address, _):
        yield address


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page with all photos run; afterwards nobody else was asked, and nothing complained."""
    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(address)
    wait(browser, lambda: re.search(r"\b(\d+) of \1 photos have run", text(browser, "ran")))
    yield browser
    assert {url for url in requests(browser) if not url.startswith((address, "blob:"))} <= {
        "about:blank"
    }
    assert browser.get_log("browser") == []


def wait(page: Any, is_so: Callable[[], Any]) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(page, 300, 0.05).until(lambda _: is_so())


def text(page: Any, where: str) -> str:
    found: str = page.find_element("id", where).text
    return found


def gallery(page: Any) -> list[str]:
    """The names of the photos that are shown."""
    names: list[str] = page.execute_script(
        "return [...document.querySelectorAll('#gallery li')].filter((one) =>"
        " one.checkVisibility()).map((one) => one.querySelector('button').title)"
    )
    return names


def drawn(page: Any, card: int = 0) -> int:
    """How many edges a card draws as active."""
    number: int = page.execute_script(
        "return document.querySelectorAll('#cards .card')[arguments[0]].querySelectorAll('.active"
        " use').length",
        card,
    )
    return number


def move_threshold(page: Any, key: str, times: int) -> None:
    page.find_element("id", "threshold").send_keys(key * times)


def expected_active(file: Path, threshold: float = 0.5) -> int:
    net = build()
    net.set_threshold(threshold)
    return len(dggraph.record(net, str(file)).paths[0].active_edges(net.graph))


def test_a_dropped_photo_shows_its_path(page: Any, photos: Path) -> None:
    before, file = gallery(page), photos / "bee" / "01.png"
    page.execute_script(DROP, [(file.name, base64.b64encode(file.read_bytes()).decode())])
    wait(page, lambda: text(page, "told").startswith("01.png"))
    assert drawn(page) == expected_active(file)
    assert gallery(page) == [*before, "01.png"]


def test_a_chosen_file_shows_its_path_and_two_are_compared(page: Any, photos: Path) -> None:
    files = [photos / "elk" / "02.png", photos / "apple" / "01.png"]
    chooser = page.find_element("id", "file")
    chooser.send_keys(str(files[0]))
    wait(page, lambda: text(page, "told").startswith("02.png"))
    assert drawn(page) == expected_active(files[0])
    chooser.send_keys("\n".join(map(str, files)))
    wait(page, lambda: len(page.find_elements("css selector", "#cards .card")) == 2)
    assert [drawn(page, card) for card in (0, 1)] == [expected_active(file) for file in files]


def test_what_is_no_photo_is_told_and_the_page_goes_on(page: Any, tmp_path: Path) -> None:
    before = gallery(page)
    (tmp_path / "<b>notes.png").write_text("no photo")
    page.find_element("id", "file").send_keys(str(tmp_path / "<b>notes.png"))
    wait(page, lambda: "'<b>notes.png' is not an image" in text(page, "problem"))
    assert gallery(page) == before
    assert page.find_element("id", "problem").get_attribute("role") == "alert"
    page.get_log("browser")  # chromium notes each refused request there


def test_the_threshold_drops_edges_and_saves_macs(page: Any, photos: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    def ratio() -> float:
        return float(re.findall(r"([\d.]+)\s%", text(page, "told"))[0])

    file = photos / "apple" / "00.png"
    before, macs = drawn(page), ratio()
    assert before == expected_active(file)
    move_threshold(page, Keys.ARROW_RIGHT, 40)
    wait(page, lambda: drawn(page) == expected_active(file, 0.9))
    assert drawn(page) < before
    wait(page, lambda: ratio() < macs)
    assert text(page, "at") == "0.90"
    page.find_element("id", "own").click()
    wait(page, lambda: drawn(page) == before)
    assert text(page, "at") == "0.50"
    assert page.find_element("id", "told").get_attribute("role") == "status", "it is heard, too"


def test_two_photos_are_compared_side_by_side(page: Any, photos: Path) -> None:
    from selenium.webdriver.support.select import Select

    Select(page.find_element("id", "other")).select_by_visible_text("bee/00.png")
    wait(page, lambda: len(page.find_elements("css selector", "#cards .card")) == 2)
    assert drawn(page, 0) == expected_active(photos / "apple" / "00.png")
    assert drawn(page, 1) == expected_active(photos / "bee" / "00.png")
    left, right = (one.rect for one in page.find_elements("css selector", "#cards .card"))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    net = build()
    a, b = (
        set(dggraph.record(net, str(photos / name)).paths[0].active_edges(net.graph))
        for name in ("apple/00.png", "bee/00.png")
    )
    for mark, edges in (("first", a - b), ("second", b - a), ("both", a & b)):
        shown = page.find_elements("css selector", f"#difference .edges.{mark} use")
        assert len(shown) == len(edges), mark
    assert "apple/00.png" in text(page, "difference")


def users(photos: Path, place: int) -> list[str]:
    """The photos whose path uses the edge at that place."""
    net = build()
    names = sorted(str(one.relative_to(photos)) for one in photos.rglob("*.png"))
    return [
        name
        for name in names
        if dggraph.record(net, str(photos / name)).paths[0].weights["blocks"][place] != 0
    ]


def test_a_cell_a_block_and_an_edge_filter_the_photos(page: Any, photos: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    everything = gallery(page)[:9]
    sizes = [len(users(photos, place)) for place in range(10)]
    place = next(place for place, size in enumerate(sizes) if 0 < size < 9)
    cell = page.find_element("css selector", f".maps [data-edge='e0-{place}']")
    cell.click()
    assert [one for one in gallery(page) if "/" in one] == users(photos, place)
    assert cell.get_attribute("aria-pressed") == "true"
    assert f"{len(gallery(page))} of" in text(page, "filter-text")
    cell.click()
    assert gallery(page)[:9] == everything
    cell.send_keys(Keys.ENTER)
    assert [one for one in gallery(page) if "/" in one] == users(photos, place), "by keyboard"
    page.find_element("id", "clear").click()
    assert gallery(page)[:9] == everything

    for button in page.find_elements("css selector", "#use [data-pick^='n']"):
        button.click()
        key = button.get_attribute("data-pick")
        net = build()
        name = net.graph.nodes("blocks")[int(key.partition("-")[2])].name
        assert [one for one in gallery(page) if "/" in one] == [
            one
            for one in everything
            if name in dggraph.record(net, str(photos / one)).paths[0].useful_nodes(net.graph)
        ]
        button.click()
    (first, *_) = page.find_elements("css selector", "#edges button")
    first.click()
    place = int(first.get_attribute("data-pick").partition("-")[2])
    assert [one for one in gallery(page) if "/" in one] == users(photos, place)
    assert len(users(photos, place)) == max(sizes), "the most used edge comes first"


def test_arrow_keys_move_through_the_matrix(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    def focused() -> str:
        found: str = page.execute_script("return document.activeElement.dataset.edge")
        return found

    cells = page.find_elements("css selector", ".maps [data-edge]")
    assert [one.get_attribute("tabindex") for one in cells].count("0") == 1, "one stop for Tab"
    page.execute_script("arguments[0].focus()", cells[0])
    names = {one.get_attribute("data-edge"): one.get_attribute("data-name") for one in cells}
    for key, expected in (
        (Keys.ARROW_RIGHT, "stem → blocks.1"),
        (Keys.ARROW_DOWN, "blocks.0 → blocks.1"),
        (Keys.ARROW_LEFT, "blocks.0 → blocks.1"),
        (Keys.ARROW_RIGHT, "blocks.0 → blocks.2"),
        (Keys.ARROW_UP, "stem → blocks.2"),
    ):
        page.switch_to.active_element.send_keys(key)
        assert names[focused()] == expected


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_sticks_out(page: Any, width: int) -> None:
    from selenium.webdriver.support.select import Select

    Select(page.find_element("id", "other")).select_by_visible_text("bee/00.png")
    wait(page, lambda: len(page.find_elements("css selector", "#cards .card")) == 2)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_follows_the_dark_mode(page: Any) -> None:
    seen = []
    for mode in ("dark", "light"):
        features = [{"name": "prefers-color-scheme", "value": mode}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        seen.append(page.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert seen == ["rgb(18, 23, 28)", "rgb(255, 255, 255)"]
