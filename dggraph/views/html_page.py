"""One HTML file that needs nothing else: style sheet and script inside, and a policy that lets the
browser run no other and fetch nothing.
"""

import base64
import hashlib
from functools import cache
from importlib.resources import files

from dggraph.views.escaping import for_xml


def write_page(title: str, body: str, script: str | None = None) -> str:
    """A whole document.

    Args:
        title: plain text.
        body: HTML whose names are escaped.
        script: runs at the end of the body; the page must be readable without.
    """
    style = asset("report.css")
    runs = "'none'" if script is None else f"'sha256-{_hash(script)}'"
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_hash(style)}'; script-src {runs}; "
        "base-uri 'none'; form-action 'none'"
    )
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            f"<title>{for_xml(title)}</title>",
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            body,
            *(() if script is None else (f"<script>{script}</script>",)),
            "</body>",
            "</html>",
            "",
        )
    )


@cache
def asset(name: str) -> str:
    """A text file of the package."""
    return (files("dggraph") / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
