"""A plain HTML table, for notebooks: every cell escaped, no style sheet of its own."""

from collections.abc import Iterable, Sequence

from dggraph.views.html_page import render


def html_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = ""
) -> str:
    """A table with one header row.

    Args:
        header: names of the columns.
        rows: cells, shown as `str` shows them.
        caption: a line above it.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    return render("table.html", header=header, rows=cells, caption=caption)
