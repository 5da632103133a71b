"""HTML from templates: what is printed is escaped unless a picture was drawn, and nothing is left
out in silence.
"""

import re
import subprocess
import sys
from importlib.resources import files

import pytest
from jinja2 import UndefinedError
from markup import HOSTILE, Page

from dggraph.views.escaping import visible
from dggraph.views.html_page import render
from dggraph.views.html_table import html_table

TEMPLATES = sorted(
    (file.name, file.read_text(encoding="utf-8"))
    for file in (files("dggraph.views") / "templates").iterdir()
)


@pytest.mark.parametrize("name", HOSTILE)
def test_cells_stay_text(name: str) -> None:
    page = Page(html_table((name, "b"), [(name, 1), (None, 2.5)], caption=name))
    assert [tag for tag, _ in page.tags].count("td") == 4
    assert "".join(page.texts).count(visible(name)) == 3
    assert {tag for tag, _ in page.tags} <= {
        "div", "table", "caption", "thead", "tbody", "tr", "th", "td"
    }  # fmt: skip


def test_a_value_that_is_not_given_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="caption"):
        render("table.html", header=[], rows=[])


@pytest.mark.parametrize(("name", "source"), TEMPLATES)
def test_only_what_the_package_made_goes_in_as_markup(name: str, source: str) -> None:
    """`|safe` for the page's own policy, style and script; `|svg` for what `views` drew."""
    assert set(re.findall(r"(\w+)\|safe", source)) <= {"policy", "style", "script"}
    assert set(re.findall(r"([\w.]+)\|svg", source)) <= {
        "curves", "costs.histogram", "map", "one.map", "diagram", "one.diagram",
        "one.outlined", "chart", "sample", "picture", "threshold_chart",
        "macs_chart",
    }  # fmt: skip
    assert "autoescape" not in source


def test_importing_the_package_does_not_import_the_templates() -> None:
    code = "import sys, dggraph.views.report, dggraph.cli.main; assert 'jinja2' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 0
