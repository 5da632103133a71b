"""A plain HTML table, for notebooks: every cell escaped, no style of its own."""

from collections.abc import Iterable, Sequence

from dggraph.views.escaping import for_xml


def html_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = ""
) -> str:
    """A table with one header row.

    Args:
        header: names of the columns.
        rows: cells, shown as `str` shows them.
        caption: a line above it.
    """
    head = "".join(f"<th>{for_xml(name)}</th>" for name in header)
    body = "".join(
        f"<tr>{''.join(f'<td>{for_xml(str(cell))}</td>' for cell in row)}</tr>" for row in rows
    )
    title = f"<caption>{for_xml(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
