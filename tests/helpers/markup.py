"""Pages of HTML read back, and the names that must not become part of them."""

from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "link", "img", "br", "input", "rect", "path", "use"}
HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "a'b\"c&amp;]]>-->",
    "[bold red]x[/bold red][/b]",
    "bell\x07esc\x1b[31mred",
    "\u202egnp.exe\u2066",
    "back\\slash\\N{GRINNING FACE} \\",
    "</title></style></script><svg onload=alert(1)>",
    "y" * 300,
)


class Page(HTMLParser):
    """Every tag, attribute and text of a document; tags must nest."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice: {attrs}"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open, tag
            assert self.open.pop() == tag, tag
        elif tag == "use":
            return

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str, kind: str | None = None) -> list[dict[str, str]]:
        return [
            attrs
            for one, attrs in self.tags
            if one == tag and (kind is None or kind in attrs.get("class", "").split())
        ]
