"""Tables and sections of text, for console and page."""

import math
from dataclasses import dataclass

from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table as RichTable


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        caption: Description of its figures.
        columns: Column headers; the first column names the rows.
        rows: Cells.
        strong: Indices of rows to highlight.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    strong: tuple[int, ...] = ()


@dataclass(frozen=True)
class Section:
    """A question and its answer: one of the five measurements of an audit, or a comparison.

    Attributes:
        title: The question.
        lead: The answer in a sentence or two.
        tables: Its figures.
        notes: Remarks on them.
        chart: A chart of them, as SVG.
    """

    title: str
    lead: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()
    chart: Markup | None = None


def print_section(console: Console, section: Section) -> None:
    """Print a section, without its chart."""
    console.print(f"\n{section.title}", style="bold")
    console.print(section.lead)
    for table in section.tables:
        print_table(console, table)
    for note in section.notes:
        console.print(note, style="dim")


def print_table(console: Console, table: Table) -> None:
    """Print one table."""
    drawn = RichTable(title=table.caption, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    # Do not break names within words if there is room for the figures.
    longest = max((len(word) for row in table.rows for word in row[0].split()), default=0)
    width = min(longest, 24 if console.width >= 100 else 12) if console.width >= 76 else None
    for number, column in enumerate(table.columns):
        if number == 0:
            drawn.add_column(column, justify="left", overflow="fold", min_width=width)
        else:
            drawn.add_column(column, justify="right", overflow="fold")
    for number, row in enumerate(table.rows):
        drawn.add_row(*row, style="bold" if number in table.strong else None)
    console.print(drawn)


def share(value: float | None, digits: int = 1) -> str:
    """A share in percent; a dash if there is none."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}\u00a0%"


def size(value: float) -> str:
    """The size of a change; "exactly 0" if there is none."""
    if not math.isfinite(value):
        return "not finite"
    return "exactly 0" if value == 0 else f"{value:.2g}"
