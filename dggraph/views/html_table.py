"""A plain HTML table for notebooks, with every cell escaped and no style sheet."""

from collections.abc import Iterable, Sequence

from dggraph.views.html_page import render


def html_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = ""
) -> str:
    """Return a table with one header row.

    Args:
        header: Names of the columns.
        rows: Cells, shown as by `str`.
        caption: A line above the table.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    return render("table.html", header=header, rows=cells, caption=caption)
