"""Tables on a terminal: fitted to it, or as lines with every name in full."""

from __future__ import annotations

import sys
from collections.abc import Sequence, Set

from weft.core.texts import printable
from weft.runs.text import columns

Cells = list[list[str]]
Places = Set[tuple[int, int]]


def print_table(
    title: str,
    heads: list[str],
    rows: Cells,
    note: str = "",
    best: Places = frozenset(),
    left: Sequence[int] = (0,),
) -> None:
    """Print a table: fitted to the terminal if there is one, else with every name in full.

    Args:
        title: line above the table.
        heads: names of the columns.
        rows: texts of the cells.
        note: line below the table.
        best: cells (row, column) that a terminal shows in bold.
        left: columns whose texts begin at the left; on a narrow terminal they are folded.
    """
    flush_left = set(left)
    # Names of clients, labels and reasons were written by others, who must not write to the terminal.
    heads, *rows = ([printable(cell, len(cell)) for cell in row] for row in (heads, *rows))
    if not (sys.stdout.isatty() and _draw(title, heads, rows, flush_left, best)):
        print(title)
        for cells in columns([heads, *rows], flush_left):
            print(f"  {cells}")
    if note:
        print(f"  {note}")
    print()


def _draw(title: str, heads: list[str], rows: Cells, flush_left: set[int], best: Places) -> bool:
    """Draw a table on the terminal; return False, and draw nothing, if it is too wide."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    least = [min(width, 20) if column in flush_left else width for column, width in enumerate(widths)]
    if sum(least) + 3 * len(heads) > console.width:  # 3: the border and padding of a column
        return False
    table = Table(title=Text(title), title_justify="left")
    for number, head in enumerate(heads):
        if number in flush_left:
            table.add_column(Text(head), overflow="fold")
        else:
            table.add_column(Text(head), justify="right", no_wrap=True)
    for number, row in enumerate(rows):
        styles = ["bold" if (number, place) in best else "" for place in range(len(row))]
        table.add_row(*(Text(cell, style) for cell, style in zip(row, styles, strict=True)))
    console.print(table)
    return True
