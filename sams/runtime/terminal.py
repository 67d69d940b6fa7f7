"""Tables in a terminal, a pipe or a file: as wide as it is, with every number complete."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LONG = 28
"""Wider cells are texts, which are wrapped; numbers with their errors and intervals are shorter."""
LEAST = 14
"""Least width of a column of texts: more than a number's."""
GAP = 2


class Readable(NamedTuple):
    """A table of text.

    Args:
        columns: headings.
        rows: rows of cells; each cell is a number, followed by its errors if it has any.
        names: number of the first columns, which say what a row is.
    """

    columns: list[str]
    rows: list[list[tuple[str, ...]]]
    names: int = 1


def print_table(
    title: str, table: Readable, notes: Sequence[str] = (), *, console: Console | None = None
) -> None:
    """Print a table and its notes; the columns for which a line has no room follow below, after the rows' names.

    Without a terminal lines have 80 characters, or `COLUMNS`.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    if title:
        console.print(Text(title, style="bold"))
    for part in _parts(table, console.width):
        console.print(part)
    print_list(notes)


def printable(text: str) -> str:
    """Return a text with marks in place of control characters, which a terminal obeys; line breaks stay."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text)


def print_list(lines: Sequence[str]) -> None:
    """Print sentences as a list."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, grid = Console(), Table.grid(padding=(0, 1, 0, 0))
    for line in lines:
        grid.add_row(" -", Text(line, overflow="fold"))
    if lines:
        console.print(grid)


def _parts(table: Readable, width: int) -> Iterator[Table]:
    """Yield the table in parts of a width; errors go below their numbers where one part has no room otherwise."""
    parts: list[list[int]] = []
    for join in (" ", "\n"):
        columns = [
            [head, *(join.join(cell) for cell in cells)]
            for head, *cells in zip(table.columns, *table.rows, strict=True)
        ]
        natural = [_natural(column) for column in columns]
        parts, least = _divided(natural, table.names, width)
        if len(parts) == 1 and _width(least) <= width:
            break
    for chosen in parts:
        widths = dict(zip(chosen, (least[index] for index in chosen), strict=True))
        spare = width - _width(widths.values())
        while spare > 0 and (short := [index for index in chosen if widths[index] < natural[index]]):
            widths[min(short, key=lambda index: widths[index])] += 1
            spare -= 1
        yield _part([columns[index] for index in chosen], list(widths.values()), natural, chosen)


def _natural(column: list[str]) -> int:
    """Return the width of the longest line of a column; its heading is wrapped between words."""
    from rich.cells import cell_len

    head, *cells = column
    lines = [line for cell in cells for line in cell.split("\n")]
    return max(map(cell_len, [*head.split(), *lines]), default=1)


def _divided(natural: list[int], names: int, width: int) -> tuple[list[list[int]], list[int]]:
    """Return the columns of each part, and the least width of each column."""
    share = max(8, width * 3 // 8 // names - GAP)
    least = [min(wide, share) for wide in natural[:names]]
    least += [wide if wide <= LONG else LEAST for wide in natural[names:]]
    first = list(range(names))
    parts = [first[:]]
    for index in range(names, len(natural)):
        if len(parts[-1]) > names and _width([least[i] for i in [*parts[-1], index]]) > width:
            parts.append(first[:])
        parts[-1].append(index)
    return parts, least


def _width(widths: Collection[int]) -> int:
    """Return the width of columns of these widths."""
    return sum(widths) + GAP * (len(widths) - 1)


def _part(columns: list[list[str]], widths: list[int], natural: list[int], chosen: list[int]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for (head, *_), width, index in zip(columns, widths, chosen, strict=True):
        shown.add_column(
            Text(head),
            width=width,
            justify="left" if index == 0 or natural[index] > LONG else "right",
            overflow="fold",
            vertical="top",
        )
    for row in zip(*(cells for _, *cells in columns), strict=True):
        shown.add_row(*map(Text, row))
    return shown
