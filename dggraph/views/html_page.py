"""HTML from the templates in this package, in one jinja2 environment.

Everything that a template prints is made visible and escaped. Only `|svg` skips this, for pictures
from `views`, whose code escapes text itself. Pictures are not templates: an SVG is nearly all
geometry, which is computed as it is written.
"""

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Literal

from dggraph.views.escaping import count, plural, visible

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def render(template: str, **values: object) -> str:
    """Return the HTML of a template.

    Args:
        template: Its file name.
        values: The values that it prints, by name.
    """
    return _environment().get_template(template).render(**values)


def write_page(
    template: str,
    title: str,
    script: str = "",
    *,
    styles: Sequence[str] = ("report.css",),
    fetches: Literal["nothing", "own server"] = "nothing",
    **values: object,
) -> str:
    """Return a complete HTML document without external resources.

    Style sheet and script are part of it, and its content policy makes the browser run no other
    script.

    Args:
        template: A template that extends `page.html`.
        title: Plain text.
        script: Runs at the end of the body; reports must be readable without it.
        styles: The style sheets, by file name.
        fetches: What the policy lets the page ask for: nothing, or the server that it comes from.
        values: The values that the template prints, by name.
    """
    style = "".join(asset(name) for name in styles)
    runs = f"'sha256-{_hash(script)}'" if script else "'none'"
    images = "data:" if fetches == "nothing" else "data: 'self'"
    connections = "" if fetches == "nothing" else "connect-src 'self'; "
    policy = (
        f"default-src 'none'; img-src {images}; style-src 'sha256-{_hash(style)}'; script-src"
        f" {runs}; {connections}base-uri 'none'; form-action 'none'"
    )
    return render(template, title=title, policy=policy, style=style, script=script, **values)


@cache
def asset(name: str) -> str:
    """Return the content of a text file of the package."""
    return (files("dggraph") / "assets" / name).read_text(encoding="utf-8")


def percent(share: float, *, digits: int = 1) -> str:
    """Return for example `61.3 %`, with a no-break space."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined  # 60 ms that few calls need
    from markupsafe import Markup

    def name(text: str) -> "Markup":
        """Isolate an untrusted name, so it cannot change the direction of the text around it."""
        return Markup("<bdi>{}</bdi>").format(visible(text))

    def code(text: str) -> "Markup":
        """Format text between backticks in a sentence as code."""
        return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(visible(text))))

    def quoted(document: str) -> "Markup":
        """Quote a document for an attribute, and keep its line breaks."""
        return Markup(html.escape(document))

    environment = Environment(
        loader=PackageLoader("dggraph.views"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "code": code,
        "count": count,
        "grouped": "{:,}".format,
        "name": name,
        "percent": percent,
        "plural": plural,
        "quoted": quoted,
        "svg": Markup,
    }
    return environment
