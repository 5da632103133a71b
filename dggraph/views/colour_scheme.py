"""Colours of an SVG on dark pages.

Attributes have the light colours, which every program can show. A style sheet in the SVG replaces
them where it is drawn in dark: it follows the page, or is fixed. It reaches elements inside the
class `SCHEMED` alone, so photos and what is drawn on them stay as they are, and so does the rest of
a page that has the SVG in its text.
"""

from collections.abc import Mapping
from typing import Literal

Scheme = Literal["auto", "light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("auto", "light", "dark")
SCHEMED = "dggraph-scheme"
DARK: Mapping[str, str] = {
    "#ffffff": "#12171c",
    "#fbfcfd": "#181e25",
    "#dfe4ea": "#313b45",
    "#1f2933": "#e3e8ed",
    "#5f6c79": "#9caab7",
    "#cbd2d9": "#3f4b56",
    "#9fb3c8": "#5c7186",
    "#0b6e8a": "#58b8d2",
    "#96610f": "#e5b567",
    "#d55e00": "#ff9350",
    "#0072b2": "#63aef0",
    "#e6f2f5": "#17343e",
    "#fdf3e1": "#2f2716",
    "#b8c1ca": "#4a5661",
    "#f1f3f5": "#1c232a",
    "#6b7784": "#8793a0",
    "#fbe6d8": "#43281a",
    "#dcebf6": "#1b3247",
}
"""Dark colour of every light one."""


def write_style(scheme: Scheme) -> str:
    """Return the `style` element for `auto`, which asks the page, or for `dark`; else nothing."""
    if scheme == "light":
        return ""
    rules = "".join(
        f'.{SCHEMED} [{name}="{light}"]{{{name}:{dark}}}'
        for light, dark in DARK.items()
        for name in ("fill", "stroke")
    )
    inner = rules if scheme == "dark" else f"@media (prefers-color-scheme: dark){{{rules}}}"
    return f"<style>{inner}</style>"
