"""Help in sections: an option says which one it belongs to.

click has no groups of options. The libraries that add them bring more than these few lines (rich's
import alone costs as much as all of `--help`), or are not maintained.
"""

from collections.abc import Sequence
from typing import Any

import click

SECTIONS = ("Model", "Data", "Augmentation", "Routing", "Optimisation", "Options")
"""In the order of the help."""


class SectionedOption(click.Option):
    """An option with a heading.

    Args:
        declarations: as of any option, and so is all else.
        section: one of `SECTIONS`.
    """

    def __init__(self, declarations: Sequence[str], section: str, **attributes: Any) -> None:
        super().__init__(declarations, **attributes)
        self.section = section


class SectionedCommand(click.Command):
    """A command whose help has a section for each heading that its options bear."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, those without a heading last."""
        rows: dict[str, list[tuple[str, str]]] = {section: [] for section in SECTIONS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                rows[getattr(parameter, "section", "Options")].append(record)
        for section, records in rows.items():
            if records:
                with formatter.section(section):
                    formatter.write_dl(records)
